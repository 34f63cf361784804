"""What users of other projects ask for, each beside what fails there.

The issues, and what to call, are in docs/wishes.md. The packages are those of the extra
``ecosystem``: a test is skipped where its package is absent.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.experimental import jet
from jax.experimental.ode import odeint

import fomoh_jax
from fomoh_jax import curvature, directions, solvers
from tests.reference import (
    assert_close,
    jitted,
    normal,
    second_jvp,
)

SMOOTH = 1e-9


def forward_hessian(fun):
    """By ``jax.jvp`` alone, as far as it can."""
    return jax.jit(jax.jacfwd(jax.jacfwd(fun)))


def flops_and_temporaries(fun, *args):
    compiled = jax.jit(fun).lower(*args).compile()
    memory = compiled.memory_analysis().temp_size_in_bytes
    return compiled.cost_analysis()["flops"], memory


# --- ordinary differential equations ------------------------------------------------

TIMES = jnp.linspace(0.0, 3.0, 4)
RATE_AND_CAPACITY = jnp.array([1.5, 1.8])


def growth(parameters):
    """Logistic growth from 0.1, in closed form."""
    rate, capacity = parameters
    return capacity / (1 + (capacity / 0.1 - 1) * jnp.exp(-rate * TIMES))


def integrated_growth(parameters, hmax=0.01):
    """The same by JAX's solver, whose adjoint is a ``custom_vjp``."""

    def field(y, t, parameters):
        rate, capacity = parameters
        return rate * y * (1 - y / capacity)

    start = jnp.array(0.1)
    return odeint(field, start, TIMES, parameters, rtol=1e-6, atol=1e-6, hmax=hmax)


def squares(solution):
    return lambda parameters: jnp.sum(solution(parameters) ** 2)


@pytest.mark.slow
def test_hessian_of_an_ode_solve_with_its_default_adjoint():
    loss, exact = squares(integrated_growth), squares(growth)
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.hessian(loss)(RATE_AND_CAPACITY)
    ours = jax.jit(fomoh_jax.hessian(loss))(RATE_AND_CAPACITY)
    expected = jax.jit(jax.hessian(exact))(RATE_AND_CAPACITY)
    assert_close(ours, expected, rtol=SMOOTH)


def test_hessian_of_a_driven_qubit_by_diffrax_with_its_default_adjoint():
    diffrax = pytest.importorskip("diffrax", reason="diffrax is not installed")
    duration = 2.0

    def field(t, bloch, frequencies):
        x, y, z = bloch
        drive, detuning = frequencies
        return jnp.array([-detuning * y, detuning * x - drive * z, drive * y])

    def inversion(frequencies):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Tsit5(),
            t0=0.0,
            t1=duration,
            dt0=0.01,
            y0=jnp.array([0.0, 0.0, 1.0]),
            args=frequencies,
            stepsize_controller=diffrax.PIDController(rtol=1e-11, atol=1e-11),
        )
        return solution.ys[-1, 2]

    def rabi(frequencies):
        drive, _ = frequencies
        frequency = jnp.sqrt(jnp.sum(frequencies**2))
        return 1 - 2 * (drive / frequency * jnp.sin(frequency * duration / 2)) ** 2

    frequencies = jnp.array([1.3, 0.4])
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.hessian(inversion)(frequencies)
    ours = jax.jit(fomoh_jax.hessian(inversion))(frequencies)
    assert_close(ours, jax.jit(jax.hessian(rabi))(frequencies), rtol=SMOOTH)


def growth_model(solution):
    """A numpyro model of what was seen of growth, and its energy in closed form."""
    numpyro = pytest.importorskip("numpyro", reason="numpyro is not installed")
    import numpyro.distributions as dist

    seen = jnp.array([0.1, 0.4, 1.1, 1.5])

    def model():
        rate = numpyro.sample("rate", dist.LogNormal(0.0, 1.0))
        capacity = numpyro.sample("capacity", dist.LogNormal(0.0, 1.0))
        grown = solution(jnp.array([rate, capacity]))
        numpyro.sample("seen", dist.Normal(grown, 0.1), obs=seen)

    def energy(logarithms):
        misfit = (growth(jnp.exp(logarithms)) - seen) / 0.1
        return (jnp.sum(misfit**2) + jnp.sum(logarithms**2)) / 2

    return model, energy


