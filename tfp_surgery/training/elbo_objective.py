"""The evidence lower bound as a training objective."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery import seeds
from tfp_surgery.checks.networks import build_prior, unwrap_output
from tfp_surgery.components.divergence import closed_form_kl
from tfp_surgery.measurement.log_likelihood import log_likelihood

tfd = tfp.distributions


class ObjectiveTerms(NamedTuple):
    """An objective and its two parts for each observation.

    Attributes:
      objective: `[B]`, the bound to be maximised, in nats.
      reconstruction: `[B]`, the estimate of E_q[log p(x|z)], in nats.
      kl: `[B]`, KL(q(z|x) || p(z)) or its estimate, in nats.
    """

    objective: tf.Tensor
    reconstruction: tf.Tensor
    kl: tf.Tensor


@keras.saving.register_keras_serializable(package="tfp_surgery")
class Elbo:
    """The evidence lower bound E_q[log p(x|z)] - KL(q(z|x) || p(z)); see `elbo`."""

    def __init__(self, num_samples: int = 1):
        """Makes the objective; see `elbo`."""
        self.num_samples = operator.index(num_samples)
        if self.num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}.")

    def __call__(
        self,
        x: tf.Tensor,
        encoder: Callable[[tf.Tensor], tfd.Distribution],
        decoder: Callable[[tf.Tensor], tfd.Distribution],
        prior: tfd.Distribution | Callable[[], tfd.Distribution],
        seed: Any,
    ) -> ObjectiveTerms:
        """Estimates the ELBO of each observation.

        Args:
          x: Floating Tensor of shape `[B, *event_shape]`.
          encoder: x -> q(z|x), batch shape `[B]`, with reparameterized samples.
          decoder: z of shape `[S B, *code_shape]` -> p(x|z), batch shape `[S B]`.
          prior: p(z), or a callable that builds it.
          seed: Integer in [0, 2**31) or pair of int32, as a `Tensor` too.

        Returns:
          The ELBO and its two parts.

        Raises:
          TypeError: If a network or the prior gives no distribution.
          ValueError: If the posterior has no reparameterized samples, without which the gradient
            with respect to the encoder would miss a part.
        """
        posterior = unwrap_output(encoder(x), "encoder")
        prior = build_prior(prior)
        if posterior.reparameterization_type != tfd.FULLY_REPARAMETERIZED:
            raise ValueError(
                f"the ELBO needs a posterior with reparameterized samples, got {posterior.name}: "
                "the gradient through its samples would be missing."
            )
        seed = seeds.pair(seed, "elbo/codes")
        z = posterior.sample(self.num_samples, seed=seed)  # [S, B, *code_shape]
        reconstruction = tf.reduce_mean(log_likelihood(decoder, z, x), axis=0)
        kl = closed_form_kl(posterior, prior)
        if kl is None:
            kl = tf.reduce_mean(posterior.log_prob(z) - prior.log_prob(z), axis=0)
        return ObjectiveTerms(reconstruction - kl, reconstruction, kl)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {"num_samples": self.num_samples}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Elbo:
        """The objective from what `get_config` gave."""
        return cls(**config)


def elbo(num_samples: int = 1) -> Elbo:
    """The evidence lower bound, with reparameterized samples of the posterior.

    The KL divergence is computed in closed form where TFP registers one for the pair of posterior
    and prior, and by Monte Carlo otherwise, as the mean of log q(z|x) - log p(z) over the draws
    that also serve the reconstruction. Which one is settled by the classes of the two
    distributions, once, when the training step is traced.

    Args:
      num_samples: Draws from q(z|x) an observation.

    Returns:
      An objective.

    Raises:
      TypeError: If `num_samples` is no integer.
      ValueError: If `num_samples` is below 1.
    """
    return Elbo(num_samples)
