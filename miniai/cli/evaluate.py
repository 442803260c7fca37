"""`miniai evaluate`: measure models."""

from pathlib import Path
from typing import Annotated, Any

import typer

from miniai.base.errors import UserError
from miniai.base.files import check_writable
from miniai.cli.options import (
    Device,
    Embedding,
    Evaluator,
    EvaluatorMinutes,
    FirstSeed,
    GuidanceScale,
    HeldOut,
    Limit,
    Lora,
    Model,
    Sampler,
    Steps,
    lines,
    stage_stops,
    words,
)
from miniai.recipes import generate_request

app = typer.Typer(help="Measure models.")


@app.command("text-to-image")
def text_to_image(
    data: HeldOut,
    model: Model = None,
    out: Annotated[Path, typer.Option(help="Folder for the figures, the sheets and the pictures.")] = Path(
        "evaluation"
    ),
    evaluator: Evaluator = None,
    evaluator_minutes: EvaluatorMinutes = 15.0,
    limit: Limit = None,
    steps: Steps = generate_request.STEPS,
    guidance_scale: GuidanceScale = generate_request.GUIDANCE_SCALE,
    sampler: Sampler = None,
    seed: FirstSeed = 0,
    device: Device = "auto",
) -> None:
    """Paint the held-out captions and measure: retrieval, FID, KID, nearest training pictures, beside the real ones."""
    from miniai.recipes.evaluate_text_to_image import evaluate_text_to_image as evaluate
    from miniai.recipes.evaluation import Evaluation

    model = model or generate_request.packaged_model()
    with stage_stops():
        asked = Evaluation(model, data, evaluator, seed, limit, device, evaluator_minutes)
        evaluate(asked, out, steps, guidance_scale, sampler)
    typer.echo(out)


@app.command("contact-sheet")
def contact_sheet(
    out: Annotated[Path, typer.Argument(metavar="FILE.png", help="The sheet.", show_default=False)],
    model: Model = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Text file, one prompt a line.", show_default="64 of our own")
    ] = None,
    styles: Annotated[
        str | None, typer.Option(help="Separated by commas: each makes 'a cat, STYLE style'.", show_default="none")
    ] = None,
    steps: Steps = generate_request.STEPS,
    guidance_scale: GuidanceScale = generate_request.GUIDANCE_SCALE,
    sampler: Sampler = None,
    seed: FirstSeed = 0,
    device: Device = "auto",
    columns: Annotated[int, typer.Option(help="Prompts in a row.")] = 8,
    zoom: Annotated[int, typer.Option(help="How many times as large as painted.")] = 1,
    nearest: Annotated[
        Path | None,
        typer.Option(
            help="Captioned pictures; below each painted one, that of their training which it is most like.",
            show_default="none",
        ),
    ] = None,
    evaluator: Annotated[
        Path | None, typer.Option(help="Folder of a CLIP whose features say so.", show_default="by pixels")
    ] = None,
    lora: Lora = None,
    embedding: Embedding = None,
) -> None:
    """Paint many prompts on one labelled sheet, to be looked at."""
    generate_request.check_ranges(("--columns", columns, 1, 100, ""), ("--zoom", zoom, 1, 16, ""))
    generate_request.check_ranges(
        ("--guidance-scale", guidance_scale, 0, generate_request.MAX_GUIDANCE_SCALE, ""),
        ("--steps", steps, 1, generate_request.MAX_STEPS, "steps"),
    )
    if out.suffix.lower() != ".png":
        raise UserError(f"cannot write {out}: the sheet is a PNG file, give a name that ends in .png")
    check_writable(out)
    chosen: dict[str, Any] = {}
    if prompts is not None:
        chosen["prompts"] = lines(prompts)
    if styles is not None:
        chosen["styles"] = words(styles)
        if not chosen["styles"]:
            raise UserError(f"--styles {styles!r} names none: give styles separated by commas, or leave it out")
    from miniai.recipes.contact_sheet import contact_sheet as paint

    path = paint(
        model or generate_request.packaged_model(),
        out,
        n_steps=steps,
        guidance_scale=guidance_scale,
        sampler=sampler,
        seed=seed,
        device=device,
        n_columns=columns,
        zoom=zoom,
        nearest_in=nearest,
        evaluator=evaluator,
        loras=[generate_request.read_lora_option(one) for one in lora or ()],
        embeddings=embedding or (),
        **chosen,
    )
    typer.echo(path)


@app.command("folders")
def folders(
    a: Annotated[Path, typer.Argument(metavar="FOLDER", help="Pictures, of any size.", show_default=False)],
    b: Annotated[Path, typer.Argument(metavar="OTHER", help="Others.", show_default=False)],
    inception: Annotated[
        Path | None,
        typer.Option(
            help="Inception's weights for FID: pt_inception-2015-12-05-6726825d.pth.",
            show_default="where pytorch-fid or torch-fidelity has left them",
        ),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder that keeps features.", show_default="the user's cache folder")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of KID's subsets.")] = 0,
    device: Device = "auto",
) -> None:
    """Measure how far apart the pictures in two folders are: FID and KID, as they are published."""
    from miniai.base.device import pick_device
    from miniai.evaluate.inception import load_inception
    from miniai.recipes.compare_folders import compare_folders, default_cache, pictures_below

    for folder in (a, b):
        pictures_below(folder)  # before the network is loaded
    network = load_inception(inception).to(pick_device(device))
    found = compare_folders(a, b, network, cache=cache or default_cache(), seed=seed)
    typer.echo(f"FID {found['fid']:.3f} of {found['n_a']:,} and {found['n_b']:,} pictures")
    typer.echo(
        f"KID {found['kid_mean']:.5f}, deviation {found['kid_deviation']:.5f} "
        f"among {found['kid_n_subsets']} subsets of {found['kid_subset_size']}"
    )
