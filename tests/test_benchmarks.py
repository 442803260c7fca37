"""Benchmarks that take full-size models run on tiny ones, so that they still run when they are needed."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from miniai.base.seeds import make_generator
from miniai.diffusion.objectives import DiffusionObjective
from miniai.diffusion.schedule import NoiseSchedule
from miniai.nn.autoencoder import AutoencoderKL
from miniai.nn.clip import CLIPModel
from miniai.recipes.clip_stage import clip_config
from miniai.recipes.text_to_image_config import SMALL, TINY
from miniai.sd.tokenizer import CLIPTokenizer

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


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Benchmarks import from one another by name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.usefixtures("beside")
def test_without_an_offset_the_trials_loss_is_the_recipes() -> None:
    config = SMALL
    schedule, x0 = NoiseSchedule(config.schedule), torch.randn(32, 4, 8, 8, generator=make_generator(1))
    parts = load("trial_parts")

    def network(x_t: torch.Tensor, t: torch.Tensor, condition: object) -> torch.Tensor:
        return 0.3 * x_t + t[:, None, None, None] / 1000

    recipe = DiffusionObjective(schedule, config.weighting, timestep_shift=config.timestep_shift)
    expected = recipe(network, (x0, None), make_generator(0))
    plain, offset = (parts.OffsetLoss(schedule, by, config.timestep_shift) for by in (0.0, 0.5))
    assert float(plain(network, (x0, None), make_generator(0))) == pytest.approx(float(expected), rel=1e-5)
    assert float(offset(network, (x0, None), make_generator(0))) != pytest.approx(float(expected), rel=1e-2)


@pytest.mark.usefixtures("beside")
@pytest.mark.parametrize("name", ["vae-perceptual", "vae-critic", "vae-aligned"])
def test_a_trials_term_beside_the_autoencoders_loss_gets_smaller(name: str) -> None:
    """What it pulls at does what it is for: features come closer, the critic learns, latents tell of their patch."""
    config, trial = TINY, load("trials").TRIALS[name]
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.train(["a b"], config.vocab_size, config.window)
    vae, clip = AutoencoderKL(config.vae), CLIPModel(clip_config(config, tokenizer))
    model = vae if trial.vae_beside is None else sys.modules["trial_vaes"].VAEBeside(vae, trial.vae_beside(vae, clip))
    objective = trial.vae(config.vae_loss, clip)
    pictures = (255 * torch.rand(16, 3, 4, 4)).to(torch.uint8).repeat_interleave(4, 2).repeat_interleave(4, 3)
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), 1e-3)
    kept = [weight.clone() for weight in clip.parameters()]
    found = []
    for step in range(40):
        parts = objective(model, pictures, make_generator(step))
        optimizer.zero_grad()
        parts["loss"].backward()
        optimizer.step()
        found.append({key: float(value.detach()) for key, value in parts.items()})
    term, sign = {"vae-perceptual": ("perceptual", 1), "vae-critic": ("critic", 1), "vae-aligned": ("cosine", -1)}[name]
    assert sign * found[-1][term] < sign * found[0][term] - 0.05
    assert found[-1]["pixels"] < found[0]["pixels"]
    assert all(torch.equal(a, b) for a, b in zip(kept, clip.parameters(), strict=True))
