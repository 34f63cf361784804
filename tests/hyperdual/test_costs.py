"""Operations and temporary bytes, as the compiler counts them, in float32.

Neither depends on how busy the machine is. Nothing is run.
"""

import itertools

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import fomoh_jax
from fomoh_jax import plans
from tests.reference import nested_shared, slow

pytestmark = pytest.mark.optimised


def structs(shapes):
    return [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]


def network(*widths, batch):
    """The mean square of a tanh network's output; its weights and its data."""

    def loss(ws, x):
        for w in ws[:-1]:
            x = jnp.tanh(x @ w)
        return jnp.mean((x @ ws[-1]) ** 2)

    return loss, structs(itertools.pairwise(widths)), structs([(batch, widths[0])])[0]


WIDE = network(784, 100, 10, batch=2048)
DEEP = network(*[256] * 6, 10, batch=256)


def costs(way, problem, k):
    """FLOPs and temporary bytes."""
    loss, params, x = problem
    directions = jax.tree.map(lambda p: structs([(k, *p.shape)])[0], params)
    program = lambda params, v, x: way(lambda p: loss(p, x), (params,), (v,))
    compiled = jax.jit(program).lower(params, directions, x).compile()
    cost = compiled.cost_analysis()
    cost = cost[0] if isinstance(cost, list) else cost
    return cost["flops"], compiled.memory_analysis().temp_size_in_bytes


def forward(fun, primals, directions):
    return fomoh_jax.quadratic_model(fun, primals, directions, plan=plans.forward())


def adjoint(fun, primals, directions):
    return fomoh_jax.quadratic_model(fun, primals, directions, plan=plans.adjoint())


@pytest.mark.slow
@pytest.mark.sampled(3)
@pytest.mark.parametrize("k", [1, slow(2), 5])
@pytest.mark.parametrize("problem", [WIDE, DEEP], ids=["wide", "deep"])
def test_never_more_operations_than_nested_jvp(problem, k):
    for way in (forward, adjoint):
        assert costs(way, problem, k)[0] <= 1.01 * costs(nested_shared, problem, k)[0]


def test_two_thirds_of_the_operations_at_ten_directions_of_a_deep_network():
    ours, nested = (costs(w, DEEP, 10)[0] for w in (forward, nested_shared))
    assert ours <= 0.65 * nested


@pytest.mark.slow
@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("problem", "k", "operations", "temporaries"),
    [(WIDE, 10, 0.85, 0.4), (DEEP, 10, 0.2, 0.7), (DEEP, 20, 0.1, 0.4)],
    ids=["wide-10", "deep-10", "deep-20"],
)
def test_the_adjoint_way_takes_a_fraction_of_nested_jvp(
    problem, k, operations, temporaries
):
    flops, size = costs(adjoint, problem, k)
    nested_flops, nested_size = costs(nested_shared, problem, k)
    assert flops <= operations * nested_flops
    assert size <= temporaries * nested_size


def attention(ws, x):
    query, key, value = (jnp.einsum("bsf,fhd->bshd", x, w) for w in ws)
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", query, key))
    return jnp.mean(jnp.einsum("bhqk,bkhd->bqhd", weights, value) ** 2)


@pytest.mark.slow
def test_attention_takes_fewer_operations_than_nested_jvp():
    problem = (attention, structs([(32, 2, 16)] * 3), structs([(4, 64, 32)])[0])
    nested, nested_size = costs(nested_shared, problem, 5)
    assert costs(forward, problem, 5)[0] <= 0.75 * nested
    flops, size = costs(adjoint, problem, 5)
    assert flops <= 0.36 * nested and size <= 0.6 * nested_size


def test_curvatures_along_each_direction_cost_as_many_as_there_are():
    of = lambda k: costs(fomoh_jax.directional_curvature, DEEP, k)
    (few, small), (many, large) = of(8), of(16)
    assert many <= 2.05 * few and large <= 2.2 * small


def scanned(layers):
    def loss(ws, x):
        return jnp.mean(lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws)[0] ** 2)

    return loss, *structs([(layers, 64, 64), (256, 64)])


@pytest.mark.slow
def test_temporaries_do_not_grow_with_the_layers_of_a_scan():
    ours = lambda n: costs(forward, scanned(n), 2)[1]
    assert ours(64) <= 1.05 * ours(16)
    gradient = lambda fun, primals, directions: jax.grad(fun)(*primals)
    assert ours(16) < costs(gradient, scanned(16), 2)[1]


def unrolled(layers):
    return network(*[64] * (layers + 1), batch=256)


@pytest.mark.slow
def test_temporaries_grow_with_layers_by_less_than_a_gradient_s():
    """XLA before jax 0.12 keeps a transposed copy of each layer's directions."""
    ours = [costs(forward, unrolled(n), 2)[1] for n in (16, 32)]
    heeded = jax.__version_info__ >= (0, 12)
    copies = 0 if heeded else 16 * 2 * 64 * 64 * 4
    assert ours[1] <= 1.05 * ours[0] + copies
    gradient = lambda fun, primals, directions: jax.grad(fun)(*primals)
    grown = [costs(gradient, unrolled(n), 2)[1] for n in (16, 32)]
    assert ours[1] - ours[0] < 0.6 * (grown[1] - grown[0])


def test_temporaries_follow_chunk_size():
    def chunked(chunk_size):
        def way(fun, primals, directions):
            return fomoh_jax.quadratic_model(
                fun, primals, directions, plan=plans.forward(chunk_size)
            )

        return costs(way, DEEP, 16)[1]

    assert chunked(1) < chunked(2) < chunked(4) < chunked(None)
    assert chunked(1) <= 0.55 * chunked(None)
