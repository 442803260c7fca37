"""Distillation of networks that paint clothes, tiny ones, on a few hundred pictures of Fashion-MNIST."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_fashion import CPU, DATA, tiny

from miniai.base.configs import config_to_dict
from miniai.base.errors import UserError
from miniai.base.seeds import make_generator
from miniai.cli import run
from miniai.nn.resnet import ResNetConfig
from miniai.recipes.fashion import save_model
from miniai.recipes.fashion_classifier import FashionClassifierConfig, train_fashion_classifier
from miniai.recipes.fashion_diffusion import train_fashion_diffusion
from miniai.recipes.fashion_diffusion_config import RECIPES, FashionDiffusionConfig
from miniai.recipes.fashion_distil import FashionDistilConfig, copy_of, distil_fashion, load_teacher, phases
from miniai.recipes.fashion_latent import load_painter
from miniai.recipes.fashion_painting import load_fashion_diffusion, paint
from miniai.recipes.training import StageInterrupted

STAGE = replace(FashionDistilConfig(RECIPES["edm"], "").stage, batch_size=16)
FEW: dict[str, Any] = {"from_steps": 8, "to_steps": 2, "epochs_per_halving": 0.2, "guidance_epochs": 0.4}
FEW |= {"data": DATA, "stage": STAGE}


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a teacher of each kind."""
    folder = tmp_path_factory.mktemp("teachers")
    for kind in ("edm", "conditional"):
        train_fashion_diffusion(kind, folder / kind, data=DATA, epochs=0.1, config=tiny(kind))  # type: ignore[arg-type]
    model, _ = load_fashion_diffusion(folder / "conditional", CPU)
    generator = make_generator(0)
    with torch.no_grad():  # in a step it has not learned to look at the class
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    save_model(model, folder / "conditional")
    return folder


@pytest.fixture(scope="module")
def student(teachers: Path) -> Path:
    return distil_fashion(teachers / "conditional", teachers / "student", guidance_range=(1.0, 2.5), **FEW)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_fashion_diffusion(folder, CPU)[0].state_dict()


def test_two_halvings_after_guidance_leave_a_painter_in_each_folder(student: Path) -> None:
    assert {path.name for path in student.iterdir() if path.is_dir()} == {"guidance", "4-steps", "2-steps"}
    for name, calls in (("guidance", 3), ("4-steps", 4), ("2-steps", 2), (".", 2)):
        painter, config = load_painter(student / name, CPU)
        assert config.n_steps == calls
        images = painter(torch.arange(6), seed=3)
        assert images.shape == (6, 1, 32, 32)
        assert images.isfinite().all()
        assert images.abs().max() <= 1
        assert not torch.equal(painter(torch.full((6,), 7), seed=3), images)  # it looks at the class
    for name in ("guidance", "4-steps", "2-steps"):
        assert (student / name / "loss.png").is_file()
        assert list((student / name / "samples").glob("*.png"))
    assert (student / "2-steps" / "model.safetensors").read_bytes() == (student / "model.safetensors").read_bytes()


def test_a_student_calls_its_network_once_a_step_and_hears_the_scale(student: Path) -> None:
    model, config = load_fashion_diffusion(student, CPU)
    torch.nn.init.normal_(model.time_embedding.cond_proj.weight)  # as if it had learned for longer
    batches: list[int] = []
    model.register_forward_pre_hook(lambda module, inputs: batches.append(len(inputs[0])))
    plain, strong = (paint(model, config, torch.arange(6), seed=3, guidance_scale=scale) for scale in (1.0, 2.5))
    assert batches == [6] * 4  # two steps, twice; guidance by two answers has batches twice as large
    assert not torch.equal(plain, strong)


