"""What `experiments.learned_priors` measures of a model with one prior."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.datasets import Dataset
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.distributions.resampled import Resampled
from tfp_surgery.estimate import Estimate, stratified_estimate
from tfp_surgery.evidence.importance_sampling import log_evidence_by_importance_sampling
from tfp_surgery.models.vae import VAE
from tfp_surgery.surgery.elbo_surgery import elbo_surgery

tfd = tfp.distributions

NUM_DECODED = 36
_NUM_DRAWS = 2  # an observation
_BLOCK = 10_000  # codes scored at a time
_CODES_STREAM, _DECODED_STREAM = 6, 7  # of the seed


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """What every prior is measured on.

    Attributes:
      train: the training set.
      test: held-out data.
      images: some test images, `[M, *event_shape]`.
      num_importance_samples: of the log evidence of the images.
      num_samples: draws of the code an observation in the surgery.
      seed: of all draws.
    """

    train: Dataset
    test: Dataset
    images: np.ndarray
    num_importance_samples: int
    num_samples: int
    seed: int


def audit(
    vae: VAE,
    prior: tfd.Distribution,
    evaluation: Evaluation,
    leave_one_out: Callable[[np.ndarray], tfd.Distribution] | None = None,
) -> dict[str, Any]:
    """Measures a model whose prior is `prior`.

    Args:
      vae: gives encoder and decoder; its own prior is not used.
      prior: p(z).
      evaluation: what on.
      leave_one_out: from indices of training observations `[B]` to the prior without the component
        of each, batch `[B]`; None where the prior has no such components.

    Returns:
      The surgery of both sets, the gap between their marginal KLs, the marginal KL with each
      training observation's own component left out, the log evidence of the images, and what
      exceeds that of N(0, I) in E[log p(z)], each in types that JSON knows.
    """
    start = time.monotonic()
    seed = evaluation.seed
    record: dict[str, Any] = {}
    for split, dataset in (("train", evaluation.train), ("test", evaluation.test)):
        surgery = elbo_surgery(
            dataset, vae.encoder, vae.decoder, prior, num_samples=evaluation.num_samples, seed=seed
        )
        record[split] = surgery.to_dict()
        record[f"{split}_gain"] = gain(vae, dataset, prior, seed).to_dict()
        if split == "train" and leave_one_out is not None:
            held_out = leave_one_out_marginal_kl(vae, dataset, leave_one_out, seed)
            record["leave_one_out_marginal_kl"] = held_out.to_dict()
        if split == "test":
            record["memorisation_gap"] = _difference(record, "marginal_kl").to_dict()
    evidence = log_evidence_by_importance_sampling(
        evaluation.images,
        vae.encoder,
        vae.decoder,
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
    record["normalizer_error"] = normalizer_error(vae, prior, evaluation.test, seed)
    record["num_importance_samples"] = evaluation.num_importance_samples
    record["audit_seconds"] = round(time.monotonic() - start, 2)
    return {"leave_one_out_marginal_kl": None, **record}


def gain(vae: VAE, dataset: Dataset, prior: tfd.Distribution, seed: int) -> Estimate:
    """E_q(z)[log p(z) - log N(z; 0, I)]: how far `prior` lies nearer to q(z) than N(0, I).

    The marginal KL falls, and the ELBO rises, by as much. The two densities are compared on the
    same draws, hence the standard error is that of the difference.

    Args:
      vae: gives the encoder.
      dataset: whose aggregate posterior q(z) is.
      prior: p(z).
      seed: of the draws.

    Returns:
      The `Estimate`, in nats.
    """
    z = _codes(vae, dataset, seed)
    standard = tfd.MultivariateNormalDiag(tf.zeros([z.shape[-1]], z.dtype))
    return stratified_estimate([_scored(prior, z), -_scored(standard, z)], len(dataset))


def leave_one_out_marginal_kl(
    vae: VAE,
    dataset: Dataset,
    leave_one_out: Callable[[np.ndarray], tfd.Distribution],
    seed: int,
) -> Estimate:
    """1/N sum_n E_q(z|x_n)[log q(z) - log p_{-n}(z)] over the training set.

    Args:
      vae: gives the encoder.
      dataset: the training set.
      leave_one_out: see `audit`.
      seed: of the draws.

    Returns:
      The `Estimate`, in nats. It is what the marginal KL would be if the prior could not have
      learned the observation that is coded; it is no divergence, and may be below the plain one.
    """
    aggregate = AggregatePosterior.from_encoder(vae.encoder, dataset)
    z = _draws(aggregate, seed)
    # Of one shape, so that kernels compile once: what repeats the end is cut off.
    block = min(len(dataset), _BLOCK // _NUM_DRAWS)
    left_out = np.empty(z.shape[:2], z.dtype.as_numpy_dtype)
    for start in range(0, len(dataset), block):
        rows = slice(max(0, min(start, len(dataset) - block)), min(start + block, len(dataset)))
        index = np.arange(rows.start, rows.stop, dtype=np.int32)
        left_out[:, rows] = leave_one_out(index).log_prob(z[:, rows])
    return stratified_estimate([_scored(aggregate, z), -left_out], len(dataset))


def normalizer_error(vae: VAE, prior: tfd.Distribution, dataset: Dataset, seed: int) -> float:
    """The standard error of E_q(z)[log p(z)] that a prior's estimated normaliser has part in.

    All codes share one normaliser, so that averaging over them leaves its error as it is.

    Args:
      vae: gives the encoder.
      prior: p(z).
      dataset: whose aggregate posterior q(z) is.
      seed: of the draws.

    Returns:
      The standard error in nats, 0 for a prior whose normaliser is exact.
    """
    if not isinstance(prior, Resampled):
        return 0.0
    sensitivity = np.mean(prior.normalizer_sensitivity(_codes(vae, dataset, seed)[0]))
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
    z = prior.sample(NUM_DECODED, seed=tf.constant([seed, _DECODED_STREAM], tf.int32))
    images: np.ndarray = vae.decoder(z).mean().numpy()
    return images


def _codes(vae: VAE, dataset: Dataset, seed: int) -> tf.Tensor:
    """Draws of q(z|x_n), `[S, N, D]`."""
    return _draws(AggregatePosterior.from_encoder(vae.encoder, dataset), seed)


def _draws(aggregate: AggregatePosterior, seed: int) -> tf.Tensor:
    """Draws of the components of q(z), `[S, N, D]`."""
    posteriors = aggregate.components_distribution
    return posteriors.sample(_NUM_DRAWS, seed=tf.constant([seed, _CODES_STREAM], tf.int32))


def _scored(distribution: tfd.Distribution, z: tf.Tensor) -> np.ndarray:
    """log p(z) of codes `[S, N, D]`, `[S, N]`, a block at a time."""
    flat = tf.reshape(z, [-1, z.shape[-1]])  # [S N, D]
    if isinstance(distribution, AggregatePosterior):  # streams on its own
        parts: Sequence[Any] = [distribution.log_prob(flat)]
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
