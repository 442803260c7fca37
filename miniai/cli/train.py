"""`miniai train`: train models."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from miniai.cli.options import Device, FashionData, FashionEpochs, Resume, TrainingSeed, lines, stage_stops, words

app = typer.Typer(help="Train models.")


@app.command("text-to-image")
def text_to_image(
    data: Annotated[Path, typer.Option(help="Captioned pictures: an ImageFolder, or a .txt beside each picture.")],
    out: Annotated[Path, typer.Option(help="Folder of the training; the model will be in its subfolder 'model'.")],
    minutes: Annotated[
        float | None,
        typer.Option(
            help="Minutes to train in all, shared among the stages; or give --steps.",
            show_default="with --resume, as the training was begun",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(help="Optimizer steps of each stage; or give --minutes.", show_default="as for --minutes"),
    ] = None,
    resume: Resume = False,
    stages: Annotated[
        str | None,
        typer.Option(
            help="Which stages to run, separated by commas; those before must be finished.",
            show_default="vae,clip,latents,unet,words,decoder; with --init the last four",
        ),
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(
            help="Model folder to go on from, or the word packaged: its text encoder, U-Net and decoder learn, its "
            "encoder only if --stages names vae.",
            show_default="nothing",
        ),
    ] = None,
    size: Annotated[
        str,
        typer.Option(
            help="Of the networks and batches; pictures become 64x64 pixels in any case. small (2 CPU cores), gpu (the "
            "same networks, larger batches), fine and gpu-fine (as these, with latents of 4x16x16 instead of 16x8x8), "
            "or tiny (to try it)."
        ),
    ] = "small",
    config: Annotated[
        Path | None,
        typer.Option(help="Every number of the recipe, as JSON, such as an earlier training's config.json."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, order and noise.", show_default="0")] = None,
    device: Device = "auto",
    sample_minutes: Annotated[float, typer.Option(help="Minutes between grids of sample pictures.")] = 4.0,
    sample_prompts: Annotated[
        Path | None,
        typer.Option(help="Text file of what the grids show, a prompt a line.", show_default="captions of the data"),
    ] = None,
    compile_: Annotated[
        bool,
        typer.Option("--compile", help="Compile text encoder and U-Net first: minutes, then more pictures a second."),
    ] = False,
) -> None:
    """Train a text-to-image model on captioned pictures, scaled and cropped to squares: a VAE, CLIP, a U-Net on the
    VAE's latents, then words and the decoder once more. Ctrl-C saves and stops; the same with --resume goes on."""
    from miniai.recipes.generate_request import packaged_model
    from miniai.recipes.text_to_image import train_text_to_image as train

    with stage_stops():
        folder = train(
            data,
            out,
            minutes=minutes,
            steps=steps,
            resume=resume,
            stages=None if stages is None else words(stages),
            init=packaged_model() if str(init) == "packaged" else init,
            size=size,
            config_file=config,
            seed=seed,
            device=device,
            sample_minutes=sample_minutes,
            compiler="inductor" if compile_ else None,
            prompts=() if sample_prompts is None else lines(sample_prompts),
        )
    typer.echo(folder if folder.is_dir() else out)  # there is no model before the U-Net


@app.command("fashion-classifier")
def fashion_classifier(
    out: Annotated[Path, typer.Option(help="Folder of the training: model, config, log, loss curve, results.")],
    data: FashionData = None,
    epochs: FashionEpochs = 5,
    network: Annotated[
        str,
        typer.Option(help="pooled; wide, more often right and slower; or six-level, as the course's, to judge FID by."),
    ] = "pooled",
    seed: TrainingSeed = 0,
    resume: Resume = False,
    device: Device = "auto",
) -> None:
    """Train a residual network that names Fashion-MNIST's ten classes, and print its accuracy on the test pictures."""
    from miniai.recipes.fashion_classifier import network_config
    from miniai.recipes.fashion_classifier import train_fashion_classifier as train

    config = replace(network_config(network), seed=seed)
    with stage_stops():
        results = train(out, data=data, epochs=epochs, resume=resume, device=device, config=config)
    typer.echo(f"accuracy {100 * results['accuracy']:.2f} % of the test pictures")
    typer.echo(f"with mirror images {100 * results['accuracy_with_mirror_images']:.2f} %")


def _fashion_diffusion(kind: str, text: str) -> None:
    """The commands of the recipes in `miniai.recipes.fashion_diffusion` differ in their name alone."""

    def command(
        out: Annotated[Path, typer.Option(help="Folder of the training: weights, config, log, curves, samples.")],
        data: FashionData = None,
        epochs: FashionEpochs = 25,
        init: Annotated[
            Path | None,
            typer.Option(help="Folder of a finished training to go on from.", show_default="random weights"),
        ] = None,
        learning_rate: Annotated[
            float | None, typer.Option(help="Highest rate of the optimizer.", show_default="the recipe's")
        ] = None,
        classes: Annotated[bool, typer.Option("--classes", help="Tell the network the class of each picture.")] = False,
        seed: TrainingSeed = 0,
        resume: Resume = False,
        device: Device = "auto",
        compile_: Annotated[
            bool, typer.Option("--compile", help="Compile the network first: minutes, then more pictures a second.")
        ] = False,
    ) -> None:
        from miniai.recipes.fashion_diffusion import train_fashion_diffusion as train
        from miniai.recipes.fashion_diffusion_config import recipe

        ways: dict[str, Any] = {"compiler": "inductor" if compile_ else None, "init": init}
        config = replace(recipe(kind, learning_rate, classes), seed=seed)
        with stage_stops():
            train(kind, out, data=data, epochs=epochs, resume=resume, device=device, config=config, **ways)
        typer.echo(out)

    app.command(f"fashion-{kind}", help=text)(command)


_fashion_diffusion("ddpm", "Paint clothes: noise predicted on the linear schedule of DDPM.")
_fashion_diffusion("ddim-cosine", "Paint clothes: v predicted on the cosine schedule, sampled by DDIM.")
_fashion_diffusion("edm", "Paint clothes: the network of EDM, preconditioned, on log-normal noise levels.")
_fashion_diffusion("conditional", "Paint clothes of a class that one asks for, with guidance.")
