"""Local channels: right in all operators, and never more work than dense ones."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import jaxpr_as_fun

import fomoh_jax
from fomoh_jax._compat import open_jaxpr, programs_in
from fomoh_jax._hyperdual.channels import Stack
from fomoh_jax._hyperdual.trace_forms import Trace
from fomoh_jax._operators.basis import along_directions, standard_basis, trace_in
from fomoh_jax._varied import Varied
from tests.reference import assert_close, normal, partly_slow

D = 24
EDGES = np.array([(0, 1), (2, 5), (5, 7), (7, 2), (3, 3), (4, 6)])


def electrons(x):
    return x.reshape(8, 3)


def features(x, width=5, seed=0):
    return jnp.tanh(electrons(x) @ normal(3, width, seed=seed))


def pairs(x):
    """FermiNet's: features of each two electrons, and means over the second."""
    r = electrons(x)
    apart = r[:, None] - r[None]
    far = jnp.linalg.norm(apart + jnp.eye(8)[..., None], axis=-1, keepdims=True)
    two = jnp.tanh(jnp.concatenate([apart, far], -1) @ normal(4, 6))
    one = jnp.concatenate([features(x), two.mean(1)], -1)
    return jnp.sum(jnp.tanh(one @ normal(11, 3)))


def attention(x):
    q, k, v = (features(x, 16, seed).reshape(8, 2, 8) for seed in range(3))
    logits = jnp.einsum("ihf,jhf->hij", q, k)
    return jnp.sum(jnp.einsum("hij,jhf->ihf", jax.nn.softmax(logits), v) ** 3)


def layer_norm(x):
    h = features(x)
    normed = (h - h.mean(-1, keepdims=True)) / jnp.sqrt(1e-3 + h.var(-1, keepdims=True))
    return jnp.sum(jnp.sin(normed @ normal(5, 4)))


def orbitals(x):
    """``[8, 8]``: the rows depend on one electron each."""
    return jnp.exp(-jnp.linalg.norm(x.reshape(8, 1, 3) - normal(8, 3), axis=-1))


def log_abs_det(matrix):
    return jnp.sum(jnp.linalg.slogdet(matrix)[1])


