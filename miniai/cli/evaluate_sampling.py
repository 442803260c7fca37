"""`miniai evaluate sampling`: samplers, steps and guidance beside one another."""

from pathlib import Path
from typing import Annotated, Any

import typer

from miniai.base.errors import UserError
from miniai.cli.evaluate import app
from miniai.cli.options import (
    Device,
    Evaluator,
    EvaluatorMinutes,
    FirstSeed,
    HeldOut,
    Limit,
    Model,
    numbers,
    stage_stops,
    words,
)
from miniai.recipes import generate_request


@app.command("sampling")
def sampling(
    data: HeldOut,
    model: Model = None,
    out: Annotated[Path, typer.Option(help="Folder for table, plot and records.")] = Path("sampling"),
    samplers: Annotated[str, typer.Option(help="Separated by commas.")] = "dpmpp_2m,euler,ddim",
    steps: Annotated[str, typer.Option(help="Denoising steps, separated by commas.")] = "5,10,20,40",
    guidance_scales: Annotated[str, typer.Option(help="Separated by commas; up to 1 is no guidance.")] = "1.5,2.5,3.5",
    guidance_intervals: Annotated[
        str,
        typer.Option(help="Noise levels (sigma) between which guidance acts, such as all,0.3-5."),
    ] = "all",
    evaluator: Evaluator = None,
    evaluator_minutes: EvaluatorMinutes = 15.0,
    limit: Limit = None,
    seed: FirstSeed = 0,
    device: Device = "auto",
) -> None:
    """Paint the held-out captions in every way that is named, and plot retrieval and FID against what it costs."""
    names = words(samplers)
    counts = [int(count) for count in numbers("--steps", steps, whole=True)]
    scales = numbers("--guidance-scales", guidance_scales)
    between = [_interval(text) for text in words(guidance_intervals)]
    for count in counts:
        generate_request.check_ranges(("--steps", count, 1, generate_request.MAX_STEPS, "steps"))
    for scale in scales:
        generate_request.check_ranges(("--guidance-scales", scale, 0, generate_request.MAX_GUIDANCE_SCALE, ""))
    from miniai.recipes.evaluation import Evaluation
    from miniai.recipes.sampling_sweep import TABLE, sampling_sweep

    model = model or generate_request.packaged_model()
    with stage_stops():
        asked = Evaluation(model, data, evaluator, seed, limit, device, evaluator_minutes)
        lists: dict[str, Any] = {
            "samplers": names,
            "step_counts": counts,
            "guidance_scales": scales,
            "guidance_intervals": between,
        }
        sampling_sweep(asked, out, **lists)
    typer.echo((out / TABLE).read_text(), nl=False)


def _interval(text: str) -> tuple[float, float] | None:
    """`LOW-HIGH`, or None for "all". Raises UserError for anything else."""
    if text == "all":
        return None
    low, _, high = text.partition("-")
    try:
        return float(low), float(high)
    except ValueError as error:
        message = f"--guidance-intervals {text!r} is not possible: give two noise levels, such as 0.3-5, or all"
        raise UserError(message) from error
