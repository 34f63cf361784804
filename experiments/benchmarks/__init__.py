"""Benchmarks of the library beside nested ``jax.jvp`` and other ways."""
