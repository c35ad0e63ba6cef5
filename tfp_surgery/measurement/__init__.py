"""What every measurement shares: the parts of a model, draws, results, bounds, model checks."""
