"""ReencodedPosteriors: posteriors that are encoded again whenever they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.components import components as components_lib
from tfp_surgery.tfp_internals import parameter_properties, samplers
from tfp_surgery.tfp_internals import prefer_static as ps

tfd = tfp.distributions

_CLOSE = 1e-3  # of log densities in nats, relative to their size above one nat


class ReencodedPosteriors(tfd.Distribution):
    """The posteriors q(z|x_n) of rows n, from an encoder that is called for each evaluation.

    Its one parameter tensor is the number of the row, so that a batch can be picked by index
    whatever the encoder's distribution is and wherever its parameters are: in closures, linear
    operators or the model of a joint distribution. A density of Q queries under N rows calls the
    encoder on N observations, in blocks.
    """

    indexed_by_rows = True

    def __init__(
        self,
        rows: Any,
        encode_rows: Callable[[Any], tfd.Distribution],
        batch_size: int,
        first: tfd.Distribution | None = None,
        name: str = "ReencodedPosteriors",
    ) -> None:
        """Makes the posteriors; encodes one row unless `first` is given.

        Args:
          rows: Indices of observations, int32 `Tensor`, shape `[B...]`.
          encode_rows: Callable from indices `[B]` to q(z|x) with batch shape `[B]`.
          batch_size: Number of rows encoded at a time.
          first: The posterior of one row, batch shape `[1]`, which says what an event is.
          name: Name of the ops.

        Raises:
          TypeError: If the posteriors are in float16 or bfloat16.
        """
        if first is None:
            first = encode_rows(np.zeros([1], np.int32))
        parameters = dict(locals())
        if first.dtype in (tf.float16, tf.bfloat16):
            raise TypeError(
                f"posteriors that are encoded again must be in float32 or wider, and those of the "
                f"encoder are in {first.dtype.name}: cast their parameters, tf.cast(..., "
                "tf.float32)."
            )
        self._rows = tf.convert_to_tensor(rows, tf.int32)
        self._encode_rows = encode_rows
        self.batch_size = batch_size
        self.distribution = first
        super().__init__(
            dtype=first.dtype,
            reparameterization_type=first.reparameterization_type,
            validate_args=False,
            allow_nan_stats=True,
            parameters=parameters,
            name=name,
        )

    @classmethod
    def _parameter_properties(cls, dtype: Any, num_classes: Any = None) -> dict[str, Any]:
        return {"rows": parameter_properties.ParameterProperties()}

    @property
    def rows(self) -> tf.Tensor:
        """The indices of the observations, shape `[B...]`."""
        return self._rows

    def encoded(self) -> tfd.Distribution:
        """Returns the encoder's own distribution of all rows, which have shape `[B]`."""
        return self._encode_rows(self._rows)

    def blocks(self) -> Iterator[tuple[slice, tfd.Distribution]]:
        """Yields places in the flat batch and the encoder's distribution of their rows."""
        rows = tf.reshape(self._rows, [-1])  # [B...] -> [B]
        size = int(rows.shape[0])
        for start in range(0, size, self.batch_size):
            places = slice(start, min(start + self.batch_size, size))
            yield places, self._encode_rows(rows[places])

    def _event_shape(self) -> tf.TensorShape:
        return self.distribution.event_shape

    def _event_shape_tensor(self) -> tf.Tensor:
        return self.distribution.event_shape_tensor()

    def _sample_n(self, n: tf.Tensor, seed: Any) -> tf.Tensor:
        draws = [
            drawn(posterior, n, samplers.fold_in(seed, places.start))
            for places, posterior in self.blocks()
        ]
        joined = tf.concat(draws, axis=1)  # [n, B, E...]
        shape = ps.concat([[n], ps.shape(self._rows), ps.shape(joined)[2:]], axis=0)
        return tf.reshape(joined, shape)

    def _log_prob(self, z: tf.Tensor) -> tf.Tensor:
        event_ndims = components_lib.event_rank(self)
        outer = ps.shape(z)[: ps.rank(z) - event_ndims]
        event_shape = ps.shape(z)[ps.rank(z) - event_ndims :]
        outer = ps.broadcast_shape(outer, ps.shape(self._rows))
        z = tf.broadcast_to(z, ps.concat([outer, event_shape], axis=0))
        # [S..., B..., E...] -> [S, B, E...]
        flat = ps.concat([[-1], [ps.size(self._rows)], event_shape], axis=0)
        z = tf.reshape(z, flat)
        scores = [scored(posterior, z[:, places]) for places, posterior in self.blocks()]
        return tf.reshape(tf.concat(scores, axis=1), outer)

    def _of_each(self, statistic: str) -> tf.Tensor:
        values = [getattr(posterior, statistic)() for _, posterior in self.blocks()]
        joined = tf.concat(values, axis=0)
        return tf.reshape(joined, ps.concat([ps.shape(self._rows), ps.shape(joined)[1:]], axis=0))

    def _mean(self) -> tf.Tensor:
        return self._of_each("mean")

    def _variance(self) -> tf.Tensor:
        return self._of_each("variance")

    def _covariance(self) -> tf.Tensor:
        return self._of_each("covariance")

    def _default_event_space_bijector(self) -> Any:
        return self.distribution.experimental_default_event_space_bijector()