def test_laplace_approximation_of_a_numpyro_model_with_an_ode_in_it():
    model, energy = growth_model(jax.jit(integrated_growth))
    import numpyro
    from numpyro.infer.autoguide import AutoLaplaceApproximation
    from numpyro.infer.initialization import init_to_value

    def hessian_fn(potential, z):
        with pytest.raises(TypeError, match="custom_vjp"):
            jax.hessian(potential)(z)  # numpyro's default
        return jax.jit(fomoh_jax.hessian(potential))(z)

    rate, capacity = RATE_AND_CAPACITY
    start = init_to_value(values={"rate": rate, "capacity": capacity})
    guide = AutoLaplaceApproximation(model, init_loc_fn=start, hessian_fn=hessian_fn)
    numpyro.handlers.seed(guide, 0)()
    location = jnp.log(RATE_AND_CAPACITY)
    factor = guide.get_transform({"auto_loc": location}).scale_tril
    precision = jax.jit(jax.hessian(energy))(location)
    assert_close(factor @ factor.T, jnp.linalg.inv(precision), rtol=SMOOTH)


# --- roots and minima ---------------------------------------------------------------


def test_hessian_of_a_root_find_that_is_differentiated_step_by_step():
    optimistix = pytest.importorskip("optimistix", reason="optimistix is not installed")

    def root(a):
        function = lambda y, _: 4 * y**3 + 3 * y - a[0] * a[1]
        solver = optimistix.Newton(rtol=1e-12, atol=1e-12)
        options = {"adjoint": optimistix.RecursiveCheckpointAdjoint()}
        return optimistix.root_find(function, solver, jnp.array(0.5), **options).value

    a = jnp.array([0.7, 1.2])
    expected = jax.hessian(lambda a: jnp.sinh(jnp.arcsinh(a[0] * a[1]) / 3))(a)
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jacfwd(root)(a)
    assert_close(jax.jit(fomoh_jax.hessian(root))(a), expected, rtol=SMOOTH)


def with_an_adjoint_of_its_own(fun):
    """``fun``, as solvers have it: reverse mode has a rule, and forward mode none."""
    wrapped = jax.custom_vjp(fun)
    wrapped.defvjp(lambda x: (fun(x), x), lambda x, g: jax.vjp(fun, x)[1](g))
    return wrapped


def run(tx, params, steps, **arguments):
    @jax.jit
    def step(params, state):
        updates, state = tx.update(None, state, params, **arguments)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params, state


@pytest.mark.slow
def test_least_squares_through_a_custom_vjp():
    solution, seen = with_an_adjoint_of_its_own(growth), growth(RATE_AND_CAPACITY)
    start = jnp.array([1.0, 1.0])
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jacfwd(solution)(start)  # as Gauss and Newton's method has it
    tx = optax.chain(
        fomoh_jax.scale_by_hyperplane(
            directions.gaussian(2), solvers.trust_region(), curvature="gauss_newton"
        ),
        optax.scale(-1.0),
    )
    loss = lambda grown: jnp.sum((grown - seen) ** 2)
    fitted, _ = run(tx, start, 15, value_fn=loss, outputs_fn=solution)
    assert_close(fitted, RATE_AND_CAPACITY, rtol=SMOOTH)


def test_least_squares_of_optimistix_refuse_a_custom_vjp():
    optimistix = pytest.importorskip("optimistix", reason="optimistix is not installed")
    solution, seen = with_an_adjoint_of_its_own(growth), growth(RATE_AND_CAPACITY)
    residuals = lambda parameters, _: solution(parameters) - seen
    solver = optimistix.LevenbergMarquardt(rtol=1e-8, atol=1e-8)
    with pytest.raises(TypeError, match="custom_vjp"):
        optimistix.least_squares(residuals, solver, jnp.array([1.0, 1.0]))


