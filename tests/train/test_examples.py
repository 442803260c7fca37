"""Every example in the docstrings of `train/`, `nn/`, `diffusion/` and `evaluate/` runs and says what it says."""

import doctest
import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch

import miniai
from miniai.train.callback import Callback
from miniai.train.data import Loader
from miniai.train.learner import Learner

ROOT = Path(miniai.__file__).parent
MODULES = [
    ".".join(["miniai", *path.relative_to(ROOT).with_suffix("").parts])
    for room in ("train", "nn", "diffusion", "evaluate", "ui")
    for path in sorted((ROOT / room).glob("*.py"))
    if ">>> " in path.read_text()
]


def examples(module: ModuleType) -> list[doctest.DocTest]:
    return [one for one in doctest.DocTestFinder().find(module, extraglobs={"torch": torch}) if one.examples]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run_and_print_what_they_say(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # what an example writes
    found = examples(importlib.import_module(name))
    assert found, f"{name} has examples that doctest does not find"
    for example in found:
        torch.manual_seed(0)
        report: list[str] = []
        runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
        runner.run(example, out=report.append)
        assert runner.failures == 0, "".join(report)


@pytest.mark.parametrize("room", ["train", "nn", "diffusion", "evaluate"])
def test_every_module_shows_what_it_is_for_in_an_example(room: str) -> None:
    modules = [path.stem for path in sorted((ROOT / room).glob("*.py")) if path.stem != "__init__"]
    assert len(modules) > 5
    assert [name for name in modules if f"miniai.{room}.{name}" not in MODULES] == []


def test_every_callback_learner_and_loader_shows_itself_in_an_example() -> None:
    named = {example.name for name in MODULES for example in examples(importlib.import_module(name))}
    public = [
        f"{module.__name__}.{name}"
        for path in sorted((ROOT / "train").glob("*.py"))
        if (module := importlib.import_module(f"miniai.train.{path.stem}"))
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, (Callback, Learner, Loader))
        if value.__module__ == module.__name__ and not name.startswith("_") and name != "Tracker"
    ]
    assert len(public) > 25
    lacking = [name for name in public if not any(one == name or one.startswith(f"{name}.") for one in named)]
    assert lacking == []
