"""The table of rules, and what a rule is given.

A rule is ``rule(form, op, args) -> list of HyperDual``. ``op`` is the operation to
differentiate, callable on primals; ``args`` are its operands, of which at least one is
not constant (but for the few rules that say otherwise).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from jax.extend.core import JaxprEqn, Primitive, primitives
from jax.interpreters import ad
from jax.ref import AbstractRef

from fomoh_jax._hyperdual.channels import Channel
from fomoh_jax._hyperdual.form import Form
from fomoh_jax._hyperdual.mesh_axes import varying_as_traced
from fomoh_jax._hyperdual.number import HyperDual
from fomoh_jax._types import Aval, Leaf

# The parameters of an equation.
Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Operation:
    """One equation of a jaxpr, ready to be applied to primals.

    Attributes:
      primitive: the primitive that it applies.
      params: the parameters of the equation.
      inputs: abstract values of its operands, as the equation was traced on them.
      outputs: abstract values of its results.
    """

    primitive: Primitive
    params: Params
    inputs: Sequence[Aval]
    outputs: Sequence[Aval]

    def __call__(self, *primals: Leaf) -> list[Leaf]:
        """The results of the primitive on these operands."""
        params = self.primitive.get_bind_params(self.params)
        out = self.primitive.bind(*primals, **params)
        return list(out) if self.primitive.multiple_results else [out]


def operation_of(eqn: JaxprEqn) -> Operation:
    """An equation as an operation."""
    inputs, outputs = ([x.aval for x in xs] for xs in (eqn.invars, eqn.outvars))
    return Operation(eqn.primitive, eqn.params, inputs, outputs)


Rule = Callable[[Form, Operation, Sequence[HyperDual]], Sequence[HyperDual]]
R = TypeVar("R", bound=Rule)

# The name under which the rule for everything else is registered.
GENERIC = "*"

_RULES: dict[Primitive | str, Rule] = {}
_OF_USERS: dict[Primitive, Rule] = {}
_OF_CONSTANTS: set[Rule] = set()


def rule(*names: str, of_constants: bool = False) -> Callable[[R], R]:
    """Register a rule for primitives given by name.

    A name is resolved to the primitive that JAX makes public under it, so that a user's
    own primitive of the same name is not mistaken for it. What has no public name is
    looked up by its name string.

    Args:
      *names: of the primitives.
      of_constants: whether the rule is for operands that are all constant, too, where
        otherwise the primitive itself is applied.
    """

    def register(function: R) -> R:
        for name in names:
            _RULES[getattr(primitives, f"{name}_p", name)] = function
        if of_constants:
            _OF_CONSTANTS.add(function)
        return function

    return register


def apply_rule(
    form: Form, op: Operation, args: Sequence[HyperDual]
) -> Sequence[HyperDual]:
    """The results of an operation on numbers."""
    args = varying_as_traced(op.inputs, args)
    function = find_rule(op.primitive)
    # The contents of a mutable array may begin to vary after it was made.
    mutable = any(isinstance(out, AbstractRef) for out in op.outputs)
    constant = all(arg.is_constant for arg in args)
    if constant and not mutable and function not in _OF_CONSTANTS:
        return [HyperDual(out) for out in op(*(arg.primal for arg in args))]
    if not takes_any_axis(op.primitive):
        args = [arg.moved(0) for arg in args]
    return _checked(op, function(form, op, args))


def _checked(op: Operation, outs: Any) -> Sequence[HyperDual]:
    """The results of a rule, refused if a user's rule returns anything else."""
    if op.primitive in _OF_USERS:
        count, each = len(op.outputs), isinstance(outs, (list, tuple)) and outs
        if not each or len(each) != count or not all(map(_is_number, each)):
            raise TypeError(
                f"the rule of {op.primitive} must return a list of one HyperDual for "
                f"each of its {count} results, with channels; got {outs!r}."
            )
    return outs


def _is_number(x: object) -> bool:
    return isinstance(x, HyperDual) and all(isinstance(c, Channel) for c in x.channels)


def rule_for(primitive: Primitive, function: Rule) -> None:
    """Register a user's rule for one primitive."""
    _OF_USERS[primitive] = function


def find_rule(primitive: Primitive) -> Rule:
    """The rule for a primitive: its own, or else the generic one."""
    return _OF_USERS.get(primitive) or _of_library(primitive) or _RULES[GENERIC]


def takes_any_axis(primitive: Primitive) -> bool:
    """Whether stacks may be along any axis, as the library's rules leave them.

    The batching rules of primitives that the library does not know are only sure to
    take the leading one.
    """
    return primitive not in _OF_USERS and _of_library(primitive) is not None


def is_known(primitive: Primitive) -> bool:
    """Whether what becomes of a primitive is this library's or JAX's own doing."""
    own = _OF_USERS.get(primitive)
    return (own is None or own in _RULES.values()) and _is_of_jax(primitive)


def _of_library(primitive: Primitive) -> Rule | None:
    by_name = _RULES.get(primitive.name) if _is_of_jax(primitive) else None
    return _RULES.get(primitive) or by_name


def _is_of_jax(primitive: Primitive) -> bool:
    """Whether JAX made the primitive, as far as its functions tell.

    A user's own may have the name of one that JAX keeps private.
    """
    functions = [primitive.impl, ad.primitive_jvps.get(primitive)]
    modules = [getattr(getattr(f, "func", f), "__module__", "jax") for f in functions]
    return all(str(module).partition(".")[0] in ("jax", "None") for module in modules)


def names_with_rule(function: Rule) -> list[str]:
    """The names of the primitives that a rule was registered for."""
    return [
        key if isinstance(key, str) else key.name
        for key, value in (*_RULES.items(), *_OF_USERS.items())
        if value is function
    ]