# --- loops that reverse mode refuses ------------------------------------------------

ORBIT = jnp.array([0.4, 1.1])  # eccentricity and mean motion


def anomaly(mean, eccentricity):
    """Kepler's equation ``E - e sin E = M``, by Newton's method to convergence."""

    def step(found):
        residual = found - eccentricity * jnp.sin(found) - mean
        return found - residual / (1 - eccentricity * jnp.cos(found))

    far = lambda pair: jnp.max(jnp.abs(pair[0] - pair[1])) > 1e-12
    return lax.while_loop(far, lambda pair: (step(pair[0]), pair[0]), (mean, mean + 1))[
        0
    ]


def distances(orbit):
    eccentricity, motion = orbit
    found = anomaly(motion * jnp.array([0.3, 1.0, 2.0, 4.0]), eccentricity)
    return 1 - eccentricity * jnp.cos(found)


OBSERVED = jax.jit(distances)(ORBIT)


def orbit_loss(orbit):
    return jnp.sum((distances(orbit) - OBSERVED) ** 2)


AWAY = jnp.array([0.3, 1.0])


@pytest.mark.slow
def test_hessian_of_a_log_density_with_a_while_loop():
    with pytest.raises(ValueError, match="Reverse-mode"):
        jax.grad(orbit_loss)(AWAY)
    ours = jax.jit(fomoh_jax.hessian(orbit_loss))(AWAY)
    assert_close(ours, forward_hessian(orbit_loss)(AWAY), rtol=SMOOTH)


@pytest.mark.slow
def test_minima_through_a_while_loop():
    with pytest.raises(ValueError, match="Reverse-mode"):
        optax.value_and_grad_from_state(orbit_loss)(
            AWAY, state=optax.lbfgs().init(AWAY)
        )
    tx = optax.chain(
        fomoh_jax.scale_by_hyperplane(directions.coordinates(), solvers.trust_region()),
        optax.scale(-1.0),
        optax.keep_params_nonnegative(),
    )
    found, _ = run(tx, AWAY, 15, value_fn=orbit_loss)
    assert_close(found, ORBIT, rtol=SMOOTH)


@pytest.mark.slow
def test_newton_s_step_by_as_many_directions_as_parameters():
    matrix = forward_hessian(orbit_loss)(AWAY)
    slope = jax.jit(jax.jacfwd(orbit_loss))(AWAY)
    moved, _ = run(
        fomoh_jax.fomoh_kd(2, learning_rate=1.0), AWAY, 1, value_fn=orbit_loss
    )
    assert_close(moved, AWAY - jnp.linalg.solve(matrix, slope), rtol=SMOOTH)


def test_hamiltonian_monte_carlo_with_the_hessian_for_a_mass_matrix():
    numpyro = pytest.importorskip("numpyro", reason="numpyro is not installed")
    import numpyro.distributions as dist
    from numpyro.infer import HMC
    from numpyro.infer.util import potential_energy

    def model():
        eccentricity = numpyro.sample("eccentricity", dist.Beta(2.0, 2.0))
        motion = numpyro.sample("motion", dist.LogNormal(0.0, 1.0))
        seen = dist.Normal(distances((eccentricity, motion)), 0.05)
        numpyro.sample("seen", seen, obs=OBSERVED)

    @jax.jit
    def energy(z):  # of the logit and the logarithm
        values = {"eccentricity": z[0], "motion": z[1]}
        return potential_energy(model, (), {}, values)

    mode = jnp.array([jnp.log(0.4 / 0.6), jnp.log(1.1)])
    with pytest.raises(ValueError, match="Reverse-mode"):
        jax.grad(energy)(mode)
    precision = jax.jit(fomoh_jax.hessian(energy))(mode)
    assert_close(precision, forward_hessian(energy)(mode), rtol=SMOOTH)
    kernel = HMC(
        potential_fn=energy,
        trajectory_length=1.0,
        num_steps=3,
        adapt_step_size=False,
        adapt_mass_matrix=False,
        dense_mass=True,
        inverse_mass_matrix=jnp.linalg.inv(precision),
        forward_mode_differentiation=True,
    )
    state = kernel.init(jax.random.key(1), 0, mode, (), {})
    state = jax.jit(lambda state: kernel.sample(state, (), {}))(state)
    assert state.accept_prob > 0.95 and jnp.all(state.z != mode)


