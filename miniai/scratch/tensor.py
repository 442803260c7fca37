"""7. The tensor: rank 0 to n; a view shares its storage; arithmetic broadcasts. Names and errors are PyTorch's."""

import math
import operator
from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from typing import Any

from miniai.scratch import ieee, kernels
from miniai.scratch.ieee import Number
from miniai.scratch.shapes import (
    Shape,
    broadcast_shapes,
    complete_shape,
    contiguous_strides,
    expand_strides,
    is_contiguous,
    offsets,
    positive_dim,
    positive_dims,
)
from miniai.scratch.strided import CODES, Strided

Dims = int | Sequence[int] | None


class Tensor(Strided):
    """`Tensor([[1., 2.], [3., 4.]])`."""

    @classmethod
    def of(cls, storage: array, shape: Shape, strides: Shape | None = None, offset: int = 0) -> "Tensor":
        """A tensor that reads `storage`, without a copy."""
        tensor = cls.__new__(cls)
        tensor.storage, tensor.shape, tensor.offset = storage, shape, offset
        tensor.strides = contiguous_strides(shape) if strides is None else strides
        return tensor

    def __iter__(self) -> Iterator["Tensor"]:
        if not self.shape:
            raise TypeError("iteration over a 0-d tensor")
        return (self[i] for i in range(self.shape[0]))

    # -- views: the same storage, read otherwise ----------------------------------------------------------------------

    def __getitem__(self, index: Any) -> "Tensor":
        """Integers, slices, `None` and `...` give a view; an int64 tensor picks along dimension 0, a mask picks
        elements, and both copy."""
        if isinstance(index, Tensor):
            return self._pick(index)
        shape, strides, offset, dim = [], [], self.offset, 0
        for part in self._complete(index):
            if part is None:
                shape.append(1)
                strides.append(0)
                continue
            size, stride = self.shape[dim], self.strides[dim]
            if isinstance(part, slice):
                if part.step is not None and part.step <= 0:
                    raise ValueError("step must be greater than zero")
                steps = range(*part.indices(size))
                shape.append(len(steps))
                strides.append(stride * steps.step)
                offset += steps.start * stride if steps else 0
            else:
                position = operator.index(part)
                if not -size <= position < size:
                    raise IndexError(f"index {position} is out of bounds for dimension {dim} with size {size}")
                offset += position % size * stride
            dim += 1
        return Tensor.of(self.storage, tuple(shape), tuple(strides), offset)

    def _complete(self, index: Any) -> list:
        """One entry for each dimension: whole slices where `...` stands, and at the end."""
        parts = list(index) if isinstance(index, tuple) else [index]
        n_used = sum(part is not None and part is not ... for part in parts)
        if n_used > self.ndim:
            raise IndexError(f"too many indices for tensor of dimension {self.ndim}")
        where = next((i for i, part in enumerate(parts) if part is ...), None)
        whole = [slice(None)] * (self.ndim - n_used)
        return parts + whole if where is None else parts[:where] + whole + parts[where + 1 :]

    def _pick(self, index: "Tensor") -> "Tensor":
        if index.dtype == "bool":
            if index.shape != self.shape:
                raise IndexError(
                    f"The shape of the mask {list(index.shape)} does not match the shape of the indexed tensor "
                    f"{list(self.shape)}"
                )
            found = array(self.storage.typecode, [x for x, keep in zip(self.flat(), index.flat(), strict=True) if keep])
            return Tensor.of(found, (len(found),))
        if index.dtype != "int64":
            raise IndexError("tensors used as indices must be of type int64 or bool")
        picked = array(self.storage.typecode)
        for position in index.flat():
            picked.extend(self[position].flat())
        return Tensor.of(picked, index.shape + self.shape[1:])

    def __setitem__(self, index: Any, value: "Tensor | Number") -> None:
        """Writes into the storage; every view of it sees the change."""
        target = self[index]
        if isinstance(index, Tensor):
            raise IndexError("only integers, slices, None and ... can be assigned to")
        source = value.expand(*target.shape).flat() if isinstance(value, Tensor) else repeat(value, target.numel())
        as_own = {"bool": bool, "int64": int, "float64": float}[self.dtype]
        for where, number in zip(offsets(target.shape, target.strides, target.offset), source, strict=True):
            self.storage[where] = as_own(number)

    def contiguous(self) -> "Tensor":
        return self if is_contiguous(self.shape, self.strides) else Tensor.of(self.flat(), self.shape)

    def clone(self) -> "Tensor":
        return Tensor.of(self.flat()[:], self.shape)

    def view(self, *shape: int) -> "Tensor":
        """The same elements under another shape. RuntimeError where they do not lie in reading order."""
        wanted = complete_shape(shape, self.numel())
        if not is_contiguous(self.shape, self.strides):
            raise RuntimeError(
                "view size is not compatible with input tensor's size and stride (at least one dimension spans across "
                "two contiguous subspaces). Use .reshape(...) instead."
            )
        return Tensor.of(self.storage, wanted, None, self.offset)

    def reshape(self, *shape: int) -> "Tensor":
        return self.contiguous().view(*shape)

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> "Tensor":
        start, end = positive_dim(start_dim, self.ndim), positive_dim(end_dim, self.ndim)
        if start > end:
            raise RuntimeError("flatten() has invalid args: start_dim cannot come after end_dim")
        return self.reshape(*self.shape[:start], math.prod(self.shape[start : end + 1]), *self.shape[end + 1 :])

    def permute(self, *dims: int) -> "Tensor":
        order = [positive_dim(dim, self.ndim) for dim in dims]
        if sorted(order) != list(range(self.ndim)):
            raise RuntimeError(f"permute: {list(dims)} does not name each of the {self.ndim} dimensions once")
        shape, strides = (tuple(sizes[dim] for dim in order) for sizes in (self.shape, self.strides))
        return Tensor.of(self.storage, shape, strides, self.offset)

    def transpose(self, dim0: int, dim1: int) -> "Tensor":
        order = list(range(self.ndim))
        first, second = positive_dim(dim0, self.ndim), positive_dim(dim1, self.ndim)
        if order:
            order[first], order[second] = second, first
        return self.permute(*order)

    def expand(self, *shape: int) -> "Tensor":
        strides = expand_strides(self.shape, self.strides, shape)
        old = (1,) * (len(shape) - self.ndim) + self.shape
        sizes = tuple(was if size == -1 else size for was, size in zip(old, shape, strict=True))
        return Tensor.of(self.storage, sizes, strides, self.offset)

    def unsqueeze(self, dim: int) -> "Tensor":
        at = positive_dim(dim, self.ndim + 1)
        shape, strides = (sizes[:at] + (1,) + sizes[at:] for sizes in (self.shape, self.strides))
        return Tensor.of(self.storage, shape, strides, self.offset)

    def squeeze(self, dim: int) -> "Tensor":
        at = positive_dim(dim, self.ndim)
        return self[(slice(None),) * at + (0,)] if self.shape[at : at + 1] == (1,) else self

    # -- arithmetic, element by element -------------------------------------------------------------------------------

    def map(self, function: Callable[[Any], Any], dtype: str | None = None) -> "Tensor":
        """`function` of each element. The type of number stays, unless `dtype` names another."""
        code = CODES[dtype] if dtype else self.storage.typecode
        return Tensor.of(array(code, ieee.mapped(function, self.flat())), self.shape)

    def to(self, dtype: str) -> "Tensor":
        return self.map({"bool": bool, "int64": int, "float64": float}[dtype], dtype)

    def __neg__(self) -> "Tensor":
        return self.map(operator.neg, "int64" if self.dtype == "bool" else None)

    def __invert__(self) -> "Tensor":
        return self.map(operator.not_ if self.dtype == "bool" else operator.invert)

    def __abs__(self) -> "Tensor":
        return self.map(abs)

    def __add__(self, other: "Tensor | Number") -> "Tensor":
        return elementwise(operator.add, self, other)

    def __sub__(self, other: "Tensor | Number") -> "Tensor":
        return elementwise(operator.sub, self, other)

    def __rsub__(self, other: Number) -> "Tensor":
        return elementwise(operator.sub, other, self)

    def __mul__(self, other: "Tensor | Number") -> "Tensor":
        return elementwise(operator.mul, self, other)

    __radd__, __rmul__ = __add__, __mul__

    def __truediv__(self, other: "Tensor | Number") -> "Tensor":
        return elementwise(ieee.divide, self, other, "float64")

    def __rtruediv__(self, other: Number) -> "Tensor":
        return elementwise(ieee.divide, other, self, "float64")

    def __pow__(self, other: "Tensor | Number") -> "Tensor":
        return elementwise(ieee.power, self, other, "float64")

    def __eq__(self, other: object) -> "Tensor":  # type: ignore[override]
        return elementwise(operator.eq, self, other, "bool")

    def __ne__(self, other: object) -> "Tensor":  # type: ignore[override]
        return elementwise(operator.ne, self, other, "bool")

    def __lt__(self, other: "Tensor | Number") -> "Tensor":
        return elementwise(operator.lt, self, other, "bool")

    def __le__(self, other: "Tensor | Number") -> "Tensor":
        return elementwise(operator.le, self, other, "bool")

    def __gt__(self, other: "Tensor | Number") -> "Tensor":
        return elementwise(operator.gt, self, other, "bool")

    def __ge__(self, other: "Tensor | Number") -> "Tensor":
        return elementwise(operator.ge, self, other, "bool")

    __hash__ = object.__hash__  # `==` compares elements, so a set or dict tells tensors apart by identity

    def __matmul__(self, other: "Tensor") -> "Tensor":
        return matmul(self, other)

    # -- reductions ---------------------------------------------------------------------------------------------------

    def reduce(
        self, function: Callable[[Any], Any], dim: Dims = None, keepdim: bool = False, dtype: str | None = None
    ) -> "Tensor":
        """`function` of all elements along the named dimensions (None is all), which go, or stay with size 1."""
        gone = positive_dims(dim, self.ndim) if self.shape else ()
        kept = [d for d in range(self.ndim) if d not in gone]
        rows = self.permute(*kept, *gone).flat().tolist()
        n_rows, size = (math.prod(self.shape[d] for d in dims) for dims in (kept, gone))
        found = [function(rows[i * size : (i + 1) * size]) for i in range(n_rows)]
        shape = tuple(1 if d in gone else n for d, n in enumerate(self.shape) if keepdim or d not in gone)
        return Tensor.of(array(CODES[dtype] if dtype else self.storage.typecode, found), shape)

    def sum(self, dim: Dims = None, keepdim: bool = False) -> "Tensor":
        return self.reduce(sum, dim, keepdim, "int64" if self.dtype == "bool" else None)

    def mean(self, dim: Dims = None, keepdim: bool = False) -> "Tensor":
        """The mean of nothing is nan. RuntimeError for integers, as their mean is seldom one."""
        if self.dtype != "float64":
            raise RuntimeError(f"mean(): input dtype should be floating point. Got {self.dtype} instead.")
        return self.reduce(lambda row: ieee.divide(sum(row), len(row)), dim, keepdim)


