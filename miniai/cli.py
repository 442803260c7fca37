"""The `miniai` command. Every import that costs time stands inside the command that needs it."""

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from miniai.base.errors import UserError, UserNotice
from miniai.base.files import check_writable
from miniai.recipes import generate_request

app = typer.Typer(
    help="Stable Diffusion, whole, from its foundations: paint a prompt, train a model, measure it.",
    add_completion=False,
    rich_markup_mode=None,  # plain help is there in a fraction of the time
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Build data sets.")
train_app = typer.Typer(help="Train models.")
evaluate_app = typer.Typer(help="Measure models.")
app.add_typer(data_app, name="data")
app.add_typer(train_app, name="train")
app.add_typer(evaluate_app, name="evaluate")

# Click's own class, or that of the copy of click that newer versions of typer carry.
_CommandLineError: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

# Options that several commands have
_Model = Annotated[
    Path | None, typer.Option(help="Folder of a model in the Diffusers layout.", show_default="the packaged one")
]
_Steps = Annotated[int, typer.Option(help="Denoising steps, 1 to 1000.")]
_GuidanceScale = Annotated[
    float, typer.Option(help="How strongly the prompt rules, 0 to 100; up to 1 is no guidance and twice as fast.")
]
_Sampler = Annotated[
    str | None,
    typer.Option(
        help="ddim, euler, euler_a, dpmpp_2m and others; 'Euler a' and 'DPM++ 2M Karras' work too.",
        show_default="the model's own",
    ),
]
_Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]

_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def main() -> None:
    """The entry point: exit code 0, or 2 after one line about a bad input, or 130 after Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a prompt may hold what the terminal's encoding lacks
            stream.reconfigure(errors="backslashreplace")
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code: the only place that turns errors into lines."""
    command = typer.main.get_command(app)
    with warnings.catch_warnings():
        warnings.showwarning = _notice_printer()
        try:
            with command.make_context("miniai", list(arguments) or ["--help"]) as context:
                command.invoke(context)
        except UserError as error:
            return _fail(f"error: {error}")
        except _CommandLineError as error:
            where = error.ctx.command_path if getattr(error, "ctx", None) else "miniai"
            return _fail(f"error: {error.format_message()} (see '{where} --help')")
        except typer.Exit as done:
            return done.exit_code
        except (KeyboardInterrupt, typer.Abort) as stop:
            return _fail(str(stop) or "stopped", _INTERRUPTED)
        except BrokenPipeError:  # the reader, such as `head`, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
    return 0


def _fail(line: str, code: int = 2) -> int:
    typer.echo(line, err=True)
    return code


def _notice_printer() -> Any:
    """For `warnings.showwarning`: a notice for the user is one line, once; warnings to programmers are hidden."""
    shown: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
        line = f"warning: {message}"
        if issubclass(category, UserNotice) and line not in shown:
            shown.add(line)
            typer.echo(line, err=True)

    return show


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to paint, in words.", show_default=False)],
    negative_prompt: Annotated[str, typer.Option(help="What the picture should not be.")] = "",
    n: Annotated[int, typer.Option(help="Number of pictures, 1 to 256; several also come on one sheet.")] = 1,
    seed: Annotated[
        int | None,
        typer.Option(help="Seed of the first picture, the next ones count up.", show_default="a fresh one, printed"),
    ] = None,
    steps: _Steps = generate_request.STEPS,
    sampler: _Sampler = None,
    guidance_scale: _GuidanceScale = generate_request.GUIDANCE_SCALE,
    model: _Model = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="PNG file, or a folder. With --n above 1 it is the sheet; the pictures stand beside it as _1, _2, …",
            show_default="a name from the prompt, here",
        ),
    ] = None,
    animate: Annotated[
        Path | None, typer.Option(metavar="FILE.gif", help="Also show the denoising, step by step, as a GIF.")
    ] = None,
    device: _Device = "auto",
    dtype: Annotated[
        str, typer.Option(help="auto, float32, float16 or bfloat16; auto is float16 on cuda, else float32.")
    ] = "auto",
    width: Annotated[int | None, typer.Option(help="In pixels.", show_default="what the model was trained on")] = None,
    height: Annotated[int | None, typer.Option(help="In pixels.", show_default="what the model was trained on")] = None,
) -> None:
    """Paint pictures of a prompt and print where they are.

    The same seed gives the same picture, at any --n. Each PNG carries its prompt, seed and settings.
    """
    request = generate_request.GenerateRequest(
        prompt=_printable(prompt),
        negative_prompt=_printable(negative_prompt),
        n=n,
        seed=seed,
        steps=steps,
        sampler=sampler,
        guidance_scale=guidance_scale,
        model=model,
        out=out,
        animate=animate,
        device=device,
        dtype=dtype,
        width=width,
        height=height,
    )
    generate_request.check_request(request)  # before torch is loaded, so that a slip is answered at once
    generate_request.choose_targets(request)
    from miniai.recipes.generate import generate as paint

    painted = paint(request)
    typer.echo(f"seed {painted.seed}", err=True)
    for path in painted.files:
        typer.echo(path)


