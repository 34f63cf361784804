"""Every contender of the table of sparse Hessians computes the same matrix."""

import jax
import numpy as np
import pytest
from jax.experimental.sparse import BCOO

import fomoh_jax
from experiments.benchmarks import sparse
from experiments.benchmarks.measurement import OURS

try:
    import asdex  # noqa: F401

    HAS_ASDEX = True
except ImportError:  # before Python 3.12, or beside a JAX that it does not know
    HAS_ASDEX = False

SMALL = {
    "Rosenbrock": (7,),
    "minimal surface": (5,),
    "springs": (6, 9),
    "optimal control": (6,),
}


@pytest.mark.parametrize("name", sparse.PROBLEMS)
def test_sparse_and_dense_hessians_agree(name):
    problem = sparse.PROBLEMS[name][0](*SMALL[name])
    contenders = sparse.contenders(problem)
    if not HAS_ASDEX:
        del contenders["asdex"]
    found = {
        name: jax.jit(contender.function)(*contender.args)
        for name, contender in contenders.items()
    }
    expected = np.asarray(found.pop("jax.hessian"))
    for hessian in found.values():
        dense = hessian.todense() if isinstance(hessian, BCOO) else hessian
        np.testing.assert_allclose(dense, expected, atol=1e-5 * abs(expected).max())
    if HAS_ASDEX:  # so that the suite compares the same entries
        np.testing.assert_array_equal(found["asdex"].indices, found[OURS].indices)


@pytest.mark.parametrize("name", SMALL)
def test_no_entry_is_stored_in_vain(name):
    problem = sparse.PROBLEMS[name][0](*SMALL[name])
    x = problem.start + 0.1 * np.random.default_rng(0).normal(size=problem.start.shape)
    stored = fomoh_jax.hessian_sparsity(problem.fun)(x).nse
    assert stored == np.count_nonzero(jax.jit(jax.hessian(problem.fun))(x))
