"""Keras layers that own weights and build a `tfd.Distribution` on each call."""
