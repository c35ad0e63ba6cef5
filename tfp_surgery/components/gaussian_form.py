"""Gaussians in one form, whatever TFP classes they were written with."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.checks.networks import plain_class, unwrap
from tfp_surgery.components import components as components_lib
from tfp_surgery.tfp_internals import prefer_static as ps

tfb = tfp.bijectors
tfd = tfp.distributions

_DIAGONAL = (
    tf.linalg.LinearOperatorDiag,
    tf.linalg.LinearOperatorIdentity,
    tf.linalg.LinearOperatorScaledIdentity,
)
_TRIANGULAR = tf.linalg.LinearOperatorLowerTriangular


class GaussianForm(NamedTuple):
    """A Gaussian over events of F numbers, in row-major order.

    Attributes:
      loc: The mean, floating `Tensor`, shape `[B..., F]`.
      scale: Standard deviations of either sign, shape `[B..., F]`, or lower triangular L with
        covariance L L^T, shape `[B..., F, F]`.
      is_diagonal: Whether the scale is the former, and the F numbers are independent.
      event_shape: The event shape, whose product is F.
    """

    loc: tf.Tensor
    scale: tf.Tensor
    is_diagonal: bool
    event_shape: tuple[int, ...]

    def scale_tril(self) -> tf.Tensor:
        """The lower triangular scale, shape `[B..., F, F]`."""
        return tf.linalg.diag(self.scale) if self.is_diagonal else self.scale


def gaussian_form(distribution: tfd.Distribution) -> GaussianForm | None:
    """Returns the form of a Gaussian, or None for what is not surely one.

    These are known: `tfd.Normal` and the multivariate normals; `tfd.Independent`, `tfd.Sample` and
    `tfd.BatchBroadcast` of a Gaussian; and a Gaussian transformed by `tfb.Shift`, `tfb.Scale`,
    `tfb.ScaleMatvecDiag`, `tfb.ScaleMatvecTriL`, `tfb.Reshape`, a `tfb.Chain` of these or, where it
    is elementwise, the inverse. Whether a subclass overrides the density is not looked at.

    Args:
      distribution: Any distribution, with batch shape `[B...]` of static rank.

    Returns:
      The form, with full batch shape, or None.
    """
    distribution = unwrap(distribution)
    if tf.nest.is_nested(distribution.dtype) or not tf.as_dtype(distribution.dtype).is_floating:
        return None
    if not distribution.event_shape.is_fully_defined() or distribution.batch_shape.rank is None:
        return None
    form = next(
        (
            convert(distribution)
            for kind, convert in _CONVERSIONS.items()
            if isinstance(distribution, kind)
        ),
        None,
    )
    event_shape = tuple(distribution.event_shape.as_list())
    if form is None or form.event_shape != event_shape:
        return None
    batch_shape = components_lib.batch_shape_tensor(distribution)
    size = [math.prod(event_shape)]
    scale_shape = size if form.is_diagonal else size * 2
    return GaussianForm(
        tf.broadcast_to(form.loc, ps.concat([batch_shape, size], axis=0)),
        tf.broadcast_to(form.scale, ps.concat([batch_shape, scale_shape], axis=0)),
        form.is_diagonal,
        event_shape,
    )


def _of_normal(distribution: Any) -> GaussianForm:
    scale = tf.convert_to_tensor(distribution.scale)
    # TFP's density is NaN where the scale is negative, unlike that of its multivariate normals.
    scale = tf.where(scale < 0, tf.constant(math.nan, scale.dtype), scale)
    loc = tf.convert_to_tensor(distribution.loc)
    return GaussianForm(loc[..., tf.newaxis], scale[..., tf.newaxis], True, ())


def _of_multivariate(distribution: Any) -> GaussianForm:
    operator = distribution.scale
    if isinstance(operator, _DIAGONAL):
        return _vector(distribution, operator.diag_part(), True)
    if isinstance(operator, _TRIANGULAR):
        return _vector(distribution, operator.to_dense(), False)
    # S = (Q R)^T has S S^T = R^T R.
    _, upper = tf.linalg.qr(tf.linalg.matrix_transpose(operator.to_dense()))
    return _vector(distribution, tf.linalg.matrix_transpose(upper), False)


def _of_covariance(distribution: Any) -> GaussianForm:
    scale_tril = tf.linalg.cholesky(distribution.cov_operator.to_dense())
    return _vector(distribution, scale_tril, False)


def _vector(distribution: Any, scale: tf.Tensor, is_diagonal: bool) -> GaussianForm:
    loc = distribution.loc
    loc = tf.zeros([1], distribution.dtype) if loc is None else tf.convert_to_tensor(loc)
    return GaussianForm(loc, scale, is_diagonal, tuple(distribution.event_shape.as_list()))


def _of_independent(distribution: Any) -> GaussianForm | None:
    form = gaussian_form(distribution.distribution)
    if form is None:
        return None
    event_shape = tuple(distribution.event_shape.as_list())
    return _joined(form, event_shape, len(event_shape) - len(form.event_shape))


def _of_sample(distribution: Any) -> GaussianForm | None:
    form = gaussian_form(distribution.distribution)
    if form is None:
        return None
    event_shape = tuple(distribution.event_shape.as_list())
    sample_shape = event_shape[: len(event_shape) - len(form.event_shape)]
    batch_ndims = form.loc.shape.rank - 1

    def repeated(part: tf.Tensor) -> tf.Tensor:  # [B..., F...] -> [B..., S..., F...]
        shape = ps.shape(part)
        batch, size = shape[:batch_ndims], shape[batch_ndims:]
        part = tf.reshape(part, ps.concat([batch, [1] * len(sample_shape), size], axis=0))
        return tf.broadcast_to(part, ps.concat([batch, sample_shape, size], axis=0))

    wide = form._replace(loc=repeated(form.loc), scale=repeated(form.scale))
    return _joined(wide, event_shape, len(sample_shape))


def _joined(form: GaussianForm, event_shape: tuple[int, ...], ndims: int) -> GaussianForm:
    """Moves the last `ndims` batch dimensions, of R elements, into the event."""
    batch_shape = ps.shape(form.loc)[: form.loc.shape.rank - 1 - ndims]
    size = math.prod(form.event_shape)
    number = math.prod(event_shape) // max(size, 1)
    loc = tf.reshape(form.loc, ps.concat([batch_shape, [number * size]], axis=0))
    if form.is_diagonal:
        return GaussianForm(loc, tf.reshape(form.scale, ps.shape(loc)), True, event_shape)
    blocks = tf.reshape(form.scale, ps.concat([batch_shape, [number, size, size]], axis=0))
    apart = tf.eye(number, dtype=blocks.dtype)[:, tf.newaxis, :, tf.newaxis]  # [R, 1, R, 1]
    dense = blocks[..., tf.newaxis, :] * apart  # [B..., R, F, R, F]
    scale = tf.reshape(dense, ps.concat([batch_shape, [number * size] * 2], axis=0))
    return GaussianForm(loc, scale, False, event_shape)


def _of_inner(distribution: Any) -> GaussianForm | None:
    return gaussian_form(distribution.distribution)


def _of_transformed(distribution: Any) -> GaussianForm | None:
    form = gaussian_form(distribution.distribution)
    bijector = distribution.bijector
    if form is None or bijector.forward_min_event_ndims > len(form.event_shape):
        return None
    return _transformed(form, bijector, False)


def _transformed(form: GaussianForm, bijector: Any, inverse: bool) -> GaussianForm | None:
    """Returns the form of what a bijector, or its inverse, makes of a Gaussian."""
    if not type(bijector).__module__.startswith("tensorflow_probability."):
        return None
    if isinstance(bijector, tfb.Identity):
        return form
    if isinstance(bijector, plain_class(tfb.Invert)):
        return _transformed(form, bijector.bijector, not inverse)
    if isinstance(bijector, plain_class(tfb.Chain)):
        done: GaussianForm | None = form
        for part in bijector.bijectors if inverse else bijector.bijectors[::-1]:
            done = None if done is None else _transformed(done, part, inverse)
        return done
    if isinstance(bijector, tfb.Reshape):
        to_shape = bijector.inverse_event_shape if inverse else bijector.forward_event_shape
        event_shape = to_shape(tf.TensorShape(form.event_shape))
        if not event_shape.is_fully_defined():
            return None
        return form._replace(event_shape=tuple(event_shape.as_list()))
    if isinstance(bijector, tfb.Shift):
        shift = _flat(bijector.shift, form)
        if shift is None:
            return None
        return form._replace(loc=form.loc - shift if inverse else form.loc + shift)
    if isinstance(bijector, tfb.Scale):
        scale = bijector.scale if bijector.scale is not None else tf.exp(bijector.log_scale)
        return _scaled(form, scale, inverse)
    if isinstance(bijector, tfb.ScaleMatvecLinearOperator) and form.event_shape:
        if isinstance(bijector.scale, _DIAGONAL):
            return _scaled(form, bijector.scale.diag_part(), inverse)
        if isinstance(bijector.scale, _TRIANGULAR) and not (inverse or bijector.adjoint):
            return _multiplied(form, bijector.scale.to_dense())
    return None


def _scaled(form: GaussianForm, factor: Any, inverse: bool) -> GaussianForm | None:
    factor = _flat(factor, form)
    if factor is None:
        return None
    factor = 1.0 / factor if inverse else factor
    rows = factor if form.is_diagonal else factor[..., tf.newaxis]
    return form._replace(loc=factor * form.loc, scale=rows * form.scale)


def _multiplied(form: GaussianForm, matrix: tf.Tensor) -> GaussianForm | None:
    """Multiplies vectors by a lower triangular matrix, shape `[..., D, D]`."""
    if len(form.event_shape) != 1 or matrix.shape[-1] != form.event_shape[0]:
        return None
    scale = matrix * form.scale[..., tf.newaxis, :] if form.is_diagonal else matrix @ form.scale
    return form._replace(loc=tf.linalg.matvec(matrix, form.loc), scale=scale, is_diagonal=False)


def _flat(parameter: Any, form: GaussianForm) -> tf.Tensor | None:
    """Returns a parameter `[..., E...]` as `[..., F]`; None if it would widen the event."""
    parameter = tf.convert_to_tensor(parameter)
    if parameter.shape.rank is None:
        return None
    event_ndims = len(form.event_shape)
    tail = parameter.shape[max(parameter.shape.rank - event_ndims, 0) :]
    if not tail.is_fully_defined() or len(tail) > event_ndims:
        return None
    sizes = zip(tail, form.event_shape[event_ndims - len(tail) :], strict=True)
    if any(size not in (1, event_size) for size, event_size in sizes):
        return None
    shape = ps.shape(parameter)
    batch_shape = shape[: parameter.shape.rank - len(tail)]
    full = tf.broadcast_to(parameter, ps.concat([batch_shape, form.event_shape], axis=0))
    return tf.reshape(full, ps.concat([batch_shape, [math.prod(form.event_shape)]], axis=0))


# The first that fits: the multivariate normals are transformed distributions too.
_CONVERSIONS: dict[Any, Callable[[Any], GaussianForm | None]] = {
    tfd.Normal: _of_normal,
    tfd.MultivariateNormalLinearOperator: _of_multivariate,
    tfd.MultivariateNormalDiagPlusLowRankCovariance: _of_covariance,
    plain_class(tfd.Independent): _of_independent,
    plain_class(tfd.Sample): _of_sample,
    plain_class(tfd.BatchBroadcast): _of_inner,
    plain_class(tfd.TransformedDistribution): _of_transformed,
}
