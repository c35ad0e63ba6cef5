"""The exemplar prior: one Gaussian of a shared width at the code of each exemplar."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery import seeds
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.priors.condition import check_codes
from tfp_surgery.priors.encoder_prior import ObservationPrior
from tfp_surgery.priors.standardization import moments

tfd = tfp.distributions

_WIDTH_FLOOR = 1e-5
_MAX_CODES = 1000  # that initialize looks at
_EM_STEPS = 20
_LEAST_VARIANCE = 1e-9  # as the floor of the width, in units of the codes' own variances


@keras.saving.register_keras_serializable(package="tfp_surgery")
class ExemplarPrior(ObservationPrior):
    r"""The prior of the exemplar VAE (Norouzi et al. 2020, section 3).

        p(z) = 1/M sum_m N(z; mu(x_m), s^2 diag(c^2))

    mu(x_m) is the mean of the encoder's q(z|x_m), and s one learned width that all share. c is the
    unit of each dimension: 1, as in the paper, until `initialize` sets it to the standard
    deviations of the codes, so that one width suits all dimensions. It is not trained. The
    exemplars x_m are all N observations of a data set, or a random subset that `seed` chooses once,
    here: so p(z) is one density, the same in every training step and measurement. (The paper
    draws a subset anew, and searches nearest neighbours, in each step.)

    In training each step encodes the M exemplars, with gradient: choose M with that in mind. The
    component of the observation itself is left out unless `leave_one_out=False`; then s shrinks,
    and the training data look better than they are.

    #### References

    Sajad Norouzi, David J. Fleet, Mohammad Norouzi. Exemplar VAE: linking generative models,
    nearest neighbor retrieval, and data augmentation. NeurIPS, 2020.
    """

    def __init__(
        self,
        event_size: int,
        encoder: Callable[[tf.Tensor], tfd.Distribution],
        x: Any,
        num_components: int | None = None,
        *,
        leave_one_out: bool = True,
        seed: Any = 0,
        **kwargs: Any,
    ):
        """Makes the layer.

        Args:
          event_size: D, the size of a code.
          encoder: Callable from x `[B, *observation_shape]` to q(z|x) with batch shape `[B]`: the
            model's own.
          x: The training data: array `[N, *observation_shape]`, or a
            `tfp_surgery.datasets.Dataset` of settled binarization.
          num_components: M, the size of the subset; None for all N.
          leave_one_out: Whether `VAE.fit` leaves out the component of the observation itself. It
            then needs the index of each: `dataset.batches(..., indexed=True)`.
          seed: Integer in [0, 2**31) or pair of int32, of the subset.
          **kwargs: Of `keras.layers.Layer`.

        Raises:
          TypeError: If an argument is of the wrong kind.
          ValueError: If x is empty or not finite, a number is out of range, or the encoder does not
            fit.
        """
        super().__init__(event_size, encoder, x, num_components, leave_one_out, seed, **kwargs)
        self.raw_width = self._add_weight("raw_width", _raw(1.0))
        self.unit = self._add_weight("unit", np.ones(self.event_size), trainable=False)

    @property
    def width(self) -> tf.Tensor:
        """s, a scalar, in units of c."""
        return tf.nn.softplus(tf.convert_to_tensor(self.raw_width)) + _WIDTH_FLOOR

    def call(self, condition: Any = None) -> AggregatePosterior:
        """Builds the prior.

        Args:
          condition: None.

        Returns:
          p(z) with batch shape `[]` and event shape `[D]`, in float32 or wider.

        Raises:
          ValueError: If `condition` is not None.
        """
        self._reject(condition)
        loc = self._posteriors(self.exemplars).mean()  # [M, D]
        scale = tf.convert_to_tensor(self.unit) * self.width
        return AggregatePosterior(tfd.MultivariateNormalDiag(loc, scale))

    def initialize(self, codes: np.ndarray, seed: Any = 0) -> None:
        """Sets units, and the width by maximum likelihood of some of the codes, by steps of EM.

        Args:
          codes: Draws from the aggregate posterior, floating `[M, D]`, M at least 2.
          seed: Integer in [0, 2**31) or pair of int32.

        Raises:
          ValueError: If the codes have another shape, or are not finite.
        """
        codes = check_codes(codes, self.event_size)
        centre, unit = moments(codes)
        self.unit.assign(unit)
        rng = seeds.generator(seeds.checked_seed(seed), "exemplar_prior/initial_codes")
        chosen = rng.permutation(len(codes))[:_MAX_CODES]
        z = (codes[chosen] - centre) / unit
        loc = self().components_distribution.mean().numpy().astype(np.float64)
        loc = (loc - centre) / unit
        squares = (z**2).sum(1)[:, None] + (loc**2).sum(1) - 2 * z @ loc.T  # [codes, M]
        variance = squares.min(axis=1).mean() / self.event_size  # no more than the best
        for _ in range(_EM_STEPS):
            variance = max(variance, _LEAST_VARIANCE)
            scores = squares / (-2 * variance)
            responsibilities = np.exp(scores - scores.max(axis=1, keepdims=True))
            responsibilities /= responsibilities.sum(axis=1, keepdims=True)
            variance = (responsibilities * squares).sum(axis=1).mean() / self.event_size
        self.raw_width.assign(_raw(np.sqrt(max(variance, _LEAST_VARIANCE))))


def _raw(width: float) -> float:
    """The number whose softplus, with the floor, is the width."""
    return float(np.log(np.expm1(width - _WIDTH_FLOOR)))
