"""Latent-variable models made of an encoder, a decoder and a prior."""

from tfp_surgery.models.vae import VAE

__all__ = ["VAE"]


def __dir__() -> list[str]:
    """Lists the public names."""
    return __all__
