"""18. Reverse-mode differentiation: a variable remembers what it was computed from, and how to pass a gradient back.

Forward mode (dual.py) costs a run for each input; here one run backward gives the gradient of one number by all inputs,
as training needs. Nothing global is switched on or off: the graph grows only from variables with `requires_grad`.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

from miniai.scratch import creation
from miniai.scratch.creation import full, zeros
from miniai.scratch.ieee import Number, log
from miniai.scratch.shapes import Shape, offsets, positive_dims
from miniai.scratch.tensor import Dims, Tensor, elementwise

Pull = Callable[[Tensor], Sequence[Tensor | None]]  # the gradient of the result to that of each parent


class Variable:
    """A tensor with a memory. `grad` holds the gradient of what `backward` was called on, for those given by the user
    (leaves) that require it; it adds up over calls."""

    def __init__(self, data: Any, requires_grad: bool = False) -> None:
        self.data: Tensor = data if isinstance(data, Tensor) else Tensor(data)
        if requires_grad and self.data.dtype != "float64":
            raise RuntimeError("only Tensors of floating point dtype can require gradients")
        self.requires_grad = requires_grad
        self.grad: Tensor | None = None
        self.parents: tuple[Variable, ...] = ()
        self.pull: Pull | None = None

    @classmethod
    def computed(cls, data: Tensor, parents: "Sequence[Variable]", pull: Pull) -> "Variable":
        """The result of an operation; it forgets where it came from if nothing there needs a gradient."""
        variable = cls(data)
        if any(parent.requires_grad for parent in parents):
            variable.requires_grad, variable.parents, variable.pull = True, tuple(parents), pull
        return variable

    @property
    def shape(self) -> Shape:
        return self.data.shape

    @property
    def ndim(self) -> int:
        return self.data.ndim

    def item(self) -> Number:
        return self.data.item()

    def detach(self) -> "Variable":
        """The same numbers, without the memory."""
        return Variable(self.data)

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        return f"Variable({self.data!r}{', requires_grad=True' if self.requires_grad else ''})"

    def backward(self, grad: Tensor | None = None) -> None:
        """Adds to the `grad` of every leaf. Without `grad` the variable must be one number, as a loss is."""
        if not self.requires_grad:
            raise RuntimeError("element 0 of tensors does not require grad and does not have a grad_fn")
        if grad is None:
            if self.data.numel() != 1:
                raise RuntimeError("grad can be implicitly created only for scalar outputs")
            grad = full(self.shape, 1.0)
        grads = {id(self): grad}
        for variable in reversed(in_order(self)):
            grad = grads.pop(id(variable))
            if variable.pull is None:
                variable.grad = grad if variable.grad is None else variable.grad + grad
                continue
            for parent, parent_grad in zip(variable.parents, variable.pull(grad), strict=True):
                if parent.requires_grad and parent_grad is not None:
                    before = grads.get(id(parent))
                    grads[id(parent)] = parent_grad if before is None else before + parent_grad

    # -- arithmetic: each rule is a line of the table of derivatives --------------------------------------------------

    def __add__(self, other: "Variable | Number") -> "Variable":
        a, b = self, variable(other)
        return Variable.computed(a.data + b.data, (a, b), lambda g: (fold(g, a.shape), fold(g, b.shape)))

    def __sub__(self, other: "Variable | Number") -> "Variable":
        a, b = self, variable(other)
        return Variable.computed(a.data - b.data, (a, b), lambda g: (fold(g, a.shape), fold(-g, b.shape)))

    def __mul__(self, other: "Variable | Number") -> "Variable":
        a, b = self, variable(other)
        return Variable.computed(
            a.data * b.data,
            (a, b),
            lambda g: (
                fold(g * b.data, a.shape) if a.requires_grad else None,
                fold(g * a.data, b.shape) if b.requires_grad else None,
            ),
        )

    def __truediv__(self, other: "Variable | Number") -> "Variable":
        a, b = self, variable(other)
        ratio = a.data / b.data
        return Variable.computed(
            ratio,
            (a, b),
            lambda g: (
                fold(g / b.data, a.shape),
                fold(-g * ratio / b.data, b.shape) if b.requires_grad else None,
            ),
        )

    __radd__, __rmul__ = __add__, __mul__

    def __rsub__(self, other: Number) -> "Variable":
        return variable(other) - self

    def __rtruediv__(self, other: Number) -> "Variable":
        return variable(other) / self

    def __neg__(self) -> "Variable":
        return Variable.computed(-self.data, (self,), lambda g: (-g,))

    def __pow__(self, power: Number) -> "Variable":
        return Variable.computed(
            self.data**power, (self,), lambda g: (g * self.data ** (power - 1) * power if power else g * 0.0,)
        )

    def __matmul__(self, other: "Variable") -> "Variable":
        """Both of at least two dimensions."""
        a, b = self, other
        if a.ndim < 2 or b.ndim < 2:
            raise RuntimeError(f"both variables need to be at least 2D, but they are {a.ndim}D and {b.ndim}D")
        return Variable.computed(
            a.data @ b.data,
            (a, b),
            lambda g: (
                fold(g @ b.data.transpose(-2, -1), a.shape) if a.requires_grad else None,
                fold(a.data.transpose(-2, -1) @ g, b.shape) if b.requires_grad else None,
            ),
        )

    def map(self, function: Callable[[Any], Any], slope: Callable[[Any, Any], Any]) -> "Variable":
        """`function` of each element; `slope(x, y)` is its derivative, from the element and the result."""
        y = self.data.map(function)
        return Variable.computed(y, (self,), lambda g: (g * elementwise(slope, self.data, y, "float64"),))

    def log(self) -> "Variable":
        return Variable.computed(self.data.map(log), (self,), lambda g: (g / self.data,))

    # -- reductions ---------------------------------------------------------------------------------------------------

    def sum(self, dim: Dims = None, keepdim: bool = False) -> "Variable":
        """Every element counts once, so each receives the gradient of its sum."""
        gone = positive_dims(dim, self.ndim)
        kept = tuple(1 if d in gone else size for d, size in enumerate(self.shape))
        return Variable.computed(
            self.data.sum(dim, keepdim), (self,), lambda g: (g.reshape(*kept).expand(*self.shape),)
        )

    def mean(self, dim: Dims = None, keepdim: bool = False) -> "Variable":
        total = self.sum(dim, keepdim)
        return total * (total.data.numel() / max(self.data.numel(), 1))

    def var(self, dim: Dims = None, keepdim: bool = False, correction: int = 0) -> "Variable":
        """The variance, here without Bessel's correction unless asked: as normalisation layers use it."""
        centred = self - self.mean(dim, True)
        squares = (centred * centred).sum(dim, keepdim)
        return squares / (self.data.numel() // squares.data.numel() - correction)

    def max(self, dim: int = -1) -> "Variable":
        """The greatest along `dim`; the gradient goes to the first of equals."""
        first = self.data.reduce(lambda row: row.index(max(row)), dim, True, "int64")
        return self.gather(dim, first).squeeze(dim)

    # -- other shapes and places: the gradient goes back where the number came from -----------------------------------

    def reshape(self, *shape: int) -> "Variable":
        return Variable.computed(self.data.reshape(*shape), (self,), lambda g: (g.reshape(*self.shape),))

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> "Variable":
        return self.reshape(*self.data.flatten(start_dim, end_dim).shape)

    def squeeze(self, dim: int) -> "Variable":
        return self.reshape(*self.data.squeeze(dim).shape)

    def unsqueeze(self, dim: int) -> "Variable":
        return self.reshape(*self.data.unsqueeze(dim).shape)

    def permute(self, *dims: int) -> "Variable":
        order = [dim % self.ndim for dim in dims]
        back = [order.index(dim) for dim in range(len(order)) if dim in order]
        return Variable.computed(self.data.permute(*dims), (self,), lambda g: (g.permute(*back),))

    def transpose(self, dim0: int, dim1: int) -> "Variable":
        return Variable.computed(self.data.transpose(dim0, dim1), (self,), lambda g: (g.transpose(dim0, dim1),))

    def expand(self, *shape: int) -> "Variable":
        return Variable.computed(self.data.expand(*shape), (self,), lambda g: (fold(g, self.shape),))

    def read(self, look: Callable[[Tensor], Tensor]) -> "Variable":
        """Any view of the tensor, made by `look`: what reading took through strides, the gradient adds through them."""
        base = self.data.contiguous()
        view = look(base)
        if view.storage is not base.storage:
            raise RuntimeError("read needs a view: the result does not share the tensor's storage")

        start = view.offset - base.offset
        return Variable.computed(
            view, (self,), lambda g: (add_at(self.shape, offsets(view.shape, view.strides, start), g),)
        )

    def __getitem__(self, index: Any) -> "Variable":
        """Integers, slices, `None` and `...`."""
        return self.read(lambda x: x[index])

    def gather(self, dim: int, index: Tensor) -> "Variable":
        return Variable.computed(
            creation.gather(self.data, dim, index),
            (self,),
            lambda g: (creation.scatter_add(self.shape, dim, index, g),),
        )

    def pad(self, padding: Sequence[int], value: Number = 0.0) -> "Variable":
        """As creation.pad; the gradient is what lies within the border."""
        n_before = [0] * (self.ndim - len(padding) // 2) + list(padding[-2::-2])
        within = tuple(slice(n, n + size) for n, size in zip(n_before, self.shape, strict=True))
        return Variable.computed(creation.pad(self.data, padding, value), (self,), lambda g: (g[within],))


def variable(x: Variable | Number) -> Variable:
    return x if isinstance(x, Variable) else Variable(x)


def cat(variables: Sequence[Variable], dim: int = 0) -> Variable:
    """One after another along `dim`; each receives its own part of the gradient."""
    joined = creation.cat([x.data for x in variables], dim)
    whole = (slice(None),) * (dim % joined.ndim)
    ends = list(accumulate(x.shape[len(whole)] for x in variables))
    parts = [(*whole, slice(start, end)) for start, end in zip([0, *ends], ends, strict=False)]
    return Variable.computed(joined, variables, lambda g: [g[part] for part in parts])


def add_at(shape: Shape, places: list[int], values: Tensor) -> Tensor:
    """Zeros of `shape` with each value added at its place in the buffer; a place may come up many times."""
    sums = zeros(*shape)
    for place, value in zip(places, values.flat(), strict=True):
        sums.storage[place] += value
    return sums


def fold(grad: Tensor, shape: Shape) -> Tensor:
    """The gradient of something of `shape` that broadcasting stretched: a number used many times receives the sum."""
    if grad.shape == shape:
        return grad
    n_new = grad.ndim - len(shape)
    stretched = [d for d in range(grad.ndim) if d < n_new or (shape[d - n_new] == 1 != grad.shape[d])]
    return grad.sum(stretched).reshape(*shape) if stretched else grad


def in_order(result: Variable) -> list[Variable]:
    """Everything that `result` was computed from and that needs a gradient, each after all that it came from."""
    order: list[Variable] = []
    seen: set[int] = set()
    waiting = [(result, False)]
    while waiting:  # a stack of our own: a deep network would run out of Python's
        node, parents_done = waiting.pop()
        if parents_done:
            order.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            waiting.append((node, True))
            waiting.extend((parent, False) for parent in node.parents if parent.requires_grad)
    return order