def test_students_rungs_are_the_teachers_and_the_last_step_is_to_0() -> None:
    config = FashionDistilConfig(RECIPES["conditional"], "", guidance_range=(1.0, 3.0))
    found = phases(config)
    assert [phase.name for phase in found] == ["guidance", "16-steps", "8-steps", "4-steps"]
    teacher = RECIPES["conditional"].edm_sigmas(32).tolist()
    for phase, share in zip(found[1:], (2, 4, 8), strict=True):
        assert list(phase.student.ladder) == teacher[::share]
        assert phase.student.n_steps == 32 // share
        assert phase.teacher_sigmas is not None
        assert phase.teacher_sigmas.tolist() == teacher[:: share // 2]
    assert found[0].student.sampler == "dpmpp_2m"  # at any sigma, so by any sampler
    assert {phase.student.sampler for phase in found[1:]} == {"euler"}
    assert [phase.name for phase in phases(replace(config, guidance_range=None))] == ["16-steps", "8-steps", "4-steps"]


def test_a_student_begins_as_its_teacher(teachers: Path) -> None:
    teacher, taught = load_teacher(teachers / "conditional", CPU)
    config = phases(FashionDistilConfig(taught, "", guidance_range=(1.0, 3.0)))[0].student
    begun = copy_of(teacher, config).to(memory_format=torch.channels_last)
    expected = paint(teacher, taught, torch.arange(4), seed=1)
    assert torch.equal(paint(begun, replace(config, guidance_scale=3.0), torch.arange(4), seed=1), expected)


def test_a_broken_distillation_goes_on_and_ends_in_the_same_weights(
    teachers: Path, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, options = tmp_path / "student", {"guidance_range": (1.0, 2.5), **FEW}
    saved: list[Path] = []

    def dies_in_the_second(model: Any, out: Path) -> None:
        saved.append(out)
        if len(saved) == 2:
            raise StageInterrupted("the machine went away")
        save_model(model, out)

    monkeypatch.setattr("miniai.recipes.fashion_distil.save_model", dies_in_the_second)
    with pytest.raises(StageInterrupted):
        distil_fashion(teachers / "conditional", folder, **options)
    monkeypatch.undo()
    assert saved == [folder / "guidance", folder / "4-steps"]
    with pytest.raises(UserError, match="not finished"):
        load_painter(folder, CPU)
    with pytest.raises(UserError, match="add --resume"):
        distil_fashion(teachers / "conditional", folder, **options)
    for other in (
        {"to_steps": 4},
        {"epochs_per_halving": 0.3},
        {"guidance_epochs": 0.3},
        {"guidance_range": (1.0, 2.0)},
    ):
        with pytest.raises(UserError, match="has other numbers"):
            distil_fashion(teachers / "conditional", folder, resume=True, **(options | other))
    first = (folder / "guidance" / "model.safetensors").stat().st_mtime_ns
    distil_fashion(teachers / "conditional", folder, resume=True, **options)
    assert (folder / "guidance" / "model.safetensors").stat().st_mtime_ns == first  # finished: not made again
    torch.testing.assert_close(weights(folder), weights(student), rtol=0, atol=0)


def test_the_command_distils_and_what_it_leaves_is_judged(
    teachers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "student"
    options = ["--teacher", str(teachers / "edm"), "--out", str(out), "--data", str(DATA), "--device", "cpu"]
    numbers = ["--from-steps", "8", "--to-steps", "2", "--epochs-per-halving", "0.5"]
    assert run(["train", "fashion-distil", *options, *numbers]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert {path.name for path in out.iterdir() if path.is_dir()} == {"4-steps", "2-steps"}
    assert run(["train", "fashion-distil", *options, *numbers]) == 2
    assert "add --resume" in capsys.readouterr().err
    assert run(["train", "fashion-distil", *options, *numbers, "--resume"]) == 0

    judge = FashionClassifierConfig(model=ResNetConfig(block_out_channels=(8, 16)))
    judge = replace(judge, stage=replace(judge.stage, batch_size=20, learning_rate=1e-2, ema=0.5))
    train_fashion_classifier(tmp_path / "judge", data=DATA, epochs=0.3, config=judge)
    capsys.readouterr()
    folders = ["--model", str(out), "--classifier", str(tmp_path / "judge"), "--data", str(DATA), "--n", "64"]
    assert run(["evaluate", "fashion", *folders]) == 0
    assert "with 2 calls" in capsys.readouterr().out
    assert json.loads((out / "evaluation.json").read_text())["sampler"] == "euler"
    for wrong in (["--steps", "3"], ["--sampler", "heun"], ["--churn", "1"]):
        assert run(["evaluate", "fashion", *folders, *wrong]) == 2
        err = capsys.readouterr().err
        assert "this network was distilled to 2 steps of euler" in err
    assert run(["evaluate", "fashion-steps", *folders, "--samplers", "euler,heun", "--steps", "2"]) == 2
    assert "this network was distilled to 2 steps of euler" in capsys.readouterr().err
    assert run(["evaluate", "fashion-steps", *folders, "--samplers", "euler,euler_karras", "--steps", "2"]) == 2
    assert "distilled to levels of its own: say euler, not Euler Karras" in capsys.readouterr().err
    assert not (out / "fid-steps.json").exists()  # told before the first is painted


def test_scales_beyond_what_was_distilled_are_refused(student: Path) -> None:
    painter, _ = load_painter(student, CPU)
    with pytest.raises(UserError, match=r"guidance scales from 1 to 2\.5, not 3"):
        painter(torch.arange(2), seed=0, guidance_scale=3.0)
    with pytest.raises(UserError, match="leave the interval out"):
        painter(torch.arange(2), seed=0, guidance_interval=(0.2, 3.0))


REFUSED = {
    "--from-steps 32 and --to-steps 5": ["--to-steps", "5"],
    "--from-steps 4 and --to-steps 4": ["--from-steps", "4"],
    "--from-steps 32 and --to-steps 0": ["--to-steps", "0"],
    "--epochs-per-halving 0": ["--epochs-per-halving", "0"],
    "--guidance-epochs inf": ["--guidance-epochs", "inf"],
    "--guidance-min 5 and --guidance-max 3": ["--guidance-min", "5"],
    "--guidance-min nan": ["--guidance-min", "nan"],
}


@pytest.mark.parametrize("line", REFUSED)
def test_numbers_that_do_not_fit_are_one_line_and_leave_nothing(
    line: str, teachers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["--teacher", str(teachers / "conditional"), "--out", str(out), "--data", str(DATA), *REFUSED[line]]
    assert run(["train", "fashion-distil", *options]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {line}")
    assert err.count("\n") == 1
    assert not out.exists()


def test_teachers_of_another_kind_and_folders_in_use_are_refused(teachers: Path, student: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ddpm = tmp_path / "ddpm"
    ddpm.mkdir()
    (ddpm / "config.json").write_text(json.dumps(config_to_dict(tiny("ddpm"))))
    for folder, why in (
        (ddpm, "is not a training of fashion-edm or fashion-conditional"),
        (tmp_path / "nowhere", r"nowhere.*config\.json"),
        (student, "is distilled already"),
    ):
        with pytest.raises(UserError, match=why):
            distil_fashion(folder, out, **FEW)
    with pytest.raises(UserError, match="for a teacher that knows classes"):
        distil_fashion(teachers / "edm", out, guidance_range=(1.0, 2.0), **FEW)
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    shutil.copy(teachers / "edm" / "config.json", unfinished)
    with pytest.raises(UserError, match="not finished"):
        distil_fashion(unfinished, out, **FEW)
    assert not out.exists()
    before = (teachers / "edm" / "model.safetensors").read_bytes()
    for resume in (False, True):
        with pytest.raises(UserError, match="holds another training"):
            distil_fashion(teachers / "edm", teachers / "edm", resume=resume, **FEW)
    assert (teachers / "edm" / "model.safetensors").read_bytes() == before


def test_a_config_whose_ladder_or_scales_do_not_fit_it_is_refused() -> None:
    config: FashionDiffusionConfig = RECIPES["conditional"]
    with pytest.raises(ValueError, match="a ladder of 2 steps has 3 sigmas, not 2"):
        replace(config, n_steps=2, ladder=(80.0, 0.0))
    with pytest.raises(ValueError, match="belong together"):
        replace(config, guidance_range=(1.0, 3.0))
