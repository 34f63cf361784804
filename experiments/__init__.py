"""Runnable studies: ``python -m experiments.NAME``."""

import fomoh_jax  # noqa: F401  (sets XLA's flags before any of them starts a backend)
