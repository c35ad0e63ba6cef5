"""Checks of a model: its decoder, the support of its prior and its posteriors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks import point_mass
from tfp_surgery.checks.networks import check_decoder_output, plain_class
from tfp_surgery.checks.parts_given import has_dependent_parts, parts_given
from tfp_surgery.checks.support import support_problem
from tfp_surgery.checks.takes_condition import call
from tfp_surgery.checks.tried import tried
from tfp_surgery.components import components as components_lib
from tfp_surgery.components.fidelity import check_scores_repeat
from tfp_surgery.components.flat_joint import FlatJoint
from tfp_surgery.components.one_by_one import OneByOne
from tfp_surgery.components.reencoded_posteriors import ReencodedPosteriors
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.measurement.event_space import default_bijector
from tfp_surgery.measurement.log_likelihood import as_value
from tfp_surgery.observations import Observations

tfb = tfp.bijectors
tfd = tfp.distributions

_SUPPORT_BLOCK = 8192  # rows of x that are checked at a time
_DECODED_BLOCK = 1000  # rows of x that are decoded at a time
_PROBES = 100  # draws of the prior on which its bijector is tested
_TRANSFORMED = (tfd.TransformedDistribution, plain_class(tfd.TransformedDistribution))
_SPHERES = (tfd.SphericalUniform, tfd.VonMisesFisher, tfd.PowerSpherical)
_LENGTH_TOLERANCE = 1e-3
_FEW = 3  # observations that are decoded together and alone
# Tolerances, in nats and relative, of the log densities of an item alone. Four times the effect of
# moving its code by one unit of bfloat16, in which a network may compute, are added.
_ABSOLUTE, _RELATIVE = 0.02, 1e-3
_MOVED, _TIMES = 2.0**-8, 4.0

_DRAWS_AT_RANDOM = (
    "the {network} gives {what} another distribution when it is called again: dropout may be left "
    "on, or it draws at random inside. Hand in the {network} as it is used after training, for "
    "instance {instance}."
)
_COMPARES_A_BATCH = (
    "the {network} gives {what} another distribution alone than in a batch: batch normalisation "
    "may run in training mode, the network may compare what is in a batch, or it draws at random. "
    "Every result would depend on batch_size. Hand in a {network} that takes each by itself, for "
    "instance {instance}."
)


def check_decoder(
    decoder: Callable[..., tfd.Distribution],
    code: tf.Tensor,
    observations: Observations,
    conditions: Observations | None = None,
    validate_args: bool | None = None,
) -> tuple[tfd.Distribution, str]:
    """Checks the decoder on one code, before the actual work.

    Args:
      decoder: Callable from codes `[B, *code_shape]` to p(x|z) with batch shape `[B]`.
      code: A code, shape `[1, *code_shape]`.
      observations: The observations.
      conditions: Their conditions, or None. With them the decoder is called on all of these, in
        blocks, since the support may depend on them, as that of a `tfd.Multinomial` does. So it is
        if a part of x depends on other parts under the likelihood.
      validate_args: Whether x outside of the support of the likelihood is refused; None if it is
        and callers cannot choose.

    Returns:
      likelihood: p(x|z) of the code, batch shape `[1]`.
      outside: What is outside of the support, in words; empty if nothing is.

    Raises:
      TypeError: If the decoder is not callable or does not return a distribution.
      ValueError: If the decoder fails, its shapes do not fit, or x lies outside the support of the
        likelihood.
    """
    if not callable(decoder):
        raise TypeError("decoder must be a callable that returns a tfd.Distribution.")

    def decoded(rows: slice) -> tfd.Distribution:
        size = rows.stop - rows.start
        condition = None if conditions is None else conditions.rows(rows)
        codes = tf.repeat(code, size, axis=0)
        output = tried("decoder", lambda z: call(decoder, z, condition=condition), codes)
        return check_decoder_output(output, size, observations.event_shape)

    likelihood = decoded(slice(0, 1))
    _check_scores(likelihood, observations.rows(slice(0, 1)))
    outside = ""
    if conditions is None and not has_dependent_parts(likelihood):
        slices = _slices(len(observations), _SUPPORT_BLOCK)
        blocks = (_in_structure(likelihood, observations.rows(rows)) for rows in slices)
        outside = support_problem(likelihood, blocks)
    else:
        for rows in _slices(len(observations), _DECODED_BLOCK):
            outside = outside or _outside(decoded(rows), observations.rows(rows))
    if outside and validate_args is not False:
        way_out = (
            " Or score x as it is, with validate_args=False: the result is then not the ELBO of a "
            "normalised model, and says so."
        )
        raise ValueError(f"{outside}{way_out if validate_args else ''}")
    return likelihood, outside


def _check_scores(likelihood: tfd.Distribution, x: Any) -> None:
    """Raises a ValueError if a likelihood does not score one observation."""
    try:
        likelihood.log_prob(as_value(likelihood, x))
    except Exception as error:
        if _is_outside(likelihood, x):  # which is said next
            return
        hint = (
            " tfd.Masked needs a distribution in the dtype of x, as tfd.Bernoulli(logits=..., "
            "dtype=tf.float32), and a boolean mask."
            if "Masked" in repr(likelihood) or "SelectV2" in str(error)
            else ""
        )
        raise ValueError(
            f"the likelihood {likelihood.name} does not score x: {error}{hint}"
        ) from error


def _in_structure(likelihood: tfd.Distribution, x: Any) -> Any:
    return as_value(likelihood, x) if tf.nest.is_nested(likelihood.dtype) else x


def _outside(likelihood: tfd.Distribution, x: Any) -> str:
    """Describes what of some observations is outside of the support of their likelihood."""
    return support_problem(likelihood, [_in_structure(likelihood, x)])


def _is_outside(likelihood: tfd.Distribution, x: Any) -> bool:
    """Returns whether observations that are not scored are outside of the support."""
    if getattr(likelihood, "validate_args", False):
        return True
    try:
        return bool(_outside(likelihood, x))
    except Exception:  # of another structure or other shapes
        return False


def _slices(num: int, size: int) -> Iterator[slice]:
    """Yields the slices of at most `size` rows that make up `num` rows."""
    return (slice(start, min(start + size, num)) for start in range(0, num, size))


def check_codes_in_support(prior: tfd.Distribution, codes: tf.Tensor) -> None:
    """Checks that the prior gives no finite density to codes outside its support.

    Some of TFP's formulas are finite outside of the support, such as `log_prob` of
    `tfd.Exponential` at -1. A code lies outside if it has no inverse under the prior's event space
    bijector, or, for a prior on the sphere, if its norm is not 1. The parts of a structured code
    are checked each, under their distribution given the parts that they depend on.

    Args:
      prior: p(z), batch shape `[]`, or p(z|c), batch shape `[B]`.
      codes: Draws of posteriors, shape `[..., *code_shape]`, or `[..., B, *code_shape]`.

    Raises:
      ValueError: If such codes exist.
    """
    if isinstance(prior, OneByOne) and isinstance(prior.distribution, FlatJoint):
        prior = prior.distribution
    if isinstance(prior, FlatJoint):
        for part, values in _code_parts(prior, codes).values():
            check_codes_in_support(part, values)
        return
    if tf.nest.is_nested(prior.dtype):
        return
    # A transformed density goes through the inverse bijector and is NaN outside of the support.
    if not codes.dtype.is_floating or type(prior) in _TRANSFORMED:
        return
    codes = tf.constant(codes.numpy())  # a copy, since bijectors cache by identity
    try:
        bijector = default_bijector(prior)
        if bijector is None or isinstance(bijector, tfb.Identity):
            return
        num = -(-_PROBES // max(1, prior.batch_shape.num_elements()))
        own = tf.constant(prior.sample(num, seed=tf.constant([0, 0], tf.int32)).numpy())
        if np.isnan(bijector.inverse(own).numpy()).any():  # its range is not the support
            return
        unconstrained = bijector.inverse(codes).numpy()
    except Exception:  # of a user's bijector
        return
    log_prob = prior.log_prob(codes).numpy()
    missing = np.isnan(unconstrained).reshape(*log_prob.shape, -1).any(axis=-1)
    if isinstance(prior, _SPHERES):  # their bijector accepts any vector
        missing |= np.abs(np.linalg.norm(codes, axis=-1) - 1.0) > _LENGTH_TOLERANCE
    outside = int(np.sum(np.isfinite(log_prob) & missing))
    if outside:
        raise ValueError(
            f"{outside} of {log_prob.size} draws of the posteriors that were looked at lie "
            f"outside the support of the prior {prior.name}, whose log_prob is finite there all "
            "the same: KL(q(z|x) || p(z)) is infinite, whatever the formula gives. Take a prior "
            "and posteriors over the same codes."
        )


def check_decoder_repeats(
    log_likelihood_of: Callable[[tf.Tensor, np.ndarray], Any],
    codes: tf.Tensor,
    num_observations: int,
) -> None:
    """Checks that the decoder is deterministic and treats each code independently.

    Decodes three codes together, twice, and the first and last of them alone.

    Args:
      log_likelihood_of: Callable from codes `[B, *code_shape]` and the rows of B observations to
        log p(x|z), shape `[B]`.
      codes: At least three codes, shape `[S, *code_shape]`.
      num_observations: N.

    Raises:
      ValueError: If log densities of the same observations differ by far more than rounding.
    """
    instance = "lambda z: decoder(z, training=False)"
    words = {"network": "decoder", "what": "a code", "instance": instance}
    _check_repeats(log_likelihood_of, codes, num_observations, words)


def check_prior_repeats(
    prior_at: Callable[[np.ndarray], tfd.Distribution], codes: tf.Tensor, num_observations: int
) -> None:
    """Checks that p(z|c) is deterministic and depends on each condition by itself.

    Calls it on the conditions of three observations, twice, and on those of the first and last.

    Args:
      prior_at: Callable from the rows of B observations to p(z|c), batch shape `[B]`.
      codes: At least three codes, shape `[S, *code_shape]`.
      num_observations: N.

    Raises:
      ValueError: If log densities of the same codes differ by far more than rounding.
    """
    instance = "lambda condition: prior(condition, training=False)"
    words = {"network": "prior", "what": "a condition", "instance": instance}
    _check_repeats(lambda z, rows: prior_at(rows).log_prob(z), codes, num_observations, words)


def _check_repeats(
    score: Callable[[tf.Tensor, np.ndarray], Any],
    codes: tf.Tensor,
    num_observations: int,
    words: dict[str, str],
) -> None:
    rows = np.linspace(0, num_observations - 1, _FEW).astype(np.int32)
    z = codes[:_FEW]
    try:
        together = np.asarray(score(z, rows), np.float64)
    except Exception:  # which the measurement meets too, unless a batch must have its size
        return
    try:
        moved = score(z * (1.0 + _MOVED), rows) if z.dtype.is_floating else together
    except (ValueError, tf.errors.InvalidArgumentError):  # validate_args
        moved = together
    with np.errstate(invalid="ignore"):
        change = np.abs(np.asarray(moved, np.float64) - together)
        change = np.where(np.isfinite(change), change, 0.0)
        tolerance = _ABSOLUTE + _RELATIVE * np.abs(together) + _TIMES * change
    check_scores_repeat(
        lambda few: score(tf.gather(z, few), rows[few]),
        together,
        tolerance,
        _DRAWS_AT_RANDOM.format(**words),
        _COMPARES_A_BATCH.format(**words),
    )


def check_parts(prior: tfd.Distribution, posteriors: tfd.Distribution, codes: tf.Tensor) -> None:
    """Checks that each part of a code is a mass, or a density, in both prior and posterior.

    Args:
      prior: p(z), batch shape `[]`, or p(z|c), batch shape `[B]`.
      posteriors: q(z|x), batch shape `[B]`.
      codes: A draw of each, shape `[B, *code_shape]`; parts that depend on others are looked at
        given these.

    Raises:
      ValueError: If a part is a mass in one of them and a density in the other.
    """
    if isinstance(posteriors, ReencodedPosteriors):
        posteriors = posteriors.distribution
    if not (isinstance(prior, FlatJoint) and isinstance(posteriors, FlatJoint)):
        return
    under_prior, under_posterior = (_code_parts(each, codes) for each in (prior, posteriors))
    for name, (part, _) in under_prior.items():
        if name in under_posterior:
            point_mass.check_same_measure(part, under_posterior[name][0])


def _code_parts(joint: FlatJoint, codes: tf.Tensor) -> dict[str, tuple[tfd.Distribution, Any]]:
    """Returns the distribution of each part of a code, given the others, and its values, by name.

    Without the parts that depend on others if their model does not take these values.
    """
    names = joint.layout.names
    code = joint.layout.unpack(codes)
    values = dict(zip(names, tf.nest.flatten(code), strict=True))
    known = {name: joint.part(number) for number, name in enumerate(names)}
    if None in known.values():
        own = joint.parameters["joint_layout"] or joint.layout
        try:
            parts = parts_given(joint.joint, joint.layout.renamed(code, own))
        except Exception:  # of a model of single codes, without dimensions for draws
            parts = []
        if len(parts) == len(own.names):
            given = {name: part.distribution for name, part in zip(own.names, parts, strict=True)}
            known = {name: known[name] or given[name] for name in names}
    return {name: (part, values[name]) for name, part in known.items() if part is not None}


def check_aggregate_posterior(aggregate_posterior: Any, name: str = "aggregate_posterior") -> None:
    """Checks that the argument is one unbatched `AggregatePosterior` with equal weights.

    Args:
      aggregate_posterior: The argument.
      name: Name of the argument, for error messages.

    Raises:
      TypeError: If it is not an `AggregatePosterior`.
      ValueError: If it has a batch shape or weights.
    """
    if not isinstance(aggregate_posterior, AggregatePosterior):
        raise TypeError(
            f"{name} must be an AggregatePosterior, got {type(aggregate_posterior).__name__}: "
            "AggregatePosterior.from_encoder(encoder, x) makes one of an encoder, and "
            "AggregatePosterior(posteriors) of a batch of posteriors."
        )
    if aggregate_posterior.batch_shape.rank != 0:
        raise ValueError(
            f"{name} must be one distribution, got batch shape {aggregate_posterior.batch_shape}."
        )
    if aggregate_posterior.weights is not None:
        raise ValueError(f"{name} must weight its components equally (weights=None).")


def check_vector_codes(aggregate_posterior: Any, name: str = "aggregate_posterior") -> None:
    """Checks as `check_aggregate_posterior`, and that the codes are vectors.

    Args:
      aggregate_posterior: The argument.
      name: Name of the argument, for error messages.

    Raises:
      TypeError: If it is not an `AggregatePosterior`.
      ValueError: If it has a batch shape or weights, or its codes do not have shape `[D]`.
    """
    check_aggregate_posterior(aggregate_posterior, name)
    if aggregate_posterior.event_shape.rank != 1:
        raise ValueError(
            f"{name} must be over codes of shape [D], got event shape "
            f"{aggregate_posterior.event_shape}."
        )


def check_no_nan(aggregate: AggregatePosterior) -> None:
    """Raises a ValueError if posteriors have NaN parameters, or densities with a scale of 0."""
    point_mass.check_not_singular(aggregate.components_distribution, "posterior")
    for leaf in components_lib.leaves(aggregate.components_distribution):
        values = leaf.numpy()
        if leaf.dtype.is_floating and np.isnan(values).any():
            bad = np.isnan(values).reshape(len(values), -1).any(axis=1).sum()
            raise ValueError(
                f"The encoder gives NaN parameters for {bad} of {len(values)} observations; has "
                "training diverged?"
            )
