"""Which plan ``"auto"`` takes, seen by whether the program carries k² coefficients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import fomoh_jax
from fomoh_jax import directions, plans
from fomoh_jax._compat import open_jaxpr, programs_in
from fomoh_jax._hyperdual.left_out import leaves_out
from fomoh_jax.curvature import hvp
from tests.reference import assert_close, normal, partly_slow

D = 6
W = jnp.asarray(normal(D, D))


@jax.custom_jvp
def square(x):
    return x**2


@square.defjvp
def _(primals, tangents):
    """A slope by a loop of unknown length, which no reverse pass takes."""
    (x,), (t,) = primals, tangents
    step = lambda carry: (carry[0] + 1, carry[1] + 2 * x * t)
    unfinished = lambda carry: carry[0] < 1
    return square(x), lax.while_loop(unfinished, step, (0, jnp.zeros_like(x)))[1]


@jax.custom_jvp
def scaled(x, scale):
    return scale * x**2


@functools.partial(scaled.defjvp, symbolic_zeros=True)
def _(primals, tangents):
    """A rule that refuses to be differentiated by its second argument."""
    (x, scale), (t, none) = primals, tangents
    assert isinstance(none, SymbolicZero)
    return scaled(x, scale), 2 * scale * x * t


def solved_without_transpose(x):
    solve = lambda matvec, b: b / 2
    return lax.custom_linear_solve(lambda v: 2 * v, x, solve)


def repeated(x):
    return lax.while_loop(lambda x: jnp.sum(x**2) < 9, lambda x: x * 2, x)


REVERSED = {
    "network": lambda x: jnp.sum(jax.nn.relu(W @ jnp.tanh(W @ x)) ** 2),
    "softmax": lambda x: jax.nn.logsumexp(W @ jax.nn.gelu(x)),
    "scan": lambda x: jnp.sum(lax.fori_loop(0, 3, lambda i, x: jnp.sin(W @ x), x)),
    "solve": lambda x: jnp.sum(jnp.linalg.solve(9 * jnp.eye(D) + jnp.outer(x, x), x)),
    "loop in a solver": lambda x: jnp.sum(
        x * jax.scipy.sparse.linalg.cg(lambda v: (3 + x**2) * v, x, tol=1e-14)[0]
    ),
    "branches": lambda x: lax.cond(x[0] > 0, jnp.prod, lambda x: jnp.sum(x**4), x),
}
FORWARD = {
    "a loop of unknown length": lambda x: jnp.sum(repeated(x) ** 2),
    "one in a rule": lambda x: jnp.sum(square(x)),
    "a solver without a transpose": lambda x: jnp.sum(
        solved_without_transpose(x**2) ** 2
    ),
    "a rule that refuses": lambda x: jnp.sum(scaled(x, 3.0)),
    "two numbers": lambda x: (jnp.sum(x**2), jnp.prod(x)),
    "an array": lambda x: jnp.tanh(W @ x),
    "a complex number": lambda x: jnp.sum(jnp.exp(1j * x)),
}


PLANS = ("auto", plans.forward())


def carries(model, like, *args):
    """Whether the traced model is that of the plan, equation by equation."""
    ours, theirs = (primitives(jax.make_jaxpr(x)(*args)) for x in (model, like))
    return ours == theirs


def primitives(jaxpr):
    """The names of a program's primitives, each with those of the programs in it."""
    return [
        (eqn.primitive.name, *map(primitives, programs_in(eqn.params)))
        for eqn in open_jaxpr(jaxpr)[0].eqns
    ]


def model_by(plan, fun, k):
    vectors = jnp.asarray(normal(k, D))
    return lambda x: fomoh_jax.quadratic_model(fun, (x,), (vectors,), plan=plan)


@pytest.mark.parametrize("name", REVERSED | FORWARD)
def test_a_reverse_pass_is_taken_where_it_works_and_is_faster(name):
    fun = (REVERSED | FORWARD)[name]
    x = jnp.asarray(normal(D)) + 0.5
    auto = model_by("auto", fun, 5)
    forward = model_by(plans.forward(), fun, 5)
    assert carries(auto, forward, x) == (name in FORWARD)
    if name in REVERSED:
        assert carries(auto, model_by(plans.adjoint(), fun, 5), x)
        few = (model_by(plan, fun, 4) for plan in ("auto", plans.forward()))
        assert carries(*few, x)
    assert_close(jax.jit(auto)(x), jax.jit(forward)(x))


