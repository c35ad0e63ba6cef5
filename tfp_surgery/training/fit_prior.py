"""fit_prior: a prior that goes to meet the aggregate posterior of a finished model."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery import seeds
from tfp_surgery.checks.arguments import checked_integer
from tfp_surgery.checks.networks import build_prior, check_prior
from tfp_surgery.distributions.aggregate_posterior import AggregatePosterior
from tfp_surgery.estimate import Estimate, rounding, stratified_estimate
from tfp_surgery.log_density.evaluation import checked_tolerance
from tfp_surgery.measurement import consistency
from tfp_surgery.measurement.model_checks import check_no_nan, check_vector_codes
from tfp_surgery.surgery.prior_change import PriorMeasurement
from tfp_surgery.training.fitted_variables import fitted_variables, state_of
from tfp_surgery.training.likelihood_ascent import LikelihoodAscent
from tfp_surgery.training.prior_fit import PriorFit
from tfp_surgery.training.prior_looks import PriorLooks

tfd = tfp.distributions

# On which looks are compared without a validation set: a tenth of the default steps' codes between
# two looks, and enough to tell apart what differs by some thousandths of a nat.
_LOOKS_CODES = 10_000
_NOISE_ERRORS = 3.0  # standard errors by which a fit may seem worse than its start


def fit_prior(
    aggregate_posterior: AggregatePosterior,
    prior: keras.layers.Layer | tfd.Distribution | Callable[[], tfd.Distribution],
    *,
    variables: Sequence[tf.Variable | keras.Variable] | None = None,
    validation: AggregatePosterior | None = None,
    former_prior: tfd.Distribution | Callable[[], tfd.Distribution] | None = None,
    initialize: bool = True,
    num_steps: int = 4000,
    batch_size: int = 1000,
    learning_rate: float = 5e-3,
    evaluate_every: int = 100,
    patience: int | None = 10,
    num_samples: int = 2,
    tolerance: float | None = None,
    seed: Any = 0,
    verbose: bool = True,
) -> PriorFit:
    r"""Fits a prior to the aggregate posterior of a finished model.

    The prior occurs in one term of the ELBO, the marginal KL (Hoffman and Johnson 2016):

        KL(q(z) || p(z)) = E_q(z)[log q(z)] - E_q(z)[log p(z)].

    Adam raises E_q(z)[log p(z)] on codes that each step draws anew from q(z): maximum likelihood.
    Encoder and decoder stay as they are, and with them reconstruction and index-code mutual
    information; the ELBO gains what the marginal KL loses. XLA compiles the steps. Where it cannot
    compile the prior, they run without it, with a warning.

    The weights of the priors of `tfs.priors` are in standard deviations of the codes, which
    `initialize` sets: the fit is the same in every unit of z. A prior with weights in the unit of z
    is fitted well where its codes have standard deviations near one.

    Any prior that TFP can train is taken, and changed in place:

    ```python
    prior = tfd.MixtureSameFamily(
        tfd.Categorical(logits=tf.Variable(tf.zeros(5))),
        tfd.MultivariateNormalDiag(
            tf.Variable(tf.random.stateless_normal([5, 2], seed=[0, 1])),
            tfp.util.TransformedVariable(tf.ones([5, 2]), tfb.Softplus()),
        ),
    )
    tfs.fit_prior(q_z, prior)

    logits = keras.Variable(tf.zeros(2))
    tfs.fit_prior(q_z, lambda: tfd.Independent(tfd.Logistic(logits, 1.0), 1), variables=[logits])
    ```

    A distribution keeps its `tf.Variable`s, and the value that a `keras.Variable`, or a tensor
    computed from a variable, had when it was made: the latter go into a function, or into
    `tfp.util.TransformedVariable` and `DeferredTensor`. The functions inside a bijector do not tell
    the variables of their networks, which `variables` then names.

    At the start and after every `evaluate_every` steps, E[log p(z)] is computed on fixed codes that
    take no part in training. At the end the prior gets the weights of the best of these looks. The
    first look is at the weights after `initialize`, or at those handed in if nothing is
    initialized. Without `validation` the fixed codes are 10000 draws from q(z), and all steps are
    taken, since looks improve up to the last steps with their low learning rate.

    A prior fitted to some observations may do worse on others. With `validation` the fixed codes
    are one draw of each held-out observation, and training stops when no look has been better for
    `patience` looks.

    The changes in the result are measured on other draws, which neither train the prior nor choose
    a look: they are unbiased for each q(z) and this prior. But the held-out observations chose the
    look. For yet other observations their number is optimistic, by little where the values of the
    last looks differ by little. For a number without optimism, hand a third data set to
    `elbo_surgery`.

    Warnings say if no look was better than the start (without `validation`), and if on the draws of
    the result the prior is worse than at the start by more than three standard errors.

    Args:
      aggregate_posterior: q(z), batch `[]`, over codes of shape `[D]`, of equal weights.
      prior: p(z), batch `[]`, of the dtype of the codes: a Keras layer, such as those in
        `tfs.priors`, where `prior()` gives p(z); a `tfd.Distribution` with trainable variables, a
        surrogate of `tfp.experimental.vi` among them; or a callable that returns a distribution
        made from its variables anew in each call. Variables that are frozen (`trainable=False`)
        stay as they are. A layer without any to train is measured as it is, with a warning.
      variables: What to train. If None, that are the trainable variables of the prior, or its
        `fitted_variables` if it is a layer with such an attribute. A function has none of its own.
      validation: q(z) of held-out observations, of the same kind.
      former_prior: The prior that the model had, against which the change is measured: a
        distribution or a callable that returns one (`vae.prior`; also `prior` itself, which then
        counts as it is before the fit). N(0, I) if None.
      initialize: Whether to call `prior.initialize(codes, seed)` first, with one draw of each
        q(z|x_n), where `prior` is a layer that has such a method, as those in `tfs.priors`. False
        goes on from the weights there are, as the fit of any other prior does.
      num_steps: The largest number of steps, over which the learning rate falls to zero along a
        cosine; 0 to initialize only.
      batch_size: Codes a step.
      learning_rate: The highest, reached after a twentieth of the steps.
      evaluate_every: Look at the prior, and report, every so many steps.
      patience: With `validation`, the number of looks without a better value after which to stop;
        None for all steps. Little patience may stop a fit before the learning rate falls, which
        often improves it.
      num_samples: Draws an observation, for the changes in the result. With 1 their standard
        errors are NaN.
      tolerance: Bound in nats on what may be left out of log q(z) in the marginal KL; see
        `AggregatePosterior.evaluate`. None for none. It does not enter the change in ELBO.
      seed: Integer in [0, 2**31) or pair of int32. On one machine the same seed gives the same fit
        to a prior of the same weights. The draws of the result are those of `elbo_surgery` with
        this seed and `num_samples`.
      verbose: Whether to print a line at each look.

    Returns:
      `PriorFit`, everything in nats per observation. The prior is changed in place.

    Raises:
      TypeError: If an argument is of the wrong kind, or log p(z) has a gradient with respect to
        trainable variables that neither the prior owns nor `variables` names, as those of a
        network that a function calls.
      ValueError: If shapes or dtypes do not go together, a number is out of range, the components
        of q(z) have NaN parameters, or a log density of the measurement is not finite; if a prior
        that is no layer has nothing to train, or variables without a gradient.
      FloatingPointError: If a log density or gradient of a step is not finite. The prior then has
        the weights it had before this step.

    #### References

    Matthew D. Hoffman and Matthew J. Johnson. ELBO surgery: yet another way to carve up the
    variational evidence lower bound. NIPS Workshop in Advances in Approximate Bayesian Inference,
    2016.
    """
    num_steps = checked_integer("num_steps", num_steps, 0)
    batch_size = checked_integer("batch_size", batch_size, 1)
    evaluate_every = checked_integer("evaluate_every", evaluate_every, 1)
    if patience is not None:
        patience = checked_integer("patience", patience, 1)
    num_samples = checked_integer("num_samples", num_samples, 1)
    seed = seeds.checked_seed(seed)
    learning_rate = _checked_learning_rate(learning_rate)
    tolerance = checked_tolerance(tolerance)
    _check_aggregate_posterior(aggregate_posterior, "aggregate_posterior")
    if validation is not None:
        _check_aggregate_posterior(validation, "validation")
        if validation.event_shape != aggregate_posterior.event_shape or (
            validation.dtype != aggregate_posterior.dtype
        ):
            raise ValueError(
                "validation must be over codes of the shape and dtype of aggregate_posterior, "
                f"{aggregate_posterior.event_shape} and {aggregate_posterior.dtype.name}, got "
                f"{validation.event_shape} and {validation.dtype.name}."
            )
    checked = check_prior(build_prior(prior), aggregate_posterior)
    prior_name = getattr(prior, "name", checked.name)
    trained = fitted_variables(
        prior, variables, aggregate_posterior.sample(1, seed=tf.constant([0, 0], tf.int32))
    )
    former = _standard_normal(aggregate_posterior) if former_prior is None else former_prior
    former = check_prior(build_prior(former), aggregate_posterior)
    former_name = "N(0, I)" if former_prior is None else former.name

    if num_samples == 1:
        warnings.warn("with num_samples=1 the standard errors are unknown (NaN).", stacklevel=2)
    if not trained:
        warnings.warn(
            f"the prior {prior_name} has no variables to fit: it is measured as it is.",
            stacklevel=2,
        )
        num_steps = 0

    measurements = [
        PriorMeasurement(q_z, former, num_samples, seed, tolerance)
        for q_z in (aggregate_posterior, validation)
        if q_z is not None
    ]

    def measured(prior_now: tfd.Distribution) -> list[np.ndarray]:
        return [measurement.log_prob(prior_now) for measurement in measurements]

    started = time.perf_counter()
    if initialize and isinstance(prior, keras.layers.Layer) and hasattr(prior, "initialize"):
        codes_seed = seeds.key(seed, "fit_prior/initial_codes")
        prior.initialize(_one_draw_each(aggregate_posterior, codes_seed).numpy(), seed)
    initialized = time.perf_counter()
    at_start = measured(build_prior(prior)) if num_steps > 0 else []
    started += time.perf_counter() - initialized
    codes = None
    if validation is not None:
        codes = _one_draw_each(validation, seeds.key(seed, "fit_prior/validation_codes"))
    elif num_steps > 0:
        codes = aggregate_posterior.sample(_LOOKS_CODES, seed=seeds.key(seed, "fit_prior/looks"))
    state = state_of(prior, trained)
    looks = PriorLooks(prior, state, codes, batch_size, validation is not None, num_steps, verbose)
    looks.look(0, None)
    if num_steps > 0:
        ascent = LikelihoodAscent(
            aggregate_posterior,
            prior,
            trained,
            num_steps=num_steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            seed=seed,
        )
        for step in range(0, num_steps, evaluate_every):
            end = min(step + evaluate_every, num_steps)
            looks.look(end, ascent.run(step, end))
            if validation is not None and patience is not None and looks.since_best >= patience:
                break
    looks.restore_best()
    seconds = time.perf_counter() - started

    fitted = build_prior(prior)
    at_end = measured(fitted)
    changes = [
        measurement.change_to(fitted, log_prob)
        for measurement, log_prob in zip(measurements, at_end, strict=True)
    ]
    for change in changes:
        consistency.warn(change.warnings, stacklevel=3)
    last = looks.history[-1].step
    if last > 0 and looks.best_step == 0 and validation is None:
        warnings.warn(
            f"no look at the fit of {prior_name} was better than its start, whose weights it has "
            "again. Where these were not the best already, a smaller learning_rate may help, or "
            "more steps; weights in the unit of the codes learn well where the codes have standard "
            "deviations near one.",
            stacklevel=2,
        )
    for name, before, after in zip(("fitted to", "held out"), at_start, at_end, strict=False):
        loss = _loss(before, after)
        if loss is not None:
            warnings.warn(
                f"the prior is worse than it was before the first step: the marginal KL of the "
                f"q(z) {name} grew by {loss}. It has the weights of step {looks.best_step}, the "
                f"best of the looks on {'held-out' if validation is not None else 'fixed'} codes; "
                "num_steps=0 leaves those of the start.",
                stacklevel=2,
            )
    return PriorFit(
        training=changes[0],
        validation=None if validation is None else changes[1],
        former_prior=former_name,
        num_steps=last,
        best_step=looks.best_step,
        stopped_early=last < num_steps,
        seconds=seconds,
        history=tuple(looks.history),
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        trained=tuple(f"{variable.name} {list(variable.shape)}" for variable in trained),
    )


def _one_draw_each(aggregate_posterior: AggregatePosterior, seed: tf.Tensor) -> tf.Tensor:
    """One draw of each q(z|x_n), `[N, D]`."""
    return aggregate_posterior.components_distribution.sample(seed=seed)


def _loss(before: np.ndarray, after: np.ndarray) -> Estimate | None:
    """What log p(z) lost on the draws `[S, N]` of a result, if that is more than noise."""
    loss = stratified_estimate([before, -after], before.shape[1])
    error = loss.standard_error
    if math.isnan(error):  # one draw an observation: from the spread over all, which is wider
        error = float((before - after).std() / math.sqrt(before.size)) + rounding(before, after)
    return loss if loss.value > _NOISE_ERRORS * error else None


def _standard_normal(aggregate_posterior: AggregatePosterior) -> tfd.Distribution:
    zeros = tf.zeros(aggregate_posterior.event_shape, aggregate_posterior.dtype)
    return tfd.MultivariateNormalDiag(zeros, tf.ones_like(zeros))


def _check_aggregate_posterior(aggregate_posterior: Any, name: str) -> None:
    check_vector_codes(aggregate_posterior, name)
    check_no_nan(aggregate_posterior)


def _checked_learning_rate(learning_rate: Any) -> float:
    if isinstance(learning_rate, bool) or not isinstance(learning_rate, int | float):
        raise TypeError(f"learning_rate must be a number, got {learning_rate!r}.")
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate must be positive and finite, got {learning_rate!r}.")
    return float(learning_rate)
