"""PreparedModel: a checked model and its data, with the prior built and the data encoded once."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks.arguments import check_observations
from tfp_surgery.checks.networks import build_prior, check_encoder_output, check_prior
from tfp_surgery.components import components as components_lib
from tfp_surgery.components.encoding import encode_observations
from tfp_surgery.datasets import Dataset
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.measurement.log_likelihood import log_likelihood
from tfp_surgery.measurement.model_checks import (
    check_aggregate_posterior,
    check_codes_in_support,
    check_decoder,
    check_no_nan,
    tried,
)
from tfp_surgery.seeds import Seed

tfd = tfp.distributions

_PROBES = 100  # codes checked for each of the first two observations


@dataclasses.dataclass(frozen=True, eq=False)
class PreparedModel:
    """A latent-variable model and its data set, shared by measurements.

    Attributes:
      x: The observations, shape `[N, *event_shape]`.
      data: Description of the data set: its name, N and binarization.
      encoder: Callable from observations `[B, *event_shape]` to q(z|x) with batch shape `[B]`, or
        the aggregate posterior q(z).
      decoder: Callable from codes `[B, *code_shape]` to p(x|z) with batch shape `[B]`.
      prior: p(z), batch shape `[]`.
      first_posteriors: q(z|x) of the first two observations, batch shape `[min(2, N)]`.
      likelihood: p(x|z) of one code, batch shape `[1]`.
      batch_size: Number of observations encoded at a time.
    """

    x: np.ndarray
    data: str
    encoder: Callable[[Any], tfd.Distribution] | AggregatePosterior
    decoder: Callable[[Any], tfd.Distribution]
    prior: tfd.Distribution
    first_posteriors: tfd.Distribution
    likelihood: tfd.Distribution
    batch_size: int

    @property
    def num_observations(self) -> int:
        """The number of observations N."""
        return len(self.x)

    @functools.cached_property
    def aggregate_posterior(self) -> AggregatePosterior:
        """The aggregate posterior q(z), batch shape `[]`; encodes the data on first access.

        Raises:
          ValueError: If posteriors have NaN parameters or scales of 0.
        """
        aggregate_posterior = self.encoder
        if not isinstance(aggregate_posterior, AggregatePosterior):
            aggregate_posterior = AggregatePosterior(
                encode_observations(self.encoder, self.x, self.batch_size)
            )
        check_no_nan(aggregate_posterior)
        return aggregate_posterior

    @functools.cached_property
    def posteriors(self) -> tfd.Distribution:
        """The posteriors q(z|x_n), batch shape `[N]`, every parameter broadcast to it."""
        return components_lib.broadcast(self.aggregate_posterior.components_distribution)

    def log_likelihood(self, z: tf.Tensor, rows: Any) -> tf.Tensor:
        """Returns log p(x_b|z_sb) of observations given their codes.

        Args:
          z: Codes, shape `[S, B, *code_shape]`.
          rows: The B observations, as a slice or an array of indices.

        Returns:
          Floating `Tensor`, shape `[S, B]`, in nats.
        """
        return log_likelihood(self.decoder, z, tf.convert_to_tensor(self.x[rows]))


def prepared_model(
    x: Any,
    encoder: Callable[[Any], tfd.Distribution] | tfd.Distribution,
    decoder: Callable[[Any], tfd.Distribution],
    prior: tfd.Distribution | Callable[[], tfd.Distribution],
    seed: Seed,
    batch_size: int,
) -> PreparedModel:
    """Checks a model and its data; runs the networks on at most two observations.

    Args:
      x: The data set; see `observations_of`.
      encoder: Callable from observations `[B, *event_shape]` to a `tfd.Distribution` with batch
        shape `[B]`. Or the posteriors of these observations, which are then not encoded: an
        `AggregatePosterior`, or a `tfd.Distribution` with batch shape `[N]`.
      decoder: Callable from codes `[B, *code_shape]` to a `tfd.Distribution` over observations
        with batch shape `[B]` and event shape `event_shape`.
      prior: `tfd.Distribution` over codes with batch shape `[]`, or a callable that returns one.
      seed: Seed of a stochastic binarization.
      batch_size: Number of observations encoded at a time.

    Returns:
      A `PreparedModel`.

    Raises:
      TypeError: If encoder, decoder or prior do not return distributions.
      ValueError: If x is empty, not finite or outside the support of the likelihood, if shapes or
        dtypes do not fit, if codes lie outside the support of the prior, if posterior and prior are
        a point mass and a density, or if x is a `Dataset` of stochastic binarization and encoder
        the posteriors.
    """
    prior = build_prior(prior)
    is_drawn_anew = isinstance(x, Dataset) and x.binarization == "stochastic"
    x, data = observations_of(x, seed)
    if isinstance(encoder, tfd.Distribution):
        if is_drawn_anew:
            raise ValueError(
                "posteriors in the encoder's place belong to one draw of a stochastic "
                "binarization, and seed draws another: hand in the observations that they are of, "
                "x.observations(draw_seed=...), or the encoder."
            )
        encoder = _given(encoder, len(x))
        posteriors = components_lib.broadcast(encoder.components_distribution)
        first = components_lib.gather(posteriors, tf.range(len(x[:2])))
    elif callable(encoder):
        first = check_encoder_output(
            tried("encoder", encoder, tf.convert_to_tensor(x[:2])), len(x[:2])
        )
        first = components_lib.prepare(first, "The encoder's posterior")
    else:
        raise TypeError(
            "encoder must be a callable that returns a tfd.Distribution, or the posteriors "
            f"themselves, got {type(encoder).__name__}."
        )
    check_prior(prior, first)
    codes = first.sample(_PROBES, seed=tf.constant([0, 0], tf.int32))  # [S, 2, *code_shape]
    check_codes_in_support(prior, codes)
    likelihood = check_decoder(decoder, codes[0, :1], x)
    return PreparedModel(x, data, encoder, decoder, prior, first, likelihood, batch_size)


def observations_of(x: Any, seed: Seed) -> tuple[np.ndarray, str]:
    """Returns the observations and a description of their data set.

    Args:
      x: Array-like or `Tensor` of shape `[N, *event_shape]`, or a `tfp_surgery.datasets.Dataset`.
      seed: Seed of a stochastic binarization.

    Returns:
      observations: Array of shape `[N, *event_shape]`.
      description: The name of the data set, N and the binarization.

    Raises:
      TypeError: If x is not an array of numbers.
      ValueError: If x is empty or not finite.
    """
    if isinstance(x, Dataset):
        draw_seed = seed if x.binarization == "stochastic" else None
        return x.observations(draw_seed=draw_seed), x.describe(draw_seed=draw_seed)
    x = check_observations(x)
    levels = ""
    if np.issubdtype(x.dtype, np.integer):
        levels = f", {x.dtype} from {x.min()} to {x.max()} taken as they are"
    return x, f"an array, N = {len(x)}{levels}, binarization not stated"


def _given(posteriors: tfd.Distribution, num_observations: int) -> AggregatePosterior:
    """Checks posteriors given in place of an encoder and returns their aggregate posterior."""
    if not isinstance(posteriors, AggregatePosterior):
        return AggregatePosterior(check_encoder_output(posteriors, num_observations))
    check_aggregate_posterior(posteriors, "the aggregate posterior in the encoder's place")
    if int(posteriors.num_components) != num_observations:
        raise ValueError(
            f"the aggregate posterior in the encoder's place has {posteriors.num_components} "
            f"components, but x holds {num_observations} observations: it must be that of these "
            "observations, in their order."
        )
    return posteriors