@pytest.mark.sampled
@pytest.mark.parametrize("name", partly_slow(REVERSED))
def test_what_is_chosen_can_be_differentiated_either_way(name):
    fun, x = REVERSED[name], jnp.asarray(normal(D)) + 0.5
    hessian, expected = fomoh_jax.hessian(fun), jax.hessian(fun)
    along = lambda f: jax.jvp(f, (x,), (x,))[1]
    assert_close(jax.jit(lambda: along(hessian))(), jax.jit(lambda: along(expected))())
    slope = lambda f: jax.grad(lambda x: jnp.sum(f(x) * W))(x)
    assert_close(jax.jit(lambda: slope(hessian))(), jax.jit(lambda: slope(expected))())


@pytest.mark.slow
@pytest.mark.optimised
@pytest.mark.parametrize("activation", [jax.nn.relu, jax.nn.gelu])
def test_a_hessian_takes_the_operations_of_jax_hessian(activation):
    w = jnp.asarray(normal(50, 50))
    fun = lambda x: jax.nn.logsumexp(w @ activation(w @ x))
    ours, theirs = (
        jax.jit(hessian(fun)).lower(jnp.ones(50)).compile().cost_analysis()["flops"]
        for hessian in (fomoh_jax.hessian, jax.hessian)
    )
    assert ours <= 1.05 * theirs


@pytest.mark.slow
def test_products_take_it_too():
    x, v = jnp.asarray(normal(D)), jnp.asarray(normal(D, seed=1))
    product = lambda fun, plan: lambda x: hvp(fun, (x,), (v,), plan=plan)[0]
    for fun, taken in (
        (REVERSED["scan"], plans.adjoint()),
        (REVERSED["network"], plans.adjoint()),
        (LEFT_OUT["where"], plans.forward()),
        (FORWARD["a loop of unknown length"], plans.forward()),
    ):
        auto = product(fun, "auto")
        assert carries(auto, product(fun, taken), x)
        in_parts = lambda fun, plan: (
            lambda x: hvp(
                lambda p: fun(jnp.concatenate(p)),
                ([x[:2], x[2:]],),
                ([v[:2], v[2:]],),
                plan=plan,
            )
        )
        assert carries(in_parts(fun, "auto"), in_parts(fun, taken), x)
        assert_close(jax.jit(auto)(x), jax.jit(product(fun, plans.forward()))(x))


@pytest.mark.slow
def test_optimisers_and_deferred_directions_stay_with_a_forward_pass():
    loss, x = REVERSED["network"], jnp.asarray(normal(D))
    for source in (directions.gaussian(6), directions.deferred(directions.gaussian(6))):
        steps = []
        for plan in ("auto", plans.forward()):
            tx = fomoh_jax.scale_by_hyperplane(source, plan=plan, key=0)
            step = functools.partial(tx.update, None, tx.init(x), value_fn=loss)
            steps.append(lambda x, step=step: step(params=x)[0])
        assert carries(*steps, x)
        vectors = source.sample(jax.random.key(0), x, None)
    model = lambda plan: (
        lambda x: fomoh_jax.quadratic_model(loss, (x,), (vectors,), plan=plan)
    )
    assert carries(model("auto"), model(plans.forward()), x)


