"""Checks that joined posteriors equal the encoder's, and that the encoder is a function of each x.

Components are joined and gathered through the parameters that their distribution declares. Other
state, such as a function that closes over the observations, is carried along unchanged and then
belongs to other observations; if the shapes coincide, nothing fails. Therefore the log densities of
a few draws are recorded during encoding and compared with those of the gathered components.
Two observations are encoded again to check that the encoder is deterministic and does not depend on
the rest of a batch.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.components import components as components_lib

tfd = tfp.distributions

# Tolerances of the comparison of log densities. The effect of rounding z is added: z is moved by
# eight units of its dtype, and by one unit of bfloat16 (a flow's networks may compute in it) times
# its deviation from the mean.
_ABSOLUTE, _RELATIVE = 1e-3, 1e-4
_NETWORK_ROUNDING = 2.0**-8

_SAMPLE_SIZE = 1000  # components that estimate the spread of a parameter
_FEW = 8  # posteriors that are compared by their densities

_ROUGHLY = 0.02  # of log densities, in nats and relative: a network rounds otherwise in a batch

_DRAWS_AT_RANDOM = (
    "the encoder gives an observation another posterior when it is called again: dropout may be "
    "left on, or it draws at random inside. Hand in the encoder as it is used after training, for "
    "instance lambda x: encoder(x, training=False); codes are drawn from the distribution that it "
    "returns."
)
_COMPARES_A_BATCH = (
    "the encoder gives an observation another posterior alone than in a batch: batch normalisation "
    "may run in training mode, the network may compare the observations of a batch, or it draws at "
    "random. Every result would depend on batch_size. Hand in an encoder of each observation by "
    "itself, for instance lambda x: encoder(x, training=False)."
)

_checked: weakref.WeakSet[tfd.Distribution] = weakref.WeakSet()


class Witness(NamedTuple):
    """Log densities of the posteriors at their own draws.

    Attributes:
      rows: Indices of R components, shape `[R]`.
      z: One draw per component, shape `[B..., R, E...]`.
      log_prob: log q(z|x) of the draws in nats, float64, shape `[B..., R]`.
      slack: Largest difference allowed to another evaluation, float64, shape `[B..., R]`.
    """

    rows: np.ndarray
    z: tf.Tensor
    log_prob: np.ndarray
    slack: np.ndarray


class EncodingCheck:
    """Records log densities of the first, a middle and the last batch, and compares them later."""

    def __init__(self, num_batches: int) -> None:
        """Starts a check of `num_batches` batches."""
        self._watched = {0, num_batches // 2, num_batches - 1}
        self._witnesses: list[Witness] = []

    def note(self, number: int, start: int, posterior: tfd.Distribution) -> None:
        """Records log densities of a batch of posteriors if the batch is among those checked.

        Args:
          number: Number of the batch.
          start: Index of its first observation.
          posterior: The encoder's output, batch shape `[B]`.
        """
        if number not in self._watched or not components_lib.undeclared(posterior):
            return
        last = posterior.batch_shape[-1] - 1
        witness = _witness(posterior, [0, last])
        if witness is not None:
            self._witnesses.append(witness._replace(rows=witness.rows + start))

    def compare(self, joined: tfd.Distribution) -> None:
        """Raises a TypeError unless joined posteriors, batch shape `[N]`, match the records."""
        for witness in self._witnesses:
            _compare(joined, witness)
        _checked.add(joined)


def check_components(components: tfd.Distribution) -> None:
    """Checks that components gathered by index, as for sampling, keep their log densities.

    Costs one draw and one density per component. Does nothing in a graph, if all parameters are
    declared, or if the components have been checked before.

    Args:
      components: Distribution with batch shape `[B..., N]`.

    Raises:
      TypeError: If the log densities differ.
    """
    if not tf.executing_eagerly() or components in _checked:
        return
    num = components.batch_shape[-1]
    if num is None or not components_lib.undeclared(components):
        return
    witness = _witness(components, [0, num // 2, num - 1])
    if witness is not None:
        _compare(components_lib.broadcast(components), witness)
    _checked.add(components)


def _witness(components: tfd.Distribution, rows: Sequence[int]) -> Witness | None:
    """Returns log densities of the given components at their draws; None if they cannot draw."""
    axis = components_lib.batch_rank(components) - 1
    # In descending order, so that gathering all of them is not the identity.
    chosen = np.unique(rows)[::-1]
    # tf.identity defeats the caches of bijectors, which are keyed by the identity of z.
    try:
        z = tf.identity(components.sample(seed=tf.constant([0, 0], tf.int32)))
    except Exception:  # a user's class may not implement sampling, or not with a stateless seed
        return None
    log_prob = np.asarray(components.log_prob(z), np.float64)
    slack = _ABSOLUTE + _RELATIVE * np.abs(log_prob)
    if z.dtype.is_floating:
        moved = (z - tf.reduce_mean(z, axis=axis, keepdims=True)) * _NETWORK_ROUNDING
        moved += z * (8.0 * np.finfo(z.dtype.as_numpy_dtype).eps)
        slack += _change(components, z + moved, log_prob)
    return Witness(
        chosen, tf.gather(z, chosen, axis=axis), log_prob[..., chosen], slack[..., chosen]
    )


def _change(components: tfd.Distribution, moved: tf.Tensor, log_prob: np.ndarray) -> np.ndarray:
    """Returns the change of log densities at moved draws; 0 outside of the support."""
    try:
        moved_log_prob = np.asarray(components.log_prob(moved), np.float64)
    except (ValueError, tf.errors.InvalidArgumentError):  # validate_args
        return np.zeros_like(log_prob)
    with np.errstate(invalid="ignore"):
        change = np.abs(moved_log_prob - log_prob)
    return np.where(np.isfinite(change), change, 0.0)


def _compare(components: tfd.Distribution, witness: Witness) -> None:
    """Raises a TypeError unless components, every parameter broadcast, agree with a witness."""
    axis = components_lib.batch_rank(components) - 1
    try:
        picked = components_lib.gather(components, tf.constant(witness.rows), axis=axis)
        log_prob = np.asarray(picked.log_prob(witness.z), np.float64)
    except (ValueError, tf.errors.InvalidArgumentError) as error:
        raise TypeError(_undeclared_message(components, "have other shapes")) from error
    if log_prob.shape != witness.log_prob.shape:
        raise TypeError(_undeclared_message(components, "have other shapes"))
    with np.errstate(invalid="ignore"):
        difference = np.abs(log_prob - witness.log_prob)
    same = (difference <= witness.slack) | (log_prob == witness.log_prob)
    same |= np.isnan(log_prob) & np.isnan(witness.log_prob)
    if not same.all():
        largest = np.nanmax(np.where(same, -np.inf, difference))
        how = f"give log densities that differ by up to {largest:.3g} nats at their own draws"
        raise TypeError(_undeclared_message(components, how))


def _undeclared_message(components: tfd.Distribution, how: str) -> str:
    where = ", ".join(dict.fromkeys(components_lib.undeclared(components)))
    return (
        f"the posteriors hold parameters that they do not declare: picked by index, they {how}. "
        f"{type(components).__name__} holds {where}; what a function closes over, or a class "
        "does not name in _parameter_properties, stays that of another batch of observations. "
        "Make every parameter that depends on the observations an argument of a distribution or "
        "bijector that declares it (tfb.Shift(h) and tfb.Scale(s) for a function that closes over "
        "h and s), or declare it in _parameter_properties. The weights of a network that all "
        "observations share may stay in a function. Or let the encoder be called again in place of "
        "joining its posteriors: reencode=True."
    )


def check_encoder_repeats(
    encode_rows: Callable[[Any], tfd.Distribution], joined: tfd.Distribution
) -> None:
    """Checks that the encoder is deterministic and treats each observation independently.

    Encodes the first and the last observation alone, twice. Ignores parameters that are not finite.

    Args:
      encode_rows: Callable from rows of the data set to q(z|x) with one batch dimension.
      joined: The posteriors of all N rows, batch shape `[N]`, every parameter broadcast to it.

    Raises:
      ValueError: If the two calls differ, or differ from `joined` by far more than rounding.
    """
    num = int(joined.batch_shape[0])
    rows = [0, num - 1]
    try:
        alone, again = ([_parameters(encode_rows(slice(i, i + 1))) for i in rows] for _ in range(2))
    except Exception:  # the encoder may accept one batch size only, or parameters may be hidden
        return
    leaves = components_lib.leaves(joined)
    if any(len(given) != len(leaves) for given in alone + again):
        return
    several = tf.constant(np.unique(np.linspace(0, num - 1, _SAMPLE_SIZE).astype(np.int64)))
    for number, leaf in enumerate(leaves):
        values = _finite(tf.gather(leaf, several))
        size, spread = _root_mean_square(values), _root_mean_square(values - values.mean(axis=0))
        in_batch = _finite(tf.gather(leaf, tf.constant(rows)))
        first, second = (
            np.concatenate([given[number] for given in calls]) for calls in (alone, again)
        )
        if _root_mean_square(second - first) > 0.01 * spread + 1e-5 * size:
            raise ValueError(_DRAWS_AT_RANDOM)
        if _root_mean_square(first - in_batch) > 0.05 * spread + size / 64.0:
            raise ValueError(_COMPARES_A_BATCH)


def check_densities_repeat(
    encode_rows: Callable[[Any], tfd.Distribution], num_observations: int
) -> None:
    """Checks as `check_encoder_repeats`, by log densities, for posteriors that are not joined.

    Encodes up to eight observations together, twice, and the first and last of them alone.

    Args:
      encode_rows: See `check_encoder_repeats`.
      num_observations: N.

    Raises:
      ValueError: If log densities of the same codes differ by far more than rounding.
    """
    rows = np.unique(np.linspace(0, num_observations - 1, _FEW).astype(np.int32))
    together = encode_rows(rows)
    z = tf.identity(together.sample(seed=tf.constant([0, 0], tf.int32)))

    def score(few: np.ndarray) -> Any:
        return encode_rows(rows[few]).log_prob(tf.gather(z, few))

    first = np.asarray(together.log_prob(z), np.float64)
    roughly = _ROUGHLY + _ROUGHLY * np.abs(first)
    check_scores_repeat(score, first, roughly, _DRAWS_AT_RANDOM, _COMPARES_A_BATCH)


def check_scores_repeat(
    score: Callable[[np.ndarray], Any],
    together: np.ndarray,
    tolerance: np.ndarray,
    at_random: str,
    compares: str,
) -> None:
    """Checks that log densities are the same again, and the same for an item alone.

    Args:
      score: Callable from the indices of some items to their log densities, which calls a network
        on these items alone.
      together: Those of all R items, from one call, float64, shape `[R]`.
      tolerance: Largest difference allowed to those of an item alone, in nats, shape `[R]`.
      at_random: Message of the error if all items again have others.
      compares: Message of the error if the first or the last item alone has another.

    Raises:
      ValueError: If log densities differ by far more than rounding.
    """
    again = np.asarray(score(np.arange(len(together))), np.float64)
    if not np.allclose(again, together, rtol=_RELATIVE, atol=_ABSOLUTE, equal_nan=True):
        raise ValueError(at_random)
    ends = [0, len(together) - 1]
    try:
        alone = [float(score(np.array([index]))[0]) for index in ends]
    except Exception:  # the network may accept one batch size only
        return
    with np.errstate(invalid="ignore"):  # of what is not finite, which has to be equal
        close = np.isclose(alone, together[ends], rtol=0.0, atol=tolerance[ends], equal_nan=True)
    if not close.all():
        raise ValueError(compares)


def _parameters(posterior: tfd.Distribution) -> list[np.ndarray]:
    """Returns the parameters of a batch of posteriors as float64."""
    leaves = components_lib.leaves(components_lib.broadcast(posterior))
    return [_finite(leaf) for leaf in leaves]


def _root_mean_square(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2))) if values.size else 0.0


def _finite(leaf: Any) -> np.ndarray:
    """Returns values as float64, with NaN in place of infinite ones."""
    values = np.asarray(leaf, np.float64)
    return np.where(np.isfinite(values), values, np.nan)
