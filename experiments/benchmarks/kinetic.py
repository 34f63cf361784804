r"""Kinetic energies of wave functions, ``-½ (Δ log ψ + (∇ log ψ)²)``, at positions."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

import fomoh_jax
from experiments.benchmarks import workloads
from experiments.benchmarks.measurement import OURS, Contender, Contenders, Row
from experiments.benchmarks.wave_functions import electrons
from experiments.benchmarks.wave_functions.ferminet import FermiNet
from experiments.benchmarks.wave_functions.psiformer import PsiFormer
from experiments.benchmarks.wave_functions.solid import Solid
from experiments.benchmarks.ways import folx

FOLX = {"faster folx": ("folx", "folx, sparsity 6")}
WAVE_FUNCTIONS = {"FermiNet": FermiNet, "PsiFormer": PsiFormer, "solid": Solid}
# The numbers of electrons and of positions of each row.
SIZES = {
    ("FermiNet", "float32"): ((8, 64), (10, 8), (20, 8), (30, 8)),
    ("FermiNet", "float64"): ((10, 8),),
    ("PsiFormer", "float32"): ((8, 8), (10, 64), (20, 8)),
    ("PsiFormer", "float64"): ((10, 8), (30, 2)),
    ("solid", "float32"): ((8, 8), (12, 64)),
    ("solid", "float64"): ((12, 8),),
}
# Determinants of random networks are nearly singular. In float32 kinetic energies of 20
# electrons are up to 9e-4 (ours) and 7e-3 (folx) of the largest away from float64. A
# PsiFormer of 30 needs float64.
TOLERANCES = {"float32": 2e-2, "float64": 1e-8}
QUICK = {("FermiNet", "float32"): [(4, 2)], ("solid", "float64"): [(4, 2)]}
SMALL = {"width": 8, "layers": 1, "determinants": 2}


def rows(quick: bool, scale: int) -> Iterator[Row]:
    """A row for each wave function, precision, number of electrons and of positions."""
    for (name, dtype), sizes in (QUICK if quick else SIZES).items():
        model = WAVE_FUNCTIONS[name](**(SMALL if quick else {}))
        for n, batch in sizes:
            shape = {"N": n, "B": scale * batch}
            make = functools.partial(contenders, model, *shape.values(), dtype)
            precision = {
                "double": dtype == "float64",
                "tolerance": TOLERANCES[dtype],
            }
            yield Row(f"{name}, {dtype}", shape, make, FOLX, **precision)


def contenders(model: nn.Module, n: int, batch: int, dtype: str) -> Contenders:
    """Value and kinetic energy at every position, by ways to the derivatives."""
    x = electrons.positions(batch, n)
    params = jax.jit(model.init)(jax.random.key(0), x[0])
    args = workloads.cast((params, x), jnp.dtype(dtype))

    def energies(derivatives: Callable) -> Callable:
        def energy(params, x):
            log_psi = functools.partial(model.apply, params)
            value, gradient, laplacian = derivatives(log_psi, x)
            return value, -(laplacian + jnp.sum(gradient**2)) / 2

        return jax.vmap(energy, in_axes=(None, 0))

    return {name: Contender(energies(way), args) for name, way in WAYS.items()}


def ours(fun: Callable, x: jax.Array) -> Any:
    """Value, gradient and Laplacian of one forward pass."""
    return fomoh_jax.value_grad_and_laplacian(fun)(x)


def by_folx(fun: Callable, x: jax.Array, sparsity: int) -> Any:
    """Folx's forward Laplacian, which drops zeros up to so many inputs an element."""
    if folx is None:
        raise ImportError("folx is not installed")
    out = folx.forward_laplacian(fun, sparsity_threshold=sparsity)(x)
    return out.x, out.jacobian.dense_array, out.laplacian


def by_hessian(fun: Callable, x: jax.Array) -> Any:
    """The trace of ``jax.hessian``."""
    return *jax.value_and_grad(fun)(x), jnp.trace(jax.hessian(fun)(x))


def by_loop(fun: Callable, x: jax.Array) -> Any:
    """A row of the Hessian at a time: ``jvp`` of the gradient, in a loop."""
    gradient, product = jax.linearize(jax.grad(fun), x)
    curvatures = lax.map(lambda v: v @ product(v), jnp.eye(x.size, dtype=x.dtype))
    return fun(x), gradient, jnp.sum(curvatures)


def by_parts(way: Callable) -> Callable:
    """A way that takes real functions alone, applied to real and imaginary parts."""

    def derivatives(fun, x):
        if not jnp.iscomplexobj(jax.eval_shape(fun, x)):
            return way(fun, x)
        real, imaginary = (lambda x: fun(x).real), (lambda x: fun(x).imag)
        return jax.tree.map(lax.complex, way(real, x), way(imaginary, x))

    return derivatives


WAYS = {
    OURS: ours,
    "folx": functools.partial(by_folx, sparsity=0),
    "folx, sparsity 6": functools.partial(by_folx, sparsity=6),
    "jax.hessian": by_parts(by_hessian),
    "jvp of grad, in a loop": by_parts(by_loop),
}
