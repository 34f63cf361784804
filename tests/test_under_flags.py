"""Every public function under the flags that JAX's users look for faults with."""

import contextlib
import functools
import inspect
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental.compilation_cache import compilation_cache

import fomoh_jax as fj
from fomoh_jax import curvature, directions, solvers
from fomoh_jax.curvature import Estimate
from fomoh_jax.solvers import Solver, descents, searches
from tests.reference import partly_slow, slow
from tests.test_training_loops import OPTIMISERS, made

RUNS = {"eager": lambda f: f, "jit": jax.jit}


def strict():
    return jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict")


# What one flag of several finds it raises by its own name. Of numbers, more is seen
# where each operation is on its own; of traces, where all of a program is one.
FLAGS = {
    "numbers": (
        "eager",
        lambda: (
            jax.debug_nans(True),
            jax.debug_infs(True),
            jax.enable_checks(True),
            *strict(),
        ),
    ),
    # The check of keys is apart from those of types and of leaks, with which it takes a
    # loop over keys for one that uses each of them again.
    "traces in float32": (
        "jit",
        lambda: (
            jax.enable_x64(False),
            jax.debug_key_reuse(True),
            *strict(),
        ),
    ),
    "leaks": ("jit", lambda: (jax.checking_leaks(), jax.enable_checks(True))),
    "no jit": ("eager", lambda: (jax.disable_jit(True),)),
}


every_flag = pytest.mark.parametrize(
    "flags", [slow(name) if name in ("leaks", "no jit") else name for name in FLAGS]
)