def scored(posterior: tfd.Distribution, z: tf.Tensor) -> tf.Tensor:
    """Returns log q(z_sb|x_b) of distributions that may know no sample dimension.

    A flow whose network joins z and features of x by `tf.concat` takes one code an observation, and
    the transitions of a `tfd.MarkovChain` broadcast draws against steps of time. The density is
    then taken of one draw after the other.

    Args:
      posterior: q(z|x), batch shape `[B]`.
      z: Codes, shape `[S, B, E...]`.

    Returns:
      Floating `Tensor`, shape `[S, B]`, in nats.
    """
    num_samples, size = z.shape[:2]
    alone = posterior.log_prob(z[0])  # [B]
    if num_samples == 1:
        return alone[tf.newaxis]
    try:
        scores = posterior.log_prob(z)
    except Exception:  # what a user's network raises at another rank
        scores = None
    if scores is not None and scores.shape == (num_samples, size):
        if tf.is_symbolic_tensor(scores):
            return scores
        if are_same_scores(scores[0].numpy(), alone.numpy()):
            return scores
    return tf.stack([alone, *(posterior.log_prob(z[s]) for s in range(1, num_samples))])


def are_same_scores(found: np.ndarray, expected: np.ndarray) -> bool:
    """Returns whether log densities agree but for rounding, wherever the expected ones are numbers.

    Args:
      found: Log densities, in nats.
      expected: Others of the same shape.

    Returns:
      Whether all of them agree.
    """
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        close = np.abs(found - expected) <= _CLOSE * np.maximum(1.0, np.abs(expected))
    return bool(np.all(close | (found == expected) | np.isnan(expected)))


def drawn(posterior: tfd.Distribution, n: Any, seed: Any) -> tf.Tensor:
    """Draws from posteriors that may know no sample dimension; see `scored`.

    Args:
      posterior: q(z|x), batch shape `[B]`.
      n: Number of draws.
      seed: TFP seed.

    Returns:
      Codes, shape `[n, B, E...]`.
    """
    try:
        return posterior.sample(n, seed=seed)
    except Exception:  # what a user's network raises at another rank
        if not tf.executing_eagerly():
            raise
        seeds = samplers.split_seed(seed, n=int(n))
        return tf.stack([posterior.sample(seed=each) for each in tf.unstack(seeds)])


class PickedPosteriors(NamedTuple):
    """The posteriors of some rows, with the calls by which their codes are drawn and scored.

    Attributes:
      distribution: q(z|x), batch shape `[B]`: the encoder's own if it is called again.
      sample: Callable from a number of draws S and a TFP seed to codes `[S, B, E...]`.
      log_prob: Callable from such codes to log q(z|x), shape `[S, B]`.
    """

    distribution: tfd.Distribution
    sample: Callable[[int, Any], tf.Tensor]
    log_prob: Callable[[tf.Tensor], tf.Tensor]


def picked(posteriors: tfd.Distribution, rows: tf.Tensor) -> PickedPosteriors:
    """Picks the posteriors of some rows, and encodes them if they are encoded again.

    Args:
      posteriors: q(z|x_n), batch shape `[N]`, every parameter broadcast to it.
      rows: int32 `Tensor`, shape `[B]`.

    Returns:
      `PickedPosteriors`.
    """
    chosen = components_lib.gather(posteriors, rows)
    if not isinstance(chosen, ReencodedPosteriors):
        return PickedPosteriors(
            chosen, lambda n, seed: chosen.sample(n, seed=seed), chosen.log_prob
        )
    own = chosen.encoded()
    return PickedPosteriors(own, lambda n, seed: drawn(own, n, seed), lambda z: scored(own, z))
