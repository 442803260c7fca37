"""The command line: one clear line for every bad input, exit codes that scripts can trust, pictures where it says."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image
from tiny_model import tiny_pipeline
from tqdm import tqdm

from miniai.base.errors import UserError
from miniai.base.images import open_image, read_parameters
from miniai.cli import app, run
from miniai.cli.options import numbers
from miniai.recipes.generate import BATCH_SIZE

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def miniai(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command in an empty folder; `generate` with the tiny model and three steps unless it says otherwise."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Outcome:
        if arguments[0] == "generate":
            given = {argument for argument in arguments if argument.startswith("--")}
            defaults = {"--model": str(model), "--steps": "3", "--seed": "5"}
            arguments += tuple(word for pair in defaults.items() if pair[0] not in given for word in pair)
        code = run(arguments)
        return Outcome(code, *capsys.readouterr())

    return call


def files() -> list[str]:
    return sorted(path.name for path in Path().iterdir())


def pixels(path: str) -> np.ndarray:
    return np.asarray(open_image(path)).astype(int)


def test_a_prompt_becomes_a_png_named_after_it_and_its_name_is_printed(miniai: Any) -> None:
    outcome = miniai("generate", "A cat, in Sunglasses!")
    assert (outcome.code, outcome.out) == (0, "a-cat-in-sunglasses.png\n")
    assert files() == ["a-cat-in-sunglasses.png"]
    assert open_image("a-cat-in-sunglasses.png").size == (16, 16)


def test_an_earlier_picture_is_not_written_over(miniai: Any) -> None:
    names = [miniai("generate", "a cat").out.strip() for _ in range(3)]
    assert names == ["a-cat.png", "a-cat-2.png", "a-cat-3.png"]


def test_the_same_seed_gives_the_same_picture_at_any_n(miniai: Any) -> None:
    assert miniai("generate", "a cat", "--n", "3", "--out", "c.png").code == 0
    assert miniai("generate", "a cat", "--seed", "7", "--out", "alone.png").code == 0
    assert files() == ["alone.png", "c.png", "c_1.png", "c_2.png", "c_3.png"]
    assert np.abs(pixels("alone.png") - pixels("c_3.png")).max() <= 1
    assert np.abs(pixels("c_1.png") - pixels("c_3.png")).max() > 1


def test_several_pictures_also_come_on_one_sheet(miniai: Any) -> None:
    outcome = miniai("generate", "a cat", "--n", "3", "--out", "c.png")
    assert outcome.out.split() == ["c_1.png", "c_2.png", "c_3.png", "c.png"]
    sheet = pixels("c.png")
    assert sheet.shape == (32, 32, 3)
    assert (sheet[:16, 16:] == pixels("c_2.png")).all()
    assert (sheet[16:, :16] == pixels("c_3.png")).all()


def test_more_pictures_than_fit_one_batch_are_painted(miniai: Any) -> None:
    assert miniai("generate", "a cat", "--n", "18", "--steps", "1", "--out", "c.png", "--animate", "c.gif").code == 0
    assert len(files()) == 20
    assert open_image("c.gif").size == open_image("c.png").size == (80, 64)


def test_the_png_tells_how_it_was_made_as_a1111_does(miniai: Any) -> None:
    miniai(
        *("generate", "a cat 猫", "--negative-prompt", "red", "--sampler", "Euler a", "--guidance-scale", "2.5"),
        *("--seed", "41", "--n", "2", "--width", "24", "--out", "c.png"),
    )
    text = read_parameters("c_2.png")
    assert text is not None
    prompt, negative, settings = text.split("\n")
    assert (prompt, negative) == ("a cat 猫", "Negative prompt: red")
    found = dict(re.findall(r"([\w ]+): ([^,]+)(?:, |$)", settings))
    assert found["Steps"] == "3"
    assert found["Sampler"] == "Euler a"
    assert found["CFG scale"] == "2.5"
    assert found["Seed"] == "42"
    assert found["Size"] == "24x16"
    assert found["Model"] == "tiny"
    assert found["RNG"] == "CPU"


def test_the_settings_in_a_png_paint_it_again(miniai: Any) -> None:
    miniai("generate", "a cat", "--sampler", "euler_a", "--n", "2", "--out", "c.png")
    seed = re.search(r"Seed: (\d+)", read_parameters("c_2.png") or "")
    assert seed is not None
    miniai("generate", "a cat", "--sampler", "Euler a", "--seed", seed[1], "--out", "again.png")
    assert np.abs(pixels("again.png") - pixels("c_2.png")).max() <= 1


def test_without_a_seed_each_run_takes_and_tells_a_fresh_one(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    told = []
    for _ in range(2):
        assert run(["generate", "a cat", "--model", str(model), "--steps", "1", "--out", "c.png"]) == 0
        told.append(capsys.readouterr().err.strip())
        assert told[-1].replace(" ", ": ").capitalize() in (read_parameters("c.png") or "")
    assert told[0] != told[1]


def test_the_animation_has_a_frame_for_each_step_and_ends_with_the_picture(miniai: Any) -> None:
    outcome = miniai("generate", "a cat", "--steps", "5", "--out", "c.png", "--animate", "c.gif")
    assert outcome.out.split() == ["c.gif", "c.png"]
    with Image.open("c.gif") as gif:
        assert gif.n_frames == 6
        gif.seek(5)
        assert np.abs(np.asarray(gif.convert("RGB")).astype(int) - pixels("c.png")).mean() < 12  # 256 colours


def test_on_a_terminal_a_bar_counts_every_step_and_in_a_file_there_is_none(
    miniai: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars: list[tqdm] = []

    class Terminal(tqdm):
        def __init__(self, **options: Any) -> None:
            assert options["disable"] is None  # which is: not shown where stderr is no terminal
            super().__init__(**options | {"disable": False})
            bars.append(self)

    assert "painting" not in miniai("generate", "a cat").err
    monkeypatch.setattr("miniai.recipes.generate.tqdm", Terminal)
    outcome = miniai("generate", "a cat", "--steps", "4", "--n", str(BATCH_SIZE + 1))
    assert "painting" in outcome.err
    assert [(bar.n, bar.total) for bar in bars] == [(8, 8)]  # four for each of two batches


def test_a_folder_as_out_takes_the_picture_under_the_prompts_name(miniai: Any) -> None:
    Path("pictures").mkdir()
    assert miniai("generate", "a cat", "--out", "pictures").out == "pictures/a-cat.png\n"


@pytest.mark.parametrize(
    "prompt", ["", "🐈", "../../etc/passwd", "a" * 5000, "猫" * 200, "a\nb", "\udcff\udcfe broken"]
)
def test_any_prompt_is_painted_into_this_folder(miniai: Any, prompt: str) -> None:
    outcome = miniai("generate", prompt)
    assert outcome.code == 0
    assert files() == [outcome.out.strip()]


def test_a_prompt_beyond_the_window_is_painted_with_one_line_about_what_was_cut(miniai: Any) -> None:
    outcome = miniai("generate", "a cat and a cat and a cat and a cat and a red rocket", "--n", "18", "--steps", "1")
    assert outcome.code == 0
    warning, seed = outcome.err.splitlines()
    assert re.fullmatch(r"warning: the prompt is longer than .* 14 tokens.*'.*a red rocket'", warning)
    assert seed == "seed 5"


BAD: list[tuple[list[str], str]] = [
    ([], "Missing argument 'PROMPT'"),
    (["a", "--n", "0"], "--n 0 is out of range: give 1 to 256 pictures"),
    (["a", "--n", "257"], "--n 257 is out of range"),
    (["a", "--n", "many"], "'--n'"),
    (["a", "--steps", "0"], "--steps 0 is out of range: give 1 to 1000 steps"),
    (["a", "--steps", "1001"], "--steps 1001 is out of range"),
    (["a", "--guidance-scale", "nan"], "--guidance-scale nan is out of range"),
    (["a", "--guidance-scale", "-1"], "--guidance-scale -1.0 is out of range"),
    (["a", "--width", "17"], "width 17 is not possible: this model paints multiples of 2 pixels"),
    (["a", "--height", "0"], "--height 0 is out of range"),
    (["a", "--height", "100000"], "--height 100000 is out of range: give 1 to 4096 pixels"),
    (["a", "--seed", "-1"], "--seed -1 is out of range"),
    (["a", "--seed", str(2**64)], "--seed"),
    (["a", "--sampler", "magic"], "unknown sampler 'magic': there are euler, euler_a"),
    (["a", "--device", "tpu"], "unknown device 'tpu'"),
    (["a", "--dtype", "int4"], "unknown dtype 'int4': choose auto, float32, float16, bfloat16"),
    (["a", "--model", "nowhere"], "there is no folder nowhere"),
    (["a", "--model", "nowhere.safetensors"], "there is no file nowhere.safetensors"),
    (["a", "--model", "."], "has no model_index.json"),
    (["a", "--out", "nowhere/a.png"], "cannot write nowhere/a.png: the folder does not exist"),
    (["a", "--out", "a.jpg"], "cannot write a.jpg: pictures are PNG files"),
    (["a", "--out", "/dev/null"], "cannot write /dev/null"),
    (["a", "--animate", "a.mp4"], "cannot write a.mp4: the animation is a GIF file"),
    (["a", "--animate", "nowhere/a.gif"], "cannot write nowhere/a.gif"),
    (["a", "b"], "unexpected extra argument"),
    (["a", "--colour", "red"], "No such option"),
]


def test_compiling_without_a_compiler_is_one_line_and_paints_nothing(
    miniai: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    done = miniai("generate", "a cat", "--compile", "--device", "cpu")
    assert done.code == 2
    assert "needs a C++ compiler" in done.err
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize(("arguments", "complaint"), BAD, ids=[" ".join(a) for a, _ in BAD])
def test_a_bad_request_gets_one_line_and_exit_code_2_and_leaves_nothing(
    miniai: Any, arguments: list[str], complaint: str
) -> None:
    outcome = miniai("generate", *arguments)
    assert outcome.code == 2
    assert outcome.out == ""
    assert re.fullmatch(r"error: [^\n]+\n", outcome.err)
    assert complaint.lower() in outcome.err.lower()
    assert files() == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["paint"],
        ["data"],
        ["train", "nothing"],
        ["train", "text-to-image", "--out", "x"],
        ["train", "text-to-image", "--data", "nowhere", "--out", "x", "--steps", "1"],
        ["data", "emoji", "--out", "x", "--size", "1"],
        ["data", "emoji", "--out", "x", "--styles", "crayon"],
        ["evaluate", "text-to-image", "--data", "nowhere", "--model", "nowhere"],
        ["evaluate", "contact-sheet", "x.png", "--prompts", "nowhere.txt"],
        ["evaluate", "contact-sheet", "nowhere/x.png"],
        ["evaluate", "contact-sheet", "x.png", "--nearest", "nowhere"],
        ["evaluate", "contact-sheet", "x.png", "--evaluator", "nowhere"],
        ["evaluate", "contact-sheet", "x.png", "--embedding", "nowhere"],
        ["evaluate", "contact-sheet", "x.png", "--lora", "nowhere"],
        ["evaluate", "contact-sheet", "x.png", "--seed", str(2**64)],
        ["evaluate", "contact-sheet", "x.png", "--seed", "-5"],
        ["evaluate", "contact-sheet", "x.png", "--styles", ","],
        ["evaluate", "contact-sheet", "x.png", "--guidance-scale", "-5"],
        ["evaluate", "samplers", "x.jpg"],
        ["evaluate", "sampling", "--data", "nowhere"],
        ["evaluate", "sampling", "--data", "nowhere", "--steps", "5,many"],
        ["evaluate", "sampling", "--data", "nowhere", "--guidance-scales", "-1"],
        ["evaluate", "sampling", "--data", "nowhere", "--samplers", "eulr"],
        ["evaluate", "sampling", "--data", "nowhere", "--guidance-intervals", "3"],
    ],
    ids=" ".join,
)
def test_other_commands_refuse_in_one_line_too(miniai: Any, arguments: list[str]) -> None:
    outcome = miniai(*arguments)
    assert outcome.code == 2
    assert re.fullmatch(r"error: [^\n]+\n", outcome.err)


@pytest.mark.parametrize("text", ["nan", "1,inf", "many", "1e999"])
def test_a_list_of_numbers_holds_finite_numbers_alone(text: str) -> None:
    assert numbers("--at", "1, 2.5,") == [1, 2.5]
    with pytest.raises(UserError, match="--at .* is not possible: give numbers"):
        numbers("--at", text)


def test_a_damaged_model_gets_one_line_that_names_the_file(miniai: Any, tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained("broken")
    weights = Path("broken/unet/diffusion_pytorch_model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-9])
    outcome = miniai("generate", "a cat", "--model", "broken")
    assert outcome.code == 2
    assert re.fullmatch(r"error: broken/unet/diffusion_pytorch_model.safetensors is truncated [^\n]+\n", outcome.err)
    assert files() == ["broken"]


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from commands(child, (*path, name))


@pytest.mark.parametrize(("path", "command"), commands(typer.main.get_command(app)), ids=str)
def test_every_command_explains_itself_and_each_of_its_options(
    miniai: Any, path: tuple[str, ...], command: Any
) -> None:
    assert command.help
    assert all(parameter.help for parameter in command.params if parameter.name != "help")
    with command.make_context("miniai", ["--help"], resilient_parsing=True) as context:
        text = command.get_help(context)
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    silent = [o.name for o in options if not o.required and not o.is_flag and o.default not in (None, "")]
    assert text.count("[default: ") + text.count("[default:\n") >= len(silent)


def test_the_version_is_the_packages_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"miniai {version('miniai')}\n"


def test_no_command_at_all_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    assert "Usage: miniai" in capsys.readouterr().out


@pytest.fixture
def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def python(code: str, environment: dict[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=cwd, capture_output=True, text=True, timeout=300, check=False
    )


def test_help_imports_nothing_heavy(environment: dict[str, str], tmp_path: Path) -> None:
    code = """if True:
        import sys
        from miniai.cli import run
        code = run(["--help"])
        heavy = {"torch", "numpy", "PIL", "matplotlib", "rich"} & set(sys.modules)
        print("code", code, "heavy", sorted(heavy))
    """
    assert "code 0 heavy []" in python(code, environment, tmp_path).stdout


def test_painting_imports_nothing_it_does_not_need(environment: dict[str, str], model: Path, tmp_path: Path) -> None:
    code = f"""if True:
        import sys
        from miniai.cli import run
        code = run(["generate", "a cat", "--model", {str(model)!r}, "--steps", "1"])
        heavy = {{"matplotlib", "torch._dynamo", "torch._inductor", "sympy", "scipy", "transformers", "diffusers"}}
        print("code", code, "heavy", sorted(heavy & set(sys.modules)))
    """
    result = python(code, environment, tmp_path)
    assert "code 0 heavy []" in result.stdout, result.stderr


def test_ctrl_c_while_painting_is_one_line_exit_code_130_and_leaves_nothing(
    environment: dict[str, str], model: Path, tmp_path: Path
) -> None:
    code = f"""if True:
        import signal, sys
        import miniai.cli, miniai.recipes.generate
        signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
        signal.setitimer(signal.ITIMER_REAL, 2)
        sys.argv = ["miniai", "generate", "a cat", "--model", {str(model)!r}, "--steps", "900", "--n", "256"]
        miniai.cli.main()
    """
    result = python(code, environment, tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "stopped\n")
    assert list(tmp_path.iterdir()) == []


def test_a_picture_can_be_painted_over_more_or_less(miniai: Any) -> None:
    Image.new("RGB", (32, 24), "orange").save("orange.png")
    for strength in ("0.2", "1"):
        outcome = miniai(
            *("generate", "a cat", "--steps", "5", "--image", "orange.png"),
            *("--strength", strength, "--out", f"at-{strength}.png"),
        )
        assert (outcome.code, outcome.err) == (0, "seed 5\n")
        assert open_image(f"at-{strength}.png").size == (32, 24)
        assert f"Denoising strength: {strength}, Init image: orange.png, RNG: CPU" in (
            read_parameters(f"at-{strength}.png") or ""
        )
    assert (pixels("at-0.2.png") != pixels("at-1.png")).any()


def test_only_what_the_mask_shows_white_is_painted_anew(miniai: Any) -> None:
    Image.new("RGB", (32, 32), "orange").save("orange.png")
    Image.new("L", (32, 32), 0).save("nothing.png")
    Image.new("L", (32, 32), 255).save("all.png")
    for mask in ("nothing", "all"):
        for prompt in ("a cat", "a dog"):
            arguments = ("--image", "orange.png", "--mask", f"{mask}.png", "--out", f"{mask}, {prompt}.png")
            assert miniai("generate", prompt, *arguments).code == 0
    assert (pixels("nothing, a cat.png") == pixels("nothing, a dog.png")).all()
    assert (pixels("all, a cat.png") != pixels("all, a dog.png")).any()


def test_around_the_mask_a_large_picture_is_painted_at_the_models_size(miniai: Any) -> None:
    Image.new("RGB", (90, 70), "orange").save("orange.png")
    white = Image.new("L", (90, 70), 0)
    white.paste(255, (30, 20, 50, 44))
    white.save("mask.png")
    arguments = (
        "--image",
        "orange.png",
        "--mask",
        "mask.png",
        "--mask-padding",
        "6",
        "--seed",
        "5",
        "--out",
        "part.png",
    )
    outcome = miniai("generate", "a cat", *arguments)
    assert (outcome.code, outcome.err) == (0, "seed 5\n")
    changed = (pixels("part.png") != pixels("orange.png")).any(axis=2)
    assert changed.shape == (70, 90)
    assert changed[20:44, 30:50].mean() > 0.9
    assert changed.sum() == changed[20:44, 30:50].sum()
    told = read_parameters("part.png") or ""
    sized = ("--width", "16", "--height", "16", *arguments[:-1], "sized.png")
    assert miniai("generate", "a cat", *sized).code == 0
    assert (pixels("part.png") == pixels("sized.png")).all()
    assert "Size: 16x16" in told  # of what was painted
    assert "Mask: mask.png, Inpaint area: Only masked, Masked area padding: 6, " in told


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--mask-padding", "6"), "error: --mask-padding belongs to a mask: give it with --mask FILE"),
        (
            ("--image", "a.png", "--mask", "a.png", "--mask-padding", "6", "--animate", "a.gif"),
            "error: --animate shows a",
        ),
        (("--mask-padding", "-1"), "error: --mask-padding -1 is out of range: give 0 to "),
        (("--image", "none.png"), "error: none.png is missing: check the path"),
        (("--strength", "0.5"), "error: --strength belongs to a picture to start from: give it with --image FILE"),
        (("--mask", "m.png"), "error: --mask belongs to a picture to start from: give it with --image FILE"),
        (("--image", "none.png", "--strength", "1.5"), "error: --strength 1.5 is out of range: give 0 to 1"),
        (("--guidance-rescale", "2"), "error: --guidance-rescale 2.0 is out of range: give 0 to 1"),
        (("--eta", "2"), "error: --eta 2.0 is out of range: give 0 to 1"),
        (("--prompt-syntax", "html"), "error: --prompt-syntax html is not there: give plain or a1111 or comfyui"),
        (("--prediction-type", "x0"), "error: --prediction-type x0 is not there: give epsilon or v_prediction"),
        (("--prediction-type", "epsilon"), "error: --prediction-type is for a single file: "),
        (("--long-prompts", "eat"), "error: --long-prompts eat is not there: give cut or chunks"),
        (("--vae", "nowhere"), "error: "),
        (("--clip-skip", "9"), "error: clip_skip 9 is not possible: the text encoder has 2 layers"),
    ],
)
def test_what_cannot_be_painted_over_is_one_line(miniai: Any, arguments: tuple[str, ...], line: str) -> None:
    outcome = miniai("generate", "a cat", *arguments)
    assert outcome.code == 2
    assert outcome.err.startswith(line)
    assert outcome.err.count("\n") == 1
    assert files() == []


def test_weights_in_a_prompt_count_where_they_are_asked_for(miniai: Any) -> None:
    for name, prompt, syntax in (
        ("plain", "a cat", "plain"),
        ("same", "a (cat:1)", "a1111"),
        ("strong", "a (cat:1.5)", "a1111"),
        ("comfyui", "a (cat:1.5)", "comfyui"),
    ):
        assert miniai("generate", prompt, "--prompt-syntax", syntax, "--out", f"{name}.png").code == 0
    assert (pixels("same.png") == pixels("plain.png")).all()
    assert (pixels("strong.png") != pixels("plain.png")).any()
    assert (pixels("comfyui.png") != pixels("strong.png")).any()


def test_another_vae_paints_otherwise(miniai: Any, tmp_path: Path) -> None:
    tiny_pipeline(seed=9).save_pretrained(tmp_path / "other")
    for name, arguments in (("own", ()), ("other", ("--vae", str(tmp_path / "other")))):
        assert miniai("generate", "a cat", *arguments, "--out", f"{name}.png").code == 0
    assert (pixels("own.png") != pixels("other.png")).any()


def test_weights_that_stand_under_the_name_of_a_variant_are_read_where_it_is_asked_for(miniai: Any) -> None:
    tiny_pipeline().save_pretrained("half")
    for part in ("text_encoder/model", "unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model"):
        Path(f"half/{part}.safetensors").rename(f"half/{part}.fp16.safetensors")
    refused = miniai("generate", "a cat", "--model", "half")
    assert (refused.code, "ask for variant 'fp16'" in refused.err) == (2, True)
    assert miniai("generate", "a cat", "--model", "half", "--variant", "fp16", "--out", "half.png").code == 0
    assert miniai("generate", "a cat", "--out", "whole.png").code == 0
    assert (pixels("half.png") == pixels("whole.png")).all()


def test_a_png_says_every_setting_that_made_its_picture_another(miniai: Any) -> None:
    Image.new("RGB", (16, 16), "orange").save("a start, wide.png")
    Image.new("L", (16, 16), 255).save("mask.png")
    outcome = miniai(
        *(
            "generate",
            "a cat",
            "--steps",
            "4",
            "--image",
            "a start, wide.png",
            "--mask",
            "mask.png",
            "--strength",
            "0.5",
        ),
        *("--eta", "0.5", "--guidance-rescale", "0.3", "--prompt-syntax", "a1111", "--long-prompts", "chunks"),
        *("--guidance-interval", "0.3", "5", "--cache-interval", "2", "--dtype", "float32", "--out", "a.png"),
    )
    assert outcome.code == 0
    settings = read_parameters("a.png") or ""
    for said in (
        "Denoising strength: 0.5",
        'Init image: "a start, wide.png"',
        "Mask: mask.png",
        "Eta: 0.5",
        "CFG rescale: 0.3",
        "Guidance interval: 0.3 to 5",
        "Prompt syntax: a1111",
        "Long prompts: chunks",
        "Cache interval: 2",
        "Data type: float32",
    ):
        assert f", {said}, " in settings
