"""with_flat_events: a distribution over vectors in place of one over events of any shape."""

from __future__ import annotations

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks.networks import plain_class, unwrap
from tfp_surgery.components import components as components_lib
from tfp_surgery.components.divergence import has_density_of_its_own
from tfp_surgery.components.gaussian_form import gaussian_form
from tfp_surgery.components.group_marginals import has_group_marginals

tfd = tfp.distributions

_INDEPENDENT = plain_class(tfd.Independent)


def with_flat_events(distribution: tfd.Distribution) -> tfd.Distribution:
    """Returns the distribution of the event as a vector of its D numbers, in row-major order.

    Args:
      distribution: A Gaussian in whatever classes it is written, or independent scalars: a scalar
        distribution, or `tfd.Independent` over one. Batch shape `[B...]`, event shape `[E...]`.

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