def elementwise(function: Callable[[Any, Any], Any], a: Any, b: Any, dtype: str | None = None) -> Tensor:
    """`function` of each pair of elements, after broadcasting; one of the two may be a number.

    The result has the greater type of the two (numbers, as Python counts them: bool, int, float), unless `dtype` is
    given.
    """
    shape = broadcast_shapes(*(x.shape if isinstance(x, Tensor) else () for x in (a, b)))
    numbers: list[Any] = []
    dtypes = []
    for x in (a, b):
        if isinstance(x, Tensor):
            numbers.append(x.flat() if x.shape == shape else x.expand(*shape).flat())
            dtypes.append(x.dtype)
        elif isinstance(x, int | float):
            numbers.append(repeat(x))
            dtypes.append("bool" if isinstance(x, bool) else "int64" if isinstance(x, int) else "float64")
        else:
            raise TypeError(f"expected a Tensor or a number, got {type(x).__name__}")
    dtype = dtype or max(dtypes, key=list(CODES).index)
    if dtype == "bool" and function in (operator.add, operator.sub, operator.mul):
        dtype = "int64"
    return Tensor.of(array(CODES[dtype], ieee.mapped(function, *numbers)), shape)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """The product of matrices in the last two dimensions, the dimensions before them broadcast; a vector counts as a
    row on the left and as a column on the right, and that dimension goes again."""
    if not a.ndim or not b.ndim:
        raise RuntimeError(f"both arguments to matmul need to be at least 1D, but they are {a.ndim}D and {b.ndim}D")
    left = a.unsqueeze(0) if a.ndim == 1 else a
    right = b.unsqueeze(1) if b.ndim == 1 else b
    (n, k), (k_b, m) = left.shape[-2:], right.shape[-2:]
    if k != k_b:
        raise RuntimeError(f"mat1 and mat2 shapes cannot be multiplied ({n}x{k} and {k_b}x{m})")
    batch = broadcast_shapes(left.shape[:-2], right.shape[:-2])
    flat_a, flat_b = left.expand(*batch, n, k).flat(), right.expand(*batch, k, m).flat()
    product = array("d" if "float64" in (a.dtype, b.dtype) else "q")
    for i in range(math.prod(batch)):
        whole_a, whole_b = flat_a[i * n * k : (i + 1) * n * k], flat_b[i * k * m : (i + 1) * k * m]
        product.extend(kernels.matmul(whole_a, whole_b, n, k, m))
    rows = () if a.ndim == 1 else (n,)
    columns = () if b.ndim == 1 else (m,)
    return Tensor.of(product, batch + rows + columns)
