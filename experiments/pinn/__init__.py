"""Elliptic equations solved by a network, and what their operator costs."""
