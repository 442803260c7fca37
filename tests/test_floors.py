"""The house stands on its floors: a module imports from lower floors or from its own package, never upward."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import miniai

ROOT = Path(miniai.__file__).parent
FLOORS = {
    "scratch": 0,
    "base": 1,
    "nn": 2,
    "train": 2,
    "diffusion": 3,
    "sd": 4,
    "evaluate": 5,
    "recipes": 6,
    "ui": 7,
    "cli": 8,
}
DOOR = {"__init__", "__main__"}  # `miniai` itself names what stands inside; it is not a floor


def imports(path: Path, source: str | None = None) -> Iterator[str]:
    """Every module that the file (or `source` in its place) imports, wherever in the file, relative ones resolved."""
    package = ["miniai", *path.relative_to(ROOT).with_suffix("").parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text() if source is None else source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield ".".join([*package[: len(package) + 1 - node.level], *(node.module or "").split(".")])
        elif isinstance(node, ast.ImportFrom) and node.module == "miniai":
            yield from (f"miniai.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def room(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def files() -> list[Path]:
    return [path for path in sorted(ROOT.rglob("*.py")) if room(path) not in DOOR]


def upward(path: Path, source: str | None = None) -> Iterator[str]:
    """The imports in `path` that go up, or sideways into another package of the same floor."""
    here = room(path)
    for name in imports(path, source):
        parts = name.split(".")
        if parts[0] != "miniai" or len(parts) == 1 or parts[1].startswith("__"):
            continue
        there = parts[1]
        allowed = here == there or FLOORS[there] < FLOORS[here]
        if not allowed or (there == "scratch" and here != "scratch"):
            yield f"{path.relative_to(ROOT)} imports {name}"


def test_every_room_has_a_floor() -> None:
    assert {room(path) for path in files()} <= set(FLOORS)


def test_no_module_imports_upward_or_sideways() -> None:
    assert [line for path in files() for line in upward(path)] == []


def test_the_walk_saw_imports_between_floors() -> None:
    seen = {
        (room(path), name.split(".")[1]) for path in files() for name in imports(path) if name.startswith("miniai.")
    }
    assert ("nn", "base") in seen
    assert ("recipes", "diffusion") in seen
    assert ("sd", "nn") in seen
    assert len(seen) > 12


def test_an_import_that_goes_up_is_found() -> None:
    culprit = "from miniai.sd import pipeline\nfrom miniai import nn\nimport miniai.base.files"
    assert len(list(upward(ROOT / "base" / "culprit.py", culprit))) == 2


def test_the_lowest_floor_needs_the_standard_library_alone() -> None:
    allowed = set(sys.stdlib_module_names) | {"miniai"}
    optional = {"numba"}
    for path in (ROOT / "scratch").rglob("*.py"):
        assert {name.split(".")[0] for name in imports(path)} <= allowed | optional, path
