"""The notebooks: each runs from top to bottom, and makes the module that it says it makes."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from miniai.train.data import Loader
from miniai.train.learner import Learner

LESSONS = Path(__file__).parents[2] / "lessons"


def nbdev(command: str, *arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name(command)
    return subprocess.run([program, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("notebook", sorted(LESSONS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_every_notebook_runs_and_is_kept_without_outputs(notebook: Path, tmp_path: Path) -> None:
    ran = nbdev("nbdev-test", notebook, cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert not any(cell.get("outputs") for cell in json.loads(notebook.read_text())["cells"])


def test_a_notebook_whose_module_is_wrong_fails(tmp_path: Path) -> None:
    wrong = (LESSONS / "lookahead.ipynb").read_text().replace("lerp_(fast, self.alpha)", "lerp_(fast, self.alpha / 2)")
    (tmp_path / "wrong.ipynb").write_text(wrong)
    ran = nbdev("nbdev-test", tmp_path / "wrong.ipynb", cwd=tmp_path)
    assert ran.returncode != 0
    assert "AssertionError" in ran.stdout + ran.stderr


def test_the_module_that_a_notebook_builds_trains(tmp_path: Path) -> None:
    built = nbdev("nb-export", LESSONS / "lookahead.ipynb", "--lib-path", tmp_path, "--solo-nb", cwd=tmp_path)
    assert built.returncode == 0, built.stderr
    spec = importlib.util.spec_from_file_location("lookahead", tmp_path / "lookahead.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = torch.nn.Linear(1, 1, bias=False)
    before = model.weight.item()
    learner = Learner(
        model,
        Loader(torch.ones(3, 1), 1, seed=0),
        lambda m, x, g: m(x).square().sum() / 2,
        torch.optim.SGD(model.parameters(), 0.1),
        callbacks=[module.Lookahead(3, 0.5)],
    )
    learner.fit(1)
    assert model.weight.item() == pytest.approx(before * (1 + 0.5 * (0.9**3 - 1)))