# --- rules of custom derivatives ----------------------------------------------------


@with_an_adjoint_of_its_own
def arrhenius(x):
    return jnp.exp(-1 / x) * x**2


def arrhenius_with_a_rule_for_forward_mode():
    """The same with a ``custom_jvp`` inside, which says that it is the cosine's."""
    inner = jax.custom_jvp(lambda x: jnp.exp(-1 / x) * x**2)
    inner.defjvp(lambda p, t: (inner(*p), -jnp.sin(p[0]) * t[0]))
    return with_an_adjoint_of_its_own(inner)


@pytest.mark.slow
def test_forward_mode_of_a_custom_vjp():
    x, v, w = normal(3) ** 2 + 1, normal(3, seed=1), normal(3, seed=2)
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(arrhenius, (x,), (v,))
    ours = jitted(fomoh_jax.hyper_jvp)(arrhenius, (x,), (v,), (w,))
    plain = lambda x: jnp.exp(-1 / x) * x**2
    assert_close(ours, second_jvp(plain, (x,), (v,), (w,)))


def test_a_custom_jvp_inside_a_custom_vjp_is_the_rule_of_forward_mode():
    both, x, ones = (
        arrhenius_with_a_rule_for_forward_mode(),
        normal(3) ** 2 + 1,
        jnp.ones(3),
    )
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jacfwd(both)(x)
    value, slope, _, bend = fomoh_jax.hyper_jvp(both, (x,), (ones,), (ones,))
    assert_close((value, slope, bend), (arrhenius(x), -jnp.sin(x), -jnp.cos(x)))


# --- implicit differentiation -------------------------------------------------------

FEATURES, LABELS = normal(12, 3), normal(12, seed=1)


def ridge_slope(weights, penalty, fit=lambda x: x):
    residual = fit(FEATURES @ weights) - LABELS
    return FEATURES.T @ residual + penalty * weights


def ridge_by_hand(penalty):
    """``(w, dw/dλ, d²w/dλ²)`` for ``w = (XᵀX + λ)⁻¹ Xᵀy``, in numpy."""
    features, labels = np.asarray(FEATURES), np.asarray(LABELS)
    inverse = np.linalg.inv(features.T @ features + penalty * np.eye(3))
    weights = inverse @ features.T @ labels
    return weights, -inverse @ weights, 2 * inverse @ inverse @ weights


def ridge(penalty, optimality):
    """The root of ``optimality`` by a solver that no derivative enters."""

    def newton(_, w):
        return w - jnp.linalg.solve(
            jax.jacrev(optimality)(w, penalty), optimality(w, penalty)
        )

    def solve(_, start):
        return lax.stop_gradient(lax.fori_loop(0, 8, newton, start))

    def tangent_solve(linear, y):
        return jax.scipy.sparse.linalg.cg(linear, y, tol=1e-14)[0]

    return lax.custom_root(
        lambda w: optimality(w, penalty), jnp.zeros(3), solve, tangent_solve
    )


@pytest.mark.slow
def test_implicit_differentiation_by_a_custom_vjp():
    @jax.custom_vjp
    def solver(penalty):
        return ridge(penalty, ridge_slope)

    def backwards(saved, g):
        weights, penalty = saved
        matrix = jax.jacrev(ridge_slope)(weights, penalty)
        return (-jnp.vdot(jnp.linalg.solve(matrix.T, g), weights),)

    solver.defvjp(lambda p: (solver(p), (solver(p), p)), backwards)
    penalty, (_, first, second) = jnp.array(0.5), ridge_by_hand(0.5)
    assert_close(jax.jit(jax.jacrev(solver))(penalty), jnp.asarray(first))
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.hessian(solver)(penalty)
    assert_close(jax.jit(fomoh_jax.hessian(solver))(penalty), jnp.asarray(second))


