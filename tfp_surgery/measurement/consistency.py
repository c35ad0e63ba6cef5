"""Numbers of one result that cannot all be right: found, put in words, and warned of."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import math
import warnings
from collections.abc import Iterable, Iterator

import scipy.stats

from tfp_surgery.estimate import Estimate

# The probability of a single comparison to be reported by chance: six standard errors, and more
# where these rest on few draws.
_FALSE_ALARM = 1e-9
# Of differences, relative to the values: below it float32 rounds closed forms.
_ROUNDING = 1e-6
_ADVICE = (
    "Likely the draws do not follow the density that scores them: float32 rounds them (try "
    "float64), log_prob is not normalised, or sample draws from another distribution. "
    "docs/when-numbers-disagree.md has more."
)
_is_silent = contextvars.ContextVar("is_silent", default=False)


def standard_errors_above(value: Estimate, limit: Estimate) -> float:
    """By how many standard errors one estimate exceeds another, 0 unless that is many.

    Six are many, or as many as have the same probability by chance (1e-9) under Student's t
    distribution. The error is that of two independent estimates: estimates from common draws mostly
    rise and fall together, and their difference then has a smaller one.

    Args:
      value: What should be at most `limit`.
      limit: The limit.

    Returns:
      The number of standard errors, none of which is taken below rounding; 0 where an error is
      unknown (NaN).
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
    """A sentence where an estimate exceeds what it cannot exceed, in a list."""
    errors = standard_errors_above(value, limit)
    if not errors:
        return []
    return [f"{name} = {value} exceeds {limit_name} = {limit} by {errors:.0f} standard errors."]


def negative(name: str, value: Estimate | None) -> list[str]:
    """A sentence where an estimate of what is at least 0 is negative, in a list."""
    if value is None:
        return []
    errors = standard_errors_above(_ZERO, value)
    if not errors:
        return []
    return [f"{name} = {value} lies {errors:.0f} standard errors below 0, and is never negative."]


def apart(
    name: str, way: str, first: Estimate, other_way: str, second: Estimate, difference: Estimate
) -> list[str]:
    """A sentence where two estimates of one number differ by too much, in a list.

    Args:
      name: Of the number.
      way: How the first was reached.
      first: An estimate.
      other_way: How the second was reached.
      second: Another estimate of the same number.
      difference: The first less the second, with the error of that.

    Returns:
      The sentence, or nothing.
    """
    distance = dataclasses.replace(difference, value=abs(difference.value))
    errors = standard_errors_above(distance, _ZERO)
    if not errors:
        return []
    values = f"{first} {way} and {second} {other_way}"
    printed = math.hypot(first.standard_error, second.standard_error)
    if printed > 0:  # what a reader divides by
        errors = max(errors, distance.value / printed)
    return [f"{name}: {values} estimate one number and lie {errors:.0f} standard errors apart."]


def explained(sentences: Iterable[str], cause: str | None = None) -> tuple[str, ...]:
    """What to warn of: the cause where it is known, what does not fit, else what is likely.

    Args:
      sentences: What does not fit.
      cause: What is known to be wrong, with its cure.

    Returns:
      The sentences with their cause, or with advice; nothing where nothing is wrong.
    """
    found = tuple(sentences)
    if cause is not None:
        return (cause, *found)
    return (*found, _ADVICE) if found else ()


def warn(sentences: tuple[str, ...], stacklevel: int) -> None:
    """Warns of what `explained` gave, if of anything.

    Args:
      sentences: What to warn of.
      stacklevel: Of `warnings.warn`, counted from this function.
    """
    if sentences and not _is_silent.get():
        warnings.warn("\n".join(sentences), stacklevel=stacklevel)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Lets the results that are made inside keep their sentences, and `warn` say nothing."""
    token = _is_silent.set(True)
    try:
        yield
    finally:
        _is_silent.reset(token)


_ZERO = Estimate(0.0, 0.0, 0)
