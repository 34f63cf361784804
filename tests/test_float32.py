"""Float32 under ``jit``, as people use it, against eager float64 of plain JAX.

jaxlib 0.10.2 to 0.12.0.1 return wrong numbers for float32 sums over products under
``jit`` unless a flag of XLA is set (``fomoh_jax/_xla.py``), and tests in float64 see
nothing of it. Where the flag is not set and jaxlib has the fault, these fail.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fomoh_jax
from fomoh_jax import curvature, plans
from tests.programs import PROGRAMS
from tests.reference import slow

# Relative to the largest element. Where it does not suffice, the error of plain JAX in
# eager float32, which no fusion can spoil, says how badly conditioned the program is.
TOLERANCE = 2e-4
TIMES_PLAIN = 10
K = 5


class Case(NamedTuple):
    """A program of one vector, and where to differentiate it.

    Attributes:
      fun: ``fun(x, *weights)``. What it closes over takes the precision that JAX is in.
      x: ``[D]``, float64.
      weights: held fixed, arrays of NumPy in float64.
    """

    fun: Callable
    x: np.ndarray
    weights: tuple = ()


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def constant(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(normal(seed, *shape))


def of_one_vector(fun: Callable, arguments: tuple) -> Case:
    """A program of pytrees, as one of all their elements."""
    leaves, structure = jax.tree.flatten(arguments)
    leaves = [np.asarray(leaf) for leaf in leaves]
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1]

    def flat(x):
        parts = [p.reshape(a.shape) for p, a in zip(jnp.split(x, ends), leaves)]
        return fun(*structure.unflatten(parts))

    return Case(flat, np.concatenate([leaf.ravel() for leaf in leaves]))


def layer_norm(x):
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(centred**2, -1, keepdims=True) + 1e-5)


def rms_norm(x):
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-5)


ELECTRONS, ATOMS, WIDTH, DETERMINANTS = 12, 3, 32, 2
POSITIONS = 1.5 * normal(3, ELECTRONS * 3)


def log_of_determinants(orbitals, r, sigma, pi):
    """``log |Σ det|`` of orbitals ``[n, dets * n]`` under an exponential envelope."""
    envelope = jnp.sum(jnp.exp(-r[:, :, None] * sigma) * pi, axis=1)
    matrices = (orbitals * envelope).reshape(ELECTRONS, DETERMINANTS, ELECTRONS)
    sign, log = jnp.linalg.slogdet(matrices.transpose(1, 0, 2))
    largest = jnp.max(log)
    return jnp.log(jnp.abs(jnp.sum(sign * jnp.exp(log - largest)))) + largest


def features(x):
    """Of each electron, and its distances ``[n, atoms]`` from the atoms."""
    to_atoms = x.reshape(ELECTRONS, 1, 3) - constant(1, ATOMS, 3)
    r = jnp.sqrt(jnp.sum(to_atoms**2, axis=-1))
    return jnp.concatenate([to_atoms.reshape(ELECTRONS, -1), r], axis=1), r


def ferminet(x, sigma, pi):
    h, r = features(x)
    h = jnp.tanh(h @ constant(2, h.shape[1], WIDTH))
    everyone = jnp.broadcast_to(jnp.mean(h, axis=0), h.shape)
    h = h + jnp.tanh(jnp.concatenate([h, everyone], 1) @ constant(3, 2 * WIDTH, WIDTH))
    orbitals = h @ constant(4, WIDTH, DETERMINANTS * ELECTRONS)
    return log_of_determinants(orbitals, r, sigma, pi)


def psiformer(x, sigma, pi):
    h, r = features(x)
    h = h @ constant(2, h.shape[1], WIDTH)
    q, k, v = jnp.einsum("nd,cde->cne", layer_norm(h), constant(3, 3, WIDTH, WIDTH))
    h = h + jax.nn.softmax(q @ k.T / WIDTH**0.5) @ v
    h = h + jnp.tanh(layer_norm(h) @ constant(5, WIDTH, WIDTH))
    orbitals = h @ constant(4, WIDTH, DETERMINANTS * ELECTRONS)
    return log_of_determinants(orbitals, r, sigma, pi)


def residual(x, scale, shift):
    h = x[:, None] * scale  # [8, 64]
    for seed in range(3):
        h = h + jnp.tanh(h @ (constant(seed, 64, 64) / 8) + shift)
    return jnp.mean(h**2)


def normed(norm):
    def fun(x, scale, shift):
        h = norm(jnp.sin(x[:, None] * constant(0, 8, 64))) * scale + shift
        return jnp.sum(jnp.tanh(norm(h @ (constant(1, 64, 64) / 8))) ** 2)

    return fun


def over_broadcast(reduce):
    def fun(x, scale, shift):
        return jnp.sum(jnp.tanh(reduce(x[:, None] * scale, axis=0) + shift))

    return fun


ENVELOPE = (ATOMS, DETERMINANTS * ELECTRONS)
NORMS = {"layer_norm": normed(layer_norm), "rms_norm": normed(rms_norm)}
REDUCTIONS = {
    "mean": over_broadcast(jnp.mean),
    "max": over_broadcast(jnp.max),
    "logsumexp": over_broadcast(jax.nn.logsumexp),
}
EIGHT = np.linspace(-1.0, 1.0, 8)
# Each with its point, and the shapes of its two weights.
WEIGHTED = {
    "ferminet": (ferminet, POSITIONS, (ENVELOPE, ENVELOPE)),
    "psiformer": (psiformer, POSITIONS, (ENVELOPE, ENVELOPE)),
    "residual": (residual, EIGHT, ((64,), (64,))),
    **{name: (fun, EIGHT, ((64,), (64,))) for name, fun in NORMS.items()},
    **{name: (fun, EIGHT, ((8, 512), (512,))) for name, fun in REDUCTIONS.items()},
}


def weighted(name: str, how: str) -> Case:
    """A program whose weights are uniform, random, or arguments of it."""
    fun, x, shapes = WEIGHTED[name]
    if how == "uniform":
        weights = tuple(map(np.ones, shapes))
    else:
        weights = tuple(1 + 0.3 * normal(i, *shape) for i, shape in enumerate(shapes))
    if how == "arguments":
        return Case(fun, x, weights)
    return Case(lambda x: fun(x, *map(jnp.asarray, weights)), x)


HOW = ("uniform", "random", "arguments")
CASES = {
    **{name: of_one_vector(*program) for name, program in PROGRAMS.items()},
    **{f"{name}-{how}": weighted(name, how) for name in WEIGHTED for how in HOW},
}


class Derivatives(NamedTuple):
    """Value ``[*out]``, gradient ``[*out, D]`` and Hessian ``[*out, D, D]``."""

    value: Any
    gradient: Any
    hessian: Any


def derivatives(case: Case, dtype: jnp.dtype) -> Derivatives:
    """By plain JAX, one operation after the other."""

    def gradient(x):
        first = lambda x: (lambda y: (y, y))(case.fun(x, *weights))
        g, value = jax.jacfwd(first, has_aux=True)(x)
        return g, (value, g)

    with jax.enable_x64(dtype == jnp.float64):
        x, *weights = (jnp.asarray(a, dtype) for a in (case.x, *case.weights))
        h, (value, g) = jax.jacfwd(gradient, has_aux=True)(x)
    return Derivatives(*(np.asarray(a, np.float64) for a in (value, g, h)))


def vectors(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """``K`` directions and weights of the Hessian, which float32 represents exactly."""
    size = case.x.size
    drawn = normal(7, K, size), normal(8, size, size)
    return tuple(a.astype(np.float32).astype(np.float64) for a in drawn)


def slopes(d, v):
    return np.moveaxis(d.gradient @ v.T, -1, 0)


def curvatures(d, v):
    return np.moveaxis(v @ d.hessian @ v.T, (-2, -1), (0, 1))


def gauss_newton_curvature(d, v):
    """Of half the sum of squares of the results."""
    jacobian = slopes(d, v).reshape(len(v), -1)
    return jacobian @ jacobian.T


def diagonal(matrix):
    return np.diagonal(matrix, axis1=-2, axis2=-1)


def along_each(d, v):
    return np.einsum("ki,...ij,kj->k...", v, d.hessian, v)


def half_square(y):
    return jnp.sum(y**2) / 2


def model_of(fun, x, v, **how):
    return fomoh_jax.quadratic_model(fun, (x,), (v,), **how)


class Way(NamedTuple):
    """A transformation, and the same by linear algebra from derivatives.

    Attributes:
      ours: ``ours(fun, x, directions, weights)``.
      theirs: ``theirs(derivatives, directions, weights)``, a tree like it.
    """

    ours: Callable
    theirs: Callable


def models(**how) -> Way:
    return Way(
        lambda f, x, v, c: model_of(f, x, v, **how),
        lambda d, v, c: (d.value, slopes(d, v), curvatures(d, v)),
    )


def hessians(**how) -> Way:
    return Way(
        lambda f, x, v, c: fomoh_jax.hessian(f, **how)(x), lambda d, v, c: d.hessian
    )


WAYS = {
    "hyper_jvp": Way(
        lambda f, x, v, c: fomoh_jax.hyper_jvp(f, (x,), (v[0],), (v[1],)),
        lambda d, v, c: (d.value, *slopes(d, v)[:2], curvatures(d, v)[0, 1]),
    ),
    "model": models(),
    "model in chunks": models(plan=plans.forward(2)),
    "model, adjoint": models(plan=plans.adjoint()),
    "gauss_newton": Way(
        lambda f, x, v, c: (
            fomoh_jax.gauss_newton_model(f, half_square, (x,), (v,)).curvature
        ),
        lambda d, v, c: gauss_newton_curvature(d, v),
    ),
    "directional_curvature": Way(
        lambda f, x, v, c: fomoh_jax.directional_curvature(f, (x,), (v,)),
        lambda d, v, c: (d.value, slopes(d, v), along_each(d, v)),
    ),
    "hessian": hessians(),
    "hessian in chunks": hessians(plan=plans.forward(3)),
    "hessian, adjoint": hessians(plan=plans.adjoint()),
    "hessian_diagonal": Way(
        lambda f, x, v, c: fomoh_jax.hessian_diagonal(f)(x),
        lambda d, v, c: diagonal(d.hessian),
    ),
    "laplacian": Way(
        lambda f, x, v, c: fomoh_jax.laplacian(f)(x),
        lambda d, v, c: diagonal(d.hessian).sum(-1),
    ),
    "weighted laplacian": Way(
        lambda f, x, v, c: fomoh_jax.laplacian(f, weights=c)(x),
        lambda d, v, c: np.einsum("ij,...ij->...", c, d.hessian),
    ),
    "hvp": Way(
        lambda f, x, v, c: curvature.hvp(f, (x,), (v[0],))[0],
        lambda d, v, c: d.hessian @ v[0],
    ),
    "hvp in chunks": Way(
        lambda f, x, v, c: curvature.hvp(f, (x,), (v[0],), plan=plans.forward(3))[0],
        lambda d, v, c: d.hessian @ v[0],
    ),
}
# Programs that are slow to compile take few ways, most of them where the weights are
# uniform, which is where the fault shows.
SLOW = ("ferminet", "psiformer", "attention")
FEW = {
    "": ("laplacian", "hessian, adjoint"),
    "uniform": ("laplacian", "model"),
    "random": ("hessian_diagonal",),
    "arguments": ("weighted laplacian",),
}
# Programs that are quick take all, and the others a quarter of them each.
QUICK = ("rosenbrock", "while", "cond_true", "cond_false", "mean", "max", "logsumexp")


def ways(name: str) -> list[str]:
    """Those that the program allows and that are its share."""
    program, _, how = name.partition("-")
    refused = ["adjoint"] if name == "while" else []  # reverse mode takes no while loop
    refused += ["hvp"] if oracle(name).value.ndim else []  # of a scalar function only
    allowed = [way for way in WAYS if not any(word in way for word in refused)]
    if program in SLOW:
        return [way for way in allowed if way in FEW[how]]
    count = 1 if program in QUICK and how in ("", "uniform") else 4
    return allowed[list(CASES).index(name) % count :: count]


@functools.cache
def oracle(name: str, dtype: jnp.dtype = jnp.float64) -> Derivatives:
    return derivatives(CASES[name], dtype)


def assert_agrees(name: str, way: str, actual: Any) -> None:
    """To rounding, or as well as plain JAX does in float32."""
    v, c = vectors(CASES[name])
    theirs = WAYS[way].theirs
    expected = theirs(oracle(name), v, c)
    # The same sums of magnitudes are what rounding errors are in proportion to.
    absolute = jax.tree.map(np.abs, (oracle(name), v, c))
    scales = [np.max(s) for s in jax.tree.leaves(theirs(*absolute))]
    error = lambda got: [
        np.max(np.abs(np.asarray(a, np.float64) - e)) / (s or 1)
        for a, e, s in zip(jax.tree.leaves(got), jax.tree.leaves(expected), scales)
    ]
    errors = error(actual)
    assert len(errors) == len(scales) == len(jax.tree.leaves(expected))
    if not max(errors) <= TOLERANCE:
        plain = error(theirs(oracle(name, jnp.float32), v, c))
        assert max(errors) <= TIMES_PLAIN * max(plain), (way, errors, plain)


# Uniform weights are where the fault shows.
@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "name",
    [
        n
        if n in QUICK or (n.endswith("-uniform") and n != "psiformer-uniform")
        else slow(n)
        for n in CASES
    ],
)
def test_every_way_agrees_with_eager_float64(name):
    case = CASES[name]

    # One compilation each: XLA does not fuse a sum that several of them would share.
    @functools.partial(jax.jit, static_argnums=0)
    def compiled(way, x, weights, v, c):
        return WAYS[way].ours(lambda x: case.fun(x, *weights), x, v, c)

    for way in ways(name):
        with jax.enable_x64(False):
            arguments = (case.x, case.weights, *vectors(case))
            actual = compiled(way, *jax.tree.map(jnp.asarray, arguments))
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(actual))
        assert_agrees(name, way, actual)


@pytest.mark.parametrize("name", ["ferminet", "layer_norm", "logsumexp"])
def test_a_batch_agrees_with_each_of_its_points(name):
    fun, x, shapes = WEIGHTED[name]
    cases = [Case(fun, x + 0.1 * i, tuple(map(np.ones, shapes))) for i in range(4)]

    @jax.jit
    def laplacians(x):
        loss = lambda x: fun(x, *map(jnp.ones, shapes))
        return jax.vmap(fomoh_jax.laplacian(loss))(x)

    with jax.enable_x64(False):
        actual = laplacians(jnp.stack([case.x for case in cases]))
    for case, laplacian in zip(cases, actual):
        diagonal = np.diagonal(derivatives(case, jnp.float64).hessian)
        assert abs(laplacian - diagonal.sum()) <= TOLERANCE * np.abs(diagonal).sum()


def convex(x):
    """Its Hessian is at least the identity."""
    spread = x[:, None] * jnp.ones((8, 512))
    return jnp.mean(jax.nn.logsumexp(spread, axis=0)) + jnp.sum(x**2) / 2


def separable(x):
    """Its Hessian is diagonal, so that estimates from random signs are exact."""
    return jnp.sum(jnp.mean(jnp.sin(x)[:, None] * jnp.ones((8, 512)), axis=1))


def test_products_with_the_hessian_solve_and_find_eigenvalues():
    hessian = derivatives(Case(convex, EIGHT), jnp.float64).hessian

    @jax.jit
    def products(x, rhs, key):
        return (
            curvature.conjugate_gradients(convex, (x,), (rhs,)).solution[0],
            curvature.top_eigenvalues(convex, (x,), key, 2).values,
            curvature.hutchinson_trace(separable, probes=4)(key, x),
            curvature.hutchinson_diagonal(separable, probes=4)(key, x),
        )

    with jax.enable_x64(False):
        x, rhs = jnp.asarray(EIGHT), jnp.asarray(normal(0, 8))
        solution, eigenvalues, trace, diagonal = products(x, rhs, jax.random.key(0))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    close(hessian @ np.asarray(solution, float), rhs)
    close(np.sort(eigenvalues), np.linalg.eigvalsh(hessian)[-2:])
    close(trace.value, -np.sin(EIGHT).sum())
    close(diagonal.value, -np.sin(EIGHT))


class Optimiser(NamedTuple):
    """One of the paper's, and its step on slopes ``[k]`` and curvatures ``[k, k]``."""

    tx: optax.GradientTransformationExtraArgs
    k: int
    coefficients: Callable


