"""How results are shown: rows of a table, and plain values for JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from tfp_surgery.estimate import Estimate


def aligned_rows(rows: Sequence[tuple[str, Estimate | str]]) -> list[str]:
    """One line a value, its label first; the numbers are aligned at the decimal point.

    Args:
      rows: Label and value of each line, at least one.

    Returns:
      The lines.
    """
    texts = [(label, str(value)) for label, value in rows]
    width = max(len(label) for label, _ in texts)
    before = max(_point(text) for _, text in texts)
    return [f"  {label:<{width}}  {' ' * (before - _point(text))}{text}" for label, text in texts]


def _point(text: str) -> int:
    """Where the decimal point of the value is, or would be."""
    value = text.split(" ", 1)[0]
    return value.index(".") if "." in value else len(value)


def count_draws(num_observations: int, num_query: int, num_samples: int) -> str:
    """How many draws there were of how many observations, in words."""
    draws = "1 draw" if num_samples == 1 else f"{num_samples} draws"
    queries = "" if num_query == num_observations else f" of a random {num_query}"
    return f"{draws} an observation{queries}"


def describe_draws(num_observations: int, num_query: int, num_samples: int) -> str:
    """What the estimates of a result were averaged over, in words."""
    draws = count_draws(num_observations, num_query, num_samples)
    return f"nats per observation; N = {num_observations}, {draws}"


def record(result: Any) -> dict[str, Any]:
    """The fields of a dataclass, by name, as values that JSON has."""
    return {field.name: plain(getattr(result, field.name)) for field in dataclasses.fields(result)}


def plain(value: Any) -> Any:
    """Returns a value, at any depth, as one that JSON has.

    What has a `to_dict` becomes that, other dataclasses and mappings become dicts, tuples lists.
    """
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if dataclasses.is_dataclass(value):
        return record(value)
    if isinstance(value, Mapping):
        return {name: plain(entry) for name, entry in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(entry) for entry in value]
    return value
