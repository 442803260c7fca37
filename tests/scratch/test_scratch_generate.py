"""Stable Diffusion on the standard library alone, whole: the pictures of the PyTorch path, and the command line."""

import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from saved_model import PROMPT, saved
from scratch_oracle import draw, ours

import miniai.scratch
from miniai.base.images import to_pil
from miniai.base.seeds import make_generator
from miniai.recipes.generate_request import MAX_GUIDANCE_SCALE, MAX_STEPS, packaged_model
from miniai.recipes.generate_request import GenerateRequest as UpperRequest
from miniai.scratch.__main__ import main
from miniai.scratch.branches import Branches, TwoProcesses
from miniai.scratch.generate import RANGES, GenerateRequest, target
from miniai.scratch.pipeline import StableDiffusionPipeline
from miniai.scratch.png import to_bytes
from miniai.scratch.tensor import Tensor
from miniai.sd.pipeline import StableDiffusionPipeline as UpperPipeline

ROOT = Path(miniai.scratch.__file__).parents[2]
RUN = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from miniai.scratch.__main__ import main
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    saved(path)
    return path


@pytest.fixture(scope="module")
def upper(folder: Path) -> UpperPipeline:
    return UpperPipeline.from_pretrained(folder)


def levels_apart(image: Tensor, theirs: torch.Tensor) -> int:
    """The greatest difference of two pictures in any pixel, of 255."""
    pairs = zip(to_bytes(image), to_pil(theirs)[0].tobytes(), strict=True)
    return max(abs(a - b) for a, b in pairs)


@pytest.mark.parametrize(("prediction_type", "n_steps"), [("epsilon", 1), ("v_prediction", 3), ("sample", 1)])
def test_the_whole_gives_the_picture_of_the_pytorch_path(tmp_path: Path, prediction_type: str, n_steps: int) -> None:
    upper = saved(tmp_path, prediction_type)
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path)
    request: dict[str, Any] = {"negative_prompt": "sky", "num_inference_steps": n_steps, "guidance_scale": 3.0}
    steps: list[int] = []
    image = pipe(PROMPT, **request, seed=5, callback=steps.append)
    wanted = upper(PROMPT, **request, generator=make_generator(5), output_type="pt").images
    assert isinstance(wanted, torch.Tensor)
    assert levels_apart(image, wanted * 2 - 1) <= 1
    assert steps == list(range(n_steps))


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_without_guidance_the_network_is_asked_once_a_step(folder: Path, upper: UpperPipeline, scale: float) -> None:
    asked: list[int] = []

    class Counting(Branches):
        def __call__(self, x: Tensor, timestep: float, contexts: list[Tensor]) -> list[Tensor]:
            asked.append(len(contexts))
            return super().__call__(x, timestep, contexts)

    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.unet = Counting(folder / "unet")
    image = pipe(PROMPT, num_inference_steps=1, guidance_scale=scale)
    wanted = upper(
        PROMPT, num_inference_steps=1, guidance_scale=scale, generator=make_generator(0), output_type="pt"
    ).images
    assert isinstance(wanted, torch.Tensor)
    assert asked == [1]
    assert levels_apart(image, wanted * 2 - 1) <= 1


