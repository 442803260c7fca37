"""What a model is made of: a table of its modules with shapes, parameters and multiply-adds."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from miniai.base.modes import in_eval_mode

HEADINGS = ("module", "kind", "in", "out", "parameters", "multiply-adds")


@dataclass(frozen=True)
class Row:
    """One call of a module: its name and class, the shapes of its first input and output, and what it costs."""

    name: str
    kind: str
    shape_in: tuple[int, ...]
    shape_out: tuple[int, ...]
    n_parameters: int
    n_multiply_adds: int


@dataclass(frozen=True)
class Summary:
    """The rows in the order of the calls, and the whole model's numbers; `str` makes a table of it.

    The whole may exceed the rows' sum: attention's products are no module's, and a module that is called twice has its
    parameters in the first row only.
    """

    rows: tuple[Row, ...]
    n_parameters: int
    n_trained: int
    n_multiply_adds: int

    def __str__(self) -> str:
        lines = [HEADINGS, *(_cells(row) for row in self.rows)]
        lines.append(("total", "", "", "", f"{self.n_parameters:,}", f"{self.n_multiply_adds:,}"))
        widths = [max(len(line[i]) for line in lines) for i in range(len(HEADINGS))]
        texts = []
        for line in lines:
            pairs = zip(line, widths, strict=True)
            parts = [cell.rjust(w) if i >= 4 else cell.ljust(w) for i, (cell, w) in enumerate(pairs)]
            texts.append("  ".join(parts).rstrip())
        return "\n".join([*texts, f"{self.n_trained:,} parameters are trained"])

    def _repr_html_(self) -> str:
        lines = [HEADINGS, *(_cells(row) for row in self.rows)]
        table = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in line) + "</tr>" for line in lines)
        return f"<table>{table}</table>{self.n_parameters:,} parameters, {self.n_multiply_adds:,} multiply-adds"


def summary(model: nn.Module, *inputs: Any, depth: int | None = None, **keywords: Any) -> Summary:
    """Call `model(*inputs, **keywords)` once, in eval mode and without gradients, and write down what each module did.

    - depth: None for the innermost modules; 1 for the model's own children, 2 for theirs too, and so on.

    Multiply-adds are those of convolutions, matrix products and attention (half of what torch's FlopCounterMode
    counts); element-wise operations are not counted. The model is afterwards as it was.

    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 8 * 8, 10))
    >>> print(summary(model, torch.zeros(1, 1, 8, 8)))
    module  kind     in              out             parameters  multiply-adds
    0       Conv2d   (1, 1, 8, 8)    (1, 4, 8, 8)            40          2,304
    1       ReLU     (1, 4, 8, 8)    (1, 4, 8, 8)             0              0
    2       Flatten  (1, 4, 8, 8)    (1, 256)                 0              0
    3       Linear   (1, 256)        (1, 10)              2,570          2,560
    total                                                 2,610          4,864
    2,610 parameters are trained
    """
    rows: list[Row] = []
    counted: set[int] = set()
    counter = FlopCounterMode(display=False, custom_mapping=_unknown_to_torch())
    handles = []
    for name, module in model.named_modules():
        if not name or (depth is None and any(module.children())) or (depth is not None and name.count(".") >= depth):
            continue
        handles += _watch(name, module, counter, counted, rows)
    try:
        with in_eval_mode(model), torch.no_grad(), counter:
            model(*inputs, **keywords)
    finally:
        for handle in handles:
            handle.remove()
    parameters = list(model.parameters())
    n_trained = sum(weight.numel() for weight in parameters if weight.requires_grad)
    return Summary(tuple(rows), sum(map(torch.numel, parameters)), n_trained, counter.get_total_flops() // 2)


def _attention_flops(
    q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...], *others: Any, out_shape: Any = None, **options: Any
) -> int:
    """Of shapes (b, heads, n, d): both matrix products of attention, a multiplication and an addition each."""
    batch, n_heads, n_queries, d = q
    return 2 * batch * n_heads * n_queries * k[-2] * (d + v[-1])


def _linear_flops(x: tuple[int, ...], *others: Any, out_shape: tuple[int, ...], **options: Any) -> int:
    return 2 * math.prod(out_shape) * x[-1]


def _conv_flops(x: tuple[int, ...], *others: Any, out_shape: tuple[int, ...], **options: Any) -> int:
    """The weight follows x, and in the overload that adds a map, that map, which has the shape of the answers."""
    weight = others[1] if others[0] == out_shape else others[0]
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


def _transposed_conv_flops(x: tuple[int, ...], weight: tuple[int, ...], *others: Any, **options: Any) -> int:
    return 2 * math.prod(x) * math.prod(weight[1:])


def _unknown_to_torch() -> dict[Any, Any]:
    """What torch's counter does not know: attention on a CPU, and layers whose weights are packed."""
    known: dict[Any, Any] = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
    packed = {
        "_linear_pointwise": _linear_flops,
        "_convolution_pointwise": _conv_flops,
        "_convolution_transpose_pointwise": _transposed_conv_flops,
    }
    mkldnn = torch.ops.mkldnn
    return known | {getattr(mkldnn, name): flops for name, flops in packed.items() if hasattr(mkldnn, name)}


def _watch(name: str, module: nn.Module, counter: FlopCounterMode, counted: set[int], rows: list[Row]) -> list[Any]:
    """Hooks that add a row at each call of `module`."""
    before: list[int] = []

    def enter(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        before.append(counter.get_total_flops())

    def leave(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        new = [weight for weight in module.parameters() if id(weight) not in counted]
        counted.update(map(id, new))
        n_multiply_adds = (counter.get_total_flops() - before.pop()) // 2
        n_parameters = sum(weight.numel() for weight in new)
        rows.append(Row(name, type(module).__name__, _shape(inputs), _shape(output), n_parameters, n_multiply_adds))

    return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]


def _shape(value: Any) -> tuple[int, ...]:
    """The shape of the first tensor in `value`; () if there is none."""
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return next((shape for part in value if (shape := _shape(part))), ())
    return ()


def _cells(row: Row) -> tuple[str, ...]:
    shapes = (str(row.shape_in), str(row.shape_out))
    return (row.name, row.kind, *shapes, f"{row.n_parameters:,}", f"{row.n_multiply_adds:,}")
