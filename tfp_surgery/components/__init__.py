"""A batch of posteriors q(z|x_n), n = 1..N, as tensors."""
