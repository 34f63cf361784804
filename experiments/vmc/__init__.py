"""Variational Monte Carlo of two electrons, with a neural Jastrow factor."""
