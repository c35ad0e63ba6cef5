"""scored_draws: draws from every posterior with the log densities that the terms average."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery import seeds
from tfp_surgery.checks.arguments import checked_integer
from tfp_surgery.components.batch_size import checked_batch_size, equal_steps
from tfp_surgery.components.reencoded_posteriors import ReencodedPosteriors, picked, scored
from tfp_surgery.log_density.component_subset import NUM_GROUPS, log_prob_by_subset
from tfp_surgery.log_density.evaluation import Evaluation, checked_tolerance
from tfp_surgery.measurement.draws import checked_draws
from tfp_surgery.measurement.likelihood_steps import LikelihoodSteps
from tfp_surgery.measurement.model_checks import check_codes_in_support
from tfp_surgery.measurement.prepared_model import PreparedModel, prepared_model
from tfp_surgery.measurement.result import Result, count_draws
from tfp_surgery.measurement.rounded_draws import cause
from tfp_surgery.measurement.steps import steps
from tfp_surgery.measurement.traced import traced_for_many
from tfp_surgery.seeds import Seed
from tfp_surgery.surgery.closed_forms import closed_forms
from tfp_surgery.surgery.saturation import saturated_reconstruction

tfd = tfp.distributions

# Codes drawn, and scored under posterior and prior, in one step. The draws depend on it, and so not
# on the batches in which they are decoded.
DRAWN_AT_A_TIME = 2000


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class ScoredDraws(Result):
    """Draws z_sq ~ q(z|x_q) and their log densities, in nats and in the dtype of the model.

    Attributes:
      z: The codes, `Tensor`, shape `[S, Q, *code_shape]`; vectors `[S, Q, D]` of concatenated
        parts if codes are structures.
      index: Indices of the observations, shape `[Q]`.
      reconstruction: log p(x_q|z_sq), shape `[S, Q]`; None without a decoder.
      log_posterior: log q(z_sq|x_q), shape `[S, Q]`.
      log_prior: log p(z_sq), or log p(z_sq|c_q) if the prior takes the condition, shape `[S, Q]`.
      log_aggregate: log q(z_sq) over all N components, shape `[S, Q]`.
      index_entropy: H[q(n|z_sq)], shape `[S, Q]`; None if unknown.
      closed_form_kl: KL(q(z|x_n) || p(z)) of all N observations, or of p(z|c_n), shape `[N]`; None
        if TFP registers none.
      closed_form_entropy: H[q(z|x_n)] of all N observations, shape `[N]`; None if TFP has none.
      num_observations: N.
      seed: Seed of the draws and of the subset of observations.
      data: Description of the data set: its name, N and binarization.
      tolerance: Bound on the error of `log_aggregate` and `index_entropy`; None if exact.
      evaluation: How these two were evaluated: "exact", or within a tolerance.
      outside_support: What of x is outside of the support of the likelihood, in words; empty if
        nothing is.
      is_conditional: Whether the prior takes the condition.
      component_error: Error of the mean of `log_aggregate` if it comes from a subset of the
        components: the root of squared standard error and bias; None otherwise.
      decoding: How codes were decoded: "by a graph" or "eagerly"; empty without a decoder.
    """

    z: tf.Tensor
    index: np.ndarray
    reconstruction: np.ndarray | Any  # None where the docstring says so
    log_posterior: np.ndarray
    log_prior: np.ndarray
    log_aggregate: np.ndarray
    index_entropy: np.ndarray | Any
    closed_form_kl: np.ndarray | None
    closed_form_entropy: np.ndarray | None
    num_observations: int
    seed: Seed | None
    data: str
    tolerance: float | None
    evaluation: str
    outside_support: str = ""
    is_conditional: bool = False
    component_error: float | None = None
    decoding: str = ""

    def _title(self) -> list[str]:
        num_samples, num_query = self.log_posterior.shape
        draws = count_draws(self.num_observations, num_query, num_samples)
        return [
            f"Scored draws of {self.data}",
            f"means in nats; {draws}, seed {self.seed}; log q(z) {self.evaluation}",
        ]

    def _rows(self) -> list[tuple[str, Any]]:
        names = ("reconstruction", "log_posterior", "log_prior", "log_aggregate", "index_entropy")
        values = {name: value for name in names if (value := getattr(self, name)) is not None}
        return [(name, f"{value.mean(dtype=np.float64):.4f}") for name, value in values.items()]


def scored_draws(
    x: Any,
    encoder: Callable[[Any], tfd.Distribution] | tfd.Distribution,
    decoder: Callable[..., tfd.Distribution] | None,
    prior: tfd.Distribution | Callable[..., tfd.Distribution],
    *,
    num_samples: int = 2,
    num_query: int | None = None,
    seed: Any = 0,
    batch_size: int | None = None,
    tolerance: float | None = None,
    condition: Any = None,
    reencode: bool = False,
    num_components: int | None = None,
    validate_args: bool = True,
) -> ScoredDraws:
    """Draws and scores the codes of `elbo_surgery` called with the same arguments.

    The arrays are arguments of `elbo_readings` and `marginal_kl_split`:

    ```python
    draws = tfs.scored_draws(x, q_z, decoder, prior)
    tfs.marginal_kl_split(draws.z, draws.index, q_z, prior, log_aggregate=draws.log_aggregate)
    ```

    Args:
      x: See `elbo_surgery`.
      encoder: See `elbo_surgery`.
      decoder: See `elbo_surgery`.
      prior: See `elbo_surgery`.
      num_samples: See `elbo_surgery`.
      num_query: See `elbo_surgery`.
      seed: See `elbo_surgery`.
      batch_size: See `elbo_surgery`.
      tolerance: See `elbo_surgery`.
      condition: See `elbo_surgery`.
      reencode: See `elbo_surgery`.
      num_components: See `elbo_surgery`.
      validate_args: See `elbo_surgery`.

    Returns:
      `ScoredDraws`.

    Raises:
      TypeError: See `elbo_surgery`.
      ValueError: See `elbo_surgery`.
    """
    num_samples = checked_integer("num_samples", num_samples, 1)
    batch_size = checked_batch_size(batch_size)
    seed = seeds.checked_seed(seed)
    tolerance = checked_tolerance(tolerance)
    model = prepared_model(
        x,
        encoder,
        decoder,
        prior,
        seed,
        batch_size,
        condition=condition,
        reencode=reencode,
        validate_args=validate_args,
        decoder_optional=True,
    )
    index = chosen_observations(model.num_observations, num_query, seed)
    subset = chosen_components(model, num_components, seed)
    return score_draws(model, index, num_samples, seed, tolerance, subset)


def chosen_observations(num_observations: int, num_query: Any, seed: Seed) -> np.ndarray:
    """Draws a random subset of the observations, or returns all.

    Args:
      num_observations: N.
      num_query: Size Q of the subset; None for all.
      seed: Seed of the subset.

    Returns:
      Indices in ascending order, shape `[Q]`.

    Raises:
      TypeError: If Q is not an integer.
      ValueError: If Q is less than 1 or greater than N.
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


