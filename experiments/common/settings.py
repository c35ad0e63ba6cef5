"""The settings of an experiment: a dataclass whose fields are its flags."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

from absl import flags

from tfp_surgery.checks.arguments import checked_integer
from tfp_surgery.seeds import MAX_SEED

_S = TypeVar("_S", bound="Settings")

flags.disclaim_key_flags()  # they are the flags of the script that defines them


def setting(
    default: Any,
    text: str,
    *,
    minimum: int = 1,
    maximum: int | None = None,
    choices: Sequence[str] = (),
    distinct: bool = False,
) -> Any:
    """A field of `Settings`.

    Args:
      default: what the flag is if it is not given; `dataclasses.MISSING` if it must be.
      text: what `--help` says.
      minimum: the least integer.
      maximum: the largest one, if there is one.
      choices: the only strings allowed.
      distinct: of a list: whether it has at least one value, and none twice.

    Returns:
      The field.
    """
    checks = {"minimum": minimum, "maximum": maximum, "choices": choices, "distinct": distinct}
    return dataclasses.field(default=default, metadata={"text": text, "checks": checks})


def seed_setting(text: str) -> Any:
    """The seed of a run."""
    return setting(0, text, minimum=0, maximum=MAX_SEED)


def training_seeds_setting(default: tuple[int, ...] | None, text: str) -> Any:
    """The seeds of training runs."""
    return setting(default, text, minimum=0, maximum=MAX_SEED, distinct=True)


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that the numbers of a run depend on.

    Each field is made by `setting`: a string, an integer, a number, or a tuple of one of these;
    one whose default is None may be None.

    Raises:
      TypeError: if a setting is not of its type.
      ValueError: if one is out of range.
    """

    def __post_init__(self) -> None:
        """Checks the settings."""
        kinds = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not (value is None and field.default is None):
                kind, _ = _kind(kinds[field.name])
                _check(f"--{field.name}", value, kind, **field.metadata["checks"])

    def to_dict(self) -> dict[str, Any]:
        """The settings in types that JSON knows."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def define_flags(cls, values: flags.FlagValues) -> None:
        """Defines a flag for each setting.

        Args:
          values: where.
        """
        kinds = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            kind, is_list = _kind(kinds[field.name])
            required = field.default is dataclasses.MISSING
            default: Any = None if required else field.default
            options: dict[str, Any] = {"flag_values": values, "required": required}
            choices = field.metadata["checks"]["choices"]
            if is_list:
                define: Any = flags.DEFINE_list
                default = None if default is None else [str(value) for value in default]
            elif choices:
                define, options["enum_values"] = flags.DEFINE_enum, list(choices)
            else:
                define = {
                    int: flags.DEFINE_integer,
                    float: flags.DEFINE_float,
                    str: flags.DEFINE_string,
                }[kind]
            define(field.name, default, help=field.metadata["text"], **options)

    @classmethod
    def from_flags(cls: type[_S], values: flags.FlagValues) -> _S:
        """The settings that parsed flags state.

        Args:
          values: the flags.

        Returns:
          The settings.

        Raises:
          ValueError: if one is not of its type, or out of range.
        """
        kinds = typing.get_type_hints(cls)
        given = {}
        for field in dataclasses.fields(cls):
            kind, is_list = _kind(kinds[field.name])
            value: Any = values[field.name].value
            if is_list and value is not None:
                value = _parsed(f"--{field.name}", value, kind)
            given[field.name] = value
        return cls(**given)


def _kind(hint: Any) -> tuple[type, bool]:
    """The type of a setting, or of the values of a list, and whether it is a list."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):  # `int | None`
        hint = typing.get_args(hint)[0]
    is_list = typing.get_origin(hint) is tuple  # `tuple[int, ...]`
    return (typing.get_args(hint)[0] if is_list else hint), is_list


def _parsed(name: str, given: Sequence[str], kind: type) -> tuple[Any, ...]:
    try:
        return tuple(kind(value) for value in given)
    except ValueError:
        what = "integers" if kind is int else "numbers"
        raise ValueError(
            f"{name} takes {what} with commas between them, got {','.join(given)}."
        ) from None


def _check(
    name: str,
    value: Any,
    kind: type,
    minimum: int,
    maximum: int | None,
    choices: Sequence[str],
    distinct: bool,
) -> None:
    values = value if isinstance(value, tuple) else (value,)
    given = ",".join(map(str, values))
    if distinct and not values:
        raise ValueError(f"{name} must name at least one.")
    if distinct and len(set(values)) < len(values):
        raise ValueError(f"{name} names one twice: {given}.")
    for each in values:
        if kind is str:
            if not each:
                raise ValueError(f"{name} must not be empty.")
            if choices and each not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {given}.")
        elif kind is float:
            if not (math.isfinite(each) and each > 0):
                raise ValueError(f"{name} must be positive, got {given}.")
        else:
            checked_integer(name, each, minimum, maximum)
