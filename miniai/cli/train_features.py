"""`miniai train`: what learns by the features of another network: style, textures, sharper clothes."""

from pathlib import Path
from typing import Annotated

import typer

from miniai.cli.options import Device, FashionData, FashionEpochs, FashionTraining, Resume, TrainingSeed, stage_stops
from miniai.cli.train import app

VGG = Annotated[
    Path | None,
    typer.Option(help="Weights of VGG-16, vgg16-397923af.pth, as the judge.", show_default="random filters"),
]


@app.command("style")
def style(
    content: Annotated[Path, typer.Argument(metavar="CONTENT", help="What to show.", show_default=False)],
    manner: Annotated[Path, typer.Argument(metavar="STYLE", help="How to paint it.", show_default=False)],
    out: Annotated[Path, typer.Argument(metavar="FILE.png", help="The painted picture.", show_default=False)],
    vgg: VGG = None,
    size: Annotated[int, typer.Option(help="Edge of the picture, 32 to 2048 pixels.")] = 128,
    steps: Annotated[int, typer.Option(help="Steps of the descent.")] = 300,
    style_weight: Annotated[float, typer.Option(help="How much the manner counts, beside 1 for the content.")] = 10.0,
    device: Device = "auto",
) -> None:
    """Paint one picture in the manner of another."""
    from miniai.recipes.style_transfer import style_transfer

    options = {"vgg": vgg, "size": size, "steps": steps, "style_weight": style_weight, "device": device}
    typer.echo(style_transfer(content, manner, out, **options))  # type: ignore[arg-type]


@app.command("texture")
def texture(
    picture: Annotated[Path, typer.Argument(metavar="PICTURE", help="The texture to learn.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for weights, a grown texture, and a GIF of it healing.")],
    vgg: VGG = None,
    steps: Annotated[int, typer.Option(help="Training steps.")] = 1000,
    device: Device = "auto",
) -> None:
    """Train a neural cellular automaton that grows a texture and heals it."""
    from miniai.recipes.texture import train_texture

    found = train_texture(picture, out, vgg=vgg, steps=steps, device=device)
    figures = ", ".join(f"{name} {value:.5f}" for name, value in found.items())
    typer.echo(f"style loss: {figures}\n{out / 'texture.png'}\n{out / 'healing.gif'}")


@app.command("fashion-super")
def fashion_super(
    out: FashionTraining,
    classifier: Annotated[Path, typer.Option(help="Folder of a training of fashion-classifier, to begin as.")],
    data: FashionData = None,
    epochs: FashionEpochs = 5,
    seed: TrainingSeed = 0,
    resume: Resume = False,
    device: Device = "auto",
) -> None:
    """Make clothes of 14×14 pixels 28×28, and print the error beside that of plain enlarging."""
    from miniai.recipes.fashion_super import FashionSuperConfig
    from miniai.recipes.fashion_super import train_fashion_super as train

    config = FashionSuperConfig(seed=seed)
    with stage_stops():
        found = train(out, classifier, data=data, epochs=epochs, resume=resume, device=device, config=config)
    typer.echo(f"{found['psnr']:.2f} dB on the test pictures, {found['psnr_of_enlarging']:.2f} dB by plain enlarging")
