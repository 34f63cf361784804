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
from jax.extend.core import Jaxpr, JaxprEqn

from fomoh_jax._compat import open_jaxpr
from fomoh_jax._hyperdual.environment import Environment, is_variable
from fomoh_jax._hyperdual.form import Form
from fomoh_jax._hyperdual.number import HyperDual
from fomoh_jax._hyperdual.registry import apply_rule, operation_of
from fomoh_jax._types import Program

_BLAME, _FROM = "fomoh_jax: in the hyper-dual rule", ", from "


def interpret(
    jaxpr: Program, form: Form, args: Sequence[HyperDual], *, effects: bool = True
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
    program, consts = open_jaxpr(jaxpr)
    equations = program.eqns if effects else _needed(program)
    environment = Environment(equations, program.outvars)
    environment.write(program.constvars, [HyperDual(const) for const in consts])
    environment.write(program.invars, args)
    for eqn in equations:
        operands = environment.read(eqn.invars)
        with at_source_of(eqn):
            outs = apply_rule(form, operation_of(eqn), operands)
        environment.write(eqn.outvars, outs)
    return environment.read(program.outvars)


@lru_cache(maxsize=512)
def staged(jaxpr: Program, name: str, inline: Any = False) -> Callable:
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


def _needed(jaxpr: Jaxpr) -> list[JaxprEqn]:
    """The equations that the results depend on."""
    needed = set(filter(is_variable, jaxpr.outvars))
    equations = []
    for eqn in reversed(jaxpr.eqns):
        if not needed.isdisjoint(eqn.outvars):
            needed.update(filter(is_variable, eqn.invars))
            equations.append(eqn)
    return equations[::-1]


@contextmanager
def at_source_of(eqn: JaxprEqn) -> Iterator[None]:
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
