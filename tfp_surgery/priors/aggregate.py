"""The aggregate posterior as prior: p(z) = q(z)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.components import components as components_lib
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.priors.encoder_prior import ObservationPrior

tfd = tfp.distributions


@keras.saving.register_keras_serializable(package="tfp_surgery")
class AggregatePrior(ObservationPrior):
    r"""The aggregate posterior of a data set under the current encoder, as prior.

        p(z) = q(z) = 1/N sum_n q(z|x_n)

    It maximises the ELBO of this data set: the marginal KL is zero, and the ELBO is the average
    reconstruction minus the index-code mutual information (Hoffman and Johnson 2016, section 4).
    The ELBO of other data shows how much of that was memorised. The prior has no weights of its
    own.

    Each call encodes all N observations, and so does each training step: it is for small data, or
    for measuring. For a finished model the distribution itself serves, encoded once:

    ```python
    q_z = tfs.AggregatePosterior.from_encoder(model.encoder, x_train)
    tfs.elbo_surgery(x_test, model.encoder, model.decoder, prior=q_z)
    ```

    #### References

    Matthew D. Hoffman and Matthew J. Johnson. ELBO surgery: yet another way to carve up the
    variational evidence lower bound. NIPS Workshop in Advances in Approximate Bayesian Inference,
    2016.
    """

    def __init__(
        self,
        event_size: int,
        encoder: Callable[[tf.Tensor], tfd.Distribution],
        x: Any,
        *,
        stop_gradient: bool = True,
        leave_one_out: bool = True,
        **kwargs: Any,
    ):
        """Makes the layer.

        Args:
          event_size: D, the size of a code.
          encoder: Callable from x `[B, *observation_shape]` to q(z|x) with batch shape `[B]`: the
            model's own.
          x: The training data: array `[N, *observation_shape]`, or a
            `tfp_surgery.datasets.Dataset` of settled binarization.
          stop_gradient: Whether the components count as constants in training; otherwise the
            gradient of the prior reaches the encoder through all N.
          leave_one_out: Whether `VAE.fit` leaves out the component of the observation itself. It
            then needs the index of each: `dataset.batches(..., indexed=True)`.
          **kwargs: Of `keras.layers.Layer`.

        Raises:
          TypeError: If an argument is of the wrong kind.
          ValueError: If x is empty or not finite, or the encoder does not fit.
        """
        super().__init__(event_size, encoder, x, None, leave_one_out, 0, **kwargs)
        self.stop_gradient = bool(stop_gradient)

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
        posteriors = self._posteriors(self.exemplars)
        if self.stop_gradient:
            posteriors = components_lib.with_leaves(
                posteriors, [tf.stop_gradient(leaf) for leaf in components_lib.leaves(posteriors)]
            )
        return AggregatePosterior(posteriors)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor, without the data: their number and kind."""
        config = super().get_config()
        del config["seed"]
        return {**config, "stop_gradient": self.stop_gradient}
