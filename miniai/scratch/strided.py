"""6. A buffer read through a shape and strides: what every tensor is, and how its numbers are read out.

Numbers are float64, int64 or bool (stored as 0 and 1), in Python's own `array`.
"""

import math
from array import array
from itertools import chain
from typing import Any

from miniai.scratch.ieee import Number
from miniai.scratch.shapes import contiguous_strides, is_contiguous, nested_shape, offsets

CODES = {"bool": "b", "int64": "q", "float64": "d"}  # in rising order: a result has the greater type of its operands
DTYPES = {code: dtype for dtype, code in CODES.items()}


class Strided:
    """Nested lists are copied; an inner list of another length is a ValueError."""

    def __init__(self, data: Any, dtype: str | None = None) -> None:
        self.shape = nested_shape(data)
        self.strides, self.offset = contiguous_strides(self.shape), 0
        numbers = data if self.shape else [data]
        for _ in self.shape[1:]:
            numbers = chain.from_iterable(numbers)
        self.storage = to_storage(list(numbers), dtype)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> str:
        return DTYPES[self.storage.typecode]

    def numel(self) -> int:
        return math.prod(self.shape)

    def flat(self) -> array:
        """The elements in reading order; the storage itself where that is what it holds, so only to be read."""
        n, code = self.numel(), self.storage.typecode
        if is_contiguous(self.shape, self.strides):
            whole = n == len(self.storage)
            return self.storage if whole else self.storage[self.offset : self.offset + n]
        if self.shape[-1] < 4:
            return array(code, map(self.storage.__getitem__, offsets(self.shape, self.strides, self.offset)))
        # Rows of the last dimension at a time: a slice with a step runs in C.
        size, stride = self.shape[-1], self.strides[-1]
        copy = array(code)
        for start in offsets(self.shape[:-1], self.strides[:-1], self.offset):
            copy.extend(
                self.storage[start : start + (size - 1) * stride + 1 : stride]
                if stride
                else self.storage[start : start + 1] * size
            )
        return copy

    def item(self) -> Number:
        if self.numel() != 1:
            raise RuntimeError(f"a Tensor with {self.numel()} elements cannot be converted to Scalar")
        number = self.flat()[0]
        return bool(number) if self.dtype == "bool" else number

    def tolist(self) -> Any:
        """Nested lists; a number where there are no dimensions."""
        if not self.shape:
            return self.item()
        flat: list = self.flat().tolist()
        nested = [bool(x) for x in flat] if self.dtype == "bool" else flat
        for dim in range(self.ndim - 1, 0, -1):
            size, count = self.shape[dim], math.prod(self.shape[:dim])
            nested = [nested[i * size : (i + 1) * size] for i in range(count)]
        return nested

    def __repr__(self) -> str:
        dtype = "" if self.dtype == "float64" else f", dtype={self.dtype!r}"
        rows = ",\n        ".join(map(str, self.tolist())) if self.ndim > 1 else ""
        return f"Tensor([{rows}]{dtype})" if rows else f"Tensor({self.tolist()}{dtype})"

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of a 0-d tensor")
        return self.shape[0]

    def __bool__(self) -> bool:
        if self.numel() != 1:
            raise RuntimeError("Boolean value of Tensor with more than one value is ambiguous")
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())


def to_storage(numbers: list, dtype: str | None = None) -> array:
    """The numbers in an array of `dtype`; where none is named, of the least that holds them all. [] is float64."""
    if dtype is None:
        for number in numbers:
            if not isinstance(number, int | float):
                raise TypeError(f"expected a number (got {type(number).__name__})")
        kinds = set(map(type, numbers))
        dtype = "float64" if not kinds or float in kinds else "bool" if kinds == {bool} else "int64"
    if dtype not in CODES:
        raise ValueError(f"dtype must be one of {', '.join(CODES)}, got {dtype!r}")
    as_own = {"bool": bool, "int64": int, "float64": float}[dtype]
    return array(CODES[dtype], map(as_own, numbers))
