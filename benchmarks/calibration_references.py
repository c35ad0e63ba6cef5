"""What the calibrated estimates refer to, computed in float64 by NumPy alone.

Expectations over z ~ q(z|x_n) are randomised quasi-Monte Carlo: a Sobol sequence for each of the N
posteriors, shifted at random modulo 1 (Cranley and Patterson 1976), and log q(z) from the N x N
densities. Standard errors are between independent randomisations. Expectations over minibatches and
over draws of the model are plain averages over many of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from scipy import special
from scipy.stats import qmc

from benchmarks.calibration_cases import (
    CONDITIONAL_MEANS,
    EVENT_SIZE,
    GROUPS,
    LATENT_SIZE,
    MIXTURE_PRIOR,
    TRAINING,
    Case,
    Mixture,
)
from benchmarks.calibration_statistics import Truth

QUADRATURE = "quasi-Monte Carlo in float64"
BATCHES = "many minibatches in float64"
DRAWS = "many draws in float64"
CLOSED_FORM = "closed form"
_NUM_POINTS, _NUM_REPEATS = 256, 16
_BLOCK = 8  # posteriors whose codes are scored together
_NUM_REPEATS_OF_BATCHES = 10_000
_NUM_PAIRS = 400_000
LOG_2PI = math.log(2.0 * math.pi)

Means = dict[str, np.ndarray]


def code_expectations(case: Case) -> Means:
    """Averages the log densities that the terms are made of over q(n, z).

    The log densities of each dimension under the own posterior and under N(0, 1) have known
    expectations, and serve as control variates of all others, with coefficients from the deviations
    of each block of posteriors between the randomisations.

    Args:
      case: The data set with its model and posteriors.

    Returns:
      By name, float64, shape `[R]`: the mean of each of R independent randomisations.
    """
    sobol = qmc.Sobol(LATENT_SIZE, scramble=False).random(_NUM_POINTS)
    rng = np.random.default_rng(23)
    num = len(case.loc)
    blocks = [np.arange(num)[start : start + _BLOCK] for start in range(0, num, _BLOCK)]
    found: dict[str, list[list[float]]] = {}
    for _ in range(_NUM_REPEATS):
        for row in found.values():
            row.append([])
        for block in blocks:
            u = (sobol + rng.uniform(size=[len(block), 1, LATENT_SIZE])) % 1.0
            noise = special.ndtri(np.clip(u, 1e-16, 1.0 - 1e-16))
            z = case.loc[block, np.newaxis] + case.scale[block, np.newaxis] * noise  # [B, P, D]
            scores = _scores(case, z.reshape(-1, LATENT_SIZE), np.repeat(block, _NUM_POINTS))
            for name, values in scores.items():
                found.setdefault(name, [[]])[-1].append(float(values.sum()) / (num * _NUM_POINTS))
    sums = {name: np.array(rows) for name, rows in found.items()}  # each [R, blocks]
    controls, expected = [], []
    for j in range(LATENT_SIZE):
        loc, scale = case.loc[:, j], case.scale[:, j]
        controls += [sums[f"own_{j}"], sums[f"prior_{j}"]]
        expected += [
            float(np.mean(-0.5 * (LOG_2PI + 1.0) - np.log(scale))),
            float(np.mean(-0.5 * (LOG_2PI + loc**2 + scale**2))),
        ]
    design = np.stack([_deviations(control) for control in controls], axis=1)
    off = np.stack([control.sum(axis=1) for control in controls], axis=1) - expected  # [R, C]
    means = {}
    for name, values in sums.items():
        coefficients = np.linalg.lstsq(design, _deviations(values), rcond=1e-9)[0]
        means[name] = values.sum(axis=1) - off @ coefficients
    return means


def _deviations(values: np.ndarray) -> np.ndarray:
    return np.asarray(values - values.mean(axis=0)).ravel()


def _scores(case: Case, z: np.ndarray, owner: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the log densities of codes `[M, D]` of given posteriors, each `[M]`."""
    num, rows = len(case.loc), np.arange(len(z))
    each = [
        normal_log_densities(z[:, [j]], case.loc[:, j], case.scale[:, j])
        for j in range(LATENT_SIZE)
    ]  # of [M, N]
    joint = sum(each[1:], each[0])
    highest = joint.max(axis=1, keepdims=True)
    masses = np.exp(joint - highest)
    total = masses.sum(axis=1)
    aggregate = highest[:, 0] + np.log(total / num)
    of_index = masses / total[:, np.newaxis]  # q(n|z)
    own = [part[rows, owner] for part in each]
    of_own = sum(own[1:], own[0])
    found = {
        "own": of_own,
        "aggregate": aggregate,
        "prior": normal_log_densities(z, 0.0, 1.0).sum(axis=1),
        "mixture_prior": mixture_log_density(z, MIXTURE_PRIOR),
        "training": mixture_log_density(z, TRAINING),
        "index_entropy": np.log(total) - (of_index * (joint - highest)).sum(axis=1),
        "reconstruction": _log_likelihood(case, case.x[owner], z),
        # log(1 + q(z) / q_n(z)), and log(1 + q_m(z) / q(z)) averaged over all m
        "softplus_own": np.logaddexp(0.0, aggregate - of_own),
        "softplus_all": np.log1p(num * of_index).mean(axis=1),
    }
    of_condition = case.condition[owner]
    found["conditional_prior"] = normal_log_densities(
        z, CONDITIONAL_MEANS[of_condition.astype(int)], 1.0
    ).sum(axis=1)
    members = case.condition[np.newaxis, :] == of_condition[:, np.newaxis]  # [M, N]
    of_members = (masses * members).sum(axis=1) / members.sum(axis=1)
    found["given"] = highest[:, 0] + np.log(of_members)
    for j in range(LATENT_SIZE):
        found[f"own_{j}"] = own[j]
        found[f"aggregate_{j}"] = _log_mean(each[j])
        found[f"prior_{j}"] = normal_log_densities(z[:, j], 0.0, 1.0)
        found[f"mixture_prior_{j}"] = mixture_log_density(z, MIXTURE_PRIOR, (j,))
    for number, group in enumerate(GROUPS):
        found[f"own_g{number}"] = np.sum([own[j] for j in group], axis=0)
        found[f"aggregate_g{number}"] = _log_mean(np.sum([each[j] for j in group], axis=0))
        found[f"prior_g{number}"] = np.sum([found[f"prior_{j}"] for j in group], axis=0)
        found[f"mixture_prior_g{number}"] = mixture_log_density(z, MIXTURE_PRIOR, group)
    return found