@pytest.mark.slow
def test_hessian_through_custom_root():
    solver = lambda penalty: ridge(penalty, ridge_slope)
    penalty, (_, _, second) = jnp.array(0.5), ridge_by_hand(0.5)
    ours = jax.jit(fomoh_jax.hessian(solver))(penalty)
    assert_close(ours, jnp.asarray(second), rtol=SMOOTH)


@pytest.mark.slow
def test_hessian_through_custom_root_of_a_function_with_a_custom_vjp_inside():
    plain = lambda x: x + 0.1 * jnp.sin(x)

    def solver(fit):
        return lambda penalty: ridge(penalty, lambda w, p: ridge_slope(w, p, fit))

    penalty, fit = jnp.array(0.5), with_an_adjoint_of_its_own(plain)
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.hessian(solver(fit))(penalty)
    ours = jax.jit(fomoh_jax.hessian(solver(fit)))(penalty)
    assert_close(ours, forward_hessian(solver(plain))(penalty), rtol=SMOOTH)


# --- parts of the Hessian -----------------------------------------------------------


def network(width, inputs):
    inner, outer = normal(inputs, width), normal(width, width, seed=1)
    return lambda x: jnp.sum(jnp.tanh(jnp.tanh(x @ inner / inputs) @ outer))


def diagonal_of_all(fun):
    return lambda x: jnp.diagonal(jax.hessian(fun)(x))


@pytest.mark.slow
def test_diagonal_of_a_hessian_is_that_of_jax_hessian():
    fun, x = network(8, 5), normal(5, seed=2)
    ours = jax.jit(fomoh_jax.hessian_diagonal(fun))(x)
    assert_close(ours, jax.jit(diagonal_of_all(fun))(x), rtol=SMOOTH)


@pytest.mark.slow
@pytest.mark.optimised
def test_diagonal_of_a_hessian_without_the_rest():
    fun, x = network(32, 200), jnp.ones(200)
    flops, memory = flops_and_temporaries(fomoh_jax.hessian_diagonal(fun), x)
    all_flops, all_memory = flops_and_temporaries(diagonal_of_all(fun), x)
    assert flops < all_flops / 5 and memory < all_memory / 2


@pytest.mark.slow
@pytest.mark.optimised
def test_diagonal_of_a_sum_of_terms_takes_linear_time():
    def node_wise(nodes):
        of_one = network(16, 4)
        fun, x = (
            lambda x: jnp.sum(jax.vmap(of_one)(x.reshape(-1, 4))),
            jnp.ones(4 * nodes),
        )
        flops, _ = flops_and_temporaries(fomoh_jax.hessian_diagonal(fun), x)
        return flops

    assert node_wise(100) < 4.1 * node_wise(25)


def test_sparse_hessian_of_a_hundred_thousand_variables():
    """A chain of pendula: ``Σ (1 - cos xᵢ) + ½ Σ (xᵢ₊₁ - xᵢ)⁴``."""
    energy = lambda x: jnp.sum(1 - jnp.cos(x)) + jnp.sum(jnp.diff(x) ** 4) / 2
    n = 100_000
    x = normal(n)
    dense = jax.eval_shape(jax.hessian(energy), x)
    assert dense.size * dense.dtype.itemsize == 80e9  # what theirs would allocate
    ours = jax.jit(fomoh_jax.sparse_hessian(energy))(x)
    bonds, (row, column) = 6 * np.diff(x) ** 2, np.asarray(ours.indices).T
    found = np.zeros((3, n))
    np.add.at(found, (1 + column - row, row), np.asarray(ours.data))
    below, above = np.append(0, -bonds), np.append(-bonds, 0)
    assert ours.nse == 3 * n - 2
    assert_close(
        found, np.stack([below, np.cos(x) - below - above, above]), rtol=SMOOTH
    )


