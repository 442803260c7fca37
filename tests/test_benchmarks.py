"""Benchmarks that take full-size models run on tiny ones, so that they still run when they are needed."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look for their types
    spec.loader.exec_module(module)
    return module


def test_stable_diffusions_speed_beside_its_peers(capsys: pytest.CaptureFixture[str]) -> None:
    n_threads = str(torch.get_num_threads())
    load("sd_speed").main(["--tiny", "--repeats", "1", "--threads", n_threads])
    printed = capsys.readouterr().out
    for task in ("guided step", "decode"):
        (table,) = (part for part in printed.split("\n\n") if part.startswith(f"| {task}"))
        rows = {cells[1].strip(): cells[2:-1] for line in table.splitlines()[2:] if (cells := line.split("|"))}
        assert list(rows) == ["Diffusers, float32", "Diffusers, bfloat16", "miniai, bfloat16"]
        errors = {name: float(cells[-1]) for name, cells in rows.items()}
        assert errors["Diffusers, float32"] == 0
        assert 0 < errors["miniai, bfloat16"] < 0.1
        assert rows["Diffusers, bfloat16"][1].strip() == "1.00"
        assert all(float(cells[0]) > 0 for cells in rows.values())


def test_in_float32_ours_stands_beside_theirs_at_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    n_threads = str(torch.get_num_threads())
    arguments = ["--tiny", "--repeats", "1", "--threads", n_threads, "--float32", "--only", "decode"]
    load("sd_speed").main(arguments)
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| miniai, float32"))
    assert float(row.split("|")[-2]) < 1e-3


def test_the_distance_of_moments_beside_scipys(capsys: pytest.CaptureFixture[str]) -> None:
    load("frechet_distance").main(["--dims", "24"])
    row = capsys.readouterr().out.splitlines()[-1]
    assert row.split("|")[1].strip() == "24"
    assert float(row.split("|")[-2]) < 1e-9
