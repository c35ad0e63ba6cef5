"""The priors that `experiments.learned_priors` compares, by the names of its command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from sklearn import mixture

from tfp_surgery import seeds
from tfp_surgery.priors.aggregate import AggregatePrior
from tfp_surgery.priors.autoregressive import AutoregressivePrior
from tfp_surgery.priors.base import Prior, StandardNormalPrior
from tfp_surgery.priors.exemplar import ExemplarPrior
from tfp_surgery.priors.flow import FlowPrior
from tfp_surgery.priors.mixture import MixturePrior
from tfp_surgery.priors.resampled import ResampledPrior
from tfp_surgery.priors.vamp import VampPrior

tfd = tfp.distributions

JOINT, POSTHOC = "joint", "posthoc"
EM_FAMILIES = ("sklearn", "sklearn_full")
MODES = (JOINT, POSTHOC)


@dataclasses.dataclass(frozen=True)
class FitSettings:
    """How a prior is fitted to a finished model; see `tfp_surgery.fit_prior`."""

    num_steps: int
    batch_size: int
    learning_rate: float


@dataclasses.dataclass(frozen=True, eq=False)
class Ingredients:
    """What priors are made from.

    Attributes:
      encoder: layer from observations to q(z|x).
      latent_size: D.
      x: the training set, `[N, *event_shape]`.
      seed: of the choice of observations.
    """

    encoder: Any
    latent_size: int
    x: np.ndarray
    seed: int

    def some_observations(self, number: int) -> np.ndarray:
        """Observations of the training set, drawn without replacement."""
        rng = seeds.generator(self.seed, "experiments/priors/families/observations")
        return self.x[np.sort(rng.choice(len(self.x), number, replace=False))]


@dataclasses.dataclass(frozen=True)
class Family:
    """A kind of prior.

    Attributes:
      make: builds the layer from K; None for a prior that is no layer.
      num_components: K unless the name says another; None where there is no such number.
      modes: of `MODES`.
      fit: how it is fitted afterwards, if it is.
      min_latent_size: the least size of a code that it is defined for.
      min_components: the least K.
    """

    make: Callable[[Ingredients, Any], Prior] | None
    num_components: int | None = None
    modes: tuple[str, ...] = MODES
    fit: FitSettings = FitSettings(2000, 1000, 5e-3)
    min_latent_size: int = 1
    min_components: int = 1


@dataclasses.dataclass(frozen=True)
class PriorName:
    """A prior as the command line names it: `family`, or `family:K`.

    Attributes:
      family: of `FAMILIES`.
      num_components: K, or None where the family has none.
    """

    family: str
    num_components: int | None

    @classmethod
    def parse(cls, text: str) -> PriorName:
        """The prior that a name stands for.

        Raises:
          ValueError: if there is none.
        """
        family, _, number = text.partition(":")
        if family not in FAMILIES:
            raise ValueError(f"--priors names {text!r}, which is none of {', '.join(FAMILIES)}.")
        default, minimum = FAMILIES[family].num_components, FAMILIES[family].min_components
        if not number:
            return cls(family, default)
        if default is None or not number.isdecimal() or int(number) < minimum:
            raise ValueError(
                f"--priors names {text!r}: after the colon stands the number of components, of "
                f"families that have one; {family} takes "
                f"{'none' if default is None else f'at least {minimum}'}."
            )
        return cls(family, int(number))

    def __str__(self) -> str:
        """The name on the command line."""
        return (
            self.family if self.num_components is None else f"{self.family}:{self.num_components}"
        )

    @property
    def file_name(self) -> str:
        """The name in names of files."""
        return str(self).replace(":", "_")


def build(name: PriorName, given: Ingredients) -> Prior:
    """The layer of a prior, with its initial weights.

    Args:
      name: which one.
      given: what it is made from.

    Returns:
      The layer.

    Raises:
      ValueError: if the prior is no layer.
    """
    make = FAMILIES[name.family].make
    if make is None:
        raise ValueError(f"{name} is no layer.")
    return make(given, name.num_components)


def em_mixture(codes: np.ndarray, name: PriorName, seed: int) -> tuple[tfd.Distribution, int]:
    """scikit-learn's Gaussian mixture of codes, one draw from each q(z|x_n): the baseline.

    Args:
      codes: floating `[N, D]`.
      name: of the families `sklearn` (diagonal covariances) and `sklearn_full`.
      seed: of the initialisation.

    Returns:
      The mixture and the number of its parameters.
    """
    full = name.family == "sklearn_full"
    fitted = mixture.GaussianMixture(
        name.num_components,
        covariance_type="full" if full else "diag",
        reg_covar=1e-4,
        random_state=seed,
    ).fit(codes)
    loc = tf.constant(fitted.means_, tf.float32)
    if full:
        scale = tf.constant(np.linalg.cholesky(fitted.covariances_), tf.float32)
        components = tfd.MultivariateNormalTriL(loc, scale)
    else:
        components = tfd.MultivariateNormalDiag(
            loc, tf.constant(fitted.covariances_**0.5, tf.float32)
        )
    weights = tf.constant(fitted.weights_, tf.float32)
    return tfd.MixtureSameFamily(tfd.Categorical(probs=weights), components), fitted._n_parameters()


def _vamp(given: Ingredients, num_components: int) -> Prior:
    return VampPrior(
        given.latent_size,
        given.encoder,
        given.x.shape[1:],
        num_components,
        pseudo_inputs=given.some_observations(num_components),
    )


def _exemplar(given: Ingredients, num_components: int, leave_one_out: bool) -> Prior:
    return ExemplarPrior(
        given.latent_size,
        given.encoder,
        given.x,
        num_components=min(num_components, len(given.x)),
        leave_one_out=leave_one_out,
        seed=given.seed,
    )


_NETWORK_FIT = FitSettings(6000, 500, 2e-3)
_COUPLING_SIZE = 2  # a coupling changes one part of a code by the other
_EXEMPLARS = 2  # one of them is left out at a time

FAMILIES = {
    "standard": Family(lambda given, _: StandardNormalPrior(given.latent_size), modes=(JOINT,)),
    "mog": Family(
        lambda given, k: MixturePrior(given.latent_size, k, covariance="diagonal"),
        500,
    ),
    "mog_full": Family(
        lambda given, k: MixturePrior(given.latent_size, k, covariance="full"),
        200,
    ),
    "vamp": Family(_vamp, 500),
    "exemplar": Family(lambda given, k: _exemplar(given, k, True), 1000, min_components=_EXEMPLARS),
    "exemplar_self": Family(
        lambda given, k: _exemplar(given, k, False), 1000, min_components=_EXEMPLARS
    ),
    "aggregate": Family(lambda given, _: AggregatePrior(given.latent_size, given.encoder, given.x)),
    "realnvp": Family(
        lambda given, _: FlowPrior(given.latent_size, kind="realnvp", num_layers=8),
        fit=_NETWORK_FIT,
        min_latent_size=_COUPLING_SIZE,
    ),
    "maf": Family(
        lambda given, _: FlowPrior(given.latent_size, kind="maf", num_layers=5), fit=_NETWORK_FIT
    ),
    "spline": Family(
        lambda given, _: FlowPrior(given.latent_size, kind="neural_spline", num_layers=4),
        fit=_NETWORK_FIT,
        min_latent_size=_COUPLING_SIZE,
    ),
    "autoregressive": Family(
        lambda given, _: AutoregressivePrior(given.latent_size), fit=_NETWORK_FIT
    ),
    "resampled": Family(
        lambda given, _: ResampledPrior(given.latent_size, truncation=500),
        fit=FitSettings(4000, 500, 3e-3),
    ),
    "sklearn": Family(None, 200, modes=(POSTHOC,)),
    "sklearn_full": Family(None, 50, modes=(POSTHOC,)),
}
