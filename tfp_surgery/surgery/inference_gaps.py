"""What is lost between the log evidence and the ELBO: by the family, and by the encoder."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery import checks
from tfp_surgery.distributions import components as components_lib
from tfp_surgery.distributions.encoding import encode
from tfp_surgery.distributions.gaussian import diagonal_parameters
from tfp_surgery.estimate import Estimate, stratified_estimate
from tfp_surgery.surgery.evidence import LogEvidence, log_weight_chunks
from tfp_surgery.surgery.model import (
    check_model,
    observations_of,
    reconstruction_log_prob,
)
from tfp_surgery.surgery.presentation import record

tfd = tfp.distributions

# Streams of the seed, after those of annealed importance sampling.
_REFINEMENT, _MEASUREMENT = 8, 9
# Draws an observation for each gradient.
_GRADIENT_SAMPLES = 4


@dataclasses.dataclass(frozen=True)
class InferenceGaps:
    r"""The gap between log evidence and ELBO in its two parts, in nats per observation.

        log p(x) - ELBO = approximation gap + amortization gap

    All expectations are averages over the same N observations; standard errors are those of the
    draws given the data, and of the log evidence as given.

    Attributes:
      log_evidence: 1/N sum_n log p(x_n), as given.
      elbo: Of the encoder's q(z|x).
      optimal_elbo: Of the refined q*_n, one for each observation.
      approximation_gap: log evidence - optimal ELBO, what the family cannot express.
      amortization_gap: Optimal ELBO - ELBO, what the encoder does not find.
      num_observations: N.
      num_steps: Of the refinement.
      data: What data set this is.
      seed: The seed of the draws.
    """

    log_evidence: Estimate
    elbo: Estimate
    optimal_elbo: Estimate
    approximation_gap: Estimate
    amortization_gap: Estimate
    num_observations: int
    num_steps: int
    data: str
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Returns plain, JSON-ready values: every estimate as `{"value", "standard_error"}`."""
        return record(self)

    def __str__(self) -> str:
        """A table of the two gaps."""
        return "\n".join(
            [
                f"inference gaps on {self.data}",
                f"nats per observation; q refined by {self.num_steps} steps, seed {self.seed}",
                f"  log evidence       {self.log_evidence}",
                f"  ELBO, q refined    {self.optimal_elbo}",
                f"  ELBO               {self.elbo}",
                f"  approximation gap  {self.approximation_gap}",
                f"  amortization gap   {self.amortization_gap}",
            ]
        )


