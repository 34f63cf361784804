"""Comparisons on the digits, every run of which is kept as one small file."""
