"""Checks of what a caller hands in: arguments, arrays, networks, support."""
