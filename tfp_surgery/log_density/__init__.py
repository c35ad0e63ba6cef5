"""log q(z) of a batch of posteriors: the passes over its components, and which of them answers."""
