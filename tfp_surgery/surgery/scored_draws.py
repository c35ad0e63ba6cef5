"""scored_draws: codes from every posterior, and the log densities that the terms are made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery import seeds
from tfp_surgery.checks.arguments import checked_integer
from tfp_surgery.components import components as components_lib
from tfp_surgery.components.divergence import closed_form_kl
from tfp_surgery.log_density.evaluation import Evaluation, checked_tolerance
from tfp_surgery.measurement.draws import checked_draws
from tfp_surgery.measurement.model_checks import check_codes_in_support
from tfp_surgery.measurement.prepared_model import PreparedModel, prepared_model
from tfp_surgery.measurement.result import Result, count_draws
from tfp_surgery.measurement.rounded_draws import cause
from tfp_surgery.measurement.steps import steps
from tfp_surgery.measurement.traced import traced_for_many
from tfp_surgery.seeds import Seed
from tfp_surgery.surgery.saturation import saturated_reconstruction

tfd = tfp.distributions


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class ScoredDraws(Result):
    """Draws z_sq ~ q(z|x_q) and their log densities, in nats and in the dtype they round in.

    Attributes:
      z: The codes, `Tensor` `[S, Q, *code_shape]`.
      index: Which observations they belong to, `[Q]`.
      reconstruction: log p(x_q|z_sq), `[S, Q]`.
      log_posterior: log q(z_sq|x_q), `[S, Q]`.
      log_prior: log p(z_sq), `[S, Q]`.
      log_aggregate: log q(z_sq), over all N components, `[S, Q]`.
      index_entropy: H[q(n|z_sq)], `[S, Q]`.
      closed_form_kl: KL(q(z|x_q) || p(z)), `[Q]`; None where TFP registers none.
      num_observations: N.
      seed: The seed of the draws (and of the subset).
      data: What data set this is: its name, N and binarization.
      tolerance: Of `log_aggregate` and `index_entropy`, in nats; None for none.
      evaluation: How these two were evaluated: "exact", or within which tolerance.
    """

    z: tf.Tensor
    index: np.ndarray
    reconstruction: np.ndarray
    log_posterior: np.ndarray
    log_prior: np.ndarray
    log_aggregate: np.ndarray
    index_entropy: np.ndarray
    closed_form_kl: np.ndarray | None
    num_observations: int
    seed: Seed
    data: str
    tolerance: float | None
    evaluation: str

    def _title(self) -> list[str]:
        num_samples, num_query = self.reconstruction.shape
        draws = count_draws(self.num_observations, num_query, num_samples)
        return [
            f"Scored draws of {self.data}",
            f"means in nats; {draws}, seed {self.seed}; log q(z) {self.evaluation}",
        ]

    def _rows(self) -> list[tuple[str, Any]]:
        names = ("reconstruction", "log_posterior", "log_prior", "log_aggregate", "index_entropy")
        return [(name, f"{getattr(self, name).mean(dtype=np.float64):.4f}") for name in names]


def scored_draws(
    x: Any,
    encoder: Callable[[Any], tfd.Distribution] | tfd.Distribution,
    decoder: Callable[[Any], tfd.Distribution],
    prior: tfd.Distribution | Callable[[], tfd.Distribution],
    *,
    num_samples: int = 2,
    num_query: int | None = None,
    seed: Any = 0,
    batch_size: int = 2000,
    tolerance: float | None = None,
) -> ScoredDraws:
    """Draws the codes of `elbo_surgery` with the same arguments, and scores them.

    `elbo_readings` and `marginal_kl_split` take these arrays:

    ```python
    draws = tfs.scored_draws(x, q_z, decoder, prior)
    tfs.marginal_kl_split(draws.z, draws.index, q_z, prior, log_aggregate=draws.log_aggregate)
    ```

    Args:
      x: See `elbo_surgery`, as for all that follows.
      encoder: Likewise.
      decoder: Likewise.
      prior: Likewise.
      num_samples: Likewise.
      num_query: Likewise.
      seed: Likewise.
      batch_size: Likewise.
      tolerance: Likewise.

    Returns:
      `ScoredDraws`.

    Raises:
      TypeError: As `elbo_surgery` does.
      ValueError: Likewise.
    """
    num_samples = checked_integer("num_samples", num_samples, 1)
    batch_size = checked_integer("batch_size", batch_size, 1)
    seed = seeds.checked_seed(seed)
    tolerance = checked_tolerance(tolerance)
    model = prepared_model(x, encoder, decoder, prior, seed, batch_size)
    index = chosen_observations(model.num_observations, num_query, seed)
    return score_draws(model, index, num_samples, seed, batch_size, tolerance)


def chosen_observations(num_observations: int, num_query: Any, seed: Seed) -> np.ndarray:
    """Returns the indices of a random subset of the observations, or of all.

    Args:
      num_observations: N.
      num_query: Q, the size of the subset; None for all.
      seed: Of the subset.

    Returns:
      Indices in rising order, `[Q]`.

    Raises:
      TypeError: If Q is no integer.
      ValueError: If Q is less than 1 or larger than N.
    """
    if num_query is None:
        return np.arange(num_observations)
    num_query = checked_integer("num_query", num_query, 1)
    if num_query > num_observations:
        raise ValueError(
            f"num_query = {num_query} exceeds the number of observations, {num_observations}."
        )
    if num_query == num_observations:
        return np.arange(num_observations)
    rng = seeds.generator(seed, "elbo_surgery/subset")
    return np.sort(rng.choice(num_observations, size=num_query, replace=False))


def score_draws(
    model: PreparedModel,
    index: np.ndarray,
    num_samples: int,
    seed: Seed,
    batch_size: int,
    tolerance: float | None,
) -> ScoredDraws:
    """Draws and scores codes of a prepared model.

    Args:
      model: The model.
      index: The observations to draw codes of, `[Q]`.
      num_samples: S, draws an observation.
      seed: Of the draws.
      batch_size: Number of codes drawn, decoded and scored at a time.
      tolerance: See `AggregatePosterior.evaluate`.

    Returns:
      `ScoredDraws`.

    Raises:
      ValueError: If codes lie outside the prior's support, or a log density is not finite.
    """
    z, densities, kl = posterior_draws(
        model.posteriors, model.prior, index, num_samples, seed, batch_size
    )
    reconstruction = []
    for step in steps(len(index), max(1, batch_size // num_samples)):
        values = model.log_likelihood(z[:, step.shown], index[step.shown])
        reconstruction.append(values.numpy()[:, step.new])
    own = cause(z, own=True)
    log_posterior = checked_draws("log posterior", densities["log_posterior"], cause=own)
    log_prior = checked_draws("log prior", densities["log_prior"], cause=cause(z))
    log_likelihood = checked_draws(
        "reconstruction",
        np.concatenate(reconstruction, axis=1),
        cause=lambda failed: saturated_reconstruction(model.decoder, z, failed),
    )
    check_codes_in_support(model.prior, z)
    # All draws at once: the components are put in order once, and kernels compile for one shape.
    evaluated = model.aggregate_posterior.evaluate(z, tolerance=tolerance)
    return ScoredDraws(
        z=z,
        index=index,
        reconstruction=log_likelihood,
        log_posterior=log_posterior,
        log_prior=log_prior,
        log_aggregate=checked_draws("log aggregate", evaluated.log_prob, cause=own),
        index_entropy=checked_draws("index entropy", evaluated.index_entropy, cause=own),
        closed_form_kl=kl,
        num_observations=model.num_observations,
        seed=seed,
        data=model.data,
        tolerance=tolerance,
        evaluation=describe_evaluation(evaluated, model.num_observations, tolerance),
    )


def posterior_draws(
    posteriors: tfd.Distribution,
    prior: tfd.Distribution,
    index: np.ndarray,
    num_samples: int,
    seed: Seed,
    batch_size: int,
) -> tuple[tf.Tensor, dict[str, np.ndarray], np.ndarray | None]:
    """Draws codes of posteriors, and scores them under posterior and prior.

    Args:
      posteriors: q(z|x_n), batch `[N]`, every parameter broadcast to it.
      prior: p(z).
      index: Which posteriors to draw from, `[Q]`.
      num_samples: S, draws of each.
      seed: Of the draws.
      batch_size: Number of codes drawn at a time, on which the draws depend.

    Returns:
      z `[S, Q, *code_shape]`; `log_posterior` and `log_prior`, `[S, Q]`, finite or not; the KL from
      posterior to prior in closed form `[Q]`, or None where TFP registers none.
    """
    length = min(len(index), max(1, batch_size // num_samples))

    def draw(indices: tf.Tensor, step_seed: tf.Tensor) -> Any:
        posterior = components_lib.gather(posteriors, indices)
        z = posterior.sample(num_samples, seed=step_seed)  # [S, B, *code_shape]
        densities = {"log_posterior": posterior.log_prob(z), "log_prior": prior.log_prob(z)}
        return z, densities, closed_form_kl(posterior, prior)

    specs = (tf.TensorSpec([length], tf.int32), tf.TensorSpec([2], tf.int32))
    draw = traced_for_many(-(-len(index) // length), draw, *specs)
    key = seeds.key(seed, "elbo_surgery/codes")
    codes, log_densities, divergences = [], [], []
    for step in steps(len(index), length):
        indices = tf.constant(index[step.shown], tf.int32)
        z, densities, kl = draw(indices, seeds.fold_in(key, step.number))
        codes.append(z[:, step.new])
        log_densities.append(
            {name: value.numpy()[:, step.new] for name, value in densities.items()}
        )
        if kl is not None:
            divergences.append(kl.numpy()[step.new])
    joined = {
        name: np.concatenate([part[name] for part in log_densities], axis=1)
        for name in log_densities[0]
    }
    return tf.concat(codes, axis=1), joined, np.concatenate(divergences) if divergences else None


def describe_evaluation(
    evaluated: Evaluation, num_observations: int, tolerance: float | None
) -> str:
    """How log q(z) was evaluated, in words."""
    visited = evaluated.num_visited.numpy()
    if visited.min() >= num_observations:
        return "exact"
    return (
        f"by a tree within {tolerance:g} nats, which visits {visited.mean():.0f} of "
        f"{num_observations} components on average"
    )