@contextlib.contextmanager
def under(flags):
    """Yields the way to run a function."""
    run, contexts = FLAGS[flags]
    with contextlib.ExitStack() as stack:
        for context in contexts():
            stack.enter_context(context)
        yield RUNS[run]


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """What is the same program under each flag is compiled under one."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def fun(x):
    """Smooth, with a product and a function that JAX has jitted."""
    mixing = jnp.array([[1.0, 0.5, 0.0], [0.0, 1.0, -0.5], [0.2, 0.0, 1.0]])
    y = jax.nn.softplus(mixing @ jnp.tanh(x * x))
    return jnp.sum(y * y) + x[0] * x[1] * x[2]


def looping(x):
    """Smooth, with a loop and a branch."""
    y = jax.lax.fori_loop(0, 2, lambda _, y: jnp.sin(y) + x, x * x)
    y = jax.lax.cond(x[2] > 0, jnp.tanh, jnp.negative, y)
    return jnp.sum(y * y)


def outputs(x):
    return jnp.tanh(x * x)


def separable(x):
    return jnp.sum(outputs(x))


POINT = np.array([0.3, -0.7, 1.1])
WEIGHTS = np.array([[1.0, 0.5, 0.0], [0.5, 2.0, 0.0], [0.0, 0.0, -1.0]])


@functools.cache
def known():
    """What JAX alone says at the point, in float64 and under no flag."""
    functions = (
        *(fun, jax.grad(fun), jax.hessian(fun), outputs, jax.jacobian(outputs)),
        *(jax.hessian(looping), jax.hessian(separable)),
    )
    by_jax = jax.jit(lambda x: [f(x) for f in functions])(jnp.asarray(POINT))
    value, gradient, hessian, y, jacobian, of_loop, of_sum = map(np.asarray, by_jax)
    return SimpleNamespace(
        value=value,
        gradient=gradient,
        hessian=hessian,
        diagonal=np.diagonal(hessian),
        looping=of_loop,
        trace=np.trace(hessian),
        weighted=np.sum(WEIGHTS * hessian),
        separable=np.diagonal(of_sum),
        squares=np.sum(y**2),
        squares_gradient=2 * jacobian.T @ y,
        gauss_newton=2 * jacobian.T @ jacobian,
        largest=max(np.linalg.eigvalsh(hessian), key=abs),
        solved=np.linalg.solve(hessian @ hessian, gradient),
        newton=-np.linalg.solve(WEIGHTS @ WEIGHTS, gradient),
    )


def key():
    return jax.random.key(0)


def like(x, array):
    return jnp.asarray(array, x.dtype)


def model(x, **options):
    return tuple(fj.quadratic_model(fun, (x,), (jnp.eye(3, dtype=x.dtype),), **options))


def gauss_newton(x):
    loss, v = lambda y: jnp.sum(y * y), jnp.eye(3, dtype=x.dtype)
    return tuple(fj.gauss_newton_model(outputs, loss, (x,), (v,)))


def product(x, plan):
    return curvature.hvp(fun, (x,), (like(x, POINT),), plan=plan)[0]


def signs(key):
    return jax.random.rademacher(key, (2, 3), jnp.result_type(float))


def by_activations(x):
    """By how much estimates are further from the gradient than six standard errors."""

    def loss(x, scale):
        return jnp.sum(jnp.tanh(fj.cut(jnp.sin(x * x)) * x) * scale)

    batch = jnp.ones(100, x.dtype)
    grad = fj.forward_value_and_grad(loss, return_noise=True)
    _, gradient, noise = grad(x, batch, key())
    off = jnp.linalg.norm(gradient - jax.grad(loss)(x, jnp.ones((), x.dtype)))
    return jnp.maximum(off - 6 * jnp.sqrt(sum(noise)), 0) + jnp.zeros(3, x.dtype)


def excess(estimate, truth):
    """By how much it is further from the truth than six standard errors."""
    off = jnp.abs(estimate.value - truth) - 6 * estimate.standard_error
    return jnp.maximum(off, 0)


# Of a point; and what is known of it.
OPERATORS = {
    "hyper_jvp": (
        lambda x: fj.hyper_jvp(fun, (x,), (like(x, np.eye(3)[0]),), (like(x, POINT),)),
        lambda at: (
            at.value,
            at.gradient[0],
            at.gradient @ POINT,
            at.hessian[0] @ POINT,
        ),
    ),
    "quadratic_model": (model, lambda at: (at.value, at.gradient, at.hessian)),
    "quadratic_model by chunks": (
        lambda x: model(x, plan=fj.plans.forward(2)),
        lambda at: (at.value, at.gradient, at.hessian),
    ),
    "quadratic_model, adjoint": (
        lambda x: model(x, plan=fj.plans.adjoint()),
        lambda at: (at.value, at.gradient, at.hessian),
    ),
    "gauss_newton_model": (
        gauss_newton,
        lambda at: (at.squares, at.squares_gradient, at.gauss_newton),
    ),
    "directional_curvature": (
        lambda x: tuple(fj.directional_curvature(fun, (x,), (like(x, np.eye(3)),))),
        lambda at: (at.value, at.gradient, at.diagonal),
    ),
    "Stack": (
        lambda x: (
            fj.quadratic_model(
                fun, (x,), (fj.Stack(like(x, np.eye(3)[:2]), 0, (0, 2), 3),)
            ).curvature
        ),
        lambda at: np.insert(np.insert(at.hessian[:2, :2], 1, 0, axis=0), 1, 0, axis=1),
    ),
    "Deferred": (
        lambda x: (
            fj.quadratic_model(
                fun, (x,), (fj.Deferred(key(), signs, (2, 3), x.dtype),)
            ).curvature
            - signs(key()) @ like(x, known().hessian) @ signs(key()).T
        ),
        lambda at: np.zeros((2, 2)),
    ),
    "LowRank": (
        lambda x: (
            fj.quadratic_model(
                lambda w: fun(jnp.ones(1, w.dtype) @ w),
                (x[None],),
                (
                    fj.LowRank(
                        like(x, np.ones((3, 1, 1))), like(x, np.eye(3)[..., None])
                    ),
                ),
            ).curvature
        ),
        lambda at: at.hessian,
    ),
    "hessian": (lambda x: fj.hessian(fun)(x), lambda at: at.hessian),
    "hessian by chunks": (
        lambda x: fj.hessian(fun, plan=fj.plans.forward(2))(x),
        lambda at: at.hessian,
    ),
    "hessian, adjoint": (
        lambda x: fj.hessian(fun, plan=fj.plans.adjoint())(x),
        lambda at: at.hessian,
    ),
    "hessian of a loop": (lambda x: fj.hessian(looping)(x), lambda at: at.looping),
    "hessian of a loop, adjoint": (
        lambda x: fj.hessian(looping, plan=fj.plans.adjoint())(x),
        lambda at: at.looping,
    ),
    "hessian_diagonal": (
        lambda x: fj.hessian_diagonal(fun)(x),
        lambda at: at.diagonal,
    ),
    "sparse_hessian": (
        lambda x: fj.sparse_hessian(fun)(x).todense(),
        lambda at: at.hessian,
    ),
    "hessian_sparsity": (
        lambda x: fj.hessian_sparsity(fun)(x).data.astype(x.dtype),
        lambda at: np.ones(9),
    ),
    "value_grad_and_hessian": (
        lambda x: fj.value_grad_and_hessian(fun)(x).hessian,
        lambda at: at.hessian,
    ),
    "value_grad_and_laplacian": (
        lambda x: fj.value_grad_and_laplacian(fun)(x).laplacian,
        lambda at: at.trace,
    ),
    "laplacian": (lambda x: fj.laplacian(fun)(x), lambda at: at.trace),
    "laplacian with weights": (
        lambda x: fj.laplacian(fun, weights=like(x, WEIGHTS))(x),
        lambda at: at.weighted,
    ),
    "hvp": (
        lambda x: curvature.hvp(fun, (x,), (like(x, POINT),))[0],
        lambda at: at.hessian @ POINT,
    ),
    "hvp, adjoint": (
        lambda x: product(x, fj.plans.adjoint()),
        lambda at: at.hessian @ POINT,
    ),
    "hvp by chunks": (
        lambda x: product(x, fj.plans.forward(2)),
        lambda at: at.hessian @ POINT,
    ),
    "hutchinson_trace": (
        lambda x: curvature.hutchinson_trace(separable, probes=3)(key(), x).value,
        lambda at: np.sum(at.separable),
    ),
    "sampled_trace": (
        lambda x: curvature.sampled_trace(fun, coordinates=x.size)(key(), x).value,
        lambda at: at.trace,
    ),
    "hutchinson_diagonal": (
        lambda x: curvature.hutchinson_diagonal(separable, probes=3)(key(), x).value,
        lambda at: at.separable,
    ),
    "sampled_hessian": (
        lambda x: excess(
            curvature.sampled_hessian(fun, probes=50)(key(), x),
            like(x, known().hessian),
        ),
        lambda at: np.zeros((3, 3)),
    ),
    "sampled_hessian with a baseline": (
        lambda x: (
            curvature.sampled_hessian(
                fun, probes=3, baseline=like(x, known().hessian), chunk_size=2
            )(key(), x).value
        ),
        lambda at: at.hessian,
    ),
    "sampled_diagonal": (
        lambda x: excess(
            curvature.sampled_diagonal(fun, probes=50)(key(), x),
            like(x, known().diagonal),
        ),
        lambda at: np.zeros(3),
    ),
    "sampled_diagonal with a baseline": (
        lambda x: (
            curvature.sampled_diagonal(
                separable, probes=3, baseline=like(x, known().separable)
            )(key(), x).value
        ),
        lambda at: at.separable,
    ),
    "newton_step": (
        lambda x: curvature.newton_step(
            fun,
            (x,),
            Estimate(like(x, WEIGHTS @ WEIGHTS), like(x, np.zeros((3, 3)))),
        )[0],
        lambda at: at.newton,
    ),
    "conjugate_gradients": (
        # The squares of a Hessian are a positive definite one.
        lambda x: curvature.conjugate_gradients(
            lambda x: jnp.sum((like(x, known().hessian) @ x) ** 2) / 2,
            (x,),
            (like(x, known().gradient),),
            tol=1e-7,
        ).solution[0],
        lambda at: at.solved,
    ),
    "conjugate_gradients of negative curvature": (
        lambda x: curvature.conjugate_gradients(
            lambda x: -jnp.sum(x * x), (x,), (like(x, [0.0, 2.0, 0.0]),)
        ).direction[0],
        lambda at: np.array([0.0, 1.0, 0.0]),
    ),
    "forward_value_and_grad, with a cut": (
        # Exact by a single block; perturbed, as far from it as it may be.
        lambda x: (
            fj.forward_value_and_grad(lambda x, _: fun(x), blocks=1)(
                x, jnp.zeros(2), key()
            )[1],
            by_activations(x),
        ),
        lambda at: (at.gradient, np.zeros(3)),
    ),
    "top_eigenvalues": (
        lambda x: curvature.top_eigenvalues(fun, (x,), key(), 1).values[0],
        lambda at: at.largest,
    ),
}


def assert_near(actual, expected, rtol):
    """Each array of a tree to ``rtol`` of its largest element, in the dtype of JAX."""
    actual = actual if isinstance(actual, tuple) else (actual,)
    expected = expected if isinstance(expected, tuple) else (expected,)
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected):
        assert a.dtype == jnp.result_type(float) and a.shape == np.shape(e)
        atol = rtol * max(np.max(np.abs(e)), 1)
        np.testing.assert_allclose(np.asarray(a), e, rtol=0, atol=atol)


@pytest.mark.slow
@pytest.mark.sampled(3)
@every_flag
@pytest.mark.parametrize("name", partly_slow(OPERATORS))
def test_operators_give_the_same_numbers_under_every_flag(name, flags):
    function, expected = OPERATORS[name]
    expected = expected(known())
    with under(flags) as run:
        actual = run(function)(jnp.asarray(POINT))
        single = jnp.result_type(float) == jnp.float32
        assert_near(actual, expected, rtol=1e-3 if single else 1e-6)


def arrays():
    """In the precision that the flags say."""
    params = {"w": jnp.array([1.0, -2.0, 0.5]), "b": jnp.array([0.5])}
    return params, jnp.array([2.0, 0.0, -1.0])


def loss(params, target):
    w, b = params["w"], params["b"][0]
    return jnp.sum(jnp.cosh(w - target)) + (b * w[0]) ** 2 + b**2


def two_steps(name, run):
    """The losses before each step and after both, and what the state holds."""
    params, target = arrays()
    tx = made(name, 3)

    @run
    def step(params, state, target):
        grads = jax.grad(loss)(params, target)
        updates, state = tx.update(grads, state, params, value_fn=loss, target=target)
        return optax.apply_updates(params, updates), state

    state, values = tx.init(params), []
    for _ in range(2):
        values.append(loss(params, target))
        params, state = step(params, state, target)
    return [*values, loss(params, target)], params, state


@functools.cache
def without_flags(name):
    return two_steps(name, RUNS["eager"])


# Of the same parts as others.
REPEATED = (
    "forward gradient along layers",
    "gaussian, newton",
    "rademacher, saddle_free",
    "sum of incoming and history, damped",
)


@every_flag
@pytest.mark.parametrize(
    "name", partly_slow(name for name in OPTIMISERS if name not in REPEATED)
)
def test_optimisers_take_the_same_steps_under_every_flag(name, flags):
    _, expected, _ = without_flags(name)
    with under(flags) as run:
        values, params, state = two_steps(name, run)
        (_, value), *_ = optax.tree.get_all_with_path(state, "value")
        np.testing.assert_allclose(value, values[1], rtol=1e-6)
    assert np.all(np.isfinite(values))
    if "float32" not in flags:  # in which the random numbers are others
        jax.tree.map(
            lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-6), params, expected
        )


def model_loss(x, slope, hessian):
    return jnp.sum(slope * x) + jnp.sum(x * (hessian @ x)) / 2


# What leaves a solver nothing to divide by: a slope and a Hessian at zero.
DEGENERATE = {
    "a constant": (np.zeros(3), np.zeros((3, 3))),
    "a plane": (np.ones(3), np.zeros((3, 3))),
    "a minimum": (np.zeros(3), np.eye(3)),
    "a saddle": (np.zeros(3), np.diag([1.0, -1.0, 0.0])),
    "a valley": (np.ones(3), np.diag([1.0, 0.0, 0.0])),
    "a maximum": (np.ones(3), -np.eye(3)),
    "a tiny one": (np.full(3, 1e-200), np.full((3, 3), 1e-200)),
    "a huge one": (np.full(3, 1e100), 1e100 * np.eye(3)),
}
SOLVERS = {
    "newton": solvers.newton(),
    "saddle_free": solvers.saddle_free(),
    "damped": solvers.damped(),
    "trust_region": solvers.trust_region(),
    "trust_region next": solvers.trust_region(measured_on="next"),
    "trust_region, three radii": solvers.trust_region(tries=3),
    "self_tuning": solvers.self_tuning(),
    "damped, gain ratio": Solver(descents.damped(), searches.gain_ratio()),
    "newton, self-tuning": Solver(descents.newton(), searches.self_tuning()),
}


@functools.cache
def solved(name, run):
    """Directions that are zero at first, as those of a history are, among them."""
    source = directions.gaussian(2) + directions.history(1)
    tx = fj.scale_by_hyperplane(source, SOLVERS[name], key=3)

    @RUNS[run]
    def step(x, state, slope, hessian):
        return tx.update(
            None, state, x, value_fn=model_loss, slope=slope, hessian=hessian
        )

    return tx, step


@pytest.mark.slow
@pytest.mark.parametrize("run", [slow("eager"), "jit"])
@pytest.mark.parametrize("kind", DEGENERATE)
@pytest.mark.parametrize("name", SOLVERS)
def test_degenerate_systems_make_nothing_that_is_not_finite(name, kind, run):
    tx, step = solved(name, run)
    slope, hessian = map(jnp.asarray, DEGENERATE[kind])
    x = jnp.zeros(3)
    with jax.debug_nans(True), jax.debug_infs(True):
        state = tx.init(x)
        for _ in range(3):
            updates, state = step(x, state, slope, hessian)
            x = x - updates
    state = state._replace(key=0)
    for leaf in jax.tree.leaves((x, state)):
        assert np.all(np.isfinite(leaf))


def test_every_public_function_is_here():
    public = {
        name: getattr(module, name)
        for module in (fj, curvature)
        for name in module.__all__
    }
    # Modules, what the others return, and what only fills a table.
    kept = ("QuadraticModel", "DirectionalCurvature", "register_rule", "Estimate")
    kept += ("Eigenpairs", "blocks_of", "ValueGradientHessian")
    kept += ("ValueGradientLaplacian",)
    here = " ".join(OPERATORS) + inspect.getsource(inspect.getmodule(made))
    for name, value in public.items():
        returned = (
            name in kept or name.endswith("State") or name == "ConjugateGradients"
        )
        assert returned or inspect.ismodule(value) or name in here
