"""Checks that posterior and prior are both probability masses or both densities.

TFP's `log_prob` is the logarithm of either, and the two have no common unit. The KL from a
posterior with point masses to a prior with a density is infinite, even if the difference of their
`log_prob`s is finite.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.tfp_internals import DiscreteDistributionMixin

tfb = tfp.bijectors
tfd = tfp.distributions

_MASSES = (
    DiscreteDistributionMixin,
    tfd.Deterministic,
    tfd.VectorDeterministic,
    tfd.PoissonLogNormalQuadratureCompound,
)
# Attributes that hold the distributions of the events.
_CONTENTS = (
    "components_distribution",
    "components",
    "distributions",
    "joint",
    "distribution",
    "base_distribution",
    "aggregate_posterior",
    "observation_distribution",
)
# Their event distributions are returned by functions, and not inspected.
_UNKNOWN = (tfd.Autoregressive, tfd.JointDistribution, tfd.MarkovChain, tfd.PixelCNN)
_OF_TFP = ("tensorflow_probability.", "tfp_surgery.")
_ABSTRACT = {*tfd.Distribution.__mro__, *tfd.AutoCompositeTensorDistribution.__mro__}
_SCALES = ("scale", "scale_diag", "scale_tril")
_TRIANGULAR = (tf.linalg.LinearOperatorDiag, tf.linalg.LinearOperatorLowerTriangular)


def measures(distribution: Any) -> frozenset[str]:
    """Returns whether `log_prob` of a distribution is a log mass or a log density.

    Args:
      distribution: A `tfd.Distribution`.

    Returns:
      A subset of {"mass", "density"}: both for a mixture or product of both kinds, empty if
      unknown, as for most classes defined by the user.
    """
    while hasattr(distribution, "tensor_distribution"):  # of tfp.layers
        distribution = distribution.tensor_distribution
    if isinstance(distribution, _UNKNOWN):
        return frozenset()
    if isinstance(distribution, _MASSES):
        return frozenset(["mass"])
    dtype = distribution.dtype
    if not tf.nest.is_nested(dtype):
        dtype = tf.as_dtype(dtype)
    if isinstance(dtype, tf.DType) and (dtype.is_integer or dtype.is_bool):
        return frozenset(["mass"])
    for name in _CONTENTS:
        contents = getattr(distribution, name, None)
        parts = contents if isinstance(contents, (list, tuple)) else [contents]
        if parts and all(isinstance(part, tfd.Distribution) for part in parts):
            return frozenset().union(*map(measures, parts))
    concrete = [kind for kind in type(distribution).__mro__ if kind not in _ABSTRACT]
    is_known = any(kind.__module__.startswith(_OF_TFP) for kind in concrete)
    return frozenset(["density"] if is_known else [])


def check_same_measure(prior: tfd.Distribution, posterior: tfd.Distribution) -> None:
    """Checks that posterior and prior are of one kind, mass or density, and of one measure.

    Args:
      prior: p(z).
      posterior: q(z|x), or a mixture of posteriors.

    Raises:
      ValueError: If one has point masses and the other a density, if the posterior mixes both, if
        one has a density on the simplex as a surface and the other of its coordinates, or one the
        density of a matrix and the other that of its Cholesky factor, or if a scale of either is
        exactly 0.
    """
    of_prior, of_posterior = measures(prior), measures(posterior)
    if of_prior and "mass" in of_posterior - of_prior:
        raise ValueError(
            f"the posterior {_name(posterior)} puts probability on points, and the prior "
            f"{_name(prior)} has a density: KL(q(z|x) || p(z)) is infinite and the ELBO -inf, "
            "whatever log_prob gives. Let the encoder return a distribution with a density, such "
            "as tfd.MultivariateNormalDiag(codes, scales); of an autoencoder whose codes are "
            "points, only the reconstruction can be trained and measured. Integer or one-hot codes "
            "go with a prior of probability masses, such as tfd.OneHotCategorical."
        )
    if of_prior and "density" in of_posterior - of_prior:
        raise ValueError(
            f"the posterior {_name(posterior)} has a density, and the prior {_name(prior)} puts "
            "probability on points alone: KL(q(z|x) || p(z)) is infinite and the ELBO -inf. Let "
            "both be probability masses, or both densities."
        )
    surfaces = _simplex_surfaces(posterior), _simplex_surfaces(prior)
    if surfaces[0] != surfaces[1]:
        through = _name(posterior if surfaces[0] else prior)
        raise ValueError(
            f"the density of {through} is that of tfb.SoftmaxCentered, on the simplex of K "
            f"categories as a surface, and that of {_name(prior if surfaces[0] else posterior)} is "
            "of K - 1 coordinates: the two differ by log(K) / 2 nats, and so would every KL. Let "
            "posterior and prior both be logistic-normal, tfd.TransformedDistribution(gaussian, "
            "tfb.SoftmaxCentered()), or neither."
        )
    factors = _is_factor_of_matrix(posterior), _is_factor_of_matrix(prior)
    if factors[0] != factors[1]:
        raise ValueError(
            f"{_name(posterior if factors[0] else prior)} has input_output_cholesky=True: its "
            "codes are Cholesky factors, but its density is that of the matrix, while that of "
            f"{_name(prior if factors[0] else posterior)} is of the factor itself, so that every "
            "KL would lack the Jacobian. Let posterior and prior both be of that kind, or neither "
            "(tfd.CholeskyLKJ for tfd.LKJ; codes that are matrices for a Wishart)."
        )
    # Only the posterior is checked: its draws hit its own points, but a density's draws never hit
    # the points of a prior.
    if _adds_masses_to_densities(posterior):
        raise ValueError(
            f"the posterior {_name(posterior)} mixes distributions that put probability on points "
            "with others that have densities: TFP's log_prob adds the two, which have no common "
            "unit. Give the points a density too, for instance a narrow Gaussian."
        )
    check_not_singular(posterior, "posterior")
    check_not_singular(prior, "prior")


def _simplex_surfaces(node: Any) -> int:
    """Returns how often a density has the Jacobian of `tfb.SoftmaxCentered`, sqrt(K) too large."""
    if type(node) is tfb.SoftmaxCentered:
        return 1
    if isinstance(node, tfb.Bijector):
        inner = [getattr(node, "bijector", None), *_listed(getattr(node, "bijectors", None))]
        count = sum(map(_simplex_surfaces, inner))
        return -count if isinstance(node, tfb.Invert) else count
    if not isinstance(node, tfd.Distribution):
        return 0
    if hasattr(node, "tensor_distribution"):
        return _simplex_surfaces(node.tensor_distribution)
    for name in _CONTENTS:
        parts = _listed(getattr(node, name, None))
        if parts and all(isinstance(part, tfd.Distribution) for part in parts):
            is_mixture = name in ("components", "components_distribution")
            counts = map(_simplex_surfaces, parts)
            count = max(counts, default=0) if is_mixture else sum(counts)
            return count + _simplex_surfaces(getattr(node, "bijector", None))
    return 0


def _is_factor_of_matrix(node: Any) -> bool:
    """Returns whether codes are Cholesky factors, and densities those of their matrices."""
    if getattr(node, "input_output_cholesky", False):
        return True
    parts = [part for name in _CONTENTS for part in _listed(getattr(node, name, None))]
    parts.append(getattr(node, "tensor_distribution", None))
    return any(_is_factor_of_matrix(part) for part in parts if isinstance(part, tfd.Distribution))


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _adds_masses_to_densities(distribution: Any) -> bool:
    """Returns whether a distribution contains a mixture of masses and densities."""
    while hasattr(distribution, "tensor_distribution"):
        distribution = distribution.tensor_distribution
    for name in _CONTENTS:
        contents = getattr(distribution, name, None)
        parts = contents if isinstance(contents, (list, tuple)) else [contents]
        if parts and all(isinstance(part, tfd.Distribution) for part in parts):
            kinds = {measures(part) for part in parts} - {frozenset()}
            is_mixture = name == "components" and len(kinds) > 1
            return is_mixture or any(map(_adds_masses_to_densities, parts))
    return False


def check_not_singular(distribution: tfd.Distribution, what: str) -> None:
    """Checks that no scale of a density is exactly 0; skips scales without static values.

    Args:
      distribution: A distribution.
      what: Role of the distribution, for error messages.

    Raises:
      ValueError: If a scale is 0, which makes the distribution a point mass.
    """
    problem = _zero_scale(distribution) if "density" in measures(distribution) else ""
    if problem:
        raise ValueError(
            f"the {what} {_name(distribution)} has no density: {problem}, which is a point mass. "
            "Its KL to a density is infinite and the ELBO -inf. Keep the scale above zero, for "
            "instance tfp.bijectors.Softplus(low=1e-4) of what the network gives."
        )


def _zero_scale(node: Any) -> str:
    """Describes the first scale of a distribution or bijector that is 0; empty if none is."""
    for name, value in node.parameters.items():
        for part in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(part, tfd.Distribution | tfb.Bijector):
                problem = _zero_scale(part)
                if problem:
                    return problem
        if name not in _SCALES or value is None or "scale_perturb_factor" in node.parameters:
            continue
        scale = _scale(name, value)
        if scale is not None and (scale == 0).any():
            kind, num_zeros = type(node).__name__, np.sum(scale == 0)
            return f"{name} of {kind} is exactly 0 in {num_zeros} of {scale.size} places"
    return ""


def _scale(name: str, value: Any) -> np.ndarray | None:
    """Returns the scales in a parameter, the diagonal of a triangular one; None if unknown."""
    if isinstance(value, tf.linalg.LinearOperator):
        if not isinstance(value, _TRIANGULAR):
            return None
        value = value.diag_part()
    scale = tf.get_static_value(tf.convert_to_tensor(value))
    if scale is None or not np.issubdtype(scale.dtype, np.number):
        return None
    if name == "scale_tril" and scale.ndim >= 2:
        scale = np.diagonal(scale, axis1=-2, axis2=-1)
    return np.asarray(scale)


def _name(distribution: Any) -> str:
    kind = type(distribution).__name__
    return kind if distribution.name == kind else f"{distribution.name} ({kind})"