class Bare:
    """A virtual environment with nothing installed, and the files of this floor with the packaged model beside them."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder / "bare", with_pip=False)
        self.python, self.code = folder / "bare" / "bin" / "python", folder / "code"
        shutil.copytree(ROOT / "miniai" / "scratch", self.code / "miniai" / "scratch")
        shutil.copy(ROOT / "miniai" / "__init__.py", self.code / "miniai")
        (self.code / "miniai" / "models").symlink_to(ROOT / "miniai" / "models")

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 600, "check": True}
        return subprocess.run([self.python, *arguments], cwd=self.code, env={"PATH": os.environ["PATH"]}, **options)

    def generate(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run("-m", "miniai.scratch", "generate", *arguments)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Bare:
    return Bare(tmp_path_factory.mktemp("bare"))


def test_the_environment_of_these_tests_holds_no_package(bare: Bare) -> None:
    listed = "import importlib.metadata as m; print([d.name for d in m.distributions()])"
    assert bare.run("-c", listed).stdout == "[]\n"


def test_the_command_paints_in_an_environment_that_holds_no_package(bare: Bare, tmp_path: Path, folder: Path) -> None:
    """In two processes, with a parameters text that other tools read."""
    out = tmp_path / "apple.png"
    options = ["--model", str(folder), "--steps", "2", "--seed", "3", "--out", str(out), "--processes", "2"]
    done = bare.generate(PROMPT, *options)
    assert done.stdout.splitlines() == [str(out)]
    assert "step 1/2" in done.stderr
    assert "s left" in done.stderr
    with Image.open(out) as picture:
        assert picture.size == (8, 8)
        assert picture.text["parameters"].startswith(f"{PROMPT}\nSteps: 2, Sampler: DPM++ 2M, CFG scale: 2.5, Seed: 3,")
        alone = StableDiffusionPipeline.from_pretrained(folder)(PROMPT, num_inference_steps=2, seed=3)
        assert picture.tobytes() == to_bytes(alone)


def test_the_packaged_model_paints_there_what_pytorch_paints(bare: Bare, tmp_path: Path) -> None:
    """One step, as more take long here: 8 and 20 are in benchmarks/results/scratch_generate.md."""
    prompt, out = "a red apple, twemoji style", tmp_path / "apple.png"
    bare.generate(prompt, "--steps", "1", "--seed", "0", "--guidance-scale", "1", "--out", str(out))
    upper = UpperPipeline.from_pretrained(packaged_model())
    wanted = upper(prompt, num_inference_steps=1, guidance_scale=1.0, generator=make_generator(0)).images[0]
    with Image.open(out) as picture:
        pairs = zip(picture.tobytes(), wanted.tobytes(), strict=True)
        assert picture.size == wanted.size
        assert max(abs(a - b) for a, b in pairs) <= 1


def edited(folder: Path, name: str, **changes: Any) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


WEIGHTS = "diffusion_pytorch_model.safetensors"
DAMAGE: dict[str, Any] = {
    "no such folder": (shutil.rmtree, "model_index.json"),
    "another pipeline": (lambda f: edited(f, "model_index.json", _class_name="FluxPipeline"), "FluxPipeline"),
    "another sampler": (
        lambda f: edited(f, "scheduler/scheduler_config.json", _class_name="EulerDiscreteScheduler"),
        "sampler EulerDiscreteScheduler is not supported",
    ),
    "another spacing of sigmas": (
        lambda f: edited(f, "scheduler/scheduler_config.json", use_karras_sigmas=True),
        "only use_karras_sigmas = False",
    ),
    "another block": (
        lambda f: edited(f, "unet/config.json", up_block_types=["UpBlock2D", "ResnetUpsampleBlock2D"]),
        "unet/config.json: a block of type 'ResnetUpsampleBlock2D' is not supported",
    ),
    "an unknown option": (lambda f: edited(f, "unet/config.json", magic=3), "magic is not supported"),
    "an option at another value": (lambda f: edited(f, "unet/config.json", act_fn="gelu"), "only act_fn = 'silu'"),
    "text for a number": (lambda f: edited(f, "vae/config.json", latent_channels="4"), "latent_channels cannot be '4'"),
    "heads that do not share": (lambda f: edited(f, "unet/config.json", attention_head_dim=3), "3 heads cannot share"),
    "one level too many": (lambda f: edited(f, "unet/config.json", block_out_channels=[8, 16, 16]), "names 3 levels"),
    "groups that do not divide": (
        lambda f: edited(f, "vae/config.json", norm_num_groups=3),
        "8 channels cannot be divided into 3 groups",
    ),
    "not JSON": (lambda f: (f / "unet" / "config.json").write_text("<html>"), "unet/config.json is not JSON"),
    "a list": (lambda f: (f / "vae" / "config.json").write_text("[]"), "expected a JSON object"),
    "half the weights": (lambda f: cut_in_half(f / "unet" / WEIGHTS), "truncated"),
    "another width": (
        lambda f: edited(f, "text_encoder/config.json", intermediate_size=48),
        r"mlp.fc1.weight is \[32, 16\], the config beside it needs \[48, 16\]",
    ),
    "a layer less": (lambda f: edited(f, "text_encoder/config.json", num_hidden_layers=1), "has no place in the model"),
    "a layer more": (
        lambda f: edited(f, "text_encoder/config.json", num_hidden_layers=3),
        "layers.2.self_attn.q_proj.weight is missing",
    ),
    "another activation": (lambda f: edited(f, "text_encoder/config.json", hidden_act="relu"), "hidden_act 'relu'"),
    "a window too long": (
        lambda f: edited(f, "tokenizer/tokenizer_config.json", model_max_length=99),
        "the parts do not belong together",
    ),
    "no merges": (lambda f: (f / "tokenizer" / "merges.txt").unlink(), "merges.txt"),
    "another model's merges": (
        lambda f: (f / "tokenizer" / "merges.txt").write_text("#version: 0.2\nzz qq\n"),
        "'zz qq' makes no token",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_folder_is_told_in_one_line_that_names_it(folder: Path, tmp_path: Path, capsys, name: str) -> None:
    damage, message = DAMAGE[name]
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    damage(copy)
    assert main(["generate", PROMPT, "--model", str(copy), "--processes", "1", "--out", str(tmp_path / "x.png")]) == 2
    shown, _, error = capsys.readouterr().err.rpartition("\r")
    assert re.fullmatch(f"error: .*{re.escape(str(copy))}.*\n", error), error
    assert re.search(message, error), error
    assert "\n" not in shown
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0"], "--steps 0 is out of range: give 1 to 1000"),
        (["--guidance-scale", "nan"], "--guidance-scale nan is out of range"),
        (["--seed", "-1"], "--seed -1 is out of range"),
        (["--processes", "3"], "--processes 3 is out of range"),
        (["--out", "x.jpg"], "give a name that ends in .png"),
        (["--out", "nowhere/x.png"], "its folder is missing"),
    ],
)
def test_a_request_that_cannot_be_met_is_told_before_anything_is_read(
    capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["generate", PROMPT, "--model", "missing", *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_a_prompt_that_is_too_long_is_painted_with_a_notice(capsys, folder: Path, tmp_path: Path) -> None:
    options = ["--model", str(folder), "--steps", "1", "--guidance-scale", "1", "--out", str(tmp_path / "x.png")]
    assert main(["generate", "cat " * 40, *options]) == 0
    assert "notice: the prompt is longer than the model's 14 tokens" in capsys.readouterr().err


def test_a_picture_without_a_name_gets_a_free_one_from_the_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a-red-apple.png", "a-red-apple-2.png", "a-red-apple-3.png"):
        assert target(GenerateRequest("A red Apple!")) == Path(name)
        Path(name).touch()
    assert target(GenerateRequest("?!")) == Path("picture.png")


def test_what_is_not_asked_for_is_what_the_upper_floors_take() -> None:
    here, above = GenerateRequest("a cat"), UpperRequest("a cat")
    for name in ("negative_prompt", "steps", "guidance_scale"):
        assert getattr(here, name) == getattr(above, name)
    assert here.model == packaged_model()
    assert RANGES["steps"] == (1, MAX_STEPS)
    assert RANGES["guidance_scale"] == (0, MAX_GUIDANCE_SCALE)
    defaults = inspect.signature(StableDiffusionPipeline.__call__).parameters
    assert defaults["num_inference_steps"].default == here.steps
    assert defaults["guidance_scale"].default == here.guidance_scale


def test_numbers_that_are_not_finite_are_an_error_and_not_a_black_picture(folder: Path, tmp_path: Path) -> None:
    upper = UpperPipeline.from_pretrained(folder)
    upper.vae.decoder.conv_out.bias.data[0] = float("nan")
    upper.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="decoder.conv_out.bias holds a number that is infinite or not a number"):
        StableDiffusionPipeline.from_pretrained(tmp_path)


def test_stopping_it_is_told_without_a_traceback(folder: Path, tmp_path: Path) -> None:
    """Ctrl-C goes to both processes, as a terminal sends it."""
    out = tmp_path / "x.png"
    request = [PROMPT, "--model", str(folder), "--steps", "999", "--out", str(out), "--processes", "2"]
    command = [sys.executable, "-I", "-c", RUN, "generate", *request]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as running:
        assert running.stderr is not None
        shown = ""
        while "step 1/" not in shown:
            shown += running.stderr.read(1)
        os.killpg(running.pid, signal.SIGINT)
        shown += running.stderr.read()
    assert running.returncode == 130
    assert shown.splitlines()[-1] == "stopped"
    assert "Traceback" not in shown
    assert not out.exists()


def test_a_helper_that_has_ended_is_told_in_one_line(folder: Path) -> None:
    two = TwoProcesses(folder / "unet")
    two.helper.kill()
    two.helper.join()
    x, text = ours(draw((8, 8, 4))), ours(draw((3, 16), 1))
    with pytest.raises(OSError, match="the second process has ended"):
        two(x, 5.0, [text, text])
    assert len(two(x, 5.0, [text])) == 1
