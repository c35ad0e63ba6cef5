"""Latent-variable models made of an encoder, a decoder and a prior."""
