"""The certified tree over components. `component_tree` is its interface; the rest needs numba."""
