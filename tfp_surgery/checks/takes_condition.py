"""Whether a network takes a condition, and its call with one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow_probability as tfp

from tfp_surgery.checks.network_dtypes import ConditionDtypeError, condition_dtype_hint

tfd = tfp.distributions


def takes_condition(network: Any) -> bool:
    """Returns whether a network takes the keyword argument `condition`.

    A prior of this package takes one if it was made with a `condition_size`, and a layer that wraps
    a network if it was made with `conditional=True`. Another Keras layer does if its `call` names
    it, and a function if it names it or takes any keyword. A layer whose `call` takes any keyword
    and reads the condition there never gets it: the layers of Keras take any keyword too, and
    drop it. A `functools.partial` of a layer takes it if the layer does, and none takes it whose
    condition is bound already.

    Args:
      network: An encoder, decoder or prior.

    Returns:
      Whether it does; False for a distribution, and for one that TFP defers (it can be called).
    """
    if _is_bound(network):
        return False
    parameters = _parameters(network)
    declared = _declared(network)
    if parameters and declared is not None:
        return declared
    is_layer = hasattr(_unbound(network), "call")  # of Keras
    return "condition" in parameters or (
        not is_layer
        and any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    )


def _unbound(network: Any) -> Any:
    """Returns the layer of a partial of a layer; other networks as they are."""
    is_partial = isinstance(network, functools.partial)
    return network.func if is_partial and hasattr(network.func, "call") else network


def _is_bound(network: Any) -> bool:
    """Returns whether a network is a partial that fixes the condition."""
    return isinstance(network, functools.partial) and "condition" in network.keywords


def _parameters(network: Any) -> Mapping[str, inspect.Parameter]:
    """Returns the parameters of a function, or of the `call` of a layer; empty if not known."""
    network = _unbound(network)
    deferred = tfp.experimental.util.DeferredModule
    if isinstance(network, tfd.Distribution | deferred) or not callable(network):
        return {}
    try:
        return inspect.signature(getattr(network, "call", network)).parameters
    except (TypeError, ValueError):  # a builtin
        return {}


def _declared(network: Any) -> bool | None:
    """Returns whether a layer of this package was made conditional; None for other networks."""
    network = _unbound(network)
    if hasattr(network, "condition_size"):
        return network.condition_size is not None
    conditional: bool | None = getattr(network, "is_conditional", None)
    return conditional


def _needs_condition(network: Any) -> bool:
    if _is_bound(network):
        return False
    parameter = _parameters(network).get("condition")
    declared = _declared(network)
    if parameter is not None and declared is not None:
        return declared
    return parameter is not None and parameter.default is inspect.Parameter.empty


def call(network: Callable[..., Any], *inputs: Any, condition: Any = None) -> Any:
    """Calls a network, with the condition if there is one and the network takes it.

    Args:
      network: An encoder, decoder or prior that is no distribution.
      *inputs: Its other inputs.
      condition: Conditions of a batch, leading dimension `[B]`; None for none.

    Returns:
      What the network returns.

    Raises:
      ConditionDtypeError: If the network fails, and does not with a condition of another dtype.
    """
    if condition is None or not takes_condition(network):
        return network(*inputs)
    try:
        return network(*inputs, condition=condition)
    except Exception as error:
        hint = condition_dtype_hint(lambda cast: network(*inputs, condition=cast), condition)
        if hint:
            raise ConditionDtypeError(f"{hint}: {error}") from error
        raise


def check_condition_is_taken(condition: Any, **networks: Any) -> list[str]:
    """Checks that a condition reaches a network, and that there is one where one is needed.

    Args:
      condition: The condition, or None.
      **networks: Encoder, decoder and prior by name.

    Returns:
      The names of the networks that take it; empty without a condition.

    Raises:
      TypeError: If there is a condition and no network takes it, or there is none and a network
        has no default for it.
    """
    if condition is None:
        needing = [name for name, network in networks.items() if _needs_condition(network)]
        if needing:
            raise TypeError(
                f"{joined(needing)} need{'s' * (len(needing) == 1)} condition=, one row an "
                "observation, which is not given."
            )
        return []
    names = [name for name, network in networks.items() if takes_condition(network)]
    if not names:
        raise TypeError(
            f"condition is given, but none of {', '.join(networks)} takes it: what depends on it "
            "needs a keyword argument of this name, as in "
            "lambda z, condition: decoder([z, condition]); a network that returns Tensors is "
            "wrapped with tfs.networks.GaussianEncoder(network, ..., conditional=True)."
        )
    return names


def joined(names: Sequence[str]) -> str:
    """Returns names in words: "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
