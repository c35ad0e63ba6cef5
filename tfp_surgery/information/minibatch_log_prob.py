"""Estimates of log q(z) from the posteriors of a minibatch."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks import arrays
from tfp_surgery.checks.arguments import checked_integer
from tfp_surgery.components import components as components_lib
from tfp_surgery.components import marginals as marginals_lib

tfd = tfp.distributions

METHODS = ("full", "batch", "mws", "mss", "partially_stratified")


def minibatch_log_prob(
    z: Any, components: tfd.Distribution, num_observations: int, method: str = "mss"
) -> tf.Tensor:
    r"""Estimates log q(z_b) of a data set of N from the B posteriors of one minibatch.

    Use it in training objectives; to measure, use `AggregatePosterior.log_prob`, which is exact.
    Code b is drawn from posterior b. Every method is a weighted sum over the minibatch,

        log q(z_b) ~ log sum_b' w_bb' q(z_b|x_b'),

    with the weights:

    | method                 | w_bb    | w_bb', b' != b                                    |
    | ---------------------- | ------- | ------------------------------------------------- |
    | "full"                 | 1/N     | 1/N; needs B = N                                  |
    | "batch"                | 1/B     | 1/B                                               |
    | "mws"                  | 1/(N B) | 1/(N B)                                           |
    | "mss"                  | 1/N     | 1/M, but (N-M)/(N M) at b' = b + 1; here M = B - 1 |
    | "partially_stratified" | 1/N     | (N-1)/(N (B-1))                                   |

    "mws" and "mss" are minibatch-weighted and minibatch-stratified sampling (Chen et al. 2018,
    equation 3 and appendix C; b + 1 is taken modulo B). "partially_stratified" is the estimate of
    Esmaeili et al. (2019). "batch" uses the minibatch as if it were the data set.

    If the minibatch is drawn uniformly without replacement and in random order, the mean of
    log q(z_b|x_b) - log q(z_b) estimates the index-code mutual information I(n; z). Its ceiling,
    which no draw exceeds, and the bias of its expectation are:

    | method                 | ceiling  | bias of the mutual information                     |
    | ---------------------- | -------- | -------------------------------------------------- |
    | "full"                 | log N    | 0                                                  |
    | "batch"                | log B    | in [log B - log N, 0]: a lower bound               |
    | "mws"                  | log(N B) | in [log B, log N]: log N where posteriors coincide |
    | "mss"                  | log N    | in [0, log N - I(n; z)]: an upper bound            |
    | "partially_stratified" | log N    | in [0, log N - I(n; z)]: an upper bound            |

    The last two are unbiased for q(z), but underestimate log q(z) by Jensen's inequality. "mws" is
    "batch" shifted by log N: if posteriors overlap, it estimates log q(z) - log N. Differences of
    such estimates, for instance total correlations, can have biases of either sign. All biases
    depend on the posteriors, so that none is harmless in an objective.

    Args:
      z: Codes, shape `[S..., B, E...]`; `z[..., b, :]` is drawn from component b.
      components: The posteriors of the minibatch, batch shape `[B]`. Parameters in float16 or
        bfloat16 and the codes with them are cast to float32.
      num_observations: N.
      method: One of `METHODS`.

    Returns:
      Floating `Tensor`, shape `[S..., B]`, in nats, differentiable in `z` and the parameters of the
      components. Memory is that of an array `[S..., B, B, E...]`. B may be unknown while tracing,
      except for "full"; the two stratified methods then give log q(z|x_1) - log N if B = 1.

    Raises:
      TypeError: If the components are not a distribution over single tensors, or N is not an
        integer.
      ValueError: If the method is unknown, the batch shape is not `[B]`, z does not fit, B > N,
        B < 2 for a stratified method, or B is not N for "full".

    #### References

    Ricky T. Q. Chen, Xuechen Li, Roger Grosse and David Duvenaud. Isolating sources of
    disentanglement in variational autoencoders. NeurIPS, 2018.

    Babak Esmaeili et al. Structured disentangled representations. AISTATS, 2019.
    """
    components, z = _checked_codes(z, components)
    event_ndims = components_lib.event_rank(components)
    log_weights = _log_weights(components, num_observations, method)  # [B, B]
    # [S..., B, E...] -> [S..., B, 1, E...], which components [B] score as [S..., B, B].
    log_densities = components.log_prob(tf.expand_dims(z, -1 - event_ndims))
    return tf.reduce_logsumexp(log_densities + log_weights, axis=-1)


def minibatch_marginal_log_prob(
    z: Any, components: tfd.Distribution, num_observations: int, method: str = "mss"
) -> tf.Tensor:
    r"""Estimates log q(z_bj) of every dimension j from the B posteriors of one minibatch.

    Applies `minibatch_log_prob` to each of the D one-dimensional aggregate posteriors. The total
    correlation that beta-TCVAE penalises (Chen et al. 2018, equation 2) is the mean of

        minibatch_log_prob(z, ...) - tf.reduce_sum(minibatch_marginal_log_prob(z, ...), axis=-1).

    The biases of `minibatch_log_prob` apply to each dimension and add up over the D terms of the
    sum, so that the estimated total correlation can be too high ("mws": by (D-1) log N if
    posteriors coincide) or negative.

    Args:
      z: Codes, shape `[S..., B, D]`; `z[..., b, :]` is drawn from component b.
      components: The posteriors of the minibatch, batch shape `[B]`, event shape `[D]`.
      num_observations: N.
      method: One of `METHODS`.

    Returns:
      Floating `Tensor`, shape `[S..., B, D]`, in nats.

    Raises:
      TypeError: See `minibatch_log_prob`.
      ValueError: See `minibatch_log_prob`, or if events are not vectors.
      NotImplementedError: If the marginals of the components are not implemented. They are for
        Gaussians, `tfd.Independent` over one dimension and `tfd.Dirichlet`.
    """
    components, z = _checked_codes(z, components)
    log_weights = _log_weights(components, num_observations, method)[:, tf.newaxis]  # [B, 1, B]
    marginals = marginals_lib.one_dimensional_marginals(components_lib.broadcast(components))
    # [S..., B, D] -> [S..., B, D, 1], which marginals [D, B] score as [S..., B, D, B].
    log_densities = marginals.log_prob(z[..., tf.newaxis])
    return tf.reduce_logsumexp(log_densities + log_weights, axis=-1)


def mutual_information_ceiling(method: str, batch_size: int, num_observations: int) -> float:
    """Returns the ceiling of minibatch estimates of the index-code mutual information.

    Args:
      method: One of `METHODS`; see `minibatch_log_prob`.
      batch_size: B.
      num_observations: N.

    Returns:
      log N, log B or log(N B), in nats.

    Raises:
      TypeError: If a size is not an integer.
      ValueError: If the method is unknown, or the sizes are not valid for it.
    """
    batch_size = checked_integer("batch_size", batch_size, 1)
    num_observations = _checked_sizes(method, batch_size, num_observations)
    if method == "batch":
        return math.log(batch_size)
    return math.log(num_observations) + (math.log(batch_size) if method == "mws" else 0.0)


def checked_posteriors(components: Any) -> tfd.Distribution:
    """Checks that a distribution is a batch of posteriors, one per observation.

    Args:
      components: The distribution.

    Returns:
      The unwrapped distribution with parameters in float32 or wider.

    Raises:
      TypeError: If it is not a distribution over single tensors that declares its parameters.
      ValueError: If its batch shape is not `[B]`.
    """
    components = components_lib.prepare(components, "components")
    if components_lib.batch_rank(components) != 1:
        raise ValueError(
            "components must be a batch of posteriors, one an observation, but its "
            f"batch shape is {components.batch_shape}."
        )
    return components


def _checked_codes(z: Any, components: Any) -> tuple[tfd.Distribution, tf.Tensor]:
    """Checks the components and z; returns both, z `[S..., B, E...]` cast to their dtype."""
    components = checked_posteriors(components)
    arrays.reject_missing("z", z)
    if getattr(z, "dtype", None) in (tf.float16, tf.bfloat16):
        z = tf.cast(z, components.dtype)
    z = tf.convert_to_tensor(z, dtype=components.dtype, name="z")
    if z.shape.rank is None:
        raise ValueError("the rank of z must be known statically.")
    expected = components.batch_shape.concatenate(components.event_shape)
    given = z.shape[max(0, z.shape.rank - expected.rank) :]
    if not given.is_compatible_with(expected):
        raise ValueError(
            f"z of shape {z.shape} does not end in {expected}, the batch and event shape of the "
            "components: z[..., b, :] belongs to component b."
        )
    return components, z


def _checked_sizes(method: str, batch_size: int | None, num_observations: Any) -> int:
    """Checks N against the method and B (None if unknown) and returns N."""
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}.")
    stratified = method in ("mss", "partially_stratified")
    num = checked_integer("num_observations", num_observations, 2 if stratified else 1)
    if method == "full" and batch_size != num:
        raise ValueError(
            f'"full" needs the posteriors of all N = {num} observations, got a minibatch '
            f'of {"unknown size" if batch_size is None else batch_size}; "batch" takes a '
            "minibatch for the data set."
        )
    if batch_size is not None and batch_size > num:
        raise ValueError(f"a minibatch of {batch_size} exceeds num_observations = {num}.")
    if batch_size is not None and batch_size < (2 if stratified else 1):
        raise ValueError(f'"{method}" needs a larger minibatch, got one of {batch_size}.')
    return num


def _log_weights(components: tfd.Distribution, num_observations: Any, method: str) -> tf.Tensor:
    """Returns log w_bb', shape `[B, B]`, in the dtype of the components' densities."""
    num_observations = _checked_sizes(method, components.batch_shape[0], num_observations)
    dtype = components_lib.dtype_of(components)
    batch_size = components_lib.num_components(components)
    size = tf.cast(batch_size, dtype)
    log_size, log_others = tf.math.log(size), tf.math.log(size - 1.0)
    log_n = tf.constant(math.log(num_observations), dtype)
    shape = tf.stack([batch_size, batch_size])
    if method in ("full", "batch"):
        return tf.fill(shape, -log_size)
    if method == "mws":
        return tf.fill(shape, -log_n - log_size)
    column = tf.range(batch_size)
    row = column[:, tf.newaxis]
    if method == "mss":
        # The weights of a row sum to one: 1/N + (M-1)/M + (N-M)/(N M).
        last = tf.math.log(tf.cast(num_observations + 1, dtype) - size) - log_n - log_others
        rest = tf.where(column == (row + 1) % batch_size, last, -log_others)
    else:
        rest = tf.fill(
            shape, tf.math.log1p(tf.constant(-1.0 / num_observations, dtype)) - log_others
        )
    return tf.where(column == row, -log_n, rest)
