"""33. A model's folder: settings from JSON, weights from safetensors, with every doubt an error that names the file.

The layout is that of Diffusers, as sd/folder.py writes it. Every error is a ValueError, or an OSError of Python's own.
"""

import dataclasses
import json
import math
from array import array
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar

from miniai.scratch.safetensors import read_safetensors
from miniai.scratch.shapes import Shape
from miniai.scratch.tensor import Tensor

Config = TypeVar("Config")


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); get the file again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object; get the file again")
    return content


def read_config(cls: type[Config], path: Path, only: Mapping[str, Any], strict: bool = True) -> Config:
    """The dataclass `cls`, each field of which has a default, from a JSON file.

    `only` holds options that are understood at one value alone. Raises ValueError for such an option at another value,
    for one that is not known (unless `strict` is False), and for a value of another type than the default's. Keys that
    begin with "_" are another program's notes; null is an option that is not set.
    """
    values = {key: value for key, value in read_json(path).items() if key[:1] != "_" and value is not None}
    for key, understood in only.items():
        if values.pop(key, understood) != understood:
            raise ValueError(f"{path}: only {key} = {understood!r} is supported here")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields))
    if unknown and strict:
        raise ValueError(f"{path}: {unknown[0]} is not supported here")
    given = {key: value for key, value in values.items() if key in fields}
    for key, value in given.items():
        default = fields[key].default
        one_or_many = isinstance(fields[key].type, UnionType)
        if not fits(value, default) and not (one_or_many and fits(value, (default,))):
            raise ValueError(f"{path}: {key} cannot be {value!r}; {default!r} would be an example")
        given[key] = tuple(value) if isinstance(value, list) else float(value) if isinstance(default, float) else value
    try:
        return cls(**given)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def fits(value: Any, default: Any) -> bool:
    """Whether a value from JSON is of the kind of `default`: text, true or false, a number, a list of such."""
    if isinstance(default, tuple):
        return isinstance(value, list) and bool(value) and all(fits(item, default[0]) for item in value)
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is type(default)


class Weights:
    """The tensors of a file by their names, each given out at the shape that is asked for; `under("unet")` sees those
    whose names begin with "unet."."""

    def __init__(self, path: Path, tensors: dict[str, Tensor], prefix: str = "") -> None:
        self.path, self.tensors, self.prefix = path, tensors, prefix

    @classmethod
    def read(cls, path: Path, without: tuple[str, ...] = ()) -> "Weights":
        """All tensors of the file, but those whose names begin with one of `without`."""
        tensors = read_safetensors(path)
        return cls(path, {name: tensor for name, tensor in tensors.items() if not name.startswith(without)})

    def under(self, name: str) -> "Weights":
        return Weights(self.path, self.tensors, f"{self.prefix}{name}.")

    def take(self, name: str, *shape: int) -> Tensor:
        """A tensor, which is then no longer here: so what is left over is seen, and memory is given back."""
        full = self.prefix + name
        if full not in self.tensors:
            raise ValueError(f"{self.path}: {full} is missing; the weights do not belong to the config beside them")
        found = self.tensors.pop(full)
        if found.shape != shape or found.dtype != "float64":
            kinds = [described(dtype, size) for dtype, size in ((found.dtype, found.shape), ("float64", shape))]
            raise ValueError(f"{self.path}: {full} is {kinds[0]}, the config beside it needs {kinds[1]}")
        if not math.isfinite(sum(found.flat())):
            raise ValueError(f"{self.path}: {full} holds a number that is infinite or not a number; get the file again")
        return found

    def vector(self, name: str, size: int) -> array:
        return self.take(name, size).flat()

    def check_all_taken(self) -> None:
        if self.tensors:
            raise ValueError(f"{self.path}: {next(iter(self.tensors))} has no place in the model of the config")


def described(dtype: str, shape: Shape) -> str:
    return f"{list(shape)}" if dtype == "float64" else f"{list(shape)} of {dtype}"
