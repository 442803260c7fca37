"""11. Dimensions moved, joined, split, reduced and repeated by name: `rearrange(x, "b c h w -> b (h w) c")`.

The notation is that of einops (Rogozhnikov, ICLR 2022): names stand for dimensions, parentheses join several into one
(the last moves fastest), `...` stands for dimensions left alone, and 1 for a dimension of size 1.
"""

import math
import re
from collections.abc import Callable

from miniai.scratch.tensor import Tensor

Groups = list[list[str]]  # one list of names for each dimension; "1" is an empty list
EACH = ["each of ..."]  # `...` outside parentheses: a dimension for each, where `(...)` is one for all
REDUCTIONS: dict[str, Callable[[Tensor, list[int]], Tensor]] = {
    "sum": Tensor.sum,
    "mean": Tensor.mean,
    "max": lambda x, gone: x.reduce(max, gone),
    "min": lambda x, gone: x.reduce(min, gone),
    "prod": lambda x, gone: x.reduce(math.prod, gone, dtype="int64" if x.dtype == "bool" else None),
}


def rearrange(x: Tensor, pattern: str, **sizes: int) -> Tensor:
    """The same elements in another order and shape. Both sides must name the same dimensions."""
    left, right = parse(pattern, x.ndim)
    missing, new = names_of(left) - names_of(right), names_of(right) - names_of(left)
    if missing or new:
        raise ValueError(f"{pattern!r}: {sorted(missing | new)} must be on both sides (use reduce or repeat otherwise)")
    return transform(x, pattern, "sum", sizes)


def reduce(x: Tensor, pattern: str, reduction: str, **sizes: int) -> Tensor:
    """`reduction` ("sum", "mean", "max", "min" or "prod") over the dimensions that the right side does not name."""
    left, right = parse(pattern, x.ndim)
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")
    if new := names_of(right) - names_of(left):
        raise ValueError(f"{pattern!r}: {sorted(new)} must be on the left side too")
    return transform(x, pattern, reduction, sizes)


def repeat(x: Tensor, pattern: str, **sizes: int) -> Tensor:
    """Copies along the dimensions that only the right side names; their sizes are given by name."""
    left, right = parse(pattern, x.ndim)
    if missing := names_of(left) - names_of(right):
        raise ValueError(f"{pattern!r}: {sorted(missing)} must be on the right side too")
    return transform(x, pattern, "sum", sizes)


def names_of(groups: Groups) -> set[str]:
    return {name for group in groups for name in group}


def parse(pattern: str, n_dims: int) -> tuple[Groups, Groups]:
    """Both sides of the pattern; `...` is given as many names as it stands for."""
    sides = pattern.split("->")
    if len(sides) != 2:
        raise ValueError(f"{pattern!r}: a pattern has two sides, with -> between them")
    left, right = (parse_side(side, pattern) for side in sides)
    n_left = n_dims - sum(group != EACH for group in left)
    if n_left < 0 or (n_left and EACH not in left):
        raise ValueError(f"{pattern!r}: the left side names {len(left)} dimensions, the tensor has {n_dims}")
    hidden = [f"...{i}" for i in range(n_left)]
    left = [group for old in left for group in ([[name] for name in hidden] if old == EACH else [old])]
    spread: Groups = []
    for group in right:
        if group == EACH:
            spread.extend([name] for name in hidden)
        else:
            spread.append([name for old in group for name in (hidden if old == "..." else [old])])
    return left, spread


def parse_side(side: str, pattern: str) -> Groups:
    groups: Groups = []
    inside = False
    for token in re.findall(r"\.\.\.|\w+|\S", side):
        if token == "(" and not inside:
            groups.append([])
            inside = True
        elif token == ")" and inside:
            inside = False
        elif token == "1":
            groups.extend([] if inside else [[]])
        elif token == "..." or token.isidentifier():
            if inside:
                groups[-1].append(token)
            else:
                groups.append(EACH if token == "..." else [token])
        else:
            raise ValueError(f"{pattern!r}: {token!r} is out of place")
    names = [name for group in groups for name in group]
    if inside or len(names) != len(set(names)):
        raise ValueError(f"{pattern!r}: " + ("a parenthesis is not closed" if inside else "a name stands twice"))
    return groups


def transform(x: Tensor, pattern: str, reduction: str, sizes: dict[str, int]) -> Tensor:
    """Splits the left side's groups, reduces, adds, orders and joins: every pattern is these five steps."""
    left, right = parse(pattern, x.ndim)
    known = solve(left, x, pattern, sizes)
    for name in names_of(right):
        if name not in known:
            raise ValueError(f"{pattern!r}: the size of {name!r} is not given")
    names = [name for group in left for name in group]
    x = x.reshape(*(known[name] for name in names))  # 1. split
    wanted = [name for group in right for name in group]
    if gone := [i for i, name in enumerate(names) if name not in wanted]:
        x = REDUCTIONS[reduction](x, gone)  # 2. reduce
    names = [name for name in names if name in wanted]
    added = [name for name in wanted if name not in names]
    x = x[(...,) + (None,) * len(added)].expand(*x.shape, *(known[name] for name in added))  # 3. add
    x = x.permute(*((names + added).index(name) for name in wanted))  # 4. order
    return x.reshape(*(math.prod(known[name] for name in group) for group in right))  # 5. join


def solve(left: Groups, x: Tensor, pattern: str, sizes: dict[str, int]) -> dict[str, int]:
    """The size of every name; in each group at most one may be left for us to find."""
    known = dict(sizes)
    for group, size in zip(left, x.shape, strict=True):
        unknown = [name for name in group if name not in known]
        rest = math.prod(known[name] for name in group if name in known)
        if len(unknown) > 1:
            raise ValueError(f"{pattern!r}: only one size of {group} can be found, give the others by name")
        if (size % rest if unknown and rest else size != rest) or (unknown and not rest):
            raise ValueError(f"{pattern!r}: {group} does not fit a dimension of size {size}, with {sizes}")
        known.update((name, size // rest) for name in unknown)
    if unused := set(sizes) - set(known) | {name for name in sizes if not re.search(rf"\b{name}\b", pattern)}:
        raise ValueError(f"{pattern!r}: {sorted(unused)} is given a size but does not stand in the pattern")
    return known
