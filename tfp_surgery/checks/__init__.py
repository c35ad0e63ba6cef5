"""Checks of user input: arguments, arrays, networks and supports."""
