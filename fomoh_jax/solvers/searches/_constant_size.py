"""One size for all steps."""

from fomoh_jax.solvers._solver import Search


def constant(size: float = 1.0) -> Search:
    """The same size at each step.

    Args:
      size: positive; 1 is the whole step of the descent.

    Returns:
      A search.

    Raises:
      ValueError: if ``size`` is not positive.

    Example:
      >>> from fomoh_jax.solvers import searches
      >>> search = searches.constant(0.5)
      >>> print(search.size(search.init()))
      0.5
    """
    if not size > 0:
        raise ValueError(f"size must be positive; got {size}.")
    return Search(lambda state: size)
