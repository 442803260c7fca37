"""The real run in small: a data set of bars, trained from the command line, on the standard library alone."""

import ast
import gzip
import math
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import miniai.scratch
from miniai.scratch.__main__ import main
from miniai.scratch.autograd import Variable
from miniai.scratch.creation import zeros
from miniai.scratch.models import MODELS
from miniai.scratch.rng import Rng
from miniai.scratch.train import TrainConfig, open_split, train

FOLDER = Path(miniai.scratch.__file__).parent


def write_bars(folder: Path, n_train: int = 64, n_test: int = 32) -> Path:
    """28×28 images with noise and a bright bar, whose place is the label."""
    rng = Rng(1)
    for split, n in (("train", n_train), ("t10k", n_test)):
        pixels, labels = bytearray(), bytearray()
        for i in range(n):
            label = i % 4
            labels.append(label)
            for row in range(28):
                noise = [rng.integer(100) for _ in range(28)]
                bright = 7 * label <= row < 7 * label + 4
                pixels.extend(155 + x if bright else x for x in noise)
        images = struct.pack(">4I", 2051, n, 28, 28) + pixels
        (folder / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images, 1))
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 2049, n) + labels)
    return folder


@pytest.mark.parametrize("model", MODELS)
def test_each_model_learns_to_tell_images_apart_and_repeats_itself(tmp_path: Path, model: str) -> None:
    write_bars(tmp_path, 32, 16)
    config = TrainConfig(model, 3, 8, 0.01)
    data = open_split(tmp_path, "train"), open_split(tmp_path, "test")
    lines: list[str] = []
    assert train(config, *data, lines.append) > 0.9
    assert "epoch 3/3" in lines[-1]
    assert "s left" in lines[0]
    if model == "linear":
        again: list[str] = []
        train(config, *data, again.append)
        assert again[-1] == lines[-1]


@pytest.mark.parametrize("model", MODELS)
def test_a_model_scores_ten_classes(model: str) -> None:
    assert MODELS[model](Rng(0))(Variable(zeros(2, 1, 28, 28))).shape == (2, 10)


def test_the_command_runs_where_no_package_is_installed(tmp_path: Path) -> None:
    """-I and -S hide every installed package; what is left is Python as it comes."""
    write_bars(tmp_path, 32, 16)
    code = f"import sys; sys.path.insert(0, {str(FOLDER.parents[1])!r}); from miniai.scratch.__main__ import main; "
    command = [sys.executable, "-I", "-S", "-c", code + "sys.exit(main(sys.argv[1:]))"]
    options = [
        "train",
        "--data",
        str(tmp_path),
        "--model",
        "linear",
        "--epochs",
        "2",
        "--batch-size",
        "8",
        "--lr",
        "0.01",
    ]
    done = subprocess.run(
        command + options, capture_output=True, text=True, env={"PATH": os.environ["PATH"]}, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("test accuracy ")
    assert "epoch 2/2" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "no train-images-idx3-ubyte or train-images-idx3-ubyte.gz here"),
        (["--epochs", "0"], "epochs and batch size must be at least 1, got 0 and 64"),
        (["--batch-size", "-1"], "epochs and batch size must be at least 1, got 1 and -1"),
        (["--lr", "0"], "the learning rate must be above 0, got 0.0"),
        (["--lr", "nan"], "the learning rate must be above 0, got nan"),
    ],
)
def test_what_the_user_can_mend_is_told_in_one_line(tmp_path: Path, capsys, options: list[str], message: str) -> None:
    assert main(["train", "--data", str(tmp_path), *options]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def test_a_cut_off_file_is_told_in_one_line(tmp_path: Path, capsys) -> None:
    write_bars(tmp_path, 4, 4)
    labels = tmp_path / "train-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-2])
    assert main(["train", "--data", str(tmp_path)]) == 2
    assert "needs 4 bytes, the file holds 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("shape", "label", "message"),
    [
        ((0, 28, 28), 0, "train-images-idx3-ubyte: the data set is empty"),
        ((2, 20, 28), 0, r"the models take images of 28×28 pixels, these have (20, 28)"),
        ((2, 28, 28), 10, "train-labels-idx1-ubyte: the models tell 10 classes apart, 0 to 9; found label 10"),
        ((2, 28), 0, "expected (n, h, w) and (n,), got (2, 28) and (2,)"),
    ],
)
def test_files_that_the_models_cannot_take_are_told_in_one_line(
    tmp_path: Path, capsys, shape: tuple[int, ...], label: int, message: str
) -> None:
    header = bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(header + bytes(math.prod(shape)))
    labels = struct.pack(">2I", 2049, shape[0]) + bytes([label] * shape[0])
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(labels)
    assert main(["train", "--data", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path}")
    assert error.count("\n") == 1
    assert message in error


STANDS_ALONE = {"shapes", "ieee", "kernels"}  # beside the first; all others must be seen to import something


def imports_of(path: Path) -> set[str]:
    """The files of this floor that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[2] for alias in node.names if alias.name.startswith("miniai.scratch.")}
        elif isinstance(node, ast.ImportFrom) and node.module == "miniai.scratch":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("miniai.scratch."):
            names.add((node.module or "").split(".")[2])
    return names


def test_each_file_stands_on_those_before_it_in_the_order_of_reading() -> None:
    lines = (miniai.scratch.__doc__ or "").splitlines()
    order = [line.split()[1].removesuffix(".py:") for line in lines if ".py: " in line]
    assert sorted(order) == sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")
    for i, name in enumerate(order):
        path = FOLDER / f"{name}.py"
        assert imports_of(path) <= set(order[:i]), name
        assert i < 2 or imports_of(path) or name in STANDS_ALONE, name
        title = ast.get_docstring(ast.parse(path.read_text())) or ""
        assert title.startswith(f"{i + 1}. ") or name == "__main__", name
