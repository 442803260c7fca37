"""The commands that plot: a training from the inside, and the orders of the samplers."""

from pathlib import Path

import pytest

from miniai.cli import run
from miniai.recipes.look_inside import PLOTS
from miniai.recipes.sampler_orders import LINES

DATA = Path(__file__).parent.parent / "data" / "fashion-mnist"


def test_a_short_training_leaves_every_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--out", str(tmp_path / "out"), "--data", str(DATA), "--batch-size", "20", "--steps", "60"]
    assert run(["train", "look-inside", *options, "--init", "lsuv"]) == 0
    text = capsys.readouterr().out
    accuracy = float(text.partition("accuracy ")[2].split()[0])
    assert accuracy > 45  # chance is 10: the suggested rate learns
    assert "multiply-adds" in text
    plots = [(tmp_path / "out" / f"{name}.png").read_bytes() for name in PLOTS]
    assert all(plot[:4] == b"\x89PNG" for plot in plots)
    assert len(set(plots)) == len(PLOTS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--init", "zeros"], "--inits: there is no 'zeros'"),
        (["--optimizer", "magic"], "--optimizers: there is no 'magic'"),
        (["--steps", "0"], "--steps and --learning-rate must be above 0"),
        (["--learning-rate", "nan"], "--steps and --learning-rate must be above 0"),
        (["--batch-size", "0"], "--batch-sizes 0 is not possible"),
    ],
)
def test_what_cannot_be_looked_into_is_one_line(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", "look-inside", "--out", str(tmp_path / "out"), "--data", str(DATA), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_orders_of_all_samplers_are_a_table_and_a_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", "samplers", str(tmp_path / "orders.png"), "--steps", "40,80"]) == 0
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:-1]]
    orders = {row[0]: float(row[-1]) for row in rows}
    assert set(orders) == set(LINES)
    expected = {"Euler": 1, "Heun": 2, "DPM++ 2M": 2, "LMS": 4, "DDPM, variance": 1, "DPM++ 2M SDE, variance": 2}
    assert {name: round(orders[name]) for name in expected} == expected
    assert (tmp_path / "orders.png").read_bytes()[:4] == b"\x89PNG"
    for steps in ("40", "1,2", "many"):
        assert run(["evaluate", "samplers", str(tmp_path / "none.png"), "--steps", steps]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "none.png").exists()