def absolute_newton(slope, curvature):
    return slope / np.abs(curvature[0])


OPTIMISERS = {
    "fgd": Optimiser(fomoh_jax.fgd(1.0, k=3), 3, lambda slope, _: slope / 3),
    "fomoh": Optimiser(fomoh_jax.fomoh(1.0), 1, absolute_newton),
    "fomoh_kd": Optimiser(
        fomoh_jax.fomoh_kd(3, learning_rate=1.0),
        3,
        lambda slope, c: np.linalg.solve(c, slope),
    ),
    "fomoh_bp": Optimiser(fomoh_jax.fomoh_bp(1.0), 1, absolute_newton),
}


@pytest.mark.sampled
@pytest.mark.parametrize("name", ["logsumexp-uniform", "layer_norm-random"])
def test_a_step_of_every_optimiser_agrees_with_eager_float64(name):
    case, d = CASES[name], oracle(name)

    @jax.jit
    def steps(x, gradient):
        taken = {}
        for optimiser, (tx, k, _) in OPTIMISERS.items():
            state = tx.init(x)
            v = gradient[None]
            if optimiser != "fomoh_bp":
                key = jax.random.split(state[0].key)[1]
                v = fomoh_jax.directions.gaussian(k).sample(key, x, None)
            updates, _ = tx.update(gradient, state, x, value_fn=case.fun)
            taken[optimiser] = v, updates
        return taken

    with jax.enable_x64(False):
        taken = steps(jnp.asarray(case.x), jnp.asarray(d.gradient))
    for optimiser, (v, updates) in taken.items():
        v = np.asarray(v, np.float64)
        step = OPTIMISERS[optimiser].coefficients(slopes(d, v), curvatures(d, v)) @ v
        error = np.max(np.abs(updates + step)) / np.max(np.abs(step))
        assert error <= 10 * TOLERANCE, optimiser  # a solve magnifies rounding
