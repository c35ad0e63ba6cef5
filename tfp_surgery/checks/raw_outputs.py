"""What to do with a network that returns Tensors where a distribution is expected."""

from __future__ import annotations

from typing import Any

_LIST = (tuple, list)


def described(output: Any) -> str:
    """Says what a network returned: its kind and, of Tensors and arrays, their shapes.

    Args:
      output: Anything.

    Returns:
      A noun phrase, such as "a list of 2 (a Tensor of shape [5, 3], a Tensor of shape [5, 3])".
    """
    if isinstance(output, _LIST):
        parts = ", ".join(described(part) for part in output)
        return f"a {type(output).__name__} of {len(output)}" + (f" ({parts})" if parts else "")
    shape = _shape(output)
    name = type(output).__name__
    if shape is None:
        return f"an object of type {name}"
    return (
        f"{'a Tensor' if name.endswith('Tensor') else f'a value of type {name}'} of shape {shape}"
    )


def wrapper_hint(network: str, output: Any) -> str:
    """Shows the line that makes an encoder or decoder of a network that returns Tensors.

    Args:
      network: "encoder" or "decoder".
      output: What it returned.

    Returns:
      Sentences for an error message; an empty string if `output` is neither a Tensor or array nor
      a tuple or list of them.
    """
    parts = list(output) if isinstance(output, _LIST) else [output]
    if not parts or any(not _shape(part) for part in parts):
        return ""
    return _encoder_hint(parts) if network == "encoder" else _decoder_hint(parts)


def _encoder_hint(parts: list[Any]) -> str:
    size = (_shape(parts[0]) or [None])[-1]
    if len(parts) == 1 and isinstance(size, int):
        size = size // 2 if size % 2 == 0 else None
    return (
        " A network that returns the mean of a Gaussian and then its log variance, (mean, "
        "log_var), (mean, log_var, z) or one Tensor of both, goes in as "
        f"tfs.networks.GaussianEncoder(network, latent_size={size or 'D'}, "
        'scale="log_variance"), where scale= names what the second is. '
        f"{_ITSELF}"
    )


def _decoder_hint(parts: list[Any]) -> str:
    if len(parts) == 2:
        return (
            " A network that returns the mean of a Gaussian and then its log variance goes in as "
            'tfs.networks.GaussianDecoder(network, scale="log_variance"), where scale= names what '
            f"the second is. {_ITSELF}"
        )
    return (
        " A network that returns the log-odds of pixels that are 0 or 1 goes in as "
        "tfs.networks.BernoulliDecoder(network, from_logits=True), one that returns their "
        "probabilities, as after a sigmoid, with from_logits=False, and one that returns the mean "
        f"of real ones as tfs.networks.GaussianDecoder(network, scale=1.0). {_ITSELF}"
    )


_ITSELF = (
    "Put in the Keras 3 network itself: a function that calls it has no weights that could be "
    "trained."
)


def _shape(value: Any) -> list[Any] | None:
    try:
        return list(value.shape)
    except (AttributeError, TypeError, ValueError):  # no shape, or one of unknown rank
        return None
