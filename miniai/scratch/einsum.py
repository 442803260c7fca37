"""9. Einstein summation: `einsum("ij,jk->ik", a, b)` names dimensions by letters, and sums those not in the result.

The notation is parsed here, as `torch.einsum` understands it: letters a to z and A to Z, spaces, `...` for dimensions
left unnamed, a letter twice in one operand for its diagonal, and without `->` the letters that stand once, in
alphabetical order. Errors carry PyTorch's words.
"""

from collections.abc import Sequence
from functools import reduce
from operator import mul
from string import ascii_letters

from miniai.scratch.tensor import Tensor

ELLIPSIS = "..."


def einsum(equation: str, *operands: Tensor) -> Tensor:
    """Multiplies the operands, aligned by their letters, and sums over the letters that the result does not name."""
    inputs, output = parse(equation, len(operands))
    named = [name_dims(letters, x, i) for i, (letters, x) in enumerate(zip(inputs, operands, strict=True))]
    sizes = sizes_of(named, operands)
    result = expand_ellipsis(output, max((label for label in sizes if isinstance(label, int)), default=-1) + 1)
    summed = [label for label in sizes if label not in result]
    for label in result:
        if label not in sizes:
            raise RuntimeError(
                f"einsum(): output subscript {label} does not appear in the equation for any input operand"
            )
    aligned = [align(x, labels, [*result, *summed]) for labels, x in zip(named, operands, strict=True)]
    product = reduce(mul, aligned).expand(*(sizes[label] for label in [*result, *summed]))
    return product.sum(range(len(result), product.ndim)) if summed else product


def parse(equation: str, n_operands: int) -> tuple[list[list[str]], list[str]]:
    """The letters of each operand and of the result. Raises RuntimeError for what is not an equation."""
    left, arrow, right = equation.partition("->")
    inputs = [letters_of(text, f"operand {i}") for i, text in enumerate(left.split(","))]
    if len(inputs) != n_operands:
        more_or_fewer = "more" if n_operands > len(inputs) else "fewer"
        raise RuntimeError(f"einsum(): {more_or_fewer} operands were provided than specified in the equation")
    if arrow:
        output = letters_of(right, "the output")
        for letter in output:
            if output.count(letter) > 1:
                raise RuntimeError(f"einsum(): output subscript {letter} appears more than once in the output")
        return inputs, output
    everywhere = [letter for letters in inputs for letter in letters]
    once = [letter for letter in sorted(set(everywhere) - {ELLIPSIS}) if everywhere.count(letter) == 1]
    return inputs, [ELLIPSIS, *once]


def letters_of(text: str, where: str) -> list[str]:
    letters = []
    text = text.replace(" ", "")
    while text:
        if text.startswith(ELLIPSIS) and ELLIPSIS not in letters:
            letters.append(ELLIPSIS)
            text = text[3:]
            continue
        if text[0] == ".":
            raise RuntimeError(f"einsum(): found '.' for {where} that is not part of any ellipsis")
        if text[0] not in ascii_letters:
            raise RuntimeError(f"einsum(): invalid subscript {text[0]!r} in {where}, subscripts must be in [a-zA-Z]")
        letters.append(text[0])
        text = text[1:]
    return letters


def expand_ellipsis(letters: list[str], n_unnamed: int) -> list[str | int]:
    """`...` becomes the numbers of its dimensions, counted from the right: n - 1, …, 1, 0."""
    labels: list[str | int] = []
    for letter in letters:
        labels.extend(range(n_unnamed - 1, -1, -1) if letter == ELLIPSIS else [letter])
    return labels


def name_dims(letters: list[str], x: Tensor, operand: int) -> list[str | int]:
    """A label for each dimension of `x`."""
    n_unnamed = x.ndim - sum(letter != ELLIPSIS for letter in letters)
    if n_unnamed < 0 or (n_unnamed and ELLIPSIS not in letters):
        raise RuntimeError(
            f"einsum(): the number of subscripts in the equation ({x.ndim - n_unnamed}) does not match the number of "
            f"dimensions ({x.ndim}) for operand {operand} and no ellipsis was given"
        )
    return expand_ellipsis(letters, n_unnamed)


def sizes_of(named: Sequence[list[str | int]], operands: Sequence[Tensor]) -> dict[str | int, int]:
    """The size of each label; a size of 1 stretches to another operand's."""
    sizes: dict[str | int, int] = {}
    for i, (labels, x) in enumerate(zip(named, operands, strict=True)):
        for label, size in zip(labels, x.shape, strict=True):
            seen = sizes.get(label, 1)
            if seen != size and 1 not in (seen, size):
                raise RuntimeError(
                    f"einsum(): subscript {label} has size {size} for operand {i} which does not broadcast with "
                    f"previously seen size {seen}"
                )
            sizes[label] = size if seen == 1 else seen
    return sizes


def align(x: Tensor, labels: list[str | int], order: Sequence[str | int]) -> Tensor:
    """`x` with one dimension for each label of `order`, of size 1 where `x` has no such label."""
    kept = list(dict.fromkeys(labels))
    for label in kept:
        while labels.count(label) > 1:  # a diagonal walks along both dimensions at once: one stride, the sum of the two
            first = labels.index(label)
            second = labels.index(label, first + 1)
            x = diagonal(x, first, second)
            labels = labels[:second] + labels[second + 1 :]
    x = x.permute(*(labels.index(label) for label in order if label in labels))
    return x[tuple(slice(None) if label in labels else None for label in order)]


def diagonal(x: Tensor, first: int, second: int) -> Tensor:
    """The elements whose indices along both dimensions are equal, as a view; the first dimension holds them."""
    if x.shape[first] != x.shape[second]:
        raise RuntimeError(f"einsum(): a repeated subscript has sizes {x.shape[first]} and {x.shape[second]}")
    strides = list(x.strides)
    strides[first] += strides.pop(second)
    shape = x.shape[:second] + x.shape[second + 1 :]
    return Tensor.of(x.storage, shape, tuple(strides), x.offset)
