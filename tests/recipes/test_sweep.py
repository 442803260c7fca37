"""Sweeps over batch size, learning rate, first weights and optimizer, on a few hundred pictures of Fashion-MNIST."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from miniai.base.errors import UserError
from miniai.cli import run
from miniai.nn.init import measure
from miniai.recipes import sweep
from miniai.recipes.sweep import INITS, OPTIMIZERS, SweepConfig, first_network, run_sweep
from miniai.train.fashion_mnist import load_fashion_mnist

DATA = Path(__file__).parent.parent / "data" / "fashion-mnist"
SMALL = SweepConfig((20,), (0.003, 1e6), ("kaiming",), ("sgd", "adamw"), epochs=3, channels=(8, 16))


def test_every_combination_is_trained_once_and_the_best_stands_first(tmp_path: Path) -> None:
    text = run_sweep(tmp_path, SMALL, data=DATA)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[2:]]
    assert {(row[0], row[1]) for row in rows} == {
        ("sgd", "0.003"),
        ("sgd", "1e+06"),
        ("adamw", "0.003"),
        ("adamw", "1e+06"),
    }
    assert rows[0][:2] == ["adamw", "0.003"]
    accuracies = [float(row[4].removesuffix(" %")) for row in rows]
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[0] > 40  # chance is 10
    assert next(row for row in rows if row[:2] == ["sgd", "1e+06"])[4:6] == ["0.0 %", "no number"]
    assert (tmp_path / "table.md").read_text() == text
    for name in ("losses.png", "accuracy.png", "config.json", "adamw-rate0.003-batch20-kaiming/log.jsonl"):
        assert (tmp_path / name).is_file()


def test_a_broken_sweep_does_only_what_is_left_and_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(SMALL, learning_rates=(0.003, 0.01), optimizers=("adamw",), epochs=1)
    run_sweep(tmp_path / "whole", config, data=DATA)
    done: list[str] = []
    write = sweep.write_json

    def stop_at_the_second(path: Path, value: object) -> None:
        if done:
            raise RuntimeError("the machine went away")
        done.append(path.parent.name)
        write(path, value)

    monkeypatch.setattr(sweep, "write_json", stop_at_the_second)
    with pytest.raises(RuntimeError, match="went away"):
        run_sweep(tmp_path / "cut", config, data=DATA)
    monkeypatch.undo()
    with pytest.raises(UserError, match="add --resume"):
        run_sweep(tmp_path / "cut", config, data=DATA)
    first = (tmp_path / "cut" / done[0] / "result.json").stat().st_mtime_ns
    run_sweep(tmp_path / "cut", config, data=DATA, resume=True)
    assert (tmp_path / "cut" / done[0] / "result.json").stat().st_mtime_ns == first
    for trial in config.trials():
        results = [
            json.loads((tmp_path / name / trial.folder / "result.json").read_text()) for name in ("whole", "cut")
        ]
        for result in results:
            del result["seconds"]
        assert results[0] == results[1]
        assert asdict(trial).items() <= results[0].items()


@pytest.mark.parametrize("init", INITS)
def test_first_weights_are_those_that_were_asked_for(init: str) -> None:
    pictures = load_fashion_mnist("train", DATA).scaled()[:64]
    config = SweepConfig((1,), (1,), INITS, ("sgd",))
    model = first_network(init, config, pictures)
    again = first_network(init, config, pictures)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    others = [first_network(other, config, pictures) for other in INITS if other != init]
    assert not any(torch.equal(model[0].weight, other[0].weight) for other in others)  # type: ignore[index]
    deviations = [one.deviation for one in measure(model, pictures, choose=lambda m: isinstance(m, nn.Linear))]
    assert (abs(deviations[0] - 1) < 1e-3) == (init == "lsuv")


def test_every_optimizer_takes_a_step_of_its_own() -> None:
    ends = []
    for make in OPTIMIZERS.values():
        weight = nn.Parameter(torch.tensor([1.0, -2.0]))
        optimizer = make([weight], 0.01)
        for _ in range(3):
            optimizer.zero_grad()
            (weight**2 * torch.tensor([1.0, 5.0])).sum().backward()
            optimizer.step()
        ends.append(tuple(weight.tolist()))
    assert len(set(ends)) == len(OPTIMIZERS)
    assert all(0 < end[0] < 1 for end in ends)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--optimizers", "adagrad"], "--optimizers: there is no 'adagrad', there are sgd, momentum, rmsprop"),
        (["--inits", "zeros"], "--inits: there is no 'zeros', there are torch, glorot, kaiming, lsuv"),
        (["--learning-rates", "fast"], "--learning-rates 'fast' is not possible: give numbers, separated"),
        (["--batch-sizes", "1.5"], "--batch-sizes '1.5' is not possible: give whole numbers"),
        (["--batch-sizes", "0"], "--batch-sizes 0 is not possible: give numbers above 0"),
        (["--learning-rates", "nan"], "--learning-rates 'nan' is not possible: give numbers"),
        (["--learning-rates", ","], "these are 0 trainings: list what makes 1 to 200"),
        (["--epochs", "0"], "--epochs 0.0 is not possible"),
        (["--epochs", "inf"], "--epochs inf is not possible"),
        (["--limit", "0"], "--limit 0 is not possible"),
    ],
)
def test_what_cannot_be_swept_over_is_one_line(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", "sweep", "--out", str(tmp_path / "out"), "--data", str(DATA), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_commands_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "sweep")
    options = ["--learning-rates", "0.01", "--optimizers", "adam", "--limit", "40", "--batch-sizes", "20"]
    assert run(["train", "sweep", "--out", out, "--data", str(DATA), *options]) == 0
    assert "| adam | 0.01 | 20 | kaiming |" in capsys.readouterr().out
    assert not (tmp_path / "sweep" / "accuracy.png").exists()  # there is nothing to draw it over
    for command in ("fashion-autoencoder", "fashion-latent"):
        assert run(["train", command, "--out", str(tmp_path / command), "--data", str(tmp_path)]) == 2
        assert capsys.readouterr().err.startswith("error: Fashion-MNIST is not there")
