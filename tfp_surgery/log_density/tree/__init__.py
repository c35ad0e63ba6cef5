"""The certified tree over the components, which leaves out what a bound allows. Needs numba."""
