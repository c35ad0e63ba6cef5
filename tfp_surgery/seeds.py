"""Named random streams: independent random numbers for every use of one seed."""

from __future__ import annotations

import operator
import zlib
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

Seed: TypeAlias = int | tuple[int, int]

MAX_SEED = 2**31 - 1  # TFP's stateless seeds are int32

# Each name is used in one place. Data sets have their own register (`dataset_draws`), so that their
# draws never change; its numbers differ from the hashes of all names here.
STREAMS = frozenset(
    {
        "annealing/adaptation",
        "annealing/forward",
        "annealing/reverse",
        "annealing/simulation",
        "autoregressive_prior/first_quantiles",
        "control_variates/folds",
        "elbo/codes",
        "elbo_surgery/codes",
        "elbo_surgery/components",
        "elbo_surgery/subset",
        "exemplar_prior/initial_codes",
        "experiments/learned_priors/codes",
        "experiments/learned_priors/images",
        "experiments/log_evidence/refined",
        "experiments/minibatch_bias/codes",
        "experiments/minibatch_bias/exact_codes",
        "experiments/minibatch_bias/minibatches",
        "experiments/minibatch_bias/posteriors",
        "experiments/priors/audit/codes",
        "experiments/priors/audit/decoded",
        "experiments/priors/audit/surgery",
        "experiments/priors/families/observations",
        "experiments/trained_model/images",
        "experiments/vae_figures/aggregate_codes",
        "experiments/vae_figures/prior_codes",
        "experiments/vae_figures/subset",
        "fit_prior/codes",
        "fit_prior/initial_codes",
        "fit_prior/looks",
        "fit_prior/validation_codes",
        "generative_mutual_information/codes",
        "generative_mutual_information/inner_codes",
        "importance_sampling/codes",
        "importance_weighted_elbo/codes",
        "inference_gaps/codes",
        "iwae/codes",
        "minibatch_mutual_information/batches",
        "minibatch_mutual_information/codes",
        "mixture_prior/em",
        "mutual_information_bounds/batches",
        "mutual_information_bounds/codes",
        "observation_prior/subset",
        "probe",
        "refined_posteriors/codes",
        "resampled/normalizer",
        "resampled_prior/normalizer",
        "resampled_prior/training_normalizer",
        "training/evaluation",
        "training/step",
        "vamp_prior/pseudo_inputs",
    }
)


def checked_seed(seed: Any, name: str = "seed") -> Seed:
    """Checks that a seed is an integer or a stateless TFP seed.

    Args:
      seed: An integer in [0, 2**31), or a pair of int32 as a sequence, array or `Tensor`.
      name: Name of the argument, for error messages.

    Returns:
      The seed as a JSON-ready `int` or tuple of two `int`s.

    Raises:
      TypeError: If `seed` is neither an integer nor a pair of integers.
      ValueError: If `seed` is out of range.
    """
    try:
        number = None if isinstance(seed, bool) else operator.index(seed)
    except TypeError:
        number = None
    if number is not None:
        if not 0 <= number <= MAX_SEED:
            raise ValueError(f"{name} must be at least 0 and at most {MAX_SEED}, got {number}.")
        return number
    pair = np.asarray(seed)
    if pair.shape != (2,) or not np.issubdtype(pair.dtype, np.integer):
        raise TypeError(
            f"{name} must be an integer or a pair of int32, as tfp.random takes it; got {seed!r}."
        )
    limits = np.iinfo(np.int32)
    if not ((pair >= limits.min) & (pair <= limits.max)).all():
        raise ValueError(f"{name} must hold two int32, got {seed!r}.")
    return int(pair[0]), int(pair[1])


def key(seed: Seed, name: str, *numbers: Any) -> tf.Tensor:
    """Returns the stateless seed of a stream.

    Args:
      seed: Seed from `checked_seed`.
      name: Name of the stream, one of `STREAMS`.
      *numbers: Integers or scalar integer `Tensor`s to fold in, such as the number of a step.

    Returns:
      int32 `Tensor`, shape `[2]`.

    Raises:
      KeyError: If `name` is not in `STREAMS`.
    """
    result = tf.constant(_entropy(seed, name).generate_state(2).view(np.int32))
    for number in numbers:
        result = fold_in(result, number)
    return result


def pair(seed: Any, name: str) -> Any:
    """Returns the stateless seed of a call that may be given an integer or a TFP seed.

    Args:
      seed: See `checked_seed`; or a symbolic `Tensor`.
      name: Name of the stream used for an integer, one of `STREAMS`.

    Returns:
      A pair of int32: `key(seed, name)` for an integer, otherwise the given pair.
    """
    if not tf.is_tensor(seed):
        seed = checked_seed(seed)
    return key(seed, name) if isinstance(seed, int) else seed


def fold_in(key: tf.Tensor, number: Any) -> tf.Tensor:
    """Returns a stateless seed that depends on `key` and `number`, such as that of a step."""
    return tf.random.experimental.stateless_fold_in(key, number)


def generator(seed: Seed, name: str, *numbers: int) -> np.random.Generator:
    """Returns the NumPy generator of a stream; see `key` for the arguments."""
    return np.random.default_rng(_entropy(seed, name, *numbers))


def _entropy(seed: Seed, name: str, *numbers: int) -> np.random.SeedSequence:
    if name not in STREAMS:
        raise KeyError(f"{name} is not in the register of random streams (tfp_surgery.seeds).")
    parts = (seed,) if isinstance(seed, int) else seed
    words = [part % 2**32 for part in (*parts, *numbers)]
    # A SeedSequence ignores trailing zeros, so that the lengths come first.
    return np.random.SeedSequence((zlib.crc32(name.encode()), len(parts), len(numbers), *words))