# Where an element is left out, its infinite derivative is left out as well.
LEFT_OUT = {
    "slice": lambda x: jnp.sum(jnp.sqrt(x)[1:]),
    "dynamic_slice": lambda x: jnp.sum(lax.dynamic_slice(jnp.sqrt(x), (1,), (4,))),
    "sort": lambda x: jnp.sum(jnp.sort(jnp.sqrt(x))[1:]),
    "top_k": lambda x: jnp.sum(lax.top_k(jnp.sqrt(x), 2)[0]),
    "set": lambda x: jnp.sum(jnp.sqrt(x).at[0].set(1.0)),
    "unstack": lambda x: sum(jnp.unstack(jnp.sqrt(x))[1:]),
    "where": lambda x: jnp.sum(jnp.where(x > 0, x**1.5, 0)) + jnp.sum(x**2),
    "distances": lambda x: jnp.sum(
        jnp.linalg.norm(x.reshape(3, 2)[:, None] - x.reshape(3, 2), axis=-1)[
            np.triu_indices(3, 1)
        ]
    ),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_is_left_out_makes_nothing_nan(name):
    fun, x = LEFT_OUT[name], jnp.arange(float(D))
    hessians = [
        jax.jit(lambda: fomoh_jax.hessian(fun, plan=plan)(x))() for plan in PLANS
    ]
    assert np.all(np.isfinite(hessians[1]))
    assert_close(*hessians)
    v = jnp.ones(D)
    assert_close(*(jax.jit(lambda: hvp(fun, (x,), (v,), plan=p))() for p in PLANS))


def test_arrays_that_say_how_they_are_sharded_need_no_mesh_in_use():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,))
    data = jax.device_put(normal(8, D), NamedSharding(mesh, PartitionSpec("data")))
    fun = lambda x, data: jnp.mean(jnp.tanh(data @ x) ** 2)
    x = normal(D)
    expected = jax.jit(jax.hessian(fun))(x, np.asarray(data))
    assert_close(jax.jit(fomoh_jax.hessian(fun))(x, data), expected)


def test_a_function_may_exchange_numbers_over_an_axis_of_a_vmap():
    fun = lambda x: lax.psum(jnp.sum(x**3), "batch")
    x = normal(2, D)
    by = lambda f: jax.jit(jax.vmap(f, axis_name="batch"))(x)
    assert_close(by(fomoh_jax.hessian(fun)), by(jax.jacfwd(jax.jacfwd(fun))))


@pytest.mark.slow
def test_weak_types_are_kept():
    fun = lambda *xs: xs[0] * xs[1] * xs[2] * xs[3] * xs[4]
    hessian = fomoh_jax.hessian(fun, argnums=range(5))(1.0, 2.0, 3.0, 4.0, 5.0)
    assert hessian[0][1] == 60 and hessian[0][1].weak_type


def test_what_it_takes_is_decided_without_running_anything():
    seen = []

    def fun(x):
        jax.debug.callback(seen.append, x[0])
        return jnp.sum(x**3)

    hessian = jax.jit(fomoh_jax.hessian(fun))
    hessian.lower(jnp.ones(D))
    assert not seen
    np.testing.assert_array_equal(hessian(jnp.ones(D)), 6 * np.eye(D))
    jax.effects_barrier()
    assert len(seen) == 1


SELECTS = {
    "slices of what is given": (lambda x: jnp.sum(x[1:] * x[:-1] ** 2), False),
    "a network": (lambda x: jnp.max(jnp.tanh(W @ jax.nn.relu(W @ x))[1:]), False),
    "softplus": (lambda x: jnp.sum(jax.nn.softplus(W @ x)), False),
    "log-sum-exp": (lambda x: jax.nn.logsumexp(W @ x), False),
    "factors of one matrix": (
        lambda x: jnp.sum(jnp.diag(jnp.linalg.cholesky(jnp.exp(W @ W.T * x)))),
        False,
    ),
    "factors of several": (
        lambda x: jnp.linalg.cholesky(jnp.exp(x)[:, None, None])[0, 0, 0],
        True,
    ),
    "a slice of a root": (lambda x: jnp.sum(jnp.sqrt(x)[1:]), True),
    "all parts of a root": (lambda x: jnp.prod(jnp.stack(jnp.split(x**0.5, D))), False),
    "a part that is a constant": (
        lambda x: jnp.prod(lax.stop_gradient(jnp.split(x**0.5, 1)[0])),
        True,
    ),
    "a part of a root": (lambda x: jnp.sum(jnp.split(x**0.5, D)[1]), True),
    "one in a function": (lambda x: jax.jit(lambda y: y[0])(1 / x), True),
    "one in a loop": (
        lambda x: jnp.sum(lax.scan(lambda c, y: (c, jnp.exp(c)[1:]), x, None, 2)[1]),
        True,
    ),
    "a root in a branch": (
        lambda x: lax.cond(x[0] > 0, lambda x: jnp.sqrt(x[1]), jnp.sum, x),
        True,
    ),
}


@pytest.mark.parametrize("name", SELECTS)
def test_what_may_leave_out_an_infinite_derivative_is_known(name):
    fun, selects = SELECTS[name]
    assert leaves_out(jax.make_jaxpr(fun)(jnp.ones(D))) == selects
