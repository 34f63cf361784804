"""The differences between the versions of JAX that the library supports."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
from jax.core import Atom
from jax.extend.core import ClosedJaxpr, Jaxpr

from fomoh_jax._types import Leaf, Program

BROKEN_VERSIONS = ("0.10.2",)


def require_sound_jax(version: str) -> None:
    """Refuse a JAX whose numbers cannot be trusted.

    Raises:
      ImportError: under a version that is known to miscompile what this library emits.
    """
    if version in BROKEN_VERSIONS:
        raise ImportError(
            f"fomoh_jax does not run on jax {version}: on the CPU that release "
            "silently returns wrong numbers under jit for a vmapped dot followed by "
            "a reduction (jax-ml/jax issue 39103), which is what a batch of "
            "curvatures is. Install another one: "
            "pip install 'jax>=0.10.1,!=0.10.2' 'jaxlib>=0.10.1,!=0.10.2'."
        )


def open_jaxpr(jaxpr: Program) -> tuple[Jaxpr, Sequence[Leaf]]:
    """A jaxpr with its constants, whether it came closed (jax 0.10) or whole (0.12)."""
    if isinstance(jaxpr, ClosedJaxpr):
        return jaxpr.jaxpr, jaxpr.consts
    return jaxpr, ()


def is_slogdet(params: dict[str, Any]) -> bool:
    """Whether a ``custom_jvp_call`` is that of ``jnp.linalg.slogdet``.

    JAX has no primitive for it. What a program was traced from says which it is.
    """
    program, _ = open_jaxpr(called_jaxpr(params))
    name, _, place = (program.debug_info.func_src_info or "").partition(" at ")
    if name != "_slogdet_lu" or "/jax/_src/numpy/linalg.py:" not in place:
        return False
    return _is_factored(program, program.invars[0])


def _is_factored(program: Jaxpr, matrices: Atom) -> bool:
    """Whether an input is what ``lu`` takes, and not as ``vmap`` has moved its axes."""
    for eqn in program.eqns:
        if any(x is matrices for x in eqn.invars):
            if eqn.primitive.name == "lu":
                return True
            place = next(i for i, x in enumerate(eqn.invars) if x is matrices)
            for inner in programs_in(eqn.params):
                opened, _ = open_jaxpr(inner)
                if _is_factored(opened, opened.invars[place]):
                    return True
    return False


def programs_in(params: dict[str, Any]) -> Iterator[Program]:
    """The jaxprs among the parameters of an equation."""
    for value in params.values():
        for x in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(x, Program):
                yield x


def primitives_of(jaxpr: Program) -> set[str]:
    """The names of the primitives of a jaxpr, and of those in it."""
    names: set[str] = set()
    for eqn in open_jaxpr(jaxpr)[0].eqns:
        names.add(eqn.primitive.name)
        names.update(*map(primitives_of, programs_in(eqn.params)))
    return names


def expansion_of_root_map(params: dict[str, Any]) -> Callable | None:
    """The program of the linear map that ``lax.custom_root`` hands to its solver.

    From jax 0.12 on it is an operation of its own, which is expanded when it is
    compiled; before, it was written out.
    """
    root_map: Any = params.get("_prim")
    if type(root_map).__name__ != "_RootLinearMap":
        return None

    def expand(*operands: Leaf) -> Sequence[Leaf]:
        args = jax.tree.unflatten(root_map.in_tree, operands)
        return jax.tree.leaves(root_map.expand(*args))

    return expand


def called_jaxpr(params: dict[str, Any]) -> Program:
    """The program that an equation calls; its parameter has several names."""
    names = ("call_jaxpr", "call", "jaxpr")
    return next(params[name] for name in names if name in params)


class ScanLayout(NamedTuple):
    """Positions of the operands and results of a scan equation."""

    consts: list[int]
    carry: list[int]
    xs: list[int]
    carry_out: list[int]
    ys: list[int]


def scan_layout(params: dict[str, Any], num_in: int, num_out: int) -> ScanLayout:
    """The constants, carry and slices among the operands and results of a scan.

    Up to jax 0.11 they follow each other and are counted in ``num_consts`` and
    ``num_carry``; later they may interleave, and two trees tell them apart.
    """
    if "num_carry" in params:
        c, n = params["num_consts"], params["num_carry"]
        operands, results = list(range(num_in)), list(range(num_out))
        return ScanLayout(
            operands[:c],
            operands[c : c + n],
            operands[c + n :],
            results[:n],
            results[n:],
        )
    consts, carry, xs = params["ft_in"].update(list(range(num_in))).unpack()
    carry_out, ys = params["ft_out"].update(list(range(num_out))).unpack()
    return ScanLayout(list(consts), list(carry), list(xs), list(carry_out), list(ys))


def manual_axes(params: dict[str, Any]) -> frozenset[str]:
    """The mesh axes that a shard_map equation maps over; jax 0.12 renamed them."""
    name = "manual_axes" if "manual_axes" in params else "newly_manual_axes"
    return params[name]
