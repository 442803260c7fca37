"""The sweep over samplers, steps and guidance: what a setting costs, that nothing is painted twice, what is saved."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from shapes import write_shapes
from tiny_model import tiny_pipeline

from miniai.base.errors import UserError
from miniai.recipes import sampling_sweep as sweep
from miniai.recipes.evaluate_text_to_image import evaluate_text_to_image
from miniai.recipes.evaluation import Evaluation
from miniai.recipes.sampling_sweep import markdown, sampling_sweep

pytestmark = pytest.mark.filterwarnings("ignore::miniai.base.errors.UserNotice")  # prompts beyond the tiny window
CHOICES: dict[str, Any] = {"samplers": ["euler", "heun"], "step_counts": [2, 3], "guidance_scales": [1.0, 2.5]}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    write_shapes(folder / "shapes")
    tiny_pipeline().save_pretrained(folder / "model")
    return folder


def run(place: Path, **choices: Any) -> list[dict[str, Any]]:
    judge: dict[str, Any] = {"evaluator_minutes": None, "evaluator_steps": 20, "evaluator_size": "tiny"}
    asked = Evaluation(place / "model", place / "shapes", **judge)
    return sampling_sweep(asked, place / "out", **{**CHOICES, **choices})


@pytest.mark.parametrize(
    ("sampler", "steps", "scale", "expected"),
    [("euler", 3, 2.5, 6), ("heun", 3, 2.5, 10), ("euler", 4, 1.0, 4), ("pndm", 5, 2.0, 12)],
)
def test_evaluations_are_the_latents_that_the_network_is_shown(
    place: Path, tmp_path: Path, sampler: str, steps: int, scale: float, expected: int
) -> None:
    judge: dict[str, Any] = {"evaluator_minutes": None, "evaluator_steps": 20, "evaluator_size": "tiny"}
    asked = Evaluation(place / "model", place / "shapes", limit=4, **judge)
    (one,) = sampling_sweep(asked, tmp_path, samplers=[sampler], step_counts=[steps], guidance_scales=[scale])
    assert one["evaluations"] == expected


def test_guidance_in_an_interval_is_a_setting_of_its_own_and_costs_less(place: Path, tmp_path: Path) -> None:
    judge: dict[str, Any] = {"evaluator_minutes": None, "evaluator_steps": 20, "evaluator_size": "tiny"}
    asked = Evaluation(place / "model", place / "shapes", limit=4, **judge)
    lists: dict[str, Any] = {"samplers": ["euler"], "step_counts": [4], "guidance_scales": [3.0]}
    everywhere = sampling_sweep(asked, tmp_path, **lists)
    both = sampling_sweep(asked, tmp_path, **lists, guidance_intervals=[None, (0.5, 3.0)])
    assert both[:1] == everywhere
    assert both == sampling_sweep(asked, tmp_path, **lists, guidance_intervals=[(0.5, 3.0), None])
    assert (both[0]["evaluations"], both[1]["guidance_interval"]) == (8, [0.5, 3.0])
    assert 4 < both[1]["evaluations"] < 8
    assert "| 3 from 0.5 to 3 |" in (tmp_path / "sampling.md").read_text()
    with pytest.raises(UserError, match="guidance_interval"):
        sampling_sweep(asked, tmp_path, **lists, guidance_intervals=[(3.0, 0.5)])


def test_every_setting_is_measured_as_the_evaluation_measures_it_and_none_twice(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run(place)
    assert len(found) == 8
    asked = Evaluation(place / "model", place / "shapes", place / "shapes-evaluator")
    beside = evaluate_text_to_image(asked, place / "one", n_steps=3, guidance_scale=2.5, sampler="heun")
    same = next(one for one in found if (one["sampler"], one["steps"], one["guidance_scale"]) == ("heun", 3, 2.5))
    assert same["retrieval"] == pytest.approx(beside["retrieval"]["generated"])
    assert same["fid"] == pytest.approx(beside["fid"]["generated"], rel=1e-6)
    assert json.loads((place / "out" / "sampling.json").read_text()) == found
    assert (place / "out" / "sampling.md").read_text() == markdown(found)
    assert min(Image.open(place / "out" / "sampling.png").size) > 200

    painted: list[int] = []
    paint = sweep.paint
    monkeypatch.setattr(sweep, "paint", lambda *given, **named: painted.append(given[2]) or paint(*given, **named))
    again = run(place, step_counts=[2, 3, 4])
    assert painted == [4] * 4  # two samplers, two scales: only what is new
    assert again[:8] == found


def test_records_of_other_captions_weights_or_seeds_stay_and_are_not_taken_for_these(
    place: Path, tmp_path: Path
) -> None:
    judge: dict[str, Any] = {"evaluator_minutes": None, "evaluator_steps": 20, "evaluator_size": "tiny"}
    lists: dict[str, Any] = {"samplers": ["euler"], "step_counts": [2], "guidance_scales": [1.0]}
    asked = Evaluation(place / "model", place / "shapes", limit=4, **judge)
    first = sampling_sweep(asked, tmp_path, **lists)
    (second,) = sampling_sweep(replace(asked, seed=1), tmp_path, **lists)
    assert json.loads((tmp_path / "sampling.json").read_text()) == [*first, second]
    shutil.copytree(place / "shapes", tmp_path / "shapes")
    for metadata in (tmp_path / "shapes").rglob("metadata.jsonl"):
        metadata.write_text(metadata.read_text().replace(" that is ", " of "))
        metadata.write_text(metadata.read_text().replace('"text": "', '"text": "the '))
    evaluator = place / "shapes-evaluator"
    (third,) = sampling_sweep(replace(asked, data=tmp_path / "shapes", evaluator=evaluator), tmp_path, **lists)
    assert third["of"] != first[0]["of"]
    assert sampling_sweep(asked, tmp_path, **lists) == first
    assert len(json.loads((tmp_path / "sampling.json").read_text())) == 3
    (tmp_path / "sampling.json").write_text('{"a": 1}')
    with pytest.raises(UserError, match="is not a list of records"):
        sampling_sweep(asked, tmp_path, **lists)


def test_the_table_has_the_best_first() -> None:
    same = {"sampler": "euler", "steps": 20, "guidance_scale": 2.0, "evaluations": 40, "seconds": 0.1}
    rows = [{**same, "retrieval": r, "fid": f} for r, f in ((0.5, 3.0), (0.7, 4.0), (0.7, 2.0))]
    assert [line.split(" | ")[-2:] for line in markdown(rows).splitlines()[2:]] == [
        ["0.700", "2.00 |"], ["0.700", "4.00 |"], ["0.500", "3.00 |"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    "choices",
    [{"samplers": []}, {"step_counts": [0]}, {"guidance_scales": [-1.0]}, {"samplers": ["eulr"]}],
)
def test_a_bad_choice_is_refused_before_anything_is_painted(place: Path, choices: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        sampling_sweep(Evaluation(place / "model", place / "shapes"), place / "bad", **{**CHOICES, **choices})
    assert not (place / "bad").exists()
