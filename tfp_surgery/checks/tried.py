"""tried: the call of a network, whose failure names the network and its inputs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from tfp_surgery.checks.network_dtypes import ConditionDtypeError, dtype_hint


def tried(name: str, network: Callable[[Any], Any], inputs: Any) -> Any:
    """Calls a network; a failure becomes a ValueError that names the network and its inputs.

    Args:
      name: Role of the network, for the message.
      network: The network.
      inputs: Its inputs: a `Tensor`, or a structure of these.

    Returns:
      What the network returns.

    Raises:
      ValueError: If the network raises anything.
    """
    try:
        return network(inputs)
    except Exception as error:
        is_told = isinstance(error, ConditionDtypeError)
        hint = "" if is_told else dtype_hint(name, network, inputs)
        raise ValueError(
            f"the {name} failed on inputs of {_described(inputs)}{f' ({hint})' if hint else ''}: "
            f"{_without_keras(str(error))}{_of_missing_argument(error)}"
        ) from error


def _without_keras(message: str) -> str:
    """Returns the message of an error without what Keras adds around it."""
    inner = re.search(r"Exception encountered when calling .*?\x1b\[1m(.*?)\x1b\[0m", message, re.S)
    return message if inner is None else inner.group(1)


def _of_missing_argument(error: Exception) -> str:
    if not (isinstance(error, TypeError) and "required positional argument" in str(error)):
        return ""
    return (
        ". What a network depends on beside its first input is named condition, and handed in as "
        "condition="
    )


def _described(inputs: Any) -> str:
    """Returns the shape and dtype of the inputs of a network, in words."""
    if tf.is_tensor(inputs):
        return f"shape {inputs.shape} and dtype {inputs.dtype.name}"
    leaves = tf.nest.flatten(inputs)
    shapes = ", ".join(f"{leaf.dtype.name} {leaf.shape}" for leaf in leaves)
    if isinstance(inputs, Mapping):
        return f"a dict of {shapes}, which is one structured observation"
    return (
        f"a tuple of {shapes}, which is one structured observation; where the second are labels, "
        "hand in the first alone"
    )
