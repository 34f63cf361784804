"""Which plan is taken where the caller names none."""

from typing import Literal

from fomoh_jax._hyperdual.plans.forward import Forward
from fomoh_jax._hyperdual.plans.plan import Plan


def chosen(plan: Plan | Literal["auto"]) -> Plan:
    """The plan, or a forward pass for ``"auto"``.

    Raises:
      TypeError: if it is no plan.
    """
    if isinstance(plan, Plan):
        return plan
    if isinstance(plan, str) and plan == "auto":
        return Forward()
    hint = " Did you forget to call it?" if callable(plan) else ""
    raise TypeError(
        'plan must be "auto" or a plan, such as fomoh_jax.plans.forward(chunk_size=8); '
        f"got {plan!r}.{hint}"
    )