def _log_mean(scores: np.ndarray) -> np.ndarray:
    """log of the mean over the last axis of exp(scores)."""
    highest = scores.max(axis=-1, keepdims=True)
    values: np.ndarray = highest[..., 0] + np.log(np.exp(scores - highest).mean(axis=-1))
    return values


def truth_of(means: Means, *terms: str, constant: float = 0.0) -> Truth:
    """Returns an expectation that is a sum of those in `code_expectations`.

    Args:
      means: Of `code_expectations`.
      *terms: Names of summands, each with a sign in front of it.
      constant: What is added.

    Returns:
      The `Truth`.
    """
    total = np.full(_NUM_REPEATS, constant)
    for term in terms:
        total = total + (1.0 if term[0] == "+" else -1.0) * means[term[1:]]
    return Truth(float(total.mean()), _error(total), QUADRATURE)


def average_reconstruction(case: Case, loc: np.ndarray, variance: np.ndarray) -> float:
    """1/N sum_n E[log p(x_n|z)] for z ~ N(loc_n, diag(variance_n)), in closed form."""
    squares = ((case.x - loc @ case.weights.T) ** 2).sum(axis=1)
    spread = variance @ (case.weights**2).sum(axis=0)
    log_normaliser = EVENT_SIZE * (LOG_2PI + 2.0 * math.log(case.noise))
    return float(np.mean(-0.5 * (log_normaliser + (squares + spread) / case.noise**2)))


def average_kl(loc: np.ndarray, variance: np.ndarray) -> float:
    """1/N sum_n KL(N(loc_n, diag(variance_n)) || N(0, I)), in closed form."""
    terms = variance + loc**2 - 1.0 - np.log(variance)
    return 0.5 * float(terms.sum(axis=1).mean())


def exact(value: float) -> Truth:
    """Returns a truth in closed form."""
    return Truth(float(value), 0.0, CLOSED_FORM)


def contrastive_gaps(
    case: Case, batch_size: int, num_repeats: int = _NUM_REPEATS_OF_BATCHES
) -> dict[str, Truth]:
    """What InfoNCE and leave-one-out differ by from I(n; z), in expectation over batches.

    Args:
      case: The data set.
      batch_size: B.
      num_repeats: Number of means over the N observations that are averaged.

    Returns:
      E[log q(z_i) - log 1/B sum_j q_j(z_i)], and likewise without j = i, by name.
    """

    def gaps(own: np.ndarray, aggregate: np.ndarray, others: np.ndarray) -> Means:
        left = _log_mean(others) + math.log(others.shape[1])
        everything = np.logaddexp(left, own) - math.log(batch_size)
        return {
            "info_nce": aggregate - everything,
            "leave_one_out": aggregate - left + math.log(batch_size - 1),
        }

    return _over_batches(case, batch_size, num_repeats, gaps)


def stratified_gap(
    case: Case, batch_size: int, num_repeats: int = _NUM_REPEATS_OF_BATCHES
) -> Truth:
    """What minibatch-stratified sampling adds to I(n; z): E[log q(z_b) - log of its estimate].

    The weights are 1/N for the own posterior, (N - M)/(N M) for the next, and 1/M for the others,
    with M = B - 1 (Chen et al. 2018, appendix C).

    Args:
      case: The data set.
      batch_size: B.
      num_repeats: Number of means over the N observations that are averaged.

    Returns:
      The expectation over minibatches.
    """
    num, others = len(case.loc), batch_size - 1
    weights = np.full([others], 1.0 / others)
    weights[0] = (num - others) / (num * others)

    def gap(own: np.ndarray, aggregate: np.ndarray, others: np.ndarray) -> Means:
        left = special.logsumexp(others, axis=1, b=weights)
        return {"gap": aggregate - np.logaddexp(own - math.log(num), left)}

    return _over_batches(case, batch_size, num_repeats, gap)["gap"]


