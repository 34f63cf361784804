"""Neural wave functions as variational Monte Carlo has them, written in flax."""
