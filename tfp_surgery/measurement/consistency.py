"""Detects and reports numbers of one result that contradict each other."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import math
import warnings
from collections.abc import Iterable, Iterator

import scipy.stats

from tfp_surgery.estimate import Estimate

# Probability that one comparison is reported by chance: six standard errors for many draws.
_FALSE_ALARM = 1e-9
# Smallest standard error of a difference, relative to the values: closed forms are float32.
_ROUNDING = 1e-6
_ADVICE = (
    "Likely the draws do not follow the density that scores them: float32 rounds them (try "
    "float64), log_prob is not normalised, or sample draws from another distribution. "
    "docs/when-numbers-disagree.md has more."
)
_is_silent = contextvars.ContextVar("is_silent", default=False)


def standard_errors_above(value: Estimate, limit: Estimate) -> float:
    """Returns by how many standard errors an estimate exceeds its limit; 0 if not significant.

    An excess is significant if its probability is below 1e-9 under Student's t distribution, which
    is six standard errors for many draws. The standard error assumes independent estimates. This
    is conservative for estimates from common draws, which are mostly positively correlated.

    Args:
      value: Estimate of a quantity that is at most `limit`.
      limit: Estimate of the limit.

    Returns:
      The excess in standard errors, each at least the rounding error; 0 if the excess is not
      significant or an error is NaN.
    """
    excess = value.value - limit.value
    error = math.hypot(value.standard_error, limit.standard_error)
    error = max(error, _ROUNDING * (1.0 + abs(value.value) + abs(limit.value)))
    degrees = min(value.degrees_of_freedom, limit.degrees_of_freedom)
    many = float(scipy.stats.t.isf(_FALSE_ALARM, degrees))
    if not math.isfinite(error) or not excess > many * error:
        return 0.0
    return excess / error


def above(name: str, value: Estimate, limit_name: str, limit: Estimate) -> list[str]:
    """Returns a list with a sentence if an estimate exceeds its limit; empty otherwise."""
    errors = standard_errors_above(value, limit)
    if not errors:
        return []
    return [f"{name} = {value} exceeds {limit_name} = {limit} by {errors:.0f} standard errors."]


def negative(name: str, value: Estimate | None) -> list[str]:
    """Returns a list with a sentence if an estimate lies below its bound of 0; empty otherwise."""
    if value is None:
        return []
    errors = standard_errors_above(_ZERO, value)
    if not errors:
        return []
    return [f"{name} = {value} lies {errors:.0f} standard errors below 0, and is never negative."]


def apart(
    name: str, way: str, first: Estimate, other_way: str, second: Estimate, difference: Estimate
) -> list[str]:
    """Reports two estimates of one quantity that differ significantly.

    Args:
      name: Name of the quantity.
      way: How the first estimate was computed.
      first: The first estimate.
      other_way: How the second estimate was computed.
      second: The second estimate.
      difference: `first` minus `second`, with its own standard error.

    Returns:
      A list with a sentence if the estimates differ; empty otherwise.
    """
    distance = dataclasses.replace(difference, value=abs(difference.value))
    errors = standard_errors_above(distance, _ZERO)
    if not errors:
        return []
    values = f"{first} {way} and {second} {other_way}"
    printed = math.hypot(first.standard_error, second.standard_error)
    if printed > 0:  # the error that a reader computes from the printed ones
        errors = max(errors, distance.value / printed)
    return [f"{name}: {values} estimate one number and lie {errors:.0f} standard errors apart."]


def explained(sentences: Iterable[str], cause: str | None = None) -> tuple[str, ...]:
    """Adds to contradictions their known cause, or else general advice.

    Args:
      sentences: Descriptions of contradictions.
      cause: A known cause and its remedy; None if unknown.

    Returns:
      The cause followed by the sentences, or the sentences followed by advice; empty if there are
      neither contradictions nor a cause.
    """
    found = tuple(sentences)
    if cause is not None:
        return (cause, *found)
    return (*found, _ADVICE) if found else ()


def warn(sentences: tuple[str, ...], stacklevel: int) -> None:
    """Issues one warning for all sentences from `explained`, unless inside `silent`.

    Args:
      sentences: The sentences; no warning is issued if there are none.
      stacklevel: Argument of `warnings.warn`, counted from this function.

    Warns:
      UserWarning: If there are sentences.
    """
    if sentences and not _is_silent.get():
        warnings.warn("\n".join(sentences), stacklevel=stacklevel)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Disables `warn` in the body of the context; results still store their sentences."""
    token = _is_silent.set(True)
    try:
        yield
    finally:
        _is_silent.reset(token)


_ZERO = Estimate(0.0, 0.0, 0)
