"""OneByOne: a distribution whose events are scored one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.components import components as components_lib
from tfp_surgery.components.reencoded_posteriors import are_same_scores
from tfp_surgery.tfp_internals import prefer_static as ps

tfd = tfp.distributions

_LARGEST_SIZE = 64  # of a dimension of an event that a sample dimension is given the size of


class OneByOne(tfd.Distribution):
    """A distribution over single events, in place of one that knows no sample dimensions.

    A `tfd.MarkovChain` whose transitions depend on time is one, where its function takes a sample
    dimension for that of time: it fails, or where their sizes are equal gives another number.
    """

    def __init__(self, distribution: tfd.Distribution, name: str = "OneByOne") -> None:
        """Makes the distribution.

        Args:
          distribution: A distribution with batch shape `[]`.
          name: Name of the ops.
        """
        parameters = dict(locals())
        self.distribution = distribution
        super().__init__(
            dtype=distribution.dtype,
            reparameterization_type=distribution.reparameterization_type,
            validate_args=False,
            allow_nan_stats=True,
            parameters=parameters,
            name=name,
        )

    @classmethod
    def _parameter_properties(cls, dtype: Any, num_classes: Any = None) -> dict[str, Any]:
        return {}

    def _batch_shape(self) -> tf.TensorShape:
        return tf.TensorShape([])

    def _batch_shape_tensor(self, **unused: Any) -> tf.Tensor:
        return tf.constant([], tf.int32)

    def _event_shape(self) -> tf.TensorShape:
        return self.distribution.event_shape

    def _event_shape_tensor(self) -> tf.Tensor:
        return self.distribution.event_shape_tensor()

    def _sample_n(self, n: tf.Tensor, seed: Any) -> tf.Tensor:
        return self.distribution.sample(n, seed=seed)

    def _log_prob(self, z: tf.Tensor) -> tf.Tensor:
        outer = ps.shape(z)[: ps.rank(z) - components_lib.event_rank(self)]
        event_shape = ps.shape(z)[ps.rank_from_shape(outer) :]
        flat = tf.reshape(z, ps.concat([[-1], event_shape], axis=0))  # [S..., E...] -> [S, E...]
        scores = tf.map_fn(
            self.distribution.log_prob, flat, fn_output_signature=components_lib.dtype_of(self)
        )
        return tf.reshape(scores, outer)

    def _default_event_space_bijector(self) -> Any:
        return self.distribution.experimental_default_event_space_bijector()


def needs_one_by_one(distribution: tfd.Distribution, codes: tf.Tensor) -> bool:
    """Returns whether a distribution may hold a function of a user that knows no sample dimensions.

    Args:
      distribution: A distribution with batch shape `[]`.
      codes: Events, shape `[M, *event_shape]`, not symbolic.

    Returns:
      False if all its parameters are tensors, or several events are scored as each by itself.
    """
    try:
        if not components_lib.undeclared(distribution):
            return False
    except TypeError:  # a class that does not declare its parameters
        pass
    return not _knows_sample_dimensions(distribution, codes)


def _knows_sample_dimensions(distribution: tfd.Distribution, codes: tf.Tensor) -> bool:
    """Returns whether a distribution scores several events as it scores each by itself.

    Tries sample shapes of the sizes that the dimensions of an event have, and of one less, as the
    transitions of a chain have: a function may take the one for the other.
    """
    shape = codes.shape[1:].as_list()
    sizes = {size - less for size in shape for less in (0, 1)} | {2, 3}
    for size in sorted(sizes & set(range(2, _LARGEST_SIZE))):
        rows = np.arange(2 * size) % codes.shape[0]
        several = tf.reshape(tf.gather(codes, rows), [2, size, *shape])
        alone = [distribution.log_prob(codes[row]) for row in rows[: min(4, len(rows))]]
        expected = np.asarray(tf.stack(alone))
        try:
            found = np.asarray(distribution.log_prob(several))
        except Exception:  # what a user's function raises at another rank
            return False
        if found.shape != (2, size):
            return False
        if not are_same_scores(found.ravel()[: len(expected)], expected):
            return False
    return True