def _over_batches(
    case: Case,
    batch_size: int,
    num_repeats: int,
    compute: Callable[[np.ndarray, np.ndarray, np.ndarray], Means],
) -> dict[str, Truth]:
    """Averages over codes of all observations, each beside B - 1 random others in random order."""
    rng = np.random.default_rng(29)
    num = len(case.loc)
    places = np.arange(num)
    means: dict[str, list[float]] = {}
    for _ in range(num_repeats):
        z = case.loc + case.scale * rng.normal(size=case.loc.shape)
        scores = normal_log_densities(z[:, np.newaxis], case.loc, case.scale).sum(axis=2)
        order = rng.random(scores.shape)
        order[places, places] = 2.0  # behind all others
        chosen = np.argsort(order, axis=1)[:, : batch_size - 1]
        others = np.take_along_axis(scores, chosen, axis=1)
        for name, values in compute(np.diag(scores), _log_mean(scores), others).items():
            means.setdefault(name, []).append(float(values.mean()))
    return {
        name: Truth(float(np.mean(values)), _error(np.array(values)), BATCHES)
        for name, values in means.items()
    }


def importance_weighted(case: Case, num_importance_samples: int, num_repeats: int) -> Truth:
    """1/N sum_n E log 1/m sum_i w_ni with w = p(x_n|z) p(z) / q(z|x_n), z ~ q(z|x_n).

    Args:
      case: The data set.
      num_importance_samples: m.
      num_repeats: Number of means over the N observations that are averaged.

    Returns:
      The expectation.
    """
    rng = np.random.default_rng(31)
    means = []
    for _ in range(num_repeats):
        shape = [num_importance_samples, *case.loc.shape]
        noise = rng.normal(size=shape)
        z = case.loc + case.scale * noise
        log_posterior = (-0.5 * (noise**2 + LOG_2PI) - np.log(case.scale)).sum(axis=-1)
        log_joint = _log_likelihood(case, case.x, z) + normal_log_densities(z, 0.0, 1.0).sum(-1)
        log_means = special.logsumexp(log_joint - log_posterior, axis=0)
        means.append(float(log_means.mean()) - math.log(num_importance_samples))
    return Truth(float(np.mean(means)), _error(np.array(means)), DRAWS)


def generative_bounds(case: Case, num_importance_samples: int) -> dict[str, Truth]:
    """The expectations of the two bounds of `generative_mutual_information`.

    Args:
      case: The data set, of which the model counts alone.
      num_importance_samples: m.

    Returns:
      `lower` and `upper`.
    """
    rng = np.random.default_rng(37)
    lower, upper = [], []
    for rows in _split(_NUM_PAIRS, 20_000):
        z = rng.normal(size=[rows, LATENT_SIZE])
        x = z @ case.weights.T + case.noise * rng.normal(size=[rows, EVENT_SIZE])
        own = _log_likelihood(case, x, z)
        fresh = rng.normal(size=[num_importance_samples, rows, LATENT_SIZE])
        sums = special.logsumexp(_log_likelihood(case, x, fresh), axis=0)
        upper.append(own - sums + math.log(num_importance_samples))
        lower.append(own - np.logaddexp(sums, own) + math.log(num_importance_samples + 1))
    return {
        name: Truth(float(np.mean(values)), _error(np.concatenate(values)), DRAWS)
        for name, values in (("lower", lower), ("upper", upper))
    }


def normal_log_densities(
    z: np.ndarray, loc: np.ndarray | float, scale: np.ndarray | float
) -> np.ndarray:
    """log N(z; loc, scale^2), element by element."""
    values: np.ndarray = -0.5 * (((z - loc) / scale) ** 2 + LOG_2PI) - np.log(scale)
    return values


def mixture_log_density(
    z: np.ndarray, mixture: Mixture, dimensions: tuple[int, ...] = tuple(range(LATENT_SIZE))
) -> np.ndarray:
    """The log density of some dimensions of a mixture at codes `[M, D]`, `[M]`."""
    chosen = list(dimensions)
    loc, scale = mixture.loc[:, chosen], mixture.scale[:, chosen]
    scores = normal_log_densities(z[:, np.newaxis, chosen], loc, scale).sum(axis=2)
    values: np.ndarray = special.logsumexp(scores, axis=1) - math.log(len(loc))
    return values


def _log_likelihood(case: Case, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    values: np.ndarray = normal_log_densities(x, z @ case.weights.T, case.noise).sum(axis=-1)
    return values


def _error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values)))


def _split(total: int, most: int) -> Iterator[int]:
    for start in range(0, total, most):
        yield min(most, total - start)
