from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfp_surgery.networks.scales import SCALES, checked_scale, gaussian_parameters

RAW = np.array([[-3.0, 0.0, 0.4], [2.0, -0.1, 9.0]])
POSITIVE = np.abs(RAW) + 0.1


def scale_by_hand(scale: str, output: np.ndarray) -> Any:
    """The scale, from what the name of the output says."""
    if scale == "log_variance":
        return np.sqrt(np.exp(output))
    if scale == "exp":
        return np.exp(output)
    if scale == "softplus":
        return np.log1p(np.exp(output))
    return np.sqrt(output) if scale == "variance" else output


def output_of(scale: str) -> np.ndarray:
    return POSITIVE if scale in ("variance", "scale") else RAW


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16, tf.float32, tf.float64])
def test_the_scale_is_what_its_name_says(scale: str, dtype: tf.DType) -> None:
    output = tf.cast(output_of(scale), dtype)
    mean, found = gaussian_parameters(tf.ones_like(output), output, scale)
    wide = tf.float64 if dtype == tf.float64 else tf.float32
    assert mean.dtype == found.dtype == wide
    expected = scale_by_hand(scale, np.asarray(tf.cast(output, tf.float64)))
    np.testing.assert_allclose(found, expected, rtol=4 * np.finfo(wide.as_numpy_dtype).eps)


@pytest.mark.parametrize("scale", ["variance", "scale"])
def test_a_variance_or_scale_that_is_not_above_zero_is_refused(scale: str) -> None:
    raw = tf.constant(RAW, tf.float32)
    with pytest.raises(
        ValueError, match=rf'scale="{scale}" says .* smallest value is -3, not above zero\. If'
    ):
        gaussian_parameters(raw, raw, scale)
    _, found = tf.function(gaussian_parameters, jit_compile=True)(raw, raw, scale)
    np.testing.assert_array_equal(np.isnan(found), RAW <= 0.0)


def test_outputs_of_two_dtypes_are_refused() -> None:
    with pytest.raises(TypeError, match="the mean has float32 and the second output float64"):
        gaussian_parameters(tf.zeros([2]), tf.zeros([2], tf.float64), "exp")


@pytest.mark.parametrize("scale", ["log_scale", "", None, 1.0, True, ["exp"]])
def test_other_names_are_refused_with_all_that_there_are(scale: Any) -> None:
    assert [checked_scale(name) for name in SCALES] == [*SCALES]
    with pytest.raises(ValueError, match=r"scale must say what .*\"exp\" \(scale = exp\(output\)"):
        checked_scale(scale)
