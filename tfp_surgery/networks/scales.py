"""What the second output of a Gaussian network may be, and the scale that it stands for."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfp_surgery.networks.precision import at_least_float32

SCALES = {
    "log_variance": "scale = exp(output / 2)",
    "exp": "scale = exp(output)",
    "softplus": "scale = softplus(output)",
    "variance": "scale = sqrt(output)",
    "scale": "scale = output",
}


def checked_scale(scale: Any, others: str = "") -> str:
    """Returns the name of what an output is, if it is one of `SCALES`.

    Args:
      scale: The argument.
      others: What else it may be, for the error.

    Raises:
      ValueError: If it is none of them.
    """
    if isinstance(scale, str) and scale in SCALES:
        return scale
    names = ", ".join(f'"{name}" ({formula})' for name, formula in SCALES.items())
    raise ValueError(
        f"scale must say what the second output of the network is, one of {names}{others}; got "
        f"{scale!r}."
    )


def gaussian_parameters(mean: Any, output: Any, scale: str) -> tuple[tf.Tensor, tf.Tensor]:
    """The mean and the scale of Gaussians.

    Args:
      mean: Floating Tensor of any shape.
      output: Floating Tensor, the second output of the network.
      scale: Key of `SCALES`, what `output` is.

    Returns:
      Mean and scale, in float32 or wider. In a graph the scale is NaN where `output` is a
      variance or scale that is not above zero.

    Raises:
      TypeError: If one is in float64 and the other is not.
      ValueError: If a variance or scale is known not to be above zero.
    """
    mean, output = at_least_float32(mean), at_least_float32(output)
    if mean.dtype != output.dtype:
        raise TypeError(
            "the outputs of the network must have one dtype, but the mean has "
            f"{mean.dtype.name} and the second output {output.dtype.name}."
        )
    if scale == "log_variance":
        return mean, tf.exp(0.5 * output)
    if scale == "exp":
        return mean, tf.exp(output)
    if scale == "softplus":
        return mean, tf.nn.softplus(output)
    if tf.executing_eagerly():
        lowest = float(tf.reduce_min(output)) if tf.size(output) else 1.0
        if lowest <= 0.0:
            raise ValueError(
                f'scale="{scale}" says that the second output of the network is a {scale}, but its '
                f"smallest value is {lowest:.6g}, not above zero. If it is the logarithm of one, "
                'scale="log_variance" or scale="exp" (the logarithm of the scale) is right.'
            )
    # TFP takes the absolute value of a negative scale.
    output = tf.where(output > 0.0, output, tf.constant(float("nan"), output.dtype))
    return mean, tf.sqrt(output) if scale == "variance" else output
