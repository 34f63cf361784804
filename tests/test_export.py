"""The step and the model, lowered for machines that are not here, and sent to one."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export

import fomoh_jax
from experiments.benchmarks.workloads import digits, transformer
from fomoh_jax import _serialisation, curvature
from tests.reference import partly_slow, random_directions

pytestmark = pytest.mark.optimised

K = 3
PLATFORMS = ("cpu", "cuda", "tpu")
WORKLOADS = {
    "softmax": lambda: digits("softmax", 4, jnp.float32),
    "mlp": lambda: digits("mlp", 4, jnp.float32),
    "cnn": lambda: digits("cnn", 4, jnp.float32),
    "transformer": lambda: transformer(1, 8, 4, 2, jnp.float32),
}


def step_of(loss, tx):
    def step(params, state, *data):
        value_fn = lambda params: loss(params, *data)
        updates, state = tx.update(None, state, params, value_fn=value_fn)
        return optax.apply_updates(params, updates), state

    return jax.jit(step)


@pytest.mark.slow
@pytest.mark.sampled
@pytest.mark.parametrize("name", partly_slow(WORKLOADS))
def test_model_and_step_are_lowered_for_every_platform(name):
    loss, params, data = WORKLOADS[name]()
    tx = fomoh_jax.fomoh_kd(K)

    def model(params, directions, *data):
        held = (None,) * len(data)
        return fomoh_jax.quadratic_model(loss, (params, *data), (directions, *held))

    arguments = {
        jax.jit(model): (params, random_directions(params, K), *data),
        step_of(loss, tx): (params, tx.init(params), *data),
    }
    for function, args in arguments.items():
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), args)
        exported = export.export(function, platforms=PLATFORMS)(*shapes)
        assert exported.platforms == PLATFORMS
        assert exported.out_avals


# What a machine does that has the file, the library, and not the model.
ELSEWHERE = """
import sys
import jax, numpy as np, optax
from jax import export
import fomoh_jax

export.register_namedtuple_serialization(
    optax.EmptyState, serialized_name="optax.EmptyState"
)
step, numbers, results = sys.argv[1:]
exported = export.deserialize(bytearray(open(step, "rb").read()))
arrays = np.load(numbers)
params, data = {"params": {"Dense_0": {}, "Dense_1": {}}}, []
for name in arrays.files:
    *path, last = name.split("/")
    if path:
        params["params"][path[0]][last] = arrays[name]
    else:
        data.append(arrays[name])
state = fomoh_jax.fomoh_kd(3, key=0).init(params)
for _ in range(2):
    params, state = exported.call(params, state, *data)
leaves = jax.tree.leaves((params, optax.tree.get(state, "model")))
np.savez(results, *map(np.asarray, leaves))
"""


@pytest.mark.slow
def test_a_fresh_process_without_the_model_makes_the_same_steps(tmp_path):
    loss, params, data = WORKLOADS["mlp"]()
    tx = fomoh_jax.fomoh_kd(K, key=0)
    step, state = step_of(loss, tx), tx.init(params)
    export.register_namedtuple_serialization(
        optax.EmptyState, serialized_name="optax.EmptyState"
    )
    exported = export.export(step, platforms=PLATFORMS)(params, state, *data)
    (tmp_path / "step.bin").write_bytes(exported.serialize())
    arrays = {
        f"{layer}/{name}": array
        for layer, arrays in params["params"].items()
        for name, array in arrays.items()
    }
    np.savez(tmp_path / "numbers.npz", **arrays, images=data[0], labels=data[1])
    files = [str(tmp_path / name) for name in ("step.bin", "numbers.npz", "out.npz")]
    subprocess.run(
        [sys.executable, "-c", ELSEWHERE, *files],
        env=os.environ | {"JAX_ENABLE_X64": "1"},
        check=True,
    )
    for _ in range(2):
        params, state = step(params, state, *data)
    expected = jax.tree.leaves((params, optax.tree.get(state, "model")))
    found = np.load(files[2])
    for number, leaf in zip(found.files, expected, strict=True):
        np.testing.assert_allclose(found[number], leaf, rtol=1e-6, atol=1e-7)


def test_every_state_and_result_of_the_library_has_a_name():
    solvers = fomoh_jax.solvers
    modules = (fomoh_jax, fomoh_jax.directions, fomoh_jax.curvature)
    modules += (solvers, solvers.descents, solvers.searches)
    tuples = {
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and hasattr(value, "_fields")
    }
    # What is handed on within a step.
    inside = {solvers.Attempt, solvers.Outcome, solvers.Step}
    assert tuples - inside == set(_serialisation.NAMED)


def test_results_of_curvature_are_read_back_as_what_they_are():
    def results(x):
        kinds = (curvature.Estimate, curvature.Eigenpairs, curvature.ConjugateGradients)
        return [kind(*[x] * len(kind._fields)) for kind in kinds]

    written = export.export(jax.jit(results))(jnp.ones(2)).serialize()
    read = export.deserialize(bytearray(written)).call(jnp.ones(2))
    assert list(map(type, read)) == list(map(type, results(jnp.ones(2))))
