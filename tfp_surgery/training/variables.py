"""Which variables a loss trains: those of a model, and those that hide in its functions."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfp_surgery.checks.gradients import check_gradient
from tfp_surgery.measurement.log_likelihood import log_likelihood

_WAY_OUT = (
    "A function has no weights that could be trained: hand in the Keras 3 network itself, one that "
    "returns Tensors as "
    'tfs.networks.GaussianEncoder(network, latent_size=D, scale="log_variance") or '
    "tfs.networks.BernoulliDecoder(network, from_logits=True), with conditional=True where it "
    "takes [x, condition]. Or make what calls it a "
    "keras.layers.Layer or keras.Model that holds it as an attribute (a tf.Module or a model of "
    "tf_keras is none), or freeze it (trainable = False). tfp_surgery.elbo_surgery takes it as it "
    "is."
)


def checked_gradients(
    tape: tf.GradientTape,
    loss: tf.Tensor,
    model: Any,
    runs: Mapping[str, Callable[[], Any]],
    accepted: set[Any],
) -> list[Any]:
    """The gradient of a loss, after a check that it trains the weights of a model and no others.

    Args:
      tape: Has recorded the loss.
      loss: Scalar.
      model: With `variables`, `trainable_weights`, `encoder` and `decoder`.
      runs: Functions by name, each of which runs one part of the model.
      accepted: References to variables that are known to be frozen; this function adds to them.

    Returns:
      The gradient with respect to each trainable weight, or None.

    Raises:
      TypeError: If the gradient reaches variables that the model does not own, naming them.
      ValueError: If there is nothing to train, or a network that would not be.
    """
    weights = model.trainable_weights
    unowned = unowned_variables(tape, model.variables, accepted)
    gradients = tape.gradient(loss, [*weights, *unowned])
    gradients, others = gradients[: len(weights)], gradients[len(weights) :]
    hidden = hidden_variables(unowned, others, accepted)
    if hidden:
        raise hidden_error(hidden, runs)
    if not weights:
        raise ValueError(
            "there is nothing to train: encoder, decoder and prior have no weights that Keras 3 "
            "could train; tfp_surgery.elbo_surgery takes them as they are."
        )
    by_weight = {id(w): gradient for w, gradient in zip(weights, gradients, strict=True)}
    for name in ("encoder", "decoder"):
        check_has_gradient(name, getattr(model, name), by_weight, tape)
    return gradients  # type: ignore[no-any-return]


def unowned_variables(
    tape: tf.GradientTape, known: Iterable[Any], accepted: set[Any]
) -> list[tf.Variable]:
    """The variables that a tape has seen and a model does not own.

    Args:
      tape: Has recorded a loss.
      known: Variables of the model, trained or not.
      accepted: References to variables that `hidden_variables` has found to be frozen.
    """
    owned = {id(part) for variable in known for part in parts_of(variable)}
    return [v for v in tape.watched_variables() if id(v) not in owned and v.ref() not in accepted]


def hidden_variables(
    unowned: Sequence[tf.Variable], gradients: Sequence[Any], accepted: set[Any]
) -> list[tf.Variable]:
    """Those among unowned variables that the gradient reaches, and nobody has frozen.

    A variable whose gradient is None, as behind `tf.stop_gradient`, is not among them, nor one that
    a layer of Keras 3 or tf_keras holds as not trainable.

    Args:
      unowned: From `unowned_variables`.
      gradients: Of the loss with respect to each of them, or None.
      accepted: Takes references to those that are frozen.
    """
    reached = [v for v, gradient in zip(unowned, gradients, strict=True) if gradient is not None]
    fixed = frozen(reached)
    accepted.update(v.ref() for v in reached if id(v) in fixed)
    return [v for v in reached if id(v) not in fixed]


def hidden_error(
    hidden: Sequence[tf.Variable],
    parts: Mapping[str, Callable[[], Any]],
    fault: str = "the model does not own",
    way_out: str = _WAY_OUT,
) -> TypeError:
    """The error that names hidden variables and where they are.

    Args:
      hidden: At least one.
      parts: By name, what runs a part of the model; its variables are found by running it.
      fault: What is wrong with them.
      way_out: What to do about it.
    """
    left = list(hidden)
    sentences = []
    for name, run in parts.items():
        seen = {id(v) for v in seen_variables(run)}
        its = [v for v in left if id(v) in seen]
        left = [v for v in left if id(v) not in seen]
        if its:
            sentences.append(f"the {name} has {_listed(its)}")
    if left:
        sentences.append(f"the objective has {_listed(left)}")
    return TypeError(
        f"{', and '.join(sentences)}, which the gradient reaches but {fault}: they "
        f"would not be trained. {way_out}"
    )


def check_has_gradient(
    name: str, part: Any, gradients: Mapping[int, Any], tape: tf.GradientTape
) -> None:
    """Checks that a network that took part in a loss is reached by its gradient.

    Args:
      name: Of the network.
      part: The network.
      gradients: By the id of each trainable weight of the model.
      tape: Has recorded the loss.

    Raises:
      ValueError: If no trainable weight of the network has a gradient.
    """
    weights = [w for w in getattr(part, "trainable_weights", ()) if id(w) in gradients]
    if not weights or any(gradients[id(weight)] is not None for weight in weights):
        return
    watched = {id(v) for v in tape.watched_variables()}
    if any(id(v) in watched for weight in weights for v in parts_of(weight)):
        raise ValueError(
            f"none of the {len(weights)} trainable weights of the {name} has a gradient, so that "
            "it would not be trained: what lies between them and the loss runs through numpy or "
            "another operation without a gradient. Write it with TensorFlow operations, or freeze "
            f"the {name} (trainable = False)."
        )


def check_decoder_gradient(decoder: Callable[[tf.Tensor], Any], z: tf.Tensor, x: tf.Tensor) -> None:
    """Checks that log p(x|z) has a gradient with respect to z, or does not depend on z.

    Args:
      decoder: z -> p(x|z).
      z: `[1, *code_shape]`.
      x: `[1, *event_shape]`.

    Raises:
      TypeError: If it depends on z and has no gradient.
    """
    if z.dtype.is_floating:
        check_gradient(
            "the encoder learns from the reconstruction by gradients of the decoder, which must be "
            "made of TensorFlow operations; tfp_surgery.elbo_surgery takes it as it is",
            lambda z: log_likelihood(decoder, z, x),
            tf.stack([z, z + 1.0]),  # [2, 1, *code_shape]
        )


def path_of(variable: Any) -> str:
    """The path of a variable, with its shape."""
    return f"{getattr(variable, 'path', variable.name)} {[*variable.shape]}"


def parts_of(variable: Any) -> tuple[Any, ...]:
    """The `tf.Variable`s behind a variable of Keras, of which a strategy makes several."""
    value = variable.value if isinstance(variable, keras.Variable) else variable
    return (value, *getattr(value, "values", ()))


def seen_variables(run: Callable[[], Any]) -> list[tf.Variable]:
    """The trainable variables that `run` reads, and those of the distribution it returns."""
    with tf.GradientTape() as tape:
        result = run()
    return [*tape.watched_variables(), *getattr(result, "trainable_variables", ())]


def frozen(variables: Sequence[tf.Variable]) -> set[int]:
    """The ids of those that a variable or layer of Keras 3 or tf_keras holds as not trainable.

    Args:
      variables: Which need not know it.
    """
    ids = {id(v) for v in variables}
    found: set[int] = set()
    for owner in _owners() if ids else ():
        if getattr(owner, "trainable", True):
            continue
        if isinstance(owner, keras.Variable):
            found.update(id(v) for v in parts_of(owner))
        elif getattr(owner, "built", False):  # a layer of tf_keras
            trained = {id(v) for v in owner.trainable_variables}
            found.update(id(v) for v in owner.variables if id(v) not in trained)
    return found & ids


def _owners() -> list[Any]:
    """Everything alive that may own a `tf.Variable`, which does not know its owner."""
    kinds = (keras.Variable, tf.Module)
    return [thing for thing in gc.get_objects() if issubclass(type(thing), kinds)]


def _listed(variables: Sequence[tf.Variable]) -> str:
    owners = {
        id(part): owner
        for owner in _owners()
        if isinstance(owner, keras.Variable)
        for part in parts_of(owner)
    }
    paths = sorted(path_of(owners.get(id(v), v)) for v in variables)
    more = f" and {len(paths) - 6} more" if len(paths) > 6 else ""
    return f"{len(paths)} trainable variables ({', '.join(paths[:6])}{more})"