@pytest.mark.slow
@pytest.mark.optimised
def test_value_gradient_and_hessian_cost_what_the_hessian_costs():
    fun, x = network(64, 20), jnp.ones(20)
    together, _ = flops_and_temporaries(fomoh_jax.value_grad_and_hessian(fun), x)
    parts = [
        flops_and_temporaries(theirs, x)[0]
        for theirs in (fun, jax.grad(fun), jax.hessian(fun))
    ]
    assert together < 1.01 * parts[-1] < 0.95 * sum(parts)


@pytest.mark.slow
def test_value_gradient_and_hessian_in_one_loop():
    theirs = lambda x: (
        orbit_loss(x),
        jax.jacfwd(orbit_loss)(x),
        jax.jacfwd(jax.jacfwd(orbit_loss))(x),
    )
    ours = fomoh_jax.value_grad_and_hessian(orbit_loss)
    loops = lambda fun: jax.jit(fun).lower(AWAY).as_text().count("stablehlo.while")
    of_one = loops(orbit_loss)
    assert loops(ours) == of_one and loops(theirs) == 3 * of_one
    assert_close(tuple(jax.jit(ours)(AWAY)), jax.jit(theirs)(AWAY), rtol=SMOOTH)


# --- attention in blocks ------------------------------------------------------------


def attention(queries, keys, values):
    scores = queries @ keys.T / keys.shape[1] ** 0.5
    return jax.nn.softmax(scores) @ values


def attention_in_blocks(queries, keys, values, block=16):
    """The same, with a running maximum and sum over blocks of keys."""

    def step(carry, part):
        maximum, total, mean = carry
        keys, values = part
        scores = queries @ keys.T / keys.shape[1] ** 0.5
        new = jnp.maximum(maximum, jnp.max(scores, axis=1))
        weights, shrink = jnp.exp(scores - new[:, None]), jnp.exp(maximum - new)
        total = total * shrink + jnp.sum(weights, axis=1)
        return (new, total, mean * shrink[:, None] + weights @ values), None

    blocks = lambda x: x.reshape(-1, block, x.shape[1])
    lowest = jnp.full(len(queries), jnp.finfo(queries.dtype).min)
    start = lowest, jnp.zeros_like(lowest), jnp.zeros_like(queries)
    (_, total, mean), _ = lax.scan(step, start, (blocks(keys), blocks(values)))
    return mean / total[:, None]


def as_kernels_have_it(*tokens):
    return with_an_adjoint_of_its_own(lambda t: attention_in_blocks(*t))(tokens)


@pytest.mark.slow
def test_second_order_terms_through_attention_in_blocks():
    tokens, v, w = (tuple(normal(3, 32, 4, seed=seed)) for seed in range(3))
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(as_kernels_have_it, tokens, v)
    ours = jitted(fomoh_jax.hyper_jvp)(as_kernels_have_it, tokens, v, w)
    assert_close(ours, second_jvp(attention, tokens, v, w), rtol=SMOOTH)


@pytest.mark.slow
@pytest.mark.optimised
def test_memory_of_attention_in_blocks_grows_with_the_tokens_alone():
    theirs = lambda x, v: jax.jvp(lambda *x: jax.jvp(attention, x, v)[1], x, v)
    ours = lambda x, v: fomoh_jax.hyper_jvp(as_kernels_have_it, x, v, v)

    def temporaries(fun):
        for count in (512, 1024):
            tokens = (jnp.ones((count, 8), jnp.float32),) * 3
            yield flops_and_temporaries(fun, tokens, tokens)[1]

    few, many = temporaries(ours)
    assert many < 2.1 * few
    few_of_theirs, many_of_theirs = temporaries(theirs)
    assert many_of_theirs > 3.5 * few_of_theirs and many_of_theirs > 10 * many


