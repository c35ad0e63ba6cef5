"""How results are shown: rows of a table, and plain values for JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from tfp_surgery.estimate import Estimate


def aligned_rows(rows: Sequence[tuple[str, Estimate]]) -> list[str]:
    """One line an estimate, its label first; the numbers are aligned at the decimal point.

    Args:
      rows: Label and estimate of each line, at least one.

    Returns:
      The lines.
    """
    texts = [(label, str(estimate)) for label, estimate in rows]
    width = max(len(label) for label, _ in texts)
    before = max(_point(text) for _, text in texts)
    return [f"  {label:<{width}}  {' ' * (before - _point(text))}{text}" for label, text in texts]


def _point(text: str) -> int:
    """Where the decimal point of the value is, or would be."""
    value = text.split(" ", 1)[0]
    return value.index(".") if "." in value else len(value)


def describe_draws(num_observations: int, num_query: int, num_samples: int) -> str:
    """What the estimates of a result were averaged over, in words."""
    draws = "1 draw" if num_samples == 1 else f"{num_samples} draws"
    queries = "" if num_query == num_observations else f" of a random {num_query}"
    return f"nats per observation; N = {num_observations}, {draws} an observation{queries}"


def plain(value: Any) -> Any:
    """Returns results, at any depth, as values that JSON has.

    Dataclasses and mappings become dicts, estimates `{"value", "standard_error"}`, tuples lists.
    """
    if isinstance(value, Estimate):
        return value.to_dict()
    if dataclasses.is_dataclass(value):
        return {
            field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {name: plain(entry) for name, entry in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(entry) for entry in value]
    return value
