"""What the library costs beside nested ``jax.jvp``."""