# --- what optax's optimisers take ---------------------------------------------------


def exact_hessian_diagonal():
    """For ``optax.contrib.sophia``, in the place of its random estimate."""

    def update(updates, state, params=None, *, obj_fn, **_):
        return fomoh_jax.hessian_diagonal(obj_fn)(params), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def sampled_hessian_diagonal(probes, seed=0):
    """The same from Hutchinson's probes, more than one."""

    def update(updates, key, params=None, *, obj_fn, **_):
        key, now = jax.random.split(key)
        estimate = curvature.hutchinson_diagonal(obj_fn, probes=probes)
        return estimate(now, params).value, key

    init = lambda _: jax.random.key(seed)
    return optax.GradientTransformationExtraArgs(init, update)


@pytest.mark.slow
def test_sophia_with_an_exact_hessian_diagonal_through_a_while_loop():
    gradient = jax.jit(jax.jacfwd(orbit_loss))
    update = lambda tx: tx.update(
        gradient(AWAY), tx.init(AWAY), AWAY, obj_fn=orbit_loss
    )
    # (jax 0.10.1 fails before it can say that reverse mode is at fault.)
    with pytest.raises((TypeError, ValueError), match=r"Reverse-mode|NoneType"):
        update(optax.contrib.sophia(0.1))
    diagonal = exact_hessian_diagonal()
    _, state = update(optax.contrib.sophia(0.1, b2=0.9, hessian_diagonal_fn=diagonal))
    expected = jnp.diagonal(forward_hessian(orbit_loss)(AWAY))
    assert_close(optax.tree.get(state, "nu"), 0.1 * expected, rtol=SMOOTH)


@pytest.mark.slow
@pytest.mark.parametrize(
    "diagonal", [exact_hessian_diagonal(), sampled_hessian_diagonal(probes=4)]
)
def test_sophia_trains_with_our_hessian_diagonals(diagonal):
    scales = jnp.array([1.0, 10.0, 100.0])
    loss = lambda x: scales @ (1 - jnp.cos(x - 1)) + (jnp.sum(x) - 3) ** 2
    options = {"weight_decay": 0.0, "update_interval": 2, "gamma": 1.0}
    tx = optax.contrib.sophia(
        0.3, b1=0.5, b2=0.5, hessian_diagonal_fn=diagonal, **options
    )

    @jax.jit
    def step(_, carry):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params, obj_fn=loss)
        return optax.apply_updates(params, updates), state

    params = jnp.array([0.2, 0.5, 1.4])
    found, _ = lax.fori_loop(0, 100, step, (params, tx.init(params)))
    assert loss(found) < 1e-12 * loss(params)


@pytest.mark.slow
def test_what_a_loss_returns_beside_its_value():
    def loss(x):
        parts = {"bend": jnp.sum((x - 1) ** 4), "length": jnp.sum(x**2)}
        return parts["bend"] + parts["length"], parts

    start = jnp.array([0.5, 2.0])
    with pytest.raises(TypeError, match="scalar-output"):
        optax.value_and_grad_from_state(loss)(start, state=optax.lbfgs().init(start))
    for tx in (
        fomoh_jax.fomoh_kd(2, solver=solvers.trust_region(), has_aux=True),
        fomoh_jax.fgd(0.1, has_aux=True),
    ):
        _, state = run(tx, start, 1, value_fn=loss)
        assert_close(optax.tree.get(state, "aux"), loss(start)[1])


# --- interatomic potentials ---------------------------------------------------------

CUTOFF = 2.5


def lennard_jones(free, fixed):
    """All pairs within the cut-off, with each atom at no distance from itself."""
    atoms = jnp.concatenate([free, fixed])
    distance = jnp.sqrt(jnp.sum((atoms[:, None] - atoms) ** 2, axis=-1))
    energy = 4 * (distance**-12 - distance**-6)
    near = (distance > 0) & (distance < CUTOFF)
    return jnp.sum(jnp.where(near, energy, 0.0)) / 2