def _printable(text: str) -> str:
    """Bytes on the command line that are no UTF-8 become U+FFFD, here and not deep inside a PNG writer."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


@data_app.command("emoji")
def data_emoji(
    out: Annotated[Path, typer.Option(help="Folder to build; a set built there before is replaced.")],
    styles: Annotated[
        str | None,
        typer.Option(
            help="Separated by commas: noto, noto-v1, twemoji, fluent-emoji, fluent-emoji-flat, emojione, fxemoji; or "
            "openmoji, alone.",
            show_default="all but openmoji",
        ),
    ] = None,
    groups: Annotated[
        str | None,
        typer.Option(
            help="Separated by commas: emojibase groups or subgroups, patterns such as 'food-*', or core for things "
            "without people, flags, letters, clock faces and buttons.",
            show_default="everything",
        ),
    ] = None,
    size: Annotated[int, typer.Option(help="Edge of the pictures, 16 to 1024 pixels.")] = 64,
    cache: Annotated[
        Path | None, typer.Option(help="Folder that keeps the downloads.", show_default="the user's cache folder")
    ] = None,
    jobs: Annotated[int, typer.Option(help="Rendering threads.")] = 2,
) -> None:
    """Build the text-to-emoji data set, an ImageFolder of captioned pictures, from npm packages at pinned versions."""
    from miniai.recipes.emoji import build_emoji

    chosen: dict[str, Any] = {} if styles is None else {"styles": _words(styles)}
    report = build_emoji(
        out, groups=None if groups is None else _words(groups), size=size, cache=cache, n_jobs=jobs, **chosen
    )
    typer.echo(f"{report.out}: {report.n_train:,} pictures to train on, {report.n_test:,} held out")


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


@train_app.command("text-to-image")
def train_text_to_image(
    data: Annotated[Path, typer.Option(help="Captioned pictures: an ImageFolder, or a .txt beside each picture.")],
    out: Annotated[Path, typer.Option(help="Folder of the training; the model will be in its subfolder 'model'.")],
    minutes: Annotated[float | None, typer.Option(help="Minutes to train in all, shared among the stages.")] = None,
    steps: Annotated[int | None, typer.Option(help="Instead of --minutes: optimizer steps of each stage.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the training in --out.")] = False,
    stages: Annotated[
        str | None,
        typer.Option(
            help="Which stages to run, separated by commas; those before must be finished.",
            show_default="vae,clip,latents,unet",
        ),
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(help="Model folder to go on from: only its text encoder and U-Net learn.", show_default="nothing"),
    ] = None,
    size: Annotated[str, typer.Option(help="small (2 CPU cores or one GPU) or tiny (to try the command).")] = "small",
    config: Annotated[
        Path | None,
        typer.Option(help="Every number of the recipe, as JSON, such as an earlier training's config.json."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, order and noise.", show_default="0")] = None,
    device: _Device = "auto",
    sample_minutes: Annotated[float, typer.Option(help="Minutes between grids of sample pictures.")] = 4.0,
) -> None:
    """Train a text-to-image model on captioned pictures: VAE, CLIP, then the U-Net. Ctrl-C saves and stops."""
    from miniai.recipes.text_to_image import train_text_to_image as train

    with _stage_stops():
        folder = train(
            data,
            out,
            minutes=minutes,
            steps=steps,
            resume=resume,
            stages=None if stages is None else _words(stages),
            init=init,
            size=size,
            config_file=config,
            seed=seed,
            device=device,
            sample_minutes=sample_minutes,
        )
    typer.echo(folder)


@contextmanager
def _stage_stops() -> Iterator[None]:
    """A training that Ctrl-C has stopped says how to go on with it."""
    from miniai.recipes.training import StageInterrupted

    try:
        yield
    except StageInterrupted as stop:
        raise KeyboardInterrupt(str(stop)) from stop


@evaluate_app.command("text-to-image")
def evaluate_text_to_image(
    data: Annotated[Path, typer.Option(help="Captioned pictures, of which a split named test was held out.")],
    model: _Model = None,
    out: Annotated[Path, typer.Option(help="Folder for the figures, the sheets and the pictures.")] = Path(
        "evaluation"
    ),
    evaluator: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a CLIP that took no part in training.",
            show_default="one that fits the data, or else one trained now",
        ),
    ] = None,
    evaluator_minutes: Annotated[float, typer.Option(help="Minutes to train the evaluator, if there is none.")] = 15.0,
    limit: Annotated[
        int | None, typer.Option(help="At most so many pictures, evenly spread.", show_default="all held out")
    ] = None,
    steps: _Steps = generate_request.STEPS,
    guidance_scale: _GuidanceScale = generate_request.GUIDANCE_SCALE,
    sampler: _Sampler = None,
    seed: Annotated[int, typer.Option(help="Seed of the first picture; the next ones count up.")] = 0,
    device: _Device = "auto",
) -> None:
    """Paint the held-out captions and measure: retrieval, FID, KID, nearest training pictures, beside the real ones."""
    from miniai.recipes.evaluate_text_to_image import evaluate_text_to_image as evaluate

    with _stage_stops():
        evaluate(
            model or generate_request.packaged_model(),
            data,
            out,
            evaluator,
            steps,
            guidance_scale,
            sampler,
            seed,
            limit,
            device,
            evaluator_minutes=evaluator_minutes,
        )
    typer.echo(out)


@evaluate_app.command("contact-sheet")
def evaluate_contact_sheet(
    out: Annotated[Path, typer.Argument(metavar="FILE.png", help="The sheet.", show_default=False)],
    model: _Model = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Text file, one prompt a line.", show_default="64 of our own")
    ] = None,
    styles: Annotated[
        str | None, typer.Option(help="Separated by commas: each makes 'a cat, STYLE style'.", show_default="none")
    ] = None,
    steps: _Steps = generate_request.STEPS,
    guidance_scale: _GuidanceScale = generate_request.GUIDANCE_SCALE,
    sampler: _Sampler = None,
    seed: Annotated[int, typer.Option(help="Seed of the first picture; the next ones count up.")] = 0,
    device: _Device = "auto",
    columns: Annotated[int, typer.Option(help="Prompts in a row.")] = 8,
    zoom: Annotated[int, typer.Option(help="How many times as large as painted.")] = 1,
) -> None:
    """Paint many prompts on one labelled sheet, to be looked at."""
    generate_request.check_ranges(("--columns", columns, 1, 100, ""), ("--zoom", zoom, 1, 16, ""))
    check_writable(out)
    chosen: dict[str, Any] = {}
    if prompts is not None:
        chosen["prompts"] = _lines(prompts)
    if styles is not None:
        chosen["styles"] = _words(styles)
    from miniai.recipes.contact_sheet import contact_sheet

    path = contact_sheet(
        model or generate_request.packaged_model(),
        out,
        n_steps=steps,
        guidance_scale=guidance_scale,
        sampler=sampler,
        seed=seed,
        device=device,
        n_columns=columns,
        zoom=zoom,
        **chosen,
    )
    typer.echo(path)


def _lines(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: give a text file in UTF-8, one prompt a line") from error
    if not any(lines):
        raise UserError(f"{path} has no prompts: write one a line")
    return [line for line in lines if line]
