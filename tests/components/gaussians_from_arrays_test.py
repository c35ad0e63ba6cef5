from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_surgery.components.gaussians_from_arrays import gaussians_from_arrays

tfd = tfp.distributions

N, D = 5, 3
_RNG = np.random.default_rng(0)
LOC, SCALE = _RNG.normal(size=(N, D)), np.exp(_RNG.normal(size=(N, D)))
TRIL = np.tril(_RNG.normal(size=(N, D, D)), -1) + SCALE[:, :, None] * np.eye(D)


class _Foreign:
    """An array of another library, which NumPy takes through `__array__`."""

    def __init__(self, array: np.ndarray, requires_grad: bool = False) -> None:
        self._array, self._requires_grad = array, requires_grad

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        if self._requires_grad:
            raise RuntimeError(
                "Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() "
                "instead."
            )
        return self._array


class _OnlyDlpack:
    """An array that is handed over through DLPack alone."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self._array.__dlpack__(**kwargs)

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()


@pytest.mark.parametrize(
    "width",
    [{"scale": SCALE}, {"variance": SCALE**2}, {"log_variance": 2 * np.log(SCALE)}],
    ids=lambda width: next(iter(width)),
)
@pytest.mark.parametrize("size", [D, None])
def test_each_word_means_what_it_says(width: dict[str, np.ndarray], size: int | None) -> None:
    column = slice(None) if size else 0
    posteriors = gaussians_from_arrays(
        loc=LOC[:, column], **{name: value[:, column] for name, value in width.items()}
    )
    assert type(posteriors) is (tfd.MultivariateNormalDiag if size else tfd.Normal)
    assert posteriors.batch_shape == [N]
    assert posteriors.dtype == tf.float64
    np.testing.assert_array_equal(posteriors.mean(), LOC[:, column])
    np.testing.assert_allclose(posteriors.stddev(), SCALE[:, column], rtol=1e-14)


def test_scale_tril_gives_the_covariance() -> None:
    posteriors = gaussians_from_arrays(loc=LOC, scale_tril=TRIL)
    assert type(posteriors) is tfd.MultivariateNormalTriL
    np.testing.assert_array_equal(posteriors.mean(), LOC)
    expected = np.einsum("nij,nkj->nik", TRIL, TRIL)
    np.testing.assert_allclose(posteriors.covariance(), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("foreign", [_Foreign, _OnlyDlpack, tf.constant, np.ndarray.tolist])
def test_arrays_of_any_library(foreign: Any) -> None:
    loc, scale = LOC.astype(np.float32), SCALE.astype(np.float32)
    posteriors = gaussians_from_arrays(loc=foreign(loc), scale=foreign(scale))
    assert posteriors.dtype == tf.float32
    np.testing.assert_array_equal(posteriors.mean(), loc)
    np.testing.assert_array_equal(posteriors.stddev(), scale)


def test_half_precision_becomes_float32() -> None:
    half = LOC.astype(np.float16)
    posteriors = gaussians_from_arrays(loc=half, variance=np.full_like(half, 2.0))
    assert posteriors.dtype == tf.float32
    np.testing.assert_array_equal(posteriors.mean(), half)
    np.testing.assert_allclose(posteriors.stddev(), np.sqrt(2.0), rtol=1e-7)


def test_arrays_that_change_later_do_not_change_the_posteriors() -> None:
    loc = LOC.copy()
    posteriors = gaussians_from_arrays(loc=loc, scale=SCALE)
    loc[:] = 0.0
    np.testing.assert_array_equal(posteriors.mean(), LOC)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loc": LOC}, "exactly one .* got none"),
        ({"loc": LOC, "scale": SCALE, "variance": SCALE}, "got scale and variance"),
        ({"loc": _Foreign(LOC, True), "scale": SCALE}, r"loc .* Use tensor\.detach\(\)"),
        ({"loc": tf.Variable(LOC), "scale": SCALE}, r"loc is a variable.*loc\.numpy\(\)"),
        ({"loc": LOC, "scale": keras.Variable(SCALE)}, "scale is a variable"),
        ({"loc": np.ones([N, D], int), "scale": SCALE}, "loc must hold floating-point .*int64"),
        ({"loc": LOC, "scale": SCALE.astype(np.float32)}, "one dtype, got float64 and float32"),
        ({"loc": [LOC, LOC], "scale": SCALE}, "It holds arrays of its own"),
        ({"loc": "codes", "scale": SCALE}, "loc must be an array of numbers"),
    ],
)
def test_what_is_no_array_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        gaussians_from_arrays(**arguments)


def _with(array: np.ndarray, value: float, *place: int) -> np.ndarray:
    changed = array.copy()
    changed[place] = value
    return changed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": SCALE[0]}, r"shape of loc, \[5, 3\], got \[3\].*np\.broadcast_to\(scale"),
        ({"scale": np.float64(0.5)}, r"shape of loc, \[5, 3\], got \[\]"),
        ({"scale": SCALE[:, :1]}, r"got \[5, 1\]"),
        ({"variance": SCALE[:, :, None] * np.eye(D)}, r"got \[5, 3, 3\]"),
        ({"loc": LOC[:, 0], "scale": SCALE[:, :1]}, r"shape of loc, \[5\], got \[5, 1\]"),
        ({"loc": LOC[None], "scale": SCALE[None]}, r"loc must have shape \[N, D\].*tfd\.Indep"),
        ({"loc": LOC[:0], "scale": SCALE[:0]}, r"at least 1, got \[0, 3\]"),
        ({"loc": np.float64(1.0), "scale": np.float64(1.0)}, r"got \[\]"),
        ({"scale_tril": TRIL[0]}, r"shape \[N, D, D\].*got \[3, 3\]"),
        ({"loc": LOC[:, 0], "scale_tril": TRIL[:, :1, :1]}, r"for loc of shape \[5\]"),
        ({"scale_tril": TRIL + 1.0}, r"zero above the diagonal.*in 5 of 5.*cholesky"),
        ({"scale_tril": -TRIL}, r"scale_tril must be positive on the diagonal"),
        ({"scale": _with(SCALE, 0.0, 2, 1)}, r"positive, but 1 .* first at index 2\)\.$"),
        ({"variance": _with(SCALE, -1.0, 3, 1)}, "index 3.* Are they logarithms.* log_variance="),
        ({"scale": _with(SCALE, np.nan, 4, 0)}, "finite, but 1 .* index 4"),
        ({"loc": _with(LOC, np.inf, 0, 0), "scale": SCALE}, "loc must be finite"),
        ({"log_variance": _with(LOC, 2000.0, 1, 1)}, r"positive float64, but 1 .*large or too sm"),
        ({"log_variance": _with(LOC, -2000.0, 1, 1)}, r"exp\(log_variance / 2\) is a positive"),
        ({"scale": np.ma.MaskedArray(SCALE, SCALE > 2.0)}, "masked or missing"),  # type: ignore[no-untyped-call]
    ],
)
def test_another_shape_or_value_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gaussians_from_arrays(**{"loc": LOC, **arguments})
