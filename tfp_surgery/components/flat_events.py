"""with_flat_events: a distribution over vectors in place of one over events of any shape."""

from __future__ import annotations

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks.networks import plain_class, unwrap
from tfp_surgery.components import components as components_lib
from tfp_surgery.components.divergence import has_density_of_its_own
from tfp_surgery.components.flat_joint import FlatJoint
from tfp_surgery.components.gaussian_form import GaussianForm, gaussian_form
from tfp_surgery.components.group_marginals import has_group_marginals

tfd = tfp.distributions

_INDEPENDENT = plain_class(tfd.Independent)
_BLOCKWISE = plain_class(tfd.Blockwise)
_DIAGONAL = ("loc", "scale")


def with_flat_events(distribution: tfd.Distribution) -> tfd.Distribution:
    """Returns the distribution of the event as a vector of its D numbers, in row-major order.

    Args:
      distribution: A Gaussian in whatever classes it is written; independent parts that are each a
        Gaussian with independent dimensions (`tfd.Blockwise`, a joint distribution); or independent
        scalars: a scalar distribution, or `tfd.Independent` over one. Batch shape `[B...]`, event
        shape `[E...]`.

    Returns:
      The same distribution over vectors, whose marginals are known (see `group_marginal`), batch
      shape `[B...]`, event shape `[D]`.

    Raises:
      NotImplementedError: If it is of another family.
    """
    distribution = unwrap(distribution)
    if has_group_marginals(distribution):
        return distribution
    rank = components_lib.event_rank(distribution)
    if not has_density_of_its_own(distribution):
        form = gaussian_form(distribution)
        if form is not None and form.is_diagonal:
            return tfd.MultivariateNormalDiag(form.loc, tf.abs(form.scale))
        if form is not None:
            return tfd.MultivariateNormalTriL(form.loc, form.scale_tril())
        parts = _gaussian_parts(distribution)
        if parts:
            loc, scale = (tf.concat([getattr(p, name) for p in parts], -1) for name in _DIAGONAL)
            return tfd.MultivariateNormalDiag(loc, tf.abs(scale))
    if isinstance(distribution, _INDEPENDENT) and distribution.distribution.event_shape.rank == 0:
        scalar = components_lib.broadcast(unwrap(distribution.distribution))
    elif rank == 0:
        scalar = components_lib.broadcast(distribution)
    else:
        raise NotImplementedError(
            f"the marginals of {type(distribution).__name__} over events of shape "
            f"{distribution.event_shape} are not known here; they are for Gaussians and for "
            "tfd.Independent over scalars."
        )
    batch_ndims = components_lib.batch_rank(distribution)

    def flat(leaf: tf.Tensor) -> tf.Tensor:
        shape = tf.shape(leaf)
        # [B..., E..., P...] -> [B..., D, P...]
        return tf.reshape(
            leaf, tf.concat([shape[:batch_ndims], [-1], shape[batch_ndims + rank :]], axis=0)
        )

    leaves = [flat(leaf) for leaf in components_lib.leaves(scalar)]
    return tfd.Independent(components_lib.with_leaves(scalar, leaves), 1)


def _gaussian_parts(distribution: tfd.Distribution) -> list[GaussianForm]:
    """Returns the forms of parts that are all diagonal Gaussians; empty for anything else."""
    if not isinstance(distribution, FlatJoint | _BLOCKWISE) or not distribution.distributions:
        return []
    shape = components_lib.batch_shape_tensor(distribution)
    forms = []
    for part in distribution.distributions:
        form = gaussian_form(part)
        if form is None or not form.is_diagonal or part.dtype != distribution.dtype:
            return []
        full = tf.concat([shape, [form.loc.shape[-1]]], axis=0)
        forms.append(
            form._replace(
                loc=tf.broadcast_to(form.loc, full), scale=tf.broadcast_to(form.scale, full)
            )
        )
    return forms
