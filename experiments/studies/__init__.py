"""Comparisons on the digits, every run of which is kept as a line of one file."""
