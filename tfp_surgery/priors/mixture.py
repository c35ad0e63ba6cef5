"""A learned mixture of Gaussians as the prior."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery import seeds
from tfp_surgery.checks.arguments import checked_integer
from tfp_surgery.components.weights import weights_from_logits
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.networks.encoders import SCALE_FLOOR
from tfp_surgery.priors.base import Prior
from tfp_surgery.priors.condition import check_codes, check_condition
from tfp_surgery.priors.standardization import Standardization, moments

tfd = tfp.distributions

_SKLEARN_COVARIANCE = {"diagonal": "diag", "full": "full"}
# At random, half of the variance 1 of codes lies between the means, half within the components.
_INITIAL_VARIANCE = 0.5
_EM_ITERATIONS = 5
_EM_CODES = 20_000
# Variance added to every dimension of the standardised codes, if a component has D codes; it falls
# with the number of codes.
_EM_REGULARIZATION = 0.5


@keras.saving.register_keras_serializable(package="tfp_surgery")
class MixturePrior(Prior):
    r"""A mixture of K Gaussians with learned weights, means and covariances.

        p(z) = sum_k w_k N(z; m + S mu_k, S L_k (S L_k)^T),    w = softmax(logits)

    L_k is diagonal or lower triangular, with diagonal `softplus(raw) + 1e-5`. m and S = diag(s) are
    not trained: m = 0 and S = I until `initialize` sets them to mean and standard deviations of
    codes, so that what is learned is the same in every unit of z. The result of a call is an
    `AggregatePosterior` over the K components: it scores block by block, without an array of codes
    times components times sizes, and draws from chosen components alone.

    Given a condition c of size C, every parameter (logits, mu_k and the raw L_k) is that of the
    unconditional mixture plus a linear function of c, which is zero at the start.

    #### Examples

    ```python
    prior = tfs.priors.MixturePrior(event_size=10, num_components=100, covariance="full")
    prior.initialize(codes)                 # EM on draws [M, 10] from q(z)
    prior().log_prob(z)                     # [1000] for z [1000, 10]
    ```

    #### References

    Jakub M. Tomczak and Max Welling. VAE with a VampPrior. AISTATS, 2018 (the mixture of Gaussians
    is the prior that theirs is compared with).

    Attributes:
      event_size: D, the size of a code.
      num_components: K.
      covariance: `"diagonal"` or `"full"`.
      condition_size: C, or None.
      standardization: Layer with the weights m and s, `loc` and `scale`, each `[D]`.
      logits: Weights of the layer, `[K]`, as for the next two.
      loc: mu, `[K, D]`.
      raw_scale: `[K, D]`, or for full covariances `[K, D (D + 1) / 2]` in the order of
        `tfp.math.fill_triangular`.
    """

    def __init__(
        self,
        event_size: int,
        num_components: int,
        covariance: str = "diagonal",
        condition_size: int | None = None,
        **kwargs: Any,
    ):
        """Makes the layer: random means, equal weights, in sum a covariance near the identity.

        Args:
          event_size: D, the size of a code.
          num_components: K.
          covariance: Of each component, `"diagonal"` or `"full"`.
          condition_size: C, the size of the code that the prior is conditional on; None for none.
          **kwargs: Of `keras.layers.Layer`.

        Raises:
          TypeError: If a size or number is no integer.
          ValueError: If a number is below 1, or `covariance` is another name.
        """
        super().__init__(event_size, **kwargs)
        if covariance not in _SKLEARN_COVARIANCE:
            raise ValueError(f'covariance must be "diagonal" or "full", got {covariance!r}.')
        self.num_components = checked_integer("num_components", num_components, 1)
        self.covariance = covariance
        self.condition_size = (
            None if condition_size is None else checked_integer("condition_size", condition_size, 1)
        )
        variance = np.full([self.num_components, self.event_size], _INITIAL_VARIANCE)
        loc = keras.initializers.RandomNormal(stddev=_INITIAL_VARIANCE**0.5)(variance.shape)
        raw_scale = self._raw_scale(
            variance if covariance == "diagonal" else variance[..., np.newaxis] * np.eye(event_size)
        )
        self.standardization = Standardization(self.event_size, self.density_dtype)
        self.logits = self._add_weight("logits", np.zeros(self.num_components))
        self.loc = self._add_weight("loc", loc)
        self.raw_scale = self._add_weight("raw_scale", raw_scale)
        self._kernels = []
        if self.condition_size is not None:
            for weight in (self.logits, self.loc, self.raw_scale):
                kernel = np.zeros([self.condition_size, *weight.shape])
                self._kernels.append(self._add_weight(f"{weight.name}_kernel", kernel))

    def call(self, condition: Any = None) -> AggregatePosterior:
        """Builds the prior.

        Args:
          condition: Floating Tensor `[..., C]`, given if and only if the prior has a
            `condition_size`.

        Returns:
          p(z) with batch shape `[]`, or p(z|condition) with batch shape `[...]`; event shape
          `[D]`, in float32 or wider.

        Raises:
          ValueError: If there is a condition and should not be, or the other way round, or it has
            another size.
        """
        logits, loc, raw_scale = self._parameters(condition)
        unit = tf.convert_to_tensor(self.standardization.scale)
        loc = tf.convert_to_tensor(self.standardization.loc) + unit * loc
        if self.covariance == "diagonal":
            scale = unit * (tf.nn.softplus(raw_scale) + SCALE_FLOOR)
            components = tfd.MultivariateNormalDiag(loc, scale)
        else:
            raw_scale = tfp.math.fill_triangular(raw_scale)  # [..., K, D, D]
            diagonal = tf.nn.softplus(tf.linalg.diag_part(raw_scale)) + SCALE_FLOOR
            scale = unit[:, tf.newaxis] * tf.linalg.set_diag(raw_scale, diagonal)
            components = tfd.MultivariateNormalTriL(loc, scale)
        return AggregatePosterior(components, weights_from_logits(logits), name="MixturePrior")

    def initialize(self, codes: np.ndarray, seed: Any = 0) -> None:
        """Sets the weights by five steps of scikit-learn's EM, from means that k-means++ chooses.

        The codes are standardised first, by their mean and standard deviation in each dimension (of
        a dimension in which all are equal, by the root mean square of the others' deviations). At
        most 20000 of them are used. To every variance is added a part of the codes' own, 0.5 K D /
        M (at most 0.5): with few codes a component, EM alone would fit their chance. A condition
        has no influence after that, until it is trained.

        Args:
          codes: Draws from the aggregate posterior, floating `[M, D]`, M at least K and 2.
          seed: Integer in [0, 2**31) or pair of int32.

        Raises:
          TypeError: If `codes` are no numbers.
          ValueError: If their shape is another, or they are not finite.
        """
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture

        codes = check_codes(codes, self.event_size, max(2, self.num_components))
        rng = seeds.generator(seeds.checked_seed(seed), "mixture_prior/em")
        centre, unit = moments(codes)
        codes = (codes - centre) / unit
        if len(codes) > _EM_CODES:
            codes = rng.choice(codes, _EM_CODES, replace=False)
        share = min(1.0, self.num_components * self.event_size / len(codes))
        mixture = GaussianMixture(
            self.num_components,
            covariance_type=_SKLEARN_COVARIANCE[self.covariance],
            reg_covar=_EM_REGULARIZATION * share,
            max_iter=_EM_ITERATIONS,
            init_params="k-means++",
            random_state=int(rng.integers(seeds.MAX_SEED)),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # training goes on from here
            mixture.fit(codes)
        self.standardization.assign(centre, unit)
        self.logits.assign(np.log(mixture.weights_))
        self.loc.assign(mixture.means_)
        self.raw_scale.assign(self._raw_scale(mixture.covariances_))
        for kernel in self._kernels:
            kernel.assign(tf.zeros_like(kernel))

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {
            **super().get_config(),
            "num_components": self.num_components,
            "covariance": self.covariance,
            "condition_size": self.condition_size,
        }

    def _parameters(self, condition: Any) -> list[tf.Tensor]:
        """Logits `[..., K]`, means `[..., K, D]` and raw scales `[..., K, R]`."""
        parameters = [tf.convert_to_tensor(w) for w in (self.logits, self.loc, self.raw_scale)]
        condition = check_condition(condition, self.condition_size)
        if condition is None:
            return parameters
        condition = tf.cast(condition, self.density_dtype)
        return [
            parameter + tf.tensordot(condition, tf.convert_to_tensor(kernel), 1)
            for parameter, kernel in zip(parameters, self._kernels, strict=True)
        ]

    def _raw_scale(self, covariances: np.ndarray) -> np.ndarray:
        """The raw scales `[K, R]` of variances `[K, D]` or covariances `[K, D, D]`."""
        if self.covariance == "diagonal":
            return np.asarray(_softplus_inverse(np.sqrt(covariances)))
        scale_tril = np.linalg.cholesky(covariances)
        diagonal = np.einsum("kdd->kd", scale_tril)  # a view
        diagonal[:] = _softplus_inverse(diagonal)
        return np.asarray(tfp.math.fill_triangular_inverse(scale_tril))


def _softplus_inverse(scale: np.ndarray) -> np.ndarray:
    """The raw value whose softplus is the scale less its floor, or as good as zero."""
    return np.asarray(tfp.math.softplus_inverse(np.maximum(scale - SCALE_FLOOR, SCALE_FLOOR)))
