"""Estimates the log evidence of every observation by annealed importance sampling with HMC."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow_probability as tfp

from tfp_surgery.components.encoding import read_condition
from tfp_surgery.evidence.annealed_chains import AnnealedChains, Annealing
from tfp_surgery.evidence.annealed_model import annealed_model, check_densities
from tfp_surgery.evidence.log_evidence import (
    LogEvidence,
    RunningWeights,
    warn_of_few_samples,
)
from tfp_surgery.observations import read_observations

tfd = tfp.distributions


def log_evidence_by_annealed_importance_sampling(
    x: Any,
    decoder: Callable[..., tfd.Distribution],
    prior: tfd.Distribution | Callable[..., tfd.Distribution],
    *,
    num_temperatures: int = 500,
    num_chains: int = 16,
    num_leapfrog_steps: int = 10,
    seed: Any = 0,
    batch_size: int | None = None,
    condition: Any = None,
) -> LogEvidence:
    r"""Estimates log p(x_n) of every observation by annealed importance sampling.

    Chains start at z_0 ~ p(z) and move through pi_t(z) proportional to p(z) p(x|z)^beta_t, with
    beta_0 = 0 and beta_T = 1, by one step of Hamiltonian Monte Carlo each. The weight of a chain,

        log w = sum_{t=1}^T (beta_t - beta_{t-1}) log p(x|z_{t-1}),

    is unbiased, E[w] = p(x) (Neal 2001), so that log 1/C sum_c w_c over C chains is, in
    expectation, a lower bound on log p(x). It needs no encoder, and can find posterior mass that
    q(z|x) does not cover and that importance sampling from q(z|x) misses (Wu et al. 2017).

    The inverse temperatures are sigmoidal (Grosse et al. 2015). Separate chains run first to adapt
    the step size of each temperature and observation to an acceptance rate of 0.65. The step sizes
    are then fixed, because weights of chains that adapt to their own past are biased. (The weights
    of `tfp.mcmc.sample_annealed_importance_chain` of TFP 0.25 are also biased for finite T: its
    kernel compares the density of the proposal with that of the current state at the previous
    temperature.)

    Chains move in the unconstrained space of the prior's default bijector, which does not change
    the evidence. The bijector is checked on draws of the prior. In TFP 0.25 those of distributions
    on spheres, `tfd.WishartTriL` and `tfd.LKJ` fail; use `log_evidence_by_importance_sampling` for
    these priors. For mixtures (`tfd.MixtureSameFamily`, `tfd.Mixture`), the bijector is that of the
    components, which must share one support. A structured code moves part by part, under a prior
    that is a joint distribution of independent parts.

    Standard errors and intervals refer to the expectation of the bound for these T and C, not to
    log p(x); see `LogEvidence` for their coverage.

    Args:
      x: The data set: array-like of shape `[N, *event_shape]`, a structure of these, or a
        `tfp_surgery.datasets.Dataset`; see `read_observations`. A stochastic binarization is drawn
        once, from `seed`.
      decoder: Callable from codes `[B, *code_shape]` to a `tfd.Distribution` over observations with
        batch shape `[B]` and event shape `event_shape`, made of differentiable operations that XLA
        compiles.
      prior: `tfd.Distribution` over continuous codes with batch shape `[]`, or a callable that
        returns one. A callable that takes the condition returns one distribution for each, batch
        shape `[B]`, whose supports may differ in their limits only.
      num_temperatures: T, at least 1. With 1, this is importance sampling from the prior.
      num_chains: C, at least 1. With 1, the standard errors are NaN.
      num_leapfrog_steps: Number of leapfrog steps per HMC step, at least 1.
      seed: Integer in [0, 2**31), or a pair of int32. The same seed and `batch_size` give the
        same draws.
      batch_size: Number of codes, over chains and observations, moved at a time (at least the C
        of one observation); None for as many as fit, four times over, in 32 MiB by their shapes,
        whatever the machine is.
      condition: What decoder and prior may depend on beside z: array-like of shape `[N, ...]`, or a
        structure of these. Those of them that have a keyword argument `condition` get the
        conditions of their batch, repeated in step with the codes. The evidence is then p(x_n|c_n).

    Returns:
      `LogEvidence`, a stochastic lower bound, with acceptance rates.

    Raises:
      TypeError: If decoder or prior do not return distributions, if none of them takes the
        condition, if HMC cannot move the codes (discrete parts, parts that depend on others), if
        the bijector of the prior fails its checks, or if decoder or prior do not consist of
        TensorFlow operations that XLA compiles.
      ValueError: If x is empty, not finite or outside the support of the likelihood, if shapes do
        not fit, if a number is out of range, or if a log density is NaN.

    Warns:
      UserWarning: If the effective sample size of the chains of an observation is below 10 and
        below C / 2, or if the dtype rounds more than 1% of the codes of the prior to the border of
        its support, from where HMC cannot move them.

    #### References

    Radford M. Neal. Annealed importance sampling. Statistics and Computing 11, 2001.

    Yuhuai Wu, Yuri Burda, Ruslan Salakhutdinov, Roger Grosse. On the quantitative analysis of
    decoder-based generative models. ICLR 2017.

    Roger B. Grosse, Zoubin Ghahramani, Ryan P. Adams. Sandwiching the marginal likelihood using
    bidirectional Monte Carlo. arXiv:1511.02543, 2015.
    """
    settings = Annealing(num_temperatures, num_chains, num_leapfrog_steps, seed, batch_size)
    observations = read_observations(x, settings.seed)
    num_observations = len(observations)
    model = annealed_model(decoder, prior, read_condition(condition, num_observations))
    settings = settings.for_codes(check_densities(observations, model, settings.num_chains))
    chains = AnnealedChains(model, settings)
    weights = RunningWeights(num_observations, settings.num_chains, 1, model.prior.dtype)
    rates = np.empty([settings.num_temperatures, num_observations])
    for step, batch in chains.batches(observations):
        step_sizes = chains.adapted_step_sizes(batch)
        weighed = chains.run_forward(batch, step_sizes)
        weights.add(slice(0, settings.num_chains), step.rows, weighed.log_weights[:, step.new])
        rates[:, step.rows] = weighed.acceptance_rates[:, step.new]
    result = weights.log_evidence(
        "lower",
        method=settings.describe(),
        data=observations.data + model.taking,
        seed=settings.seed,
        acceptance_rates=rates,
    )
    warn_of_few_samples(result, stacklevel=3)
    return result
