"""`miniai train`: more on Fashion-MNIST: an autoencoder, diffusion in its latents, distillation, refinement, sweeps."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from miniai.cli.options import (
    Device,
    FashionData,
    FashionEpochs,
    FashionTraining,
    Resume,
    TrainingSeed,
    numbers,
    stage_stops,
    words,
)
from miniai.cli.train import app


@app.command("fashion-autoencoder")
def fashion_autoencoder(
    out: FashionTraining,
    data: FashionData = None,
    epochs: FashionEpochs = 10,
    seed: TrainingSeed = 0,
    resume: Resume = False,
    device: Device = "auto",
) -> None:
    """Put clothes into 64 numbers and paint them again, and print the error beside that of principal components."""
    from miniai.recipes.fashion_autoencoder import FashionAutoencoderConfig
    from miniai.recipes.fashion_autoencoder import train_fashion_autoencoder as train

    config = FashionAutoencoderConfig(seed=seed)
    with stage_stops():
        results = train(out, data=data, epochs=epochs, resume=resume, device=device, config=config)
    typer.echo(
        f"{results['psnr']:.2f} dB on the test pictures, "
        f"{results['psnr_of_components']:.2f} dB by {results['numbers']} principal components"
    )


@app.command("fashion-latent")
def fashion_latent(
    out: FashionTraining,
    data: FashionData = None,
    epochs: Annotated[float, typer.Option(help="Passes over the 60,000 training pictures of the U-Net.")] = 25,
    autoencoder_epochs: Annotated[float, typer.Option(help="And, before that, of the autoencoder.")] = 10,
    seed: TrainingSeed = 0,
    resume: Resume = False,
    device: Device = "auto",
) -> None:
    """Paint clothes of a class in the latents of an autoencoder: first the one is trained, then the other."""
    from miniai.recipes.fashion_latent import FashionLatentConfig
    from miniai.recipes.fashion_latent import train_fashion_latent as train

    config = FashionLatentConfig().seeded(seed)
    with stage_stops():
        train(
            out,
            data=data,
            epochs=epochs,
            autoencoder_epochs=autoencoder_epochs,
            resume=resume,
            device=device,
            config=config,
        )
    typer.echo(out)


@app.command("fashion-distil")
def fashion_distil(
    teacher: Annotated[Path, typer.Option(help="Folder of a finished training of fashion-edm or fashion-conditional.")],
    out: Annotated[Path, typer.Option(help="Folder of the student; those on the way to it are in its subfolders.")],
    from_steps: Annotated[int, typer.Option(help="Steps of Euler's method that the teacher takes.")] = 32,
    to_steps: Annotated[int, typer.Option(help="Steps in the end: --from-steps halved once or more.")] = 4,
    epochs_per_halving: Annotated[
        float, typer.Option(help="Passes over the 60,000 training pictures for each halving of the steps.")
    ] = 2,
    guidance_epochs: Annotated[
        float, typer.Option(help="And, before that, for the guidance of a teacher with classes.")
    ] = 4,
    guidance_min: Annotated[
        float | None, typer.Option(help="Lowest scale of guidance, of a teacher with classes.", show_default="1")
    ] = None,
    guidance_max: Annotated[float | None, typer.Option(help="Highest scale of guidance.", show_default="3")] = None,
    data: FashionData = None,
    resume: Resume = False,
    device: Device = "auto",
) -> None:
    """Teach another network to paint in a few steps what one paints in many; guidance becomes a number it is told."""
    from miniai.recipes.fashion_distil import GUIDANCE, distil_fashion

    scales = None
    if guidance_min is not None or guidance_max is not None:
        low, high = (
            default if asked is None else asked
            for asked, default in zip((guidance_min, guidance_max), GUIDANCE, strict=True)
        )
        scales = (low, high)
    with stage_stops():
        folder = distil_fashion(
            teacher,
            out,
            from_steps=from_steps,
            to_steps=to_steps,
            epochs_per_halving=epochs_per_halving,
            guidance_epochs=guidance_epochs,
            guidance_range=scales,
            data=data,
            resume=resume,
            device=device,
        )
    typer.echo(folder)


@app.command("fashion-refine")
def fashion_refine(
    painter: Annotated[
        Path, typer.Option("--painter", help="Folder of a finished training of fashion-ddpm or its siblings.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the refined network; its rounds are in its subfolders.")],
    rounds: Annotated[int, typer.Option(help="How often it paints pictures and learns from them.")] = 2,
    pictures: Annotated[int, typer.Option(help="Pictures that it paints in each round.")] = 4000,
    steps: Annotated[int, typer.Option(help="Steps of training in each round.")] = 80,
    sampler: Annotated[str | None, typer.Option(help="How it paints them.", show_default="as its recipe says")] = None,
    sampler_steps: Annotated[
        int | None, typer.Option(help="And in how many steps.", show_default="as its recipe says")
    ] = None,
    beta: Annotated[
        float, typer.Option(help="What a unit of log likelihood counts: more, and what is told apart soon pulls less.")
    ] = 0.05,
    alpha: Annotated[float, typer.Option(help="What painted pictures count beside real ones.")] = 1.0,
    learning_rate: Annotated[
        float, typer.Option(help="Highest rate of the optimizer in the first round; in round k it is a k-th of this.")
    ] = 1e-4,
    seed: Annotated[
        int, typer.Option(help="Of its pictures and their order: another one where a network is refined again.")
    ] = 0,
    data: FashionData = None,
    resume: Resume = False,
    device: Device = "auto",
) -> None:
    """Teach a trained network by how its own pictures differ from real ones; it paints as fast as before."""
    from miniai.recipes.fashion_refine import FashionRefineConfig, refine_fashion

    config = FashionRefineConfig(rounds, pictures, steps, sampler, sampler_steps, beta, alpha, seed)
    config = replace(config, stage=replace(config.stage, learning_rate=learning_rate))
    with stage_stops():
        typer.echo(refine_fashion(painter, out, config=config, data=data, resume=resume, device=device))


@app.command("fashion-discriminator")
def fashion_discriminator(
    painter: Annotated[
        Path, typer.Option("--painter", help="Folder of a finished training of fashion-conditional or its siblings.")
    ],
    by: Annotated[
        list[Path],
        typer.Option(
            help="Folder of a classifier to look through, not the later judge; several: repeat it.", metavar="<path>"
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the discriminator, and of what is painted for it.")],
    pictures: Annotated[
        int, typer.Option(help="Pictures that are painted, and as many real ones beside them.")
    ] = 18000,
    sampler: Annotated[
        str | None, typer.Option(help="How they are painted.", show_default="as its recipe says")
    ] = None,
    sampler_steps: Annotated[
        int | None, typer.Option(help="And in how many steps.", show_default="as its recipe says")
    ] = None,
    guidance_scale: Annotated[float, typer.Option(help="And how strongly the class rules, 0 to 100.")] = 1.0,
    reject_below: Annotated[
        float, typer.Option(help="How sure the classifiers must be of the class, 0 to 1; the rest is left out.")
    ] = 0.5,
    ridge: Annotated[float, typer.Option(help="What large weights cost: the more, the nearer to 1 all ratios.")] = 1e-2,
    seed: Annotated[int, typer.Option(help="Of the noise that pictures are painted from, 0 to 8.")] = 0,
    data: FashionData = None,
    resume: Resume = False,
    device: Device = "auto",
) -> None:
    """Learn which painted clothes are too often painted, for `miniai evaluate fashion --discriminator`."""
    from miniai.recipes.fashion_discriminator import FashionDiscriminatorConfig, train_fashion_discriminator

    config = FashionDiscriminatorConfig(pictures, sampler, sampler_steps, guidance_scale, reject_below, ridge, seed)
    with stage_stops():
        found = train_fashion_discriminator(painter, by, out, config=config, data=data, resume=resume, device=device)
    clear, kept = 100 * found["clear"], 100 * found["kept"]
    typer.echo(
        f"{clear:.1f} % of {found['pictures']:,} painted pictures are clear, {kept:.1f} % of these would be kept"
    )


@app.command("sweep")
def sweep(
    out: Annotated[Path, typer.Option(help="Folder of the sweep: a table, plots, and a folder for each training.")],
    data: FashionData = None,
    batch_sizes: Annotated[str, typer.Option(help="Separated by commas.")] = "128",
    learning_rates: Annotated[str, typer.Option(help="Separated by commas.")] = "0.001,0.01,0.1",
    inits: Annotated[
        str, typer.Option(help="First weights, separated by commas: torch, glorot, kaiming, lsuv.")
    ] = "kaiming",
    optimizers: Annotated[
        str, typer.Option(help="Separated by commas: sgd, momentum, rmsprop, adam, adamw.")
    ] = "momentum,adamw",
    epochs: Annotated[float, typer.Option(help="Passes over the training pictures, of each training.")] = 1,
    limit: Annotated[int | None, typer.Option(help="At most so many training pictures.", show_default="all")] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights and order, the same for all.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Do what is left of the sweep in --out.")] = False,
    device: Device = "auto",
) -> None:
    """Train a small network with every combination of what is listed, and print a table, the best first."""
    from miniai.recipes.sweep import SweepConfig, run_sweep

    config = SweepConfig(
        batch_sizes=tuple(int(value) for value in numbers("--batch-sizes", batch_sizes, whole=True)),
        learning_rates=tuple(numbers("--learning-rates", learning_rates)),
        inits=tuple(words(inits)),
        optimizers=tuple(words(optimizers)),
        epochs=epochs,
        limit=limit,
        seed=seed,
    )
    with stage_stops():
        typer.echo(run_sweep(out, config, data=data, resume=resume, device=device), nl=False)


@app.command("look-inside")
def look_inside(
    out: Annotated[Path, typer.Option(help="Folder for the plots.")],
    data: FashionData = None,
    init: Annotated[str, typer.Option(help="First weights: torch, glorot, kaiming, lsuv.")] = "kaiming",
    optimizer: Annotated[str, typer.Option(help="sgd, momentum, rmsprop, adam or adamw.")] = "adamw",
    learning_rate: Annotated[
        float | None, typer.Option(help="Of the optimizer.", show_default="the one that is suggested")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Pictures in a step.")] = 128,
    steps: Annotated[int, typer.Option(help="Steps to train.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of weights and order.")] = 0,
    device: Device = "auto",
) -> None:
    """Train a small network for a moment and plot it: search for a rate, loss, activations, histograms, dead units."""
    from miniai.recipes.look_inside import PLOTS, look_inside

    text = look_inside(
        out,
        data=data,
        init=init,
        optimizer=optimizer,
        learning_rate=learning_rate,
        batch_size=batch_size,
        steps=steps,
        seed=seed,
        device=device,
    )
    typer.echo(text + "\n".join(str(out / f"{name}.png") for name in PLOTS))
