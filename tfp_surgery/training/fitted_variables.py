"""fitted_variables: what `fit_prior` trains of a prior, checked before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import keras
import tensorflow as tf

from tfp_surgery.checks.networks import build_prior
from tfp_surgery.training.variables import (
    frozen,
    hidden_error,
    hidden_variables,
    parts_of,
    path_of,
    seen_variables,
    unowned_variables,
)

Variable: TypeAlias = tf.Variable | keras.Variable

_NAME_THEM = (
    "Name what is to be trained, fit_prior(..., variables=[...]); freeze the rest "
    "(trainable = False)."
)


def fitted_variables(
    prior: Any,
    named: Any,
    codes: tf.Tensor,
) -> list[Variable]:
    """The variables of a prior to train, after a check that they are all that would be trained.

    Args:
      prior: A `tfd.Distribution`, or a callable without arguments that returns one.
      named: Sequence of variables to train; None for those that the prior owns: its
        `fitted_variables`, or its `trainable_variables` if it has no such attribute.
      codes: `[M, D]`, any that q(z) may give.

    Returns:
      Variables, each once. None for a Keras layer that owns none.

    Raises:
      TypeError: If `named` is no sequence of variables, or the gradient of log p(z) reaches
        trainable variables that are neither named nor the prior's own, naming them.
      ValueError: If there are no variables, one of them gets no gradient, or one named is frozen.
    """
    is_layer = isinstance(prior, keras.layers.Layer)
    if not is_layer:
        _check_keeps_its_variables(prior, codes)
    if named is not None:
        variables = _checked(named)
    elif is_layer:
        variables = list(getattr(prior, "fitted_variables", prior.trainable_variables))
    else:
        # The weights of tf_keras do not know whether their layer is frozen.
        owned = [v for v in getattr(prior, "trainable_variables", ()) if v.dtype.is_floating]
        fixed = frozen(owned)
        variables = [v for v in owned if id(v) not in fixed]
    without = _without_gradient(prior, variables, codes)
    if is_layer and named is None:
        return variables
    if not variables:
        raise ValueError(
            f"{build_prior(prior).name} has no trainable variables, so that nothing of it could be "
            "fitted: its parameters are tensors, perhaps computed from variables once and for all "
            "(a distribution reads a keras.Variable once, too). Make it of tf.Variable or "
            "tfp.util.TransformedVariable, or hand in a function that makes it from its variables "
            "anew in each call, with variables=[...] naming them."
        )
    if without:
        paths = ", ".join(path_of(v) for v in without)
        raise ValueError(
            f"log p(z) has no gradient with respect to {len(without)} of the {len(variables)} "
            f"variables to train ({paths}): they take no part in it, or the distribution holds "
            "what was computed from them once. Hand in a function that makes it from its variables "
            "anew in each call, with variables=[...] naming them, or leave out those that take no "
            "part."
        )
    return variables


def state_of(prior: Any, variables: Sequence[Variable]) -> list[Variable]:
    """All variables that a fit may change: those it trains and those that the prior owns.

    Args:
      prior: From which `fitted_variables` are.
      variables: These.

    Returns:
      Variables, each once.
    """
    return _once([*variables, *getattr(prior, "variables", ())])


def _check_keeps_its_variables(prior: Any, codes: tf.Tensor) -> None:
    """Refuses variables that are new in each call.

    The first call makes the weights of networks of tf_keras in a bijector.
    """
    first, second = (seen_variables(lambda: build_prior(prior).log_prob(codes)) for _ in range(2))
    kept = {id(v) for v in second}
    made = [path_of(v) for v in first if id(v) not in kept]
    if made:
        raise ValueError(
            f"the function that returns the prior makes {len(made)} variables anew in each call "
            f"({', '.join(made)}), which no fit could train: make them before, and let it use them."
        )


def _without_gradient(
    prior: Any, variables: Sequence[Variable], codes: tf.Tensor
) -> list[Variable]:
    """Those among the variables that log p(z) has no gradient to; refuses variables that hide."""
    without: list[Variable] = []

    def check(codes: tf.Tensor) -> tf.Tensor:
        known = state_of(prior, variables)
        # The encoder of a prior is not the prior's to train, and may be a function.
        encoder, shape = (getattr(prior, name, None) for name in ("encoder", "observation_shape"))
        known += getattr(encoder, "variables", ())
        if callable(encoder) and shape is not None:
            x = tf.zeros([1, *shape], codes.dtype)
            known += seen_variables(lambda: encoder(x))
        with tf.GradientTape() as tape:
            value = tf.reduce_sum(build_prior(prior, training=True).log_prob(codes))
        unowned = unowned_variables(tape, known, set())
        sources = [parts_of(variable)[0] for variable in variables]
        gradients = tape.gradient(value, [*sources, *unowned])
        hidden = hidden_variables(unowned, gradients[len(sources) :], set())
        if hidden:
            is_layer = isinstance(prior, keras.layers.Layer)
            raise hidden_error(
                hidden,
                {"prior": lambda: build_prior(prior, training=True)},
                *(() if is_layer else ("variables= does not name", _NAME_THEM)),
            )
        without.extend(v for v, g in zip(variables, gradients, strict=False) if g is None)
        return value

    # Traced and not run: a prior may have many components.
    tf.function(check, autograph=False).get_concrete_function(codes)
    return without


def _checked(named: Any) -> list[Variable]:
    if not isinstance(named, list | tuple) or not named:
        raise TypeError(
            f"variables must be a non-empty list of tf.Variable or keras.Variable, got {named!r}."
        )
    for variable in named:
        if not isinstance(variable, Variable):
            raise TypeError(
                "variables must be a list of tf.Variable or keras.Variable, but it holds a "
                f"{type(variable).__name__}. Of a tfp.util.TransformedVariable, a bijector or a "
                "network name the trainable_variables."
            )
        if not variable.trainable:
            raise ValueError(f"variables names {path_of(variable)}, which is frozen.")
    return _once(named)


def _once(variables: Sequence[Variable]) -> list[Variable]:
    return list({id(parts_of(variable)[0]): variable for variable in variables}.values())
