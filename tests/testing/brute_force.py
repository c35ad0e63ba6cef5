"""A model's draws and terms against densities that a test writes down in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

import tfp_surgery as tfs
from tests.testing import oracles
from tfp_surgery.estimate import stratified_estimate

Score = Callable[[np.ndarray], np.ndarray]


def check_surgery(
    x: Any,
    encoder: Any,
    decoder: Any,
    prior: Any,
    *,
    posteriors: Score,
    log_prior: Score,
    log_likelihood: Score | None = None,
    **options: Any,
) -> tfs.ElboSurgery:
    """Takes a model apart and compares every draw and every term with a brute force.

    Args:
      x: Of `elbo_surgery`, as `encoder`, `decoder`, `prior` and `options`.
      encoder: Likewise.
      decoder: Likewise.
      prior: Likewise.
      posteriors: Callable from codes z_sn, float64 `[S, N, *code_shape]`, to log q(z_sn|x_m) for
        all m, `[S, N, N]`.
      log_prior: Callable from the codes to log p(z_sn), `[S, N]`.
      log_likelihood: Callable from the codes to log p(x_n|z_sn), `[S, N]`; None without a decoder.
      **options: Likewise.

    Returns:
      The terms.
    """
    arguments = (x, encoder, decoder, prior)
    draws = tfs.scored_draws(*arguments, **options)
    z = draws.z.numpy().astype(np.float64)
    scores = np.asarray(posteriors(z), np.float64)
    num = draws.num_observations
    assert scores.shape == (*draws.log_posterior.shape, num)
    own = np.take_along_axis(scores, draws.index[None, :, None], axis=2)[..., 0]
    aggregate, entropy = oracles.log_prob_and_entropy(scores)
    of_prior = np.asarray(log_prior(z), np.float64)
    double = draws.z.dtype.is_integer or draws.z.dtype.size == 8
    check_close(draws.log_posterior, own, double)
    check_close(draws.log_aggregate, aggregate, double)
    check_close(draws.log_prior, of_prior, double)
    # An entropy is an average of log densities of the size of log q(z).
    check_close(draws.index_entropy, entropy, double, size=np.abs(own))
    surgery = tfs.elbo_surgery(*arguments, **options)
    of_likelihood = None
    if log_likelihood is not None:
        of_likelihood = np.asarray(log_likelihood(z), np.float64)
        check_close(draws.reconstruction, of_likelihood, double)
    check_terms(surgery, own, aggregate, of_prior, of_likelihood, double)
    assert str(surgery)
    return surgery


def check_terms(
    surgery: tfs.ElboSurgery,
    log_posterior: np.ndarray,
    log_aggregate: np.ndarray,
    log_prior: np.ndarray,
    log_likelihood: np.ndarray | None,
    double: bool,
) -> None:
    """Compares the terms with the means of log densities, float64 `[S, Q]`.

    The plain means are those of numpy. The terms, which have closed forms and control variates in
    them, lie within four plain standard errors of these, or five where few draws estimate them.
    """
    sizes = [np.abs(part).mean() for part in (log_posterior, log_aggregate, log_prior)]
    third = surgery.conditional_prior_term or surgery.marginal_kl
    information = log_posterior - log_aggregate
    kl = log_posterior - log_prior
    expected = [
        (surgery.index_code_mutual_information, information),
        (third, log_aggregate - log_prior),
        (surgery.average_kl, kl),
    ]
    plain = [
        (surgery.index_code_mutual_information_sampled, information),
        (surgery.average_kl_sampled, kl),
    ]
    if surgery.marginal_kl is not None:
        plain.append((surgery.marginal_kl_sampled, log_aggregate - log_prior))
    if log_likelihood is not None:
        sizes.append(np.abs(log_likelihood).mean())
        expected.append((surgery.average_reconstruction, log_likelihood))
        expected.append((surgery.elbo, log_likelihood - kl))
        check_close(
            surgery.elbo.value,
            surgery.average_reconstruction.value - surgery.average_kl.value,
            double,
            size=max(sizes),
        )
    for estimate, values in plain:
        check_close(estimate.value, values.mean(), double, size=max(sizes))
    # What is too rare to be among the draws is in the error of the mutual information.
    unseen = max(
        0.0,
        surgery.index_code_mutual_information_sampled.standard_error**2
        - stratified_estimate(information, surgery.num_observations).standard_error ** 2,
    )
    for estimate, values in expected:
        exact = stratified_estimate(values, surgery.num_observations)
        slack = _close(values.mean(), double, max(sizes))
        multiple = 4.0 if exact.degrees_of_freedom > 30 else 5.0
        error = math.sqrt(exact.standard_error**2 + unseen)
        # A closed form less a mean has the error of the mean, which few draws leave as it was.
        of_draws = {third: information, surgery.elbo: log_likelihood}.get(estimate)
        if of_draws is not None and surgery.average_kl_method == "analytic":
            of_mean = stratified_estimate(of_draws, surgery.num_observations)
            error = math.hypot(error, of_mean.standard_error)
        assert abs(estimate.value - exact.value) <= multiple * error + slack, (estimate, exact)
    # The fit minimises the error, but for what few degrees of freedom leave open.
    errors = [
        estimate.standard_error
        for estimate in (
            surgery.index_code_mutual_information,
            surgery.index_code_mutual_information_sampled,
        )
    ]
    assert errors[0] <= 1.3 * errors[1] + _close(0.0, double, max(sizes)), errors
    check_close(
        surgery.average_kl.value,
        surgery.index_code_mutual_information.value + third.value,
        double,
        size=max(sizes),
    )


def _close(expected: Any, double: bool, size: Any) -> Any:
    """Returns the error that `check_close` allows."""
    size = np.maximum(np.abs(expected), size)
    eps = np.finfo(np.float32).eps
    return np.maximum(1e-6 * size, 1e-9) if double else np.maximum(1e-5, 4 * eps * size)


def check_close(actual: Any, expected: Any, double: bool, size: Any = 0.0) -> None:
    """Compares within 1e-6 of the size in float64; in float32 within 1e-5 nats or 4 eps of it.

    Args:
      actual: Of the package.
      expected: Of the brute force.
      double: Whether the model is in float64.
      size: Of the log densities that a difference is made of, where it is more than `expected`.
    """
    error = np.abs(np.asarray(actual, np.float64) - expected)
    allowed = np.broadcast_to(_close(expected, double, size), error.shape)
    worst = np.argmax(error / allowed)
    assert (error <= allowed).all(), (
        f"off by {error.flat[worst]:.3g} nats, where {allowed.flat[worst]:.3g} is allowed"
    )
