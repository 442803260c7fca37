"""Configs are frozen dataclasses: they come from JSON with every key checked, and go back to JSON."""

import dataclasses
import types
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from miniai.base.errors import UserError

Config = TypeVar("Config")


def config_from_dict(cls: type[Config], values: dict[str, Any], where: str) -> Config:
    """Build the frozen dataclass `cls` from `values`, as read from the file named `where`.

    Keys that start with "_" are another program's notes and are ignored; lists become tuples; a dict for a field that
    is itself a dataclass becomes that dataclass. Raises UserError for an unknown or missing key, for a value of the
    wrong type, and for whatever the class's own `__post_init__` refuses with a ValueError.
    """
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected a JSON object with the fields of {cls.__name__}")
    given = {key: value for key, value in values.items() if not key.startswith("_")}
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(given) - set(fields))
    if unknown:
        raise UserError(f"{where}: {cls.__name__} does not know {', '.join(unknown)}: remove or correct the key")
    missing = [
        name
        for name, field in fields.items()
        if name not in given and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UserError(f"{where}: {cls.__name__} needs {', '.join(missing)}: add the key")
    hints = get_type_hints(cls)
    arguments = {key: _convert(hints[key], value, f"{where}: {key}") for key, value in given.items()}
    try:
        return cls(**arguments)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


def without_neutral(values: Mapping[str, Any], neutral: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`values` less the options in `neutral`, which another program writes but which miniai has in one setting only.

    Raises UserError, naming `where`, for such an option with any other value.
    """
    for key, only in neutral.items():
        if key in values and values[key] != only:
            raise UserError(f"{where}: {key} is {values[key]!r}, and miniai knows {only!r} only")
    return {key: value for key, value in values.items() if key not in neutral}


def config_to_dict(config: Any) -> dict[str, Any]:
    """The fields of a config dataclass, ready for JSON: nested configs become dicts, tuples become lists."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return config_to_dict(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _convert(hint: Any, value: Any, where: str) -> Any:
    """`value`, read from JSON, as the annotated type `hint`: only annotations that configs use are looked into."""
    origin, options = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return config_from_dict(hint, value, where)  # type: ignore[arg-type]
    if origin in (Union, types.UnionType):
        # An exact type first: of `int | float`, 3 is the int; then whatever takes it.
        for option in sorted(options, key=lambda option: type(value) is not option):
            with suppress(_MismatchError):
                return _convert(option, value, where)
    elif origin is tuple and isinstance(value, list | tuple):
        if len(options) == 2 and options[1] is Ellipsis:
            return tuple(_convert(options[0], item, where) for item in value)
        if len(options) == len(value):
            return tuple(_convert(option, item, where) for option, item in zip(options, value, strict=True))
    elif origin is Literal:
        if value in options:
            return value
    elif origin is not None:
        if isinstance(value, origin):
            return value
    elif hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool):  # JSON writes 1.0 as 1 at times
            return float(value)
    elif hint is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif hint is Any or isinstance(value, hint):
        return value
    expected = hint.__name__ if isinstance(hint, type) and origin is None else str(hint)
    raise _MismatchError(f"{where} is {value!r}, but it must be of type {expected}: correct the value")


class _MismatchError(UserError):
    """A value of another type than the annotation: another option of a union may still take it."""
