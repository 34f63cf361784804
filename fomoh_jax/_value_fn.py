"""The user's loss as a function of the parameters alone, and what it must be."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import DTypeLike, PyTree

from fomoh_jax._activations.estimate import read_batch
from fomoh_jax._hyperdual.arguments import check_array, check_devices, signature
from fomoh_jax._refusals import check_real_scalar


def check_call(
    params: PyTree, value_fn: Callable | None, extra_args: dict[str, Any]
) -> Callable:
    """``value_fn``, if ``update`` was given what it cannot do without."""
    if params is None:
        raise ValueError(
            "update needs the current params to evaluate the loss at: call "
            "tx.update(updates, state, params, value_fn=...)."
        )
    if value_fn is None:
        raise ValueError(
            "update needs the loss as value_fn, as optax's line searches do: call "
            "tx.update(updates, state, params, value_fn=loss, batch=batch), with "
            "everything that the loss takes beside params by keyword."
        )
    if not jax.tree.leaves(params):
        raise ValueError(f"params holds no array to optimise; got {params!r}.")
    check_devices({"params": params, **extra_args})
    return value_fn


# Arguments that optax's own transformations take in the same call of a chain.
_OF_OTHER_LINKS = {"value", "grad"}


def check_keywords(
    functions: Sequence[Callable], extra_args: dict[str, Any], first: int = 1
) -> None:
    """Refuse extra arguments that no function takes, as optax's line searches do.

    ``first`` arguments of the functions are positional.

    Raises:
      TypeError: naming them.
    """
    taken = _OF_OTHER_LINKS.union(*(_keywords(f, extra_args, first) for f in functions))
    unused = sorted(extra_args.keys() - taken)
    if unused:
        raise TypeError(
            "every keyword argument of update must be one that value_fn takes; got "
            f"{', '.join(unused)}, which it does not take. Give value_fn a parameter "
            "of that name, or leave it out."
        )


def scalar_loss(
    value_fn: Callable, extra_args: dict[str, Any], has_aux: bool
) -> Callable:
    """``value_fn`` as a function that returns a pair, of what it takes by position."""
    keywords = _keywords(value_fn, extra_args)

    def loss(params, *example):
        out = value_fn(params, *example, **keywords)
        if not has_aux:
            hint = " If it returns (value, aux), set has_aux=True."
            check_real_scalar("value_fn must return", out, hint)
            return out, None
        if not (isinstance(out, tuple) and len(out) == 2):
            raise TypeError(
                "with has_aux=True, value_fn must return a pair (value, aux); got "
                f"{jax.tree.structure(out)}."
            )
        check_real_scalar("value_fn must return", out[0])
        return out

    return loss


def loss_of_one(
    params: PyTree, value_fn: Callable | None, batch: PyTree, extra_args: dict[str, Any]
) -> Callable:
    """``value_fn`` as a function of the parameters and of one example alone.

    Raises:
      TypeError, ValueError: if ``update`` was not given what it cannot do without, or
        was given what ``value_fn`` does not take.
    """
    value_fn = check_call(params, value_fn, {**extra_args, "batch": batch})
    if batch is None:
        raise ValueError(
            "update needs the examples as batch, since value_fn is the loss of one of "
            "them: call tx.update(updates, state, params, value_fn=loss_of_one, "
            "batch=batch), where the leaves of batch are [B, ...]."
        )
    check_keywords([value_fn], extra_args, first=2)
    keywords = _keywords(value_fn, extra_args, first=2)
    return lambda params, example: value_fn(params, example, **keywords)


def whole_loss(
    params: PyTree,
    value_fn: Callable | None,
    extra_args: dict[str, Any],
    has_aux: bool,
    other: Callable | None = None,
) -> Callable:
    """``value_fn`` as a function of the parameters alone that returns a pair.

    Raises:
      TypeError, ValueError: if ``update`` was not given what it cannot do without, or
        was given what neither ``value_fn`` nor the other function takes.
    """
    value_fn = check_call(params, value_fn, extra_args)
    check_keywords([value_fn] if other is None else [value_fn, other], extra_args)
    return scalar_loss(value_fn, extra_args, has_aux)


def batch_loss(
    params: PyTree,
    value_fn: Callable | None,
    extra_args: dict[str, Any],
    has_aux: bool,
    parts: int,
) -> Callable:
    """The mean of the loss of one example over ``batch``, by the parameters alone."""
    batch = extra_args.get("batch")
    others = {k: v for k, v in extra_args.items() if k != "batch"}
    of_one = loss_of_one(params, value_fn, batch, others)
    return mean_loss(of_one, batch, has_aux, parts)


def mean_loss(
    loss_of_one: Callable, batch: PyTree, has_aux: bool, parts: int = 1
) -> Callable:
    """The mean loss of the examples and the aux of each, by the parameters alone.

    In so many parts of the batch, one after the other. A part has every ``parts``-th
    example: where a batch is spread over devices, each has some of it.
    """
    batch, examples = read_batch(batch)
    if examples % parts:
        raise ValueError(
            f"parts must be a divisor of the batch's {examples} examples; got {parts}."
        )
    of_one = scalar_loss(loss_of_one, {}, has_aux)
    split = lambda x: jnp.moveaxis(jnp.reshape(x, (-1, parts, *x.shape[1:])), 1, 0)
    joined = lambda x: jnp.reshape(jnp.moveaxis(x, 0, 1), (examples, *x.shape[2:]))

    def loss(params):
        of_part = lambda part: jax.vmap(of_one, (None, 0))(params, part)
        if parts == 1:
            losses, aux = of_part(batch)
        else:
            found = jax.lax.map(of_part, jax.tree.map(split, batch))
            losses, aux = jax.tree.map(joined, found)
        return jnp.mean(losses), aux

    return loss


def outputs_of(
    curvature: str, outputs_fn: Callable | None, extra_args: dict[str, Any]
) -> Callable | None:
    """``outputs_fn`` as a function of the parameters alone; ``None`` if not asked for.

    Raises:
      TypeError, ValueError: if it is there and not asked for, or asked for and missing.
    """
    if curvature != "gauss_newton":
        if outputs_fn is None:
            return None
        raise TypeError(
            'outputs_fn is for curvature="gauss_newton"; got it with '
            f"curvature={curvature!r}."
        )
    if outputs_fn is None:
        raise ValueError(
            'curvature="gauss_newton" needs the loss in two parts: call '
            "tx.update(updates, state, params, value_fn=loss, outputs_fn=model, "
            "batch=batch), where the loss is value_fn(outputs_fn(params))."
        )
    keywords = _keywords(outputs_fn, extra_args)
    return lambda params: outputs_fn(params, **keywords)


def _keywords(
    value_fn: Callable, extra_args: dict[str, Any], first: int = 1
) -> dict[str, Any]:
    """The extra arguments of a chain that ``value_fn`` has a parameter for.

    Its ``first`` parameters are positional, and do not count.
    """
    own = signature(value_fn)
    if own is None:  # some builtins do not say
        return extra_args
    if any(p.kind is p.VAR_KEYWORD for p in own.parameters.values()):
        own = inspect.signature(value_fn)  # a wrapper that passes everything on
    parameters = list(own.parameters.values())[first:]
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return extra_args
    names = [p.name for p in parameters if p.kind is not p.POSITIONAL_ONLY]
    return {name: extra_args[name] for name in names if name in extra_args}


def solve_dtype(params: PyTree) -> DTypeLike:
    """The dtype of the parameters, or float32 if they have less precision."""
    dtype = jnp.dtype(jnp.float32)
    for path, leaf in jax.tree_util.tree_leaves_with_path(
        params, is_leaf=lambda x: isinstance(x, optax.MaskedNode)
    ):
        name = f"params{jax.tree_util.keystr(path)}"
        if isinstance(leaf, optax.MaskedNode):
            raise TypeError(
                f"{name} is masked out, but the loss can only be evaluated at all of "
                "the parameters. To move some of them alone, look along "
                "directions.masked(source, mask), as in scale_by_hyperplane(directions."
                "masked(directions.gaussian(8), mask)), instead of optax.masked "
                "or optax.partition; other links of the chain may stay masked."
            )
        check_array(name, leaf)
        own = jnp.result_type(leaf)
        if not jnp.issubdtype(own, jnp.floating):
            raise TypeError(
                "parameters must be real floating-point arrays; "
                f"{name} has dtype {own}. Hand integers and complex "
                "numbers to value_fn by keyword instead."
            )
        # Promotes as usual, also where JAX is told to promote nothing implicitly.
        with jax.numpy_dtype_promotion("standard"):
            dtype = jnp.promote_types(dtype, own)
    return dtype