def inference_gaps(
    x: Any,
    encoder: Callable[[Any], tfd.Distribution],
    decoder: Callable[[Any], tfd.Distribution],
    prior: tfd.Distribution | Callable[[], tfd.Distribution],
    *,
    log_evidence: LogEvidence | np.ndarray,
    num_samples: int = 200,
    num_steps: int = 500,
    learning_rate: float = 0.05,
    seed: int = 0,
    batch_size: int = 2000,
) -> InferenceGaps:
    r"""Splits log p(x) - ELBO into approximation and amortization gap (Cremer et al. 2018).

        log p(x) - ELBO[q] = (log p(x) - ELBO[q*]) + (ELBO[q*] - ELBO[q])

    q* is the best member of the encoder's family for each observation: its location and scale are
    optimised from those of the encoder, by Adam on the reparameterized ELBO, with a learning rate
    that falls to 0 along a cosine, in units of the encoder's standard deviations. The gradient
    leaves out the score of q, whose mean is zero (Roeder et al. 2017), so that its noise vanishes
    where the family contains the posterior. Both ELBOs are then measured by fresh draws, common to
    both.

    What the optimiser does not find of q* makes the approximation gap too large and the
    amortization gap too small; a log evidence that is a lower bound makes the approximation gap
    too small by what it lacks.

    Args:
      x: The data set: array-like or `Tensor` of shape `[N, *event_shape]`, or a
        `tfp_surgery.datasets.Dataset`. A stochastic binarization is observed in the one draw that
        `seed` names.
      encoder: Callable from `[B, *event_shape]` to Gaussians with independent dimensions, batch
        `[B]`: `tfd.MultivariateNormalDiag`, or `tfd.Independent` of `tfd.Normal`, or `tfd.Normal`
        for scalar codes.
      decoder: Callable from codes `[B, *code_shape]` to a `tfd.Distribution` over observations,
        batch `[B]`, event `event_shape`; differentiable, of operations that XLA compiles.
      prior: `tfd.Distribution` over codes with batch `[]`, or a callable that returns one.
      log_evidence: log p(x_n) of the same observations in the same order: a `LogEvidence`, or an
        array `[N]` of exact values.
      num_samples: Draws an observation to measure both ELBOs with, at least 2.
      num_steps: Of Adam, at least 1.
      learning_rate: Of Adam at first.
      seed: Integer in [0, 2**31). The same seed and `batch_size` give the same result.
      batch_size: Number of observations encoded, and of codes decoded, at a time.

    Returns:
      `InferenceGaps`.

    Raises:
      TypeError: If encoder, decoder or prior do not give distributions, or the encoder gives
        others than those named.
      ValueError: If x is empty, not finite or outside the likelihood's support; if shapes do not
        fit; if a number is out of range; or if the model gives NaN.

    #### References

    Chris Cremer, Xuechen Li, David Duvenaud. Inference suboptimality in variational autoencoders.
    ICML 2018.
    Geoffrey Roeder, Yuhuai Wu, David Duvenaud. Sticking the landing: simple, lower-variance
    gradient estimators for variational inference. NeurIPS 2017.
    """
    num_samples = checks.checked_integer("num_samples", num_samples, 2)
    num_steps = checks.checked_integer("num_steps", num_steps, 1)
    batch_size = checks.checked_integer("batch_size", batch_size, 1)
    seed = checks.checked_integer("seed", seed, 0, checks.MAX_SEED)
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise ValueError(f"learning_rate must be positive, got {learning_rate}.")
    x, data = observations_of(x, seed)
    evidence = _average_log_evidence(log_evidence, len(x))
    check_model(x, encoder, decoder, checks.build_prior(prior), None)
    _gaussian_parameters(encoder(tf.convert_to_tensor(x[:2])))
    posteriors = encode(encoder, x, batch_size)
    loc, scale = _gaussian_parameters(posteriors)
    is_scalar = components_lib.event_rank(posteriors) == 0

    def family(loc: tf.Tensor, scale: tf.Tensor) -> tfd.Distribution:
        if is_scalar:
            return tfd.Normal(loc[..., 0], scale[..., 0])
        return tfd.MultivariateNormalDiag(loc, scale)

    refined = _refined(
        x, loc, scale, family, decoder, prior, num_steps, learning_rate, seed, batch_size
    )
    # One seed: the same noise for both.
    samples = {
        name: _elbo_draws(x, family(*parameters), decoder, prior, num_samples, seed, batch_size)
        for name, parameters in (("elbo", (loc, scale)), ("optimal_elbo", refined))
    }

    def estimate(values: np.ndarray) -> Estimate:
        return stratified_estimate(values, len(x))

    optimal = estimate(samples["optimal_elbo"])
    return InferenceGaps(
        log_evidence=evidence,
        elbo=estimate(samples["elbo"]),
        optimal_elbo=optimal,
        approximation_gap=Estimate(
            evidence.value - optimal.value,
            math.hypot(evidence.standard_error, optimal.standard_error),
            optimal.num_samples,
        ),
        amortization_gap=estimate(samples["optimal_elbo"] - samples["elbo"]),
        num_observations=len(x),
        num_steps=num_steps,
        data=data,
        seed=seed,
    )


