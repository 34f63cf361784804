"""Which plan ``"auto"`` takes, seen by whether the program carries k² coefficients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import fomoh_jax
from fomoh_jax import directions, plans
from fomoh_jax.curvature import hvp
from tests.reference import assert_close, normal

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
    "two numbers": lambda x: (jnp.sum(x**2), jnp.prod(x)),
    "an array": lambda x: jnp.tanh(W @ x),
    "a complex number": lambda x: jnp.sum(jnp.exp(1j * x)),
}


def carries(model, like, *args):
    """Whether the traced model is that of the plan, equation by equation."""
    programs = (str(jax.make_jaxpr(x)(*args)) for x in (model, like))
    names = [
        [line.split(" = ")[1].split(" ")[0] for line in p.split("\n") if " = " in line]
        for p in programs
    ]
    return names[0] == names[1]


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


@pytest.mark.parametrize("name", REVERSED)
def test_what_is_chosen_can_be_differentiated_either_way(name):
    fun, x = REVERSED[name], jnp.asarray(normal(D)) + 0.5
    hessian, expected = fomoh_jax.hessian(fun), jax.hessian(fun)
    along = lambda f: jax.jvp(f, (x,), (x,))[1]
    assert_close(jax.jit(lambda: along(hessian))(), jax.jit(lambda: along(expected))())
    slope = lambda f: jax.grad(lambda x: jnp.sum(f(x) * W))(x)
    assert_close(jax.jit(lambda: slope(hessian))(), jax.jit(lambda: slope(expected))())


def test_products_take_it_too():
    x, v = jnp.asarray(normal(D)), jnp.asarray(normal(D, seed=1))
    product = lambda fun, plan: lambda x: hvp(fun, (x,), (v,), plan=plan)[0]
    for fun, taken in (
        (REVERSED["network"], plans.adjoint()),
        (FORWARD["a loop of unknown length"], plans.forward()),
    ):
        auto = product(fun, "auto")
        assert carries(auto, product(fun, taken), x)
        assert_close(jax.jit(auto)(x), jax.jit(product(fun, plans.forward()))(x))


def test_optimisers_and_deferred_directions_stay_with_a_forward_pass():
    loss, x = REVERSED["network"], jnp.asarray(normal(D))
    for source in (directions.gaussian(6), directions.deferred(directions.gaussian(6))):
        steps = []
        for plan in ("auto", plans.forward()):
            tx = fomoh_jax.scale_by_hyperplane(source, plan=plan, key=0)
            state = tx.init(x)
            steps.append(lambda x: tx.update(None, state, x, value_fn=loss)[0])
        assert carries(*steps, x)
        vectors = source.sample(jax.random.key(0), x, None)
    model = lambda plan: (
        lambda x: fomoh_jax.quadratic_model(loss, (x,), (vectors,), plan=plan)
    )
    assert carries(model("auto"), model(plans.forward()), x)


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
