"""Hessians of sums of terms in few variables each, as sparse matrices and dense."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.sparse import BCOO

import fomoh_jax
from experiments import sparse_problems
from experiments.benchmarks.measurement import OURS, Contender, Contenders, Row
from experiments.rosenbrock import rosenbrock
from experiments.sparse_problems import Problem

DENSE = "fomoh_jax.hessian"
SPREAD = 0.01  # of the point around a problem's start, where derivatives may vanish


def rosenbrock_chain(dimension: int) -> Problem:
    """Rosenbrock's function: its Hessian is tridiagonal."""
    return Problem(rosenbrock, np.ones(dimension))


# How to make each problem, and the sizes of its rows.
PROBLEMS = {
    "Rosenbrock": (rosenbrock_chain, [(500,), (5000,)]),
    "minimal surface": (sparse_problems.minimal_surface, [(50,)]),
    "springs": (sparse_problems.spring_graph, [(800, 2000)]),
    "optimal control": (sparse_problems.optimal_control, [(500,)]),
}
QUICK = {"Rosenbrock": [(20,)], "springs": [(10, 20)]}


def rows(quick: bool, scale: int) -> Iterator[Row]:
    """At one point: ``D`` variables, and the entries that a sparse Hessian stores.

    There is no batch: with another ``scale`` than 1 there are no rows.
    """
    if scale != 1:
        return
    for name, (make, sizes) in PROBLEMS.items():
        for size in QUICK.get(name, []) if quick else sizes:
            problem = make(*size)
            point = jax.ShapeDtypeStruct(problem.start.shape, "float32")
            entries = fomoh_jax.hessian_sparsity(problem.fun)(point).nse
            shape = {"D": point.size, "stored entries": entries}
            yield Row(name, shape, functools.partial(contenders, problem))


def contenders(problem: Problem) -> Contenders:
    """All compute the same Hessian; two return it as a dense array."""
    noise = np.random.default_rng(0).normal(size=problem.start.shape)
    args = (jax.device_put(jnp.float32(problem.start + SPREAD * noise)),)
    _compile_asdex()
    return {
        OURS: Contender(fomoh_jax.sparse_hessian(problem.fun), args),
        "asdex": Contender(by_asdex(problem.fun), args),
        "jax.hessian": Contender(jax.hessian(problem.fun), args, agrees=False),
        DENSE: Contender(fomoh_jax.hessian(problem.fun), args, agrees=False),
    }


def by_asdex(fun: Callable) -> Callable[[jax.Array], BCOO]:
    """Hessians by products with vectors, one for each colour of the pattern.

    The pattern is found and coloured while tracing, as ours is: once, ahead of all
    calls, and counted in the compile time.

    Raises:
      ImportError: when traced, if asdex cannot be imported.
    """

    def hessian(x: jax.Array) -> BCOO:
        return _import_asdex().hessian(fun, x)(x)

    return hessian


def _import_asdex() -> ModuleType:
    # asdex 0.5.2 cannot be imported beside jax 0.12; a report should say why.
    import asdex

    return asdex


def _compile_asdex() -> None:
    """Has Numba compile the colouring, which it does when asdex first runs."""
    with contextlib.suppress(ImportError):
        _import_asdex().hessian_coloring(rosenbrock, jnp.ones(3))