def image(x):
    """Two layers of a network that convolves, the second one with strides and gaps."""
    h = x.reshape(1, 4, 6, 1)
    for kernel, strides, gaps in (((3, 3, 1, 2), 1, 1), ((2, 2, 2, 3), 2, 2)):
        h = lax.conv_general_dilated(
            jnp.tanh(h),
            normal(*kernel),
            (strides, 1),
            "SAME",
            rhs_dilation=(1, gaps),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
    return jnp.sum(h**3)


def _counted(carry, value):
    count, total = carry
    return (count + 1, total + value**3 * count), None


PROGRAMS = {
    "pairs": pairs,
    "layers of each electron": lambda x: jnp.sum(jnp.sin(features(x) @ normal(5, 5))),
    "attention": attention,
    "layer norm": layer_norm,
    "embeddings": lambda x: jnp.sum(jnp.tanh(x[EDGES[:, 0]] * x[EDGES[:, 1]]) ** 2),
    "determinant": lambda x: log_abs_det(orbitals(x)),
    "its transpose": lambda x: log_abs_det(orbitals(x).T),
    "determinants": lambda x: log_abs_det(
        jnp.moveaxis((features(x, 16) @ normal(16, 16)).reshape(8, 2, 8), 1, 0)
    ),
    "mixed positions": lambda x: jnp.sum(
        jnp.sin(jnp.einsum("jn,nc->jc", normal(5, 8), electrons(x)) @ normal(3, 4))
    ),
    "a complex determinant": lambda x: jnp.linalg.slogdet(
        jnp.exp(1j * electrons(x) @ normal(3, 8))
    )[1],
    "all products": lambda x: jnp.sum((electrons(x) @ electrons(x).T) ** 2),
    "image": image,
    "sort": lambda x: jnp.sum(jnp.sort(electrons(x), 0)[:, 0] ** 3),
    "sorted rows": lambda x: jnp.sum(jnp.sort(electrons(x))[:, :2] ** 3),
    "largest": lambda x: jnp.sum(lax.top_k(x.reshape(6, 4), 2)[0] * jnp.arange(2.0)),
    "maxima": lambda x: jnp.sum(jnp.max(electrons(x), 1) ** 3),
    "sums on the way": lambda x: jnp.sum(jnp.cumsum(electrons(x), 1) ** 3),
    "a wide variance": lambda x: jnp.var(x) ** 2,
    "steps, backwards": lambda x: jnp.sum(
        lax.scan(lambda i, v: (i + 1, v**2 * x[i]), 0, x, reverse=True)[1] * x**2
    ),
    "steps": lambda x: lax.scan(
        lambda c, ab: (c + jnp.sin(ab[0] * ab[1]) - ab[0] ** 3, ab[0] ** 2),
        0.0,
        (x[:-1], x[1:]),
    )[0],
    "steps with constants": lambda x: lax.scan(
        lambda c, v: ((c[0] + v**3 * c[1], *c[1:]), v),
        (0.0, 2.0, True, jax.random.key(0)),
        x,
    )[0][0],
    "counted steps": lambda x: lax.fori_loop(
        0, D - 1, lambda i, c: c + x[i] ** 2 * x[i + 1], 0.0
    ),
    "steps that wait": lambda x: lax.scan(lambda c, v: (c * v + 1, None), 1.0, x)[0],
    "branches": lambda x: jnp.sum(
        lax.cond(x[0] > 0, lambda y: y[1:] * y[:-1] ** 2, lambda y: y[1:] ** 3, x)
    ),
    "subtracted, and a count that is used": lambda x: (
        jnp.sum((x**2).at[np.arange(D) // 2].subtract(jnp.sin(x)) ** 3)
        + math.prod(lax.scan(_counted, (0, 0.0), x)[0])
    ),
}


@pytest.mark.parametrize("name", partly_slow(PROGRAMS))
def test_the_operators_agree_with_jax(name):
    fun, x, weights = PROGRAMS[name], normal(D), np.linspace(-1, 1, D)
    # The program itself broadcasts silently where it is traced; no rule does.
    traced = jaxpr_as_fun(jax.make_jaxpr(fun)(x))
    of_traced = lambda x: traced(x)[0]

    @jax.jit
    @jax.numpy_rank_promotion("raise")
    def compared(x):
        found = fomoh_jax.value_grad_and_laplacian(of_traced, weights=weights)(x)
        diagonal = fomoh_jax.hessian_diagonal(of_traced)(x)
        return found, diagonal, fomoh_jax.laplacian(of_traced)(x)

    hessian = jax.jit(jax.jacfwd(jax.jacfwd(fun)))(x)
    (value, gradient, weighted), diagonal, laplacian = compared(x)
    assert_close(value, fun(x))
    assert_close(gradient, jax.jit(jax.jacfwd(fun))(x))
    expected = np.diagonal(hessian)
    atol = 1e-11 * max(1, np.abs(expected).max())
    assert_close(diagonal, expected, atol=atol)
    assert_close(laplacian, expected.sum(), atol=atol)
    assert_close(weighted, weights @ expected, atol=atol)


# What is found sparse, and with how many entries.
SPARSE = {
    "convolution": (lambda x: jnp.sum(jnp.convolve(x, jnp.arange(1.0, 4)) ** 4), 114),
    "image": (lambda x: jnp.sum(jnp.sin(_windows(x.reshape(1, 4, 6, 1)))), 336),
    "sorted rows": (PROGRAMS["sorted rows"], 72),
    "maxima": (PROGRAMS["maxima"], 72),
    "sums on the way": (PROGRAMS["sums on the way"], 72),
    "subtracted": (
        lambda x: jnp.sum((x**2).at[np.arange(D) // 2].subtract(jnp.sin(x)) ** 3),
        92,
    ),
    "pairs by indices that jax.numpy computes": (
        lambda x: jnp.sum(jnp.prod(x[jnp.stack(jnp.triu_indices(4, 1))], 0) ** 2),
        16,
    ),
    "steps": (PROGRAMS["steps"], 70),
    "counted steps": (PROGRAMS["counted steps"], 69),
    "branches": (PROGRAMS["branches"], 70),
    "norms": (layer_norm, 72),
}


def _windows(x):
    numbers = ("NHWC", "HWIO", "NHWC")
    kernel = normal(3, 3, 1, 2)
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=numbers
    )


@pytest.mark.parametrize("name", SPARSE)
def test_what_meets_in_no_operation_is_not_stored(name):
    fun, entries = SPARSE[name]
    assert fomoh_jax.hessian_sparsity(fun)(jnp.ones(D)).nse == entries


@pytest.mark.slow
def test_a_branch_that_is_not_taken_neither_runs_nor_spoils_a_gradient():
    def negative(v):
        raise ValueError("it ran")

    never = lambda v: (
        v * jax.pure_callback(negative, jax.typeof(v), lax.stop_gradient(v))
    )
    roots = lambda v: lax.cond(v > 0, jnp.sqrt, lambda v: v**2, v)
    fun = lambda x: roots(x[0]) + roots(x[1]) + lax.cond(x[2] > 9, never, jnp.sin, x[2])
    x = jnp.array([-1.0, 2.0, 1.0, 5.0])
    laplacian = fomoh_jax.laplacian(fun)
    assert_close(laplacian(x), 2 - 2**-1.5 / 4 - np.sin(1))
    expected = jnp.array([0, 2**-2.5 * 3 / 8, -np.cos(1), 0])
    assert_close(jax.grad(laplacian)(x), expected)


def test_steps_that_cannot_be_batched_are_taken_one_by_one():
    def step(total, v):
        double = jax.pure_callback(lambda v: 2 * v, jax.typeof(v), lax.stop_gradient(v))
        return total + double * v, None

    fun = lambda x: lax.scan(step, 0.0, x)[0]
    assert_close(fomoh_jax.laplacian(fun)(normal(6)), 0.0)


# --- what it costs --------------------------------------------------------------------


def network_of_nodes(x):
    h = x.reshape(-1, 4)
    for seed in range(3):
        h = jnp.tanh(h @ normal(h.shape[-1], 32, seed=seed))
    return jnp.sum(h)


def dense_laplacian(fun):
    """Along directions that are stored from the start."""

    def laplacian(x):
        varied = Varied((x,), jax.tree.structure(x))
        basis = list(map(Stack, standard_basis(varied)))
        out, _ = along_directions("", fun, Trace(x.size), varied, basis, False)
        return trace_in(out)

    return laplacian


def compiled(fun, x):
    return jax.jit(fun).lower(x).compile()


@pytest.mark.slow
@pytest.mark.optimised
def test_laplacians_of_nodes_cost_what_the_nodes_cost():
    flops = [
        compiled(fomoh_jax.laplacian(network_of_nodes), normal(n)).cost_analysis()
        for n in (40, 400)
    ]
    assert flops[1]["flops"] < 11 * flops[0]["flops"]
    assert flops[1]["bytes accessed"] < 11 * flops[0]["bytes accessed"]


@pytest.mark.slow
@pytest.mark.optimised
@pytest.mark.parametrize(
    "fun", partly_slow([pairs, attention, layer_norm, network_of_nodes, image])
)
def test_they_are_never_more_work_than_dense(fun):
    x = normal(D)
    local = compiled(fomoh_jax.laplacian(fun), x)
    dense = compiled(dense_laplacian(fun), x)
    flops = [program.cost_analysis()["flops"] for program in (local, dense)]
    temporaries = [p.memory_analysis().temp_size_in_bytes for p in (local, dense)]
    assert flops[0] <= 1.02 * flops[1]
    assert temporaries[0] <= 1.05 * temporaries[1] + 1000


@pytest.mark.parametrize("operator", [fomoh_jax.laplacian, fomoh_jax.hessian_diagonal])
def test_no_elements_are_moved_one_by_one_in_an_ordinary_network(operator):
    layers = lambda x: jnp.sum(jnp.tanh(jnp.tanh(x @ normal(6, 8)) @ normal(8, 8)))
    names = set(_names(jax.make_jaxpr(operator(layers))(normal(6))))
    assert "dot_general" in names
    assert names.isdisjoint({"gather", "scatter", "scatter-add", "select_n"})


def _names(jaxpr):
    for eqn in open_jaxpr(jaxpr)[0].eqns:
        yield eqn.primitive.name
        for inner in programs_in(eqn.params):
            yield from _names(inner)


def test_a_hessian_is_computed_by_its_entries_where_that_is_less_work():
    chain = lambda x: jnp.sum((x[1:] - x[:-1] ** 2) ** 2)
    n = 200
    jaxpr = jax.make_jaxpr(fomoh_jax.hessian(chain))(jnp.ones(n))
    found = [eqn.primitive.name for eqn in open_jaxpr(jaxpr)[0].eqns if _large(eqn, n)]
    # The basis is not read, and what is left is zeros that the entries are written to.
    assert found.count("scatter") == 1
    assert set(found).isdisjoint({"dot_general", "mul", "concatenate"})
    assert_close(fomoh_jax.hessian(chain)(normal(9)), jax.hessian(chain)(normal(9)))
    found = fomoh_jax.value_grad_and_hessian(chain)(normal(9))
    assert_close(found.gradient, jax.grad(chain)(normal(9)))


def _large(eqn, n):
    return any(v.aval.size >= n * n for v in eqn.outvars)