def lennard_jones_by_hand(atoms):
    """The Hessian ``[a, 3, a, 3]``, a pair at a time, in numpy."""
    count = len(atoms)
    found = np.zeros((count, 3, count, 3))
    for i in range(count):
        for j in range(i):
            r = atoms[i] - atoms[j]
            d = np.linalg.norm(r)
            if d < CUTOFF:
                slope = 4 * (-12 * d**-13 + 6 * d**-7)
                bend = 4 * (156 * d**-14 - 42 * d**-8)
                along = np.outer(r, r) / d**2
                block = bend * along + slope / d * (np.eye(3) - along)
                for a, b in ((i, i), (j, j), (i, j), (j, i)):
                    found[a, :, b] += block if a == b else -block
    return found


def clusters(batch=3):
    """Structures of eight atoms, of which some are beyond the cut-off."""
    corners = jnp.stack(jnp.meshgrid(*[1.6 * jnp.arange(2.0)] * 3), axis=-1)
    return corners.reshape(8, 3) + 0.1 * normal(batch, 8, 3)


@pytest.mark.slow
def test_hessian_of_some_atoms_mapped_over_structures():
    atoms, free = clusters(), 2
    parts = atoms[:, :free], atoms[:, free:]
    theirs = jax.jit(jax.vmap(jax.hessian(lennard_jones)))(*parts)
    assert jnp.all(jnp.isnan(theirs[:, 0, :, 0]))
    ours = jax.jit(jax.vmap(fomoh_jax.hessian(lennard_jones)))(*parts)
    whole = np.stack([lennard_jones_by_hand(x) for x in np.asarray(atoms)])
    assert_close(ours, jnp.asarray(whole[:, :free, :, :free]), rtol=SMOOTH)


@pytest.mark.slow
def test_sparse_hessian_of_atoms_with_neighbours():
    """A chain, in which each atom sees two on either side."""
    count = 40
    atoms = np.stack([np.arange(count), np.zeros(count), np.zeros(count)], axis=1)
    atoms = 1.1 * atoms + 0.05 * np.asarray(normal(count, 3))
    pairs = np.array([(i, i + by) for by in (1, 2) for i in range(count - by)])

    def energy(flat):
        x = flat.reshape(count, 3)
        squared = jnp.sum((x[pairs[:, 0]] - x[pairs[:, 1]]) ** 2, axis=1)
        energies = 4 * (squared**-6 - squared**-3)
        return jnp.sum(jnp.where(squared < CUTOFF**2, energies, 0.0))

    ours = jax.jit(fomoh_jax.sparse_hessian(energy))(jnp.asarray(atoms.reshape(-1)))
    assert ours.nse == 9 * (count + 2 * len(pairs))
    expected = lennard_jones_by_hand(atoms).reshape(3 * count, -1)
    assert_close(ours.todense(), jnp.asarray(expected), rtol=SMOOTH)


# --- Taylor mode --------------------------------------------------------------------


def root_by_a_while_loop(x):
    far = lambda y: jnp.abs(y**2 - x) > 1e-14 * x
    return lax.while_loop(far, lambda y: (y + x / y) / 2, x)


def power_by_a_scan(x):
    return lax.scan(lambda y, _: (y * x, y), jnp.ones(()), length=5)[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "fun, same",
    [(root_by_a_while_loop, jnp.sqrt), (power_by_a_scan, lambda x: x**5)],
)
def test_taylor_mode_through_loops(fun, same):
    x, one = jnp.array(2.0), jnp.array(1.0)
    with pytest.raises((KeyError, NotImplementedError)):
        jet.jet(fun, (x,), ((one, 0 * one),))
    value, slope, _, bend = fomoh_jax.hyper_jvp(fun, (x,), (one,), (one,))
    expected, (first, second) = jet.jet(same, (x,), ((one, 0 * one),))
    assert_close((value, slope, bend), (expected, first, second), rtol=SMOOTH)
