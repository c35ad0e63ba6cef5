"""What `experiments.learned_priors` measures of a model with one prior."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery import seeds
from tfp_surgery.components import components as components_lib
from tfp_surgery.datasets import Dataset
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.distributions.leave_one_out import LeaveOneOut
from tfp_surgery.distributions.resampled import Resampled
from tfp_surgery.estimate import Estimate, stratified_estimate
from tfp_surgery.evidence.importance_sampling import log_evidence_by_importance_sampling
from tfp_surgery.models.vae import VAE
from tfp_surgery.surgery.elbo_surgery import elbo_surgery

tfd = tfp.distributions

NUM_DECODED = 36
SPLITS = ("train", "test")
_NUM_DRAWS = 2  # an observation
_BLOCK = 10_000  # codes scored at a time


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """What every prior is measured on.

    Attributes:
      train: the training set.
      test: held-out data.
      images: indices of the test images whose log evidence is estimated, `[M]`.
      num_importance_samples: of the log evidence of an image.
      num_samples: draws of the code an observation in the surgery.
      seed: of all draws.
    """

    train: Dataset
    test: Dataset
    images: np.ndarray
    num_importance_samples: int
    num_samples: int
    seed: int


class EncodedModel:
    """A VAE with all that it is measured on, encoded once.

    Attributes:
      vae: the model; its own prior is not used.
      train: q(z) over the training set.
      test: q(z) over the held-out data.
    """

    def __init__(self, vae: VAE, evaluation: Evaluation) -> None:
        """Encodes the data.

        Args:
          vae: the model.
          evaluation: what it is measured on.
        """
        self.vae = vae
        self.train = AggregatePosterior.from_encoder(vae.encoder, evaluation.train)
        self.test = AggregatePosterior.from_encoder(vae.encoder, evaluation.test)


def part_of(aggregate: AggregatePosterior, indices: np.ndarray) -> AggregatePosterior:
    """q(z) over some of the observations, which are named by their indices."""
    return AggregatePosterior(
        components_lib.gather(aggregate.components_distribution, tf.constant(indices, tf.int32))
    )


def audit(
    model: EncodedModel,
    prior: tfd.Distribution,
    evaluation: Evaluation,
    own_components: Any = None,
) -> dict[str, Any]:
    """Measures a model whose prior is `prior`.

    Args:
      model: the model.
      prior: p(z).
      evaluation: what on.
      own_components: integer `[N]`: which component of the prior is that of a training
        observation, -1 for those without one. None where components are not those of observations;
        the prior is an `AggregatePosterior` otherwise.

    Returns:
      The surgery of both sets, the gap between their marginal KLs, the marginal KL with each
      training observation's own component left out, the log evidence of the images, and what
      exceeds that of N(0, I) in E[log p(z)], each in types that JSON knows.
    """
    start = time.monotonic()
    seed, decoder = evaluation.seed, model.vae.decoder
    record: dict[str, Any] = {"leave_one_out_marginal_kl": None}
    for split in SPLITS:
        aggregate: AggregatePosterior = getattr(model, split)
        surgery = elbo_surgery(
            getattr(evaluation, split),
            aggregate,
            decoder,
            prior,
            num_samples=evaluation.num_samples,
            seed=seeds.key(seed, "experiments/priors/audit/surgery", SPLITS.index(split)),
        )
        z = codes(aggregate, split, seed)
        record[split] = surgery.to_dict()
        record[f"{split}_gain"] = gain(prior, z).to_dict()
        if split == "train" and own_components is not None:
            left_out = LeaveOneOut(prior, own_components)
            held_out = leave_one_out_marginal_kl(aggregate, left_out, z)
            record["leave_one_out_marginal_kl"] = held_out.to_dict()
    record["memorisation_gap"] = _difference(record, "marginal_kl").to_dict()
    evidence = log_evidence_by_importance_sampling(
        evaluation.test.observations()[evaluation.images],
        part_of(model.test, evaluation.images).components_distribution,
        decoder,
        prior,
        num_importance_samples=evaluation.num_importance_samples,
        seed=seed,
    )
    record["log_evidence"] = {
        **evidence.estimate.to_dict(),
        "per_observation": evidence.per_observation.tolist(),
        "median_effective_sample_size": float(np.median(evidence.effective_sample_sizes)),
        "least_effective_sample_size": float(np.min(evidence.effective_sample_sizes)),
    }
    record["normalizer_error"] = normalizer_error(prior, z)
    record["num_importance_samples"] = evaluation.num_importance_samples
    record["audit_seconds"] = round(time.monotonic() - start, 2)
    return record


def codes(aggregate: AggregatePosterior, split: str, seed: int) -> tf.Tensor:
    """Draws of q(z|x_n) of every observation of a split, `[S, N, D]`."""
    return aggregate.components_distribution.sample(
        _NUM_DRAWS, seed=seeds.key(seed, "experiments/priors/audit/codes", SPLITS.index(split))
    )


def gain(prior: tfd.Distribution, z: tf.Tensor) -> Estimate:
    """E_q(z)[log p(z) - log N(z; 0, I)]: how far `prior` lies nearer to q(z) than N(0, I).

    The marginal KL falls, and the ELBO rises, by as much. The two densities are compared on the
    same draws, hence the standard error is that of the difference.

    Args:
      prior: p(z).
      z: from `codes`.

    Returns:
      The `Estimate`, in nats.
    """
    standard = tfd.MultivariateNormalDiag(tf.zeros([z.shape[-1]], z.dtype))
    return stratified_estimate([_scored(prior, z), -_scored(standard, z)], z.shape[1])


def leave_one_out_marginal_kl(
    aggregate: AggregatePosterior, left_out: LeaveOneOut, z: tf.Tensor
) -> Estimate:
    """1/N sum_n E_q(z|x_n)[log q(z) - log p_{-n}(z)] over the training set.

    Args:
      aggregate: q(z).
      left_out: the priors p_{-n}, batch `[N]`.
      z: from `codes`.

    Returns:
      The `Estimate`, in nats. It is what the marginal KL would be if the prior could not have
      learned the observation that is coded; it is no divergence, and may be below the plain one.
    """
    terms = [_scored(aggregate, z), -left_out.log_prob(z).numpy()]
    return stratified_estimate(terms, z.shape[1])


def normalizer_error(prior: tfd.Distribution, z: tf.Tensor) -> float:
    """The standard error of E_q(z)[log p(z)] that a prior's estimated normaliser has part in.

    All codes share one normaliser, so that averaging over them leaves its error as it is.

    Args:
      prior: p(z).
      z: from `codes`.

    Returns:
      The standard error in nats, 0 for a prior whose normaliser is exact.
    """
    if not isinstance(prior, Resampled):
        return 0.0
    sensitivity = np.mean(prior.normalizer_sensitivity(z[0]))
    return float(abs(sensitivity) * prior.log_normalizer_standard_error)


def compare_evidence(
    record: Mapping[str, Any], baseline: Mapping[str, Any]
) -> dict[str, float | None]:
    """How much more log evidence one model gives the same images than another, on average.

    Args:
      record: what `audit` gave of one.
      baseline: of the other.

    Returns:
      The mean difference in nats and its standard error over images, which are taken as a sample
      of all: unlike those of the surgery it contains the spread between images.
    """
    differences = np.subtract(
        record["log_evidence"]["per_observation"], baseline["log_evidence"]["per_observation"]
    )
    error = differences.std(ddof=1) / math.sqrt(len(differences))
    return Estimate(float(differences.mean()), float(error), len(differences)).to_dict()


def decoded_samples(vae: VAE, prior: tfd.Distribution, seed: int) -> np.ndarray:
    """Means of p(x|z) at draws of the prior, `[NUM_DECODED, *event_shape]`."""
    z = prior.sample(NUM_DECODED, seed=seeds.key(seed, "experiments/priors/audit/decoded"))
    images: np.ndarray = vae.decoder(z).mean().numpy()
    return images


def _scored(distribution: tfd.Distribution, z: tf.Tensor) -> np.ndarray:
    """log p(z) of codes `[S, N, D]`, `[S, N]`, a block at a time."""
    flat = tf.reshape(z, [-1, z.shape[-1]])  # [S N, D]
    if isinstance(distribution, AggregatePosterior):  # streams on its own
        parts = [distribution.log_prob(flat)]
    else:
        parts = [
            distribution.log_prob(flat[start : start + _BLOCK])
            for start in range(0, len(flat), _BLOCK)
        ]
    scores: np.ndarray = np.concatenate(parts).reshape(z.shape[:2])
    return scores


def _difference(record: Mapping[str, Any], name: str) -> Estimate:
    """Test minus training value of a term; the two sets have draws of their own."""
    train, test = record["train"][name], record["test"][name]
    error = math.hypot(train["standard_error"], test["standard_error"])
    return Estimate(test["value"] - train["value"], error, 0)