def chosen_components(model: PreparedModel, num_components: Any, seed: Seed) -> np.ndarray | None:
    """Draws a random subset of the components, in random order.

    Args:
      model: The model.
      num_components: Size K of the subset; None for all components.
      seed: Seed of the subset.

    Returns:
      Indices, shape `[K]`; None for all.

    Raises:
      TypeError: If K is not an integer.
      ValueError: If K is too small or greater than N, or posteriors are not encoded again.
    """
    if num_components is None:
        return None
    num_components = checked_integer("num_components", num_components, 2 * NUM_GROUPS)
    if not model.is_reencoded:
        raise ValueError(
            "num_components goes with reencode=True: log q(z) of posteriors that are joined is "
            "exact over all of them at little cost."
        )
    if num_components > model.num_observations:
        raise ValueError(
            f"num_components = {num_components} exceeds the number of observations, "
            f"{model.num_observations}."
        )
    rng = seeds.generator(seed, "elbo_surgery/components")
    return rng.permutation(model.num_observations)[:num_components]


def score_draws(
    model: PreparedModel,
    index: np.ndarray,
    num_samples: int,
    seed: Seed,
    tolerance: float | None,
    subset: np.ndarray | None = None,
) -> ScoredDraws:
    """Draws and scores codes of a prepared model.

    Args:
      model: The model.
      index: Indices of the observations, shape `[Q]`.
      num_samples: Number S of draws per observation.
      seed: Seed of the draws.
      tolerance: See `AggregatePosterior.evaluate`.
      subset: Indices of the components that stand for all; None for all.

    Returns:
      `ScoredDraws`.

    Raises:
      ValueError: If codes lie outside the support of the prior, or a log density is not finite.
    """
    drawn_at_a_time = DRAWN_AT_A_TIME
    if model.given_batch_size is not None:  # which bounds memory, the prior's as well
        drawn_at_a_time = min(drawn_at_a_time, model.given_batch_size)
    elif model.is_reencoded or model.prior is None:  # networks are called on these rows
        drawn_at_a_time = min(drawn_at_a_time, model.batch_size)
    z, densities = posterior_draws(
        model.posteriors, model.prior_at, index, num_samples, seed, drawn_at_a_time
    )
    own = cause(z, own=True)
    log_posterior = checked_draws("log posterior", densities["log_posterior"], cause=own)
    log_prior = checked_draws("log prior", densities["log_prior"], cause=cause(z))
    reconstruction, decoding = _reconstruction(model, z, index)
    if model.prior is not None:
        check_codes_in_support(model.prior, z)
    else:
        for step in steps(len(index), max(1, drawn_at_a_time // num_samples)):
            check_codes_in_support(model.prior_at(index[step.shown]), z[:, step.shown])
    entropy, error = None, None
    if subset is None:
        # All draws at once, so that components are sorted once and kernels compile for one shape.
        evaluated = model.aggregate_posterior.evaluate(z, tolerance=tolerance)
        log_aggregate = evaluated.log_prob
        entropy = checked_draws("index entropy", evaluated.index_entropy, cause=own)
        evaluation = describe_evaluation(evaluated, model.num_observations, tolerance)
    else:
        log_aggregate, error, evaluation = _by_subset(model, z, index, log_posterior, subset)
    closed_form_kl, closed_form_entropy = closed_forms(model, model.batch_size)
    return ScoredDraws(
        z=z,
        index=index,
        reconstruction=reconstruction,
        log_posterior=log_posterior,
        log_prior=log_prior,
        log_aggregate=checked_draws("log aggregate", log_aggregate, cause=own),
        index_entropy=entropy,
        closed_form_kl=closed_form_kl,
        closed_form_entropy=closed_form_entropy,
        num_observations=model.num_observations,
        seed=seed,
        data=model.data,
        tolerance=tolerance,
        evaluation=evaluation,
        outside_support=model.outside_support,
        is_conditional=model.prior is None,
        component_error=error,
        decoding=decoding,
    )


def _by_subset(
    model: PreparedModel,
    z: tf.Tensor,
    index: np.ndarray,
    log_posterior: np.ndarray,
    subset: np.ndarray,
) -> tuple[np.ndarray, float, str]:
    """Returns log q(z) by a subset of the components, shape `[S, Q]`, its error, and words."""
    evaluated = log_prob_by_subset(
        model.posteriors,
        tf.reshape(z, [-1, *z.shape[2:]]),  # [S, Q, *code_shape] -> [M, *code_shape]
        np.tile(index, len(z)),
        log_posterior.reshape(-1).astype(np.float64),
        subset,
    )
    error = float(np.hypot(evaluated.standard_error, evaluated.bias))
    words = (
        f"from {len(subset)} of {model.num_observations} components (standard error "
        f"{evaluated.standard_error:.2g}, bias {evaluated.bias:.2g})"
    )
    log_aggregate = evaluated.log_prob.reshape(log_posterior.shape)
    return log_aggregate.astype(log_posterior.dtype), error, words


def _reconstruction(
    model: PreparedModel, z: tf.Tensor, index: np.ndarray
) -> tuple[np.ndarray | None, str]:
    """Returns log p(x_q|z_sq), shape `[S, Q]`, and how it was computed; None without a decoder."""
    decoder = model.decoder
    if decoder is None:
        return None, ""
    length = equal_steps(len(index), max(1, model.code_batch_size // z.shape[0]))
    likelihood = LikelihoodSteps(model, -(-len(index) // length))
    is_all = len(index) == model.num_observations
    log_densities = []
    for step in steps(len(index), length):
        rows = step.shown if is_all else index[step.shown]  # a slice of x is no copy
        log_densities.append(likelihood(z[:, step.shown], rows)[:, step.new])
    draws = checked_draws(
        "reconstruction",
        tf.concat(log_densities, axis=1).numpy(),
        cause=(
            (lambda failed: saturated_reconstruction(decoder, z, failed))
            if model.conditions is None
            else None
        ),
    )
    return draws, likelihood.evaluation


def posterior_draws(
    posteriors: tfd.Distribution,
    prior_at: Callable[[Any], tfd.Distribution],
    index: np.ndarray,
    num_samples: int,
    seed: Seed,
    batch_size: int,
) -> tuple[tf.Tensor, dict[str, np.ndarray]]:
    """Draws codes from posteriors and scores them under posterior and prior.

    Args:
      posteriors: q(z|x_n), batch shape `[N]`, every parameter broadcast to it.
      prior_at: Callable from indices of B posteriors to p(z), batch shape `[]` or `[B]`.
      index: Indices of the posteriors to draw from, shape `[Q]`.
      num_samples: Number S of draws per posterior.
      seed: Seed of the draws.
      batch_size: Number of codes drawn at a time; the draws depend on it.

    Returns:
      z: The codes, shape `[S, Q, *code_shape]`.
      log_densities: `log_posterior` and `log_prior`, shape `[S, Q]`, not necessarily finite.
    """
    length = min(len(index), max(1, batch_size // num_samples))
    is_conditional = prior_at(tf.constant(index[:1], tf.int32)).batch_shape.rank != 0

    def draw(indices: tf.Tensor, step_seed: tf.Tensor) -> Any:
        posterior, prior = picked(posteriors, indices), prior_at(indices)
        z = posterior.sample(num_samples, step_seed)  # [S, B, *code_shape]
        of_prior = scored(prior, z) if is_conditional else prior.log_prob(z)
        densities = {"log_posterior": posterior.log_prob(z), "log_prior": of_prior}
        return z, densities

    specs = (tf.TensorSpec([length], tf.int32), tf.TensorSpec([2], tf.int32))
    # An encoder may be no graph, and what knows no sample dimension is found out of eager values.
    if not (isinstance(posteriors, ReencodedPosteriors) or is_conditional):
        with contextlib.suppress(NotImplementedError, AttributeError, TypeError):
            # A prior of another library may be no graph.
            draw = traced_for_many(-(-len(index) // length), draw, *specs)
    key = seeds.key(seed, "elbo_surgery/codes")
    codes, log_densities = [], []
    for step in steps(len(index), length):
        indices = tf.constant(index[step.shown], tf.int32)
        z, densities = draw(indices, seeds.fold_in(key, step.number))
        codes.append(z[:, step.new])
        log_densities.append(
            {name: value.numpy()[:, step.new] for name, value in densities.items()}
        )
    joined = {
        name: np.concatenate([part[name] for part in log_densities], axis=1)
        for name in log_densities[0]
    }
    return tf.concat(codes, axis=1), joined


def describe_evaluation(
    evaluated: Evaluation, num_observations: int, tolerance: float | None
) -> str:
    """Returns how log q(z) was evaluated, in words."""
    visited = evaluated.num_visited.numpy()
    if tolerance is None or visited.min() >= num_observations:
        return "exact"
    return (
        f"by a tree within {tolerance:g} nats, which visits {visited.mean():.0f} of "
        f"{num_observations} components on average"
    )
