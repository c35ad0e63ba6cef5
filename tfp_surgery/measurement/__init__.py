"""Code shared by all measurements: prepared models, draws, results, bounds and model checks."""
