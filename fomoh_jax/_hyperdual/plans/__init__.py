"""The plans, one file each; :mod:`fomoh_jax.plans` has those that are public."""
