"""Whether a network takes a condition, and its call with one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import tensorflow_probability as tfp

tfd = tfp.distributions


def takes_condition(network: Any) -> bool:
    """Returns whether a network takes the keyword argument `condition`.

    A priors of this package takes one if it was made with a `condition_size`. Another Keras layer
    does if its `call` names it, and a function if it names it or takes any keyword.

    Args:
      network: An encoder, decoder or prior.

    Returns:
      Whether it does; False for a distribution, and for one that TFP defers (it can be called).
    """
    deferred = tfp.experimental.util.DeferredModule
    if isinstance(network, tfd.Distribution | deferred) or not callable(network):
        return False
    if hasattr(network, "condition_size"):
        return network.condition_size is not None
    layer = getattr(network, "call", None)  # of Keras, whose call may take any keyword and drop it
    try:
        parameters = inspect.signature(network if layer is None else layer).parameters
    except (TypeError, ValueError):  # a builtin
        return False
    return "condition" in parameters or (
        layer is None
        and any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    )


def call(network: Callable[..., Any], *inputs: Any, condition: Any = None) -> Any:
    """Calls a network, with the condition if there is one and the network takes it.

    Args:
      network: An encoder, decoder or prior that is no distribution.
      *inputs: Its other inputs.
      condition: Conditions of a batch, leading dimension `[B]`; None for none.

    Returns:
      What the network returns.
    """
    if condition is None or not takes_condition(network):
        return network(*inputs)
    return network(*inputs, condition=condition)


def check_condition_is_taken(condition: Any, **networks: Any) -> list[str]:
    """Checks that a condition reaches a network.

    Args:
      condition: The condition, or None.
      **networks: Encoder, decoder and prior by name.

    Returns:
      The names of the networks that take it; empty without a condition.

    Raises:
      TypeError: If there is a condition and no network takes it.
    """
    if condition is None:
        return []
    names = [name for name, network in networks.items() if takes_condition(network)]
    if not names:
        raise TypeError(
            f"condition is given, but none of {', '.join(networks)} takes it: what depends on it "
            "needs a keyword argument of this name, as in "
            "lambda z, condition: decoder([z, condition])."
        )
    return names