def _refined(
    x: np.ndarray,
    loc: tf.Tensor,
    scale: tf.Tensor,
    family: Callable[[tf.Tensor, tf.Tensor], tfd.Distribution],
    decoder: Callable[[Any], tfd.Distribution],
    prior: Any,
    num_steps: int,
    learning_rate: float,
    seed: int,
    batch_size: int,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Location and scale `[N, D]` that maximise the ELBO of each observation."""
    num_observations = len(x)
    size = min(num_observations, max(1, batch_size // _GRADIENT_SAMPLES))
    # In units of the encoder's scale: q* = N(loc + scale * shift, (scale * exp(log_factor))^2).
    shift, log_factor = (
        keras.Variable(tf.zeros([size, loc.shape[-1]], loc.dtype), dtype=loc.dtype.name)
        for _ in range(2)
    )
    optimizer = keras.optimizers.Adam(
        keras.optimizers.schedules.CosineDecay(learning_rate, num_steps)
    )
    optimizer.build([shift, log_factor])

    @tf.function(jit_compile=True, autograph=False)
    def step(
        observations: tf.Tensor, loc: tf.Tensor, scale: tf.Tensor, step_seed: tf.Tensor
    ) -> None:
        values = [shift.value, log_factor.value]
        with tf.GradientTape() as tape:
            parameters = (loc + scale * values[0], scale * tf.exp(values[1]))
            z = family(*parameters).sample(_GRADIENT_SAMPLES, seed=step_seed)  # [S, B, *code]
            fixed = family(*map(tf.stop_gradient, parameters))
            log_weights = (
                tf.cast(reconstruction_log_prob(decoder, z, observations), z.dtype)
                + checks.build_prior(prior).log_prob(z)
                - fixed.log_prob(z)
            )
            # The terms of the observations share no parameter: the sum maximises each.
            loss = -tf.reduce_sum(tf.reduce_mean(log_weights, axis=0))
        optimizer.apply(tape.gradient(loss, values), [shift, log_factor])

    fold_in = tf.random.experimental.stateless_fold_in
    base_seed = tf.constant([seed, _REFINEMENT], tf.int32)
    locs, scales = [], []
    for number, start in enumerate(range(0, num_observations, size)):
        # The last batch repeats earlier observations to keep one shape: kernels compile once.
        shown = min(start, num_observations - size)
        rows = slice(shown, shown + size)
        for variable in (shift, log_factor, *optimizer.variables):
            variable.assign(tf.zeros_like(variable.value))
        batch_seed = fold_in(base_seed, number)
        for index in range(num_steps):
            step(tf.convert_to_tensor(x[rows]), loc[rows], scale[rows], fold_in(batch_seed, index))
        new = slice(start - shown, None)
        locs.append((loc[rows] + scale[rows] * shift.value)[new])
        scales.append((scale[rows] * tf.exp(log_factor.value))[new])
    return tf.concat(locs, axis=0), tf.concat(scales, axis=0)


def _elbo_draws(
    x: np.ndarray,
    posteriors: tfd.Distribution,
    decoder: Callable[[Any], tfd.Distribution],
    prior: Any,
    num_samples: int,
    seed: int,
    batch_size: int,
) -> np.ndarray:
    """Draws of log p(x_n, z) - log q(z), float64 `[S, N]`."""
    draws = np.empty([num_samples, len(x)])
    filled = np.zeros(len(x), np.int64)
    for rows, log_weights in log_weight_chunks(
        x, posteriors, decoder, prior, num_samples, (seed, _MEASUREMENT), batch_size
    ):
        first = filled[rows.start]
        draws[first : first + len(log_weights), rows] = log_weights
        filled[rows] += len(log_weights)
    if not np.isfinite(draws).all():
        raise ValueError(
            f"log p(x, z) - log q(z) is not finite in {np.sum(~np.isfinite(draws))} of "
            f"{draws.size} draws: the model gives no density there, or refinement diverged."
        )
    return draws


def _gaussian_parameters(posterior: Any) -> tuple[tf.Tensor, tf.Tensor]:
    posterior = components_lib.prepare(checks.unwrap(posterior), "The encoder's posterior")
    parameters = diagonal_parameters(components_lib.broadcast(posterior))
    if parameters is None:
        raise TypeError(
            "the encoder must return Gaussians with independent dimensions "
            "(tfd.MultivariateNormalDiag, tfd.Independent of tfd.Normal, tfd.Normal): the "
            f"refinement knows how to move these alone; got {posterior.name}."
        )
    return parameters


def _average_log_evidence(
    log_evidence: LogEvidence | np.ndarray, num_observations: int
) -> Estimate:
    if isinstance(log_evidence, LogEvidence):
        values, estimate = log_evidence.per_observation, log_evidence.estimate
    else:
        values = np.asarray(log_evidence, np.float64)
        estimate = Estimate(float(values.mean()) if values.size else math.nan, 0.0, 0)
    if values.shape != (num_observations,) or not np.isfinite(values).all():
        raise ValueError(
            f"log_evidence must hold one finite value for each of the {num_observations} "
            f"observations, got {values.size} of shape {list(values.shape)}."
        )
    return estimate
