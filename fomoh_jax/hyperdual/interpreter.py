"""The interpreter: walk the equations of a jaxpr with hyper-dual numbers.

All that it emits is ordinary JAX, so its result can be jitted, vmapped, differentiated
and interpreted again.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import jax
from jax.extend import source_info_util
from jax.extend.core import JaxprEqn, Literal, Var
from jax.ref import AbstractRef

from fomoh_jax.compat import open_jaxpr
from fomoh_jax.hyperdual.forms import Form
from fomoh_jax.hyperdual.number import HyperDual, known_last, moved, settled
from fomoh_jax.hyperdual.regenerated import Regenerated
from fomoh_jax.hyperdual.registry import (
    Operation,
    find_rule,
    takes_any_axis,
    walks_inside,
)
from fomoh_jax.hyperdual.varying import in_shard_map, varying_alike, varying_as_traced

_BLAME, _FROM = "fomoh_jax: in the hyper-dual rule", ", from "


def interpret(
    jaxpr: Any, form: Form, args: Sequence[HyperDual], *, effects: bool = True
) -> list[HyperDual]:
    """Evaluate a jaxpr, open or closed, on hyper-dual numbers.

    Args:
      jaxpr: what ``jax.make_jaxpr`` returns, or the jaxpr inside an equation.
      form: which second-order coefficients the numbers carry.
      args: one number for each input of the jaxpr.
      effects: whether to run equations for their effects alone.

    Returns:
      One number for each output.
    """
    jaxpr, consts = open_jaxpr(jaxpr)
    env = {var: HyperDual(const) for var, const in zip(jaxpr.constvars, consts)}
    env.update(zip(jaxpr.invars, args))

    def read(atom: Any) -> HyperDual:
        return HyperDual(atom.val) if isinstance(atom, Literal) else env[atom]

    deferred = any(isinstance(arg.tangents, Regenerated) for arg in args)
    mapped, latest = in_shard_map(), None
    equations = jaxpr.eqns if effects else _needed(jaxpr)
    last_use = _last_use(equations, jaxpr.outvars)
    for index, eqn in enumerate(equations):
        operands = [read(atom) for atom in eqn.invars]
        with _at_source_of(eqn):
            if mapped:
                types = [atom.aval for atom in eqn.invars]
                operands = varying_as_traced(types, operands)
            if eqn.primitive.name == "pvary":  # for what may vary already
                outs = varying_alike(operands, eqn.params["axes"])
            else:
                outs = _apply(eqn, form, operands, latest)
        if deferred and (last := known_last(outs)) is not None:
            latest = last
        env.update(zip(eqn.outvars, outs))
        for var in last_use.get(index, ()):
            del env[var]
    return settled([read(atom) for atom in jaxpr.outvars], latest)


@lru_cache(maxsize=512)
def staged(jaxpr: Any, name: str, inline: Any = False) -> Callable:
    """A jitted interpretation of a jaxpr, ``function(form, args) -> list of numbers``.

    Cached, because JAX traces a jitted function once and gives every later call the
    same jaxpr: a layer that is called many times, or the body of a loop whose fixed
    point is sought, is interpreted once. Which channels are zero and where their axes
    are is in the tree of the arguments, which jit itself tells apart.
    """

    def hyperdual(form: Form, args: list[HyperDual]) -> list[HyperDual]:
        return interpret(jaxpr, form, args)

    hyperdual.__name__ = hyperdual.__qualname__ = f"hyperdual_{name}"
    return jax.jit(hyperdual, inline=inline)


def _apply(
    eqn: JaxprEqn, form: Form, args: list[HyperDual], latest: jax.Array | None
) -> Sequence[HyperDual]:
    inputs, outputs = ([x.aval for x in xs] for xs in (eqn.invars, eqn.outvars))
    op = Operation(eqn.primitive, eqn.params, inputs, outputs)
    # What is kept in a mutable array may begin to vary after it was made.
    lasting = not any(isinstance(var.aval, AbstractRef) for var in eqn.outvars)
    if lasting and all(arg.is_constant for arg in args):
        return [HyperDual(out) for out in op(*(arg.primal for arg in args))]
    rule = find_rule(eqn.primitive)
    if not walks_inside(rule):
        args = settled(args, latest)
    if not takes_any_axis(eqn.primitive):
        args = [moved(arg, 0) for arg in args]
    return rule(form, op, args)


def _needed(jaxpr: Any) -> list[JaxprEqn]:
    """The equations that the results depend on."""
    needed = set(filter(_is_var, jaxpr.outvars))
    equations = []
    for eqn in reversed(jaxpr.eqns):
        if not needed.isdisjoint(eqn.outvars):
            needed.update(filter(_is_var, eqn.invars))
            equations.append(eqn)
    return equations[::-1]


def _last_use(equations: Sequence[Any], results: Sequence[Any]) -> dict[int, list[Var]]:
    """For each equation, the variables that nothing after it reads.

    Without it an eager evaluation would keep every intermediate of the program.
    """
    last: dict[Var, int] = {}
    for index, eqn in enumerate(equations):
        variables = filter(_is_var, (*eqn.invars, *eqn.outvars))
        last.update((var, index) for var in variables)
    for var in filter(_is_var, results):
        last.pop(var, None)
    dead: dict[int, list[Var]] = {}
    for var, index in last.items():
        dead.setdefault(index, []).append(var)
    return dead


def _is_var(atom: Any) -> bool:
    return not isinstance(atom, Literal)


@contextmanager
def _at_source_of(eqn: JaxprEqn) -> Iterator[None]:
    """Emit under the user's source line and name stack, and blame them for errors."""
    info = eqn.source_info
    stack = source_info_util.current_name_stack() + info.name_stack
    try:
        with (
            source_info_util.user_context(info.traceback, name_stack=stack),
            eqn.ctx.manager,
        ):
            yield
    except Exception as error:
        _blame(error, eqn)
        raise


def _blame(error: Exception, eqn: JaxprEqn) -> None:
    """Add to an error the innermost equation, and the innermost line of the user's.

    A primitive inside a jitted function of JAX has no such line. The call has.
    """
    notes = getattr(error, "__notes__", [])
    place = next((i for i, n in enumerate(notes) if n.startswith(_BLAME)), len(notes))
    if place == len(notes):
        operands = ", ".join(str(v.aval) for v in eqn.invars)
        error.add_note(f"{_BLAME} of primitive '{eqn.primitive.name}' on ({operands})")
    notes, line = error.__notes__, source_info_util.summarize(eqn.source_info)
    if line and _FROM not in notes[place]:
        notes[place] += _FROM + line
