"""`miniai generate`."""

from pathlib import Path
from typing import Annotated

import typer

from miniai.cli.options import (
    AnyModel,
    Compiled,
    Device,
    Dtype,
    Embedding,
    GuidanceInterval,
    GuidanceScale,
    Lora,
    OtherVae,
    PredictionType,
    Sampler,
    Steps,
    Tokenizer,
    VaeSlicing,
    VaeTiling,
    Variant,
)
from miniai.recipes import generate_request

Side = Annotated[
    int | None, typer.Option(help="In pixels.", show_default="that of --image, or what the model was trained on")
]


def generate(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to paint, in words.", show_default=False)],
    negative_prompt: Annotated[str, typer.Option(help="What the picture should not be.")] = "",
    n: Annotated[int, typer.Option(help="Number of pictures, 1 to 256; several also come on one sheet.")] = 1,
    seed: Annotated[
        int | None,
        typer.Option(help="Seed of the first picture, the next ones count up.", show_default="a fresh one, printed"),
    ] = None,
    steps: Steps = generate_request.STEPS,
    sampler: Sampler = None,
    guidance_scale: GuidanceScale = generate_request.GUIDANCE_SCALE,
    model: AnyModel = None,
    vae: OtherVae = None,
    tokenizer: Tokenizer = None,
    variant: Variant = None,
    prediction_type: PredictionType = None,
    lora: Lora = None,
    embedding: Embedding = None,
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
    device: Device = "auto",
    dtype: Dtype = "auto",
    width: Side = None,
    height: Side = None,
    image: Annotated[Path | None, typer.Option(metavar="FILE", help="Picture to start from.")] = None,
    strength: Annotated[
        float | None,
        typer.Option(help="How much of --image is painted anew, 0 to 1.", show_default="0.8, or 1 with --mask"),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Picture as large as --image: white where something new is painted, black where not."
        ),
    ] = None,
    mask_padding: Annotated[
        int | None,
        typer.Option(
            metavar="PIXELS",
            help="Paint only what lies around --mask, and so many pixels more, at the model's size; then put it back.",
            show_default="the whole picture",
        ),
    ] = None,
    guidance_rescale: Annotated[
        float, typer.Option(help="How far guidance is kept from raising the contrast, 0 to 1.")
    ] = 0.0,
    eta: Annotated[float, typer.Option(help="Fresh noise that ddim takes at each step, 0 to 1.")] = 0.0,
    prompt_syntax: Annotated[
        str, typer.Option(help="plain, a1111 or comfyui: how weights such as (word:1.3) are read; a1111 knows AND.")
    ] = "plain",
    long_prompts: Annotated[
        str, typer.Option(help="cut or chunks: what becomes of a prompt beyond the model's window.")
    ] = "cut",
    clip_skip: Annotated[
        int | None,
        typer.Option(
            help="Last layers of the text encoder to leave out; 1 is what A1111 calls 2.",
            show_default="the model's own",
        ),
    ] = None,
    guidance_interval: GuidanceInterval = None,
    cache_interval: Annotated[
        int, typer.Option(help="Steps that share the U-Net's deep features: above 1 is faster, and less exact.")
    ] = 1,
    compiled: Compiled = False,
    vae_tiling: VaeTiling = False,
    vae_slicing: VaeSlicing = False,
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
        image=image,
        strength=strength,
        mask=mask,
        mask_padding=mask_padding,
        guidance_rescale=guidance_rescale,
        clip_skip=clip_skip,
        eta=eta,
        prompt_syntax=prompt_syntax,
        long_prompts=long_prompts,
        vae=vae,
        tokenizer=tokenizer,
        variant=variant,
        prediction_type=prediction_type,
        guidance_interval=guidance_interval,
        cache_interval=cache_interval,
        compiled=compiled,
        loras=tuple(generate_request.read_lora_option(one) for one in lora or ()),
        embeddings=tuple(embedding or ()),
        vae_tiling=vae_tiling,
        vae_slicing=vae_slicing,
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
