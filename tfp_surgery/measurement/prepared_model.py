"""PreparedModel: a checked model and its data, with the prior built and the data encoded once."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks.networks import (
    DEFERRED,
    PINNED,
    build_prior,
    check_encoder_output,
    check_prior,
    unwrap,
    unwrap_output,
)
from tfp_surgery.checks.takes_condition import call, check_condition_is_taken, joined
from tfp_surgery.checks.tried import tried
from tfp_surgery.components import components as components_lib
from tfp_surgery.components.batch_size import (
    bytes_of_parameters,
    bytes_of_row,
    rows_of_a_step,
)
from tfp_surgery.components.encoding import (
    RowsEncoder,
    encode_observations,
    read_condition,
    rows_encoded_at_a_time,
    rows_encoder,
)
from tfp_surgery.components.flat_joint import CodeLayout, describe, flattened
from tfp_surgery.components.one_by_one import OneByOne, needs_one_by_one
from tfp_surgery.components.reencoded_posteriors import ReencodedPosteriors
from tfp_surgery.datasets import Dataset
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.measurement.log_likelihood import log_likelihood
from tfp_surgery.measurement.model_checks import (
    check_aggregate_posterior,
    check_codes_in_support,
    check_decoder,
    check_decoder_repeats,
    check_no_nan,
    check_parts,
    check_prior_repeats,
)
from tfp_surgery.observations import Observations, read_observations
from tfp_surgery.seeds import Seed

tfd = tfp.distributions

Network = Callable[..., tfd.Distribution]
_PROBES = 100  # codes checked for each of the first two observations


@dataclasses.dataclass(frozen=True, eq=False)
class PreparedModel:
    """A latent-variable model and its data set, shared by measurements.

    Attributes:
      observations: The observations; an empty structure if neither encoder nor decoder need them.
      conditions: Their conditions, or None.
      data: Description of the data set: its name, N and binarization.
      num_observations: N.
      encode_rows: Callable from rows of the data set to q(z|x), or the aggregate posterior q(z).
      decoder: Callable from codes `[B, *code_shape]` to p(x|z) with batch shape `[B]`; None if
        there is none.
      prior: p(z), batch shape `[]`; None if it depends on the condition.
      prior_given: Callable from the conditions of B observations to p(z|c), batch shape `[B]`, or
        to p(z).
      first_posteriors: q(z|x) of the first two observations, batch shape `[min(2, N)]`.
      likelihood: p(x|z) of one code, batch shape `[1]`; None without a decoder.
      outside_support: What is outside of the support of the likelihood, in words; empty if nothing
        is.
      taking: Names of what takes the condition: "encoder", "decoder", "prior".
      layout: Where the parts of structured codes lie in the vectors that represent them; None if
        codes are single tensors.
      reencode: Whether posteriors are encoded again whenever they are needed.
      given_batch_size: The batch size that the caller asked for; None for one by memory.
      batch_size: Number of observations encoded at a time.
      code_batch_size: Number of codes decoded and scored at a time.
    """

    observations: Observations
    conditions: Observations | None
    data: str
    num_observations: int
    encode_rows: RowsEncoder | AggregatePosterior
    decoder: Network | None
    prior: tfd.Distribution | None
    prior_given: Callable[[Any], tfd.Distribution]
    first_posteriors: tfd.Distribution
    likelihood: tfd.Distribution | None
    outside_support: str
    taking: tuple[str, ...]
    layout: CodeLayout | None
    reencode: bool
    given_batch_size: int | None
    batch_size: int
    code_batch_size: int

    @functools.cached_property
    def aggregate_posterior(self) -> AggregatePosterior:
        """The aggregate posterior q(z), batch shape `[]`; encodes the data on first access.

        Raises:
          ValueError: If posteriors have NaN parameters or scales of 0.
        """
        aggregate_posterior = self.encode_rows
        if not isinstance(aggregate_posterior, AggregatePosterior):
            aggregate_posterior = AggregatePosterior(
                encode_observations(
                    aggregate_posterior, self.observations, self.batch_size, self.reencode
                )
            )
        check_no_nan(aggregate_posterior)
        return aggregate_posterior

    @functools.cached_property
    def posteriors(self) -> tfd.Distribution:
        """The posteriors q(z|x_n), batch shape `[N]`, every parameter broadcast to it."""
        return components_lib.broadcast(self.aggregate_posterior.components_distribution)

    @property
    def is_reencoded(self) -> bool:
        """Whether posteriors come from calls of the encoder, which may be no graph."""
        return isinstance(self.posteriors, ReencodedPosteriors)

    def condition(self, rows: Any) -> Any:
        """Returns the conditions of some rows; None if there are none."""
        return None if self.conditions is None else self.conditions.rows(rows)

    def prior_at(self, rows: Any) -> tfd.Distribution:
        """Returns p(z), or p(z|c) of some rows, batch shape `[B]`."""
        return self.prior_given(self.condition(rows))

    def log_likelihood(self, z: tf.Tensor, rows: Any) -> tf.Tensor:
        """Returns log p(x_b|z_sb) of observations given their codes.

        Args:
          z: Codes, shape `[S, B, *code_shape]`.
          rows: The B observations, as a slice or an array of indices.

        Returns:
          Floating `Tensor`, shape `[S, B]`, in nats.
        """
        if self.decoder is None:
            raise ValueError("the model has no decoder.")
        return log_likelihood(self.decoder, z, self.observations.rows(rows), self.condition(rows))


def prepared_model(
    x: Any,
    encoder: Network | tfd.Distribution,
    decoder: Network | None,
    prior: tfd.Distribution | Network,
    seed: Seed,
    batch_size: int | None,
    condition: Any = None,
    reencode: bool = False,
    validate_args: bool | None = None,
    decoder_optional: bool = False,
) -> PreparedModel:
    """Checks a model and its data; runs the networks on a few observations.

    Args:
      x: The data set; see `read_observations`. None if encoder is a batch of posteriors and decoder
        is None.
      encoder: Callable from observations `[B, *event_shape]` to a `tfd.Distribution` with batch
        shape `[B]`. Or the posteriors of these observations, which are then not encoded: an
        `AggregatePosterior`, or a `tfd.Distribution` with batch shape `[N]`.
      decoder: Callable from codes `[B, *code_shape]` to a `tfd.Distribution` over observations
        with batch shape `[B]` and event shape `event_shape`; None for none.
      prior: `tfd.Distribution` over codes with batch shape `[]`, or a callable that returns one.
      seed: Seed of a stochastic binarization.
      batch_size: Number of observations encoded, and of codes decoded and scored, at a time; None
        for as many as `batch_size.rows_of_a_step` allows.
      condition: Conditions of the observations, as x; handed by keyword to what takes it.
      reencode: Whether to encode again whenever posteriors are needed.
      validate_args: Whether x outside of the support of the likelihood is refused; None if it is
        and callers cannot choose.
      decoder_optional: Whether decoder may be None.

    Returns:
      A `PreparedModel`.

    Raises:
      TypeError: If encoder, decoder or prior do not return distributions, or none of them takes the
        condition.
      ValueError: If x is empty, not finite or outside the support of the likelihood, if shapes or
        dtypes do not fit, if codes lie outside the support of the prior, if posterior and prior are
        a point mass and a density, or if x is a `Dataset` of stochastic binarization and encoder
        the posteriors.
    """
    encoder = unwrap(encoder) if isinstance(encoder, DEFERRED | PINNED) else encoder
    is_given = isinstance(encoder, tfd.Distribution)
    if isinstance(encoder, tfd.Distribution) and tf.nest.is_nested(encoder.dtype):
        encoder = components_lib.prepare(encoder, "what stands in the encoder's place")
    if is_given and isinstance(x, Dataset) and x.binarization == "stochastic":
        raise ValueError(
            "posteriors in the encoder's place belong to one draw of a stochastic binarization, "
            "and seed draws another: hand in the observations that they are of, "
            "x.observations(draw_seed=...), or the encoder."
        )
    if decoder is None and not decoder_optional:
        raise TypeError("decoder must be a callable that returns a tfd.Distribution; got None.")
    observations = _observations(x, seed, encoder, decoder)
    num_observations = len(observations)
    encode_rows: Any
    if is_given:
        encode_rows = _given(encoder, num_observations)
        posteriors = components_lib.broadcast(encode_rows.components_distribution)
        first = components_lib.gather(posteriors, tf.range(min(2, num_observations)))
    elif not callable(encoder):
        raise TypeError(
            "encoder must be a callable that returns a tfd.Distribution, or the posteriors "
            f"themselves, got {type(encoder).__name__}. Means and widths of Gaussians are "
            "posteriors by AggregatePosterior.from_arrays(loc=..., scale= or log_variance= ...); "
            "labels that the model depends on are condition=."
        )
    conditions = read_condition(condition, num_observations)
    taking = check_condition_is_taken(conditions, encoder=encoder, decoder=decoder, prior=prior)
    rows_encoded = batch_size or rows_encoded_at_a_time(observations, conditions)
    if not is_given:
        encode_rows = rows_encoder(encoder, observations, conditions, reencode)
        first = _first_posteriors(encode_rows, observations)
        if reencode:  # which draws from posteriors that know no sample dimension, too
            few = tf.range(min(2, num_observations))
            first = ReencodedPosteriors(few, encode_rows, rows_encoded)
    layout = code_layout(first)
    prior_now, prior_given = _prior(prior, "prior" in taking, layout)
    given = None if conditions is None else conditions.rows(slice(0, min(2, num_observations)))
    prior_of_few = prior_given(given)
    check_prior(prior_of_few, first, conditional=prior_now is None)
    codes = first.sample(_PROBES, seed=tf.constant([0, 0], tf.int32))  # [S, 2, *code_shape]
    check_parts(prior_of_few, first, codes[0])
    if prior_now is not None and needs_one_by_one(prior_now, codes[:, 0]):
        prior_now = prior_of_few = OneByOne(prior_now)
        prior_given = _always(prior_now)
    check_codes_in_support(prior_of_few, codes)
    likelihood, outside = None, ""
    if decoder is not None:
        decoder = on_vectors(decoder, layout)
        likelihood, outside = check_decoder(
            decoder,
            codes[0, :1],
            observations,
            conditions if "decoder" in taking else None,
            validate_args,
        )
    data = observations.data
    if taking:
        data += f", condition given to {joined(taking)}"
    model = PreparedModel(
        observations=observations,
        conditions=conditions,
        data=data,
        num_observations=num_observations,
        encode_rows=encode_rows,
        decoder=decoder,
        prior=prior_now,
        prior_given=prior_given,
        first_posteriors=first,
        likelihood=likelihood,
        outside_support=outside,
        taking=tuple(taking),
        layout=layout,
        reencode=reencode,
        given_batch_size=batch_size,
        batch_size=rows_encoded,
        code_batch_size=batch_size
        or rows_of_a_step(
            bytes_of_row((observations.parts, None if conditions is None else conditions.parts)),
            bytes_of_row(codes[0]),
            bytes_of_parameters(likelihood),
            bytes_of_parameters(prior_of_few),
        ),
    )
    few_codes = tf.reshape(codes, [-1, *codes.shape[2:]])  # [S, 2, *code] -> [S 2, *code]
    if model.prior is None:
        check_prior_repeats(model.prior_at, few_codes, num_observations)
    if model.decoder is not None:
        check_decoder_repeats(
            lambda z, rows: model.log_likelihood(z[tf.newaxis], rows)[0],
            few_codes,
            num_observations,
        )
    return model


def code_layout(posteriors: tfd.Distribution) -> CodeLayout | None:
    """Returns the layout of structured codes; None for codes that are single tensors."""
    if isinstance(posteriors, ReencodedPosteriors):
        posteriors = posteriors.distribution
    layout: CodeLayout | None = getattr(posteriors, "layout", None)
    return layout


def _observations(x: Any, seed: Seed, encoder: Any, decoder: Any) -> Observations:
    if isinstance(x, Mapping) and set(x) == {"x", "condition"}:
        raise TypeError(
            "x is a dict of x and condition, as VAE.fit takes it: hand in the two by themselves, "
            'x["x"] and condition=x["condition"].'
        )
    if x is not None:
        return read_observations(x, seed)
    if not isinstance(encoder, tfd.Distribution) or decoder is not None:
        raise TypeError(
            "x is None: observations may be left out only where posteriors stand in the encoder's "
            "place and decoder is None, so that nothing is encoded and nothing reconstructed."
        )
    if encoder.batch_shape.rank == 0 and isinstance(encoder, AggregatePosterior):
        num_observations = int(encoder.num_components)
    elif encoder.batch_shape.rank == 1 and encoder.batch_shape[0]:
        num_observations = int(encoder.batch_shape[0])
    else:
        raise ValueError(
            "posteriors in the encoder's place must have batch shape [N], one for each "
            f"observation; that of {encoder.name} is {encoder.batch_shape}."
        )
    return Observations((), num_observations, f"posteriors, N = {num_observations}")


def _first_posteriors(encode_rows: RowsEncoder, observations: Observations) -> tfd.Distribution:
    """Encodes two observations, and three where two could be taken for something else."""
    few = slice(0, min(2, len(observations)))
    first = encode_rows(few)
    event_shape = first.event_shape
    num_parts = len(tf.nest.flatten(observations.parts))
    if num_parts == 2 or 2 in (event_shape.as_list() if event_shape.rank else []):
        # A tuple of two arrays that was stacked, or a transposed output, has batch shape [2] too.
        three = np.array([0, 1, 0], np.int32) % len(observations)
        encode_rows(three)
    return first


def _prior(
    prior: Any, is_conditional: bool, layout: CodeLayout | None
) -> tuple[tfd.Distribution | None, Callable[[Any], tfd.Distribution]]:
    """Returns p(z), None if it depends on conditions, and a callable of these that returns it."""
    if not is_conditional:
        built = _flat_prior(build_prior(prior), layout, isinstance(prior, keras.layers.Layer))
        return built, _always(built)

    def prior_given(condition: Any) -> tfd.Distribution:
        built = unwrap_output(call(prior, condition=condition), "prior")
        return _flat_prior(built, layout, isinstance(prior, keras.layers.Layer))

    return None, prior_given


def _always(prior: tfd.Distribution) -> Callable[[Any], tfd.Distribution]:
    return lambda _: prior


def _flat_prior(
    prior: tfd.Distribution, layout: CodeLayout | None, is_layer: bool
) -> tfd.Distribution:
    """Returns a prior over the vectors of structured codes.

    Raises:
      ValueError: If it is over vectors already, and it is not known in which order.
    """
    if layout is None:
        return prior
    if tf.nest.is_nested(prior.dtype):
        return flattened(prior, layout)
    own = code_layout(getattr(prior, "components_distribution", prior))
    if own is not None:
        check_same_layout(own, layout, "the prior")
    elif not is_layer:  # a layer was fitted to these vectors
        raise ValueError(
            f"codes are structures of {describe(layout)}, and the prior {prior.name} is over "
            "single tensors: hand in a joint distribution of the same parts."
        )
    return prior


def check_same_layout(own: CodeLayout, layout: CodeLayout, what: str) -> None:
    """Raises a ValueError unless two layouts have the same parts in the same order."""
    if describe(own) != describe(layout):
        raise ValueError(
            f"{what} must be over the codes of this model, of parts {describe(layout)}; it is over "
            f"{describe(own)}."
        )


def on_vectors(decoder: Network, layout: CodeLayout | None) -> Network:
    """Returns a decoder of the vectors that represent structured codes.

    Args:
      decoder: Callable from structured codes to p(x|z).
      layout: Their layout; None for codes that are single tensors.

    Returns:
      A callable from vectors `[B, D]`; `decoder` itself without a layout.
    """
    if layout is None:
        return decoder

    def decode(z: tf.Tensor, condition: Any = None) -> tfd.Distribution:
        code = layout.unpack(z)
        return tried("decoder", lambda code: call(decoder, code, condition=condition), code)

    return decode


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
