"""`miniai evaluate`: what paints Fashion-MNIST, its pictures, and samplers by themselves."""

from pathlib import Path
from typing import Annotated

import typer

from miniai.base.errors import UserError
from miniai.base.files import check_writable
from miniai.cli.evaluate import app
from miniai.cli.options import Device, FashionData, FirstSeed, GuidanceInterval, numbers, words
from miniai.recipes import generate_request

Painter = Annotated[Path, typer.Option("--model", help="Folder of a training of fashion-ddpm or its siblings.")]
Classifier = Annotated[Path, typer.Option(help="Folder of a training of fashion-classifier: the judge.")]
Number = Annotated[int, typer.Option("--n", help="Pictures to paint, 64 to 60000; below 2048 FID is biased.")]
Guidance = Annotated[
    float | None, typer.Option(help="How strongly the class rules, 0 to 100.", show_default="the recipe's")
]


def _check(n: int, guidance_scale: float | None, *steps: int | None) -> None:
    generate_request.check_ranges(
        ("--n", n, 64, 60000, "pictures"),
        *(("--steps", one, 1, generate_request.MAX_STEPS, "steps") for one in steps),
        ("--guidance-scale", guidance_scale, 0, generate_request.MAX_GUIDANCE_SCALE, ""),
    )


@app.command("fashion")
def fashion(
    model: Painter,
    classifier: Classifier,
    data: FashionData = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for figures and a sheet.", show_default="that of --model")
    ] = None,
    n: Number = 2048,
    sampler: Annotated[str | None, typer.Option(help="As for generate.", show_default="the recipe's")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps, 1 to 1000.", show_default="the recipe's")] = None,
    spacing: Annotated[
        str | None,
        typer.Option(help="Of the noise levels: karras, exponential or cosine.", show_default="the recipe's"),
    ] = None,
    guidance_scale: Guidance = None,
    guidance_interval: GuidanceInterval = None,
    guide: Annotated[
        Path | None, typer.Option(help="Folder of a shorter training of the same recipe, to be led away from.")
    ] = None,
    guide_scale: Annotated[
        float | None, typer.Option(help="How far away from --guide, 1 (not at all) to 100.", show_default="2")
    ] = None,
    churn: Annotated[
        float, typer.Option(help="Noise put back in each step, s_churn of euler and heun, 0 to 1000.")
    ] = 0.0,
    reject_by: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder of another classifier: what it sees no such class in is painted again; several: repeat it.",
            metavar="<path>",
        ),
    ] = None,
    reject_below: Annotated[
        float | None,
        typer.Option(help="And how sure all of them must be of it in the mean, 0 to 1.", show_default="0.5"),
    ] = None,
    discriminator: Annotated[
        Path | None,
        typer.Option(help="Folder of fashion-discriminator: what is painted too often is kept more seldom."),
    ] = None,
    discriminator_cap: Annotated[
        float | None,
        typer.Option(
            help="How much likelier among real ones a picture must be to be kept always, 1 to 100.", show_default="2"
        ),
    ] = None,
    seed: FirstSeed = 0,
    draws: Annotated[int, typer.Option(help="How often to paint --n pictures; figures are means over the draws.")] = 1,
    device: Device = "auto",
) -> None:
    """Paint clothes and measure FID beside that of real ones; and how many are of the class that was asked for."""
    _check(n, guidance_scale, steps)
    generate_request.check_ranges(("--churn", churn, 0, 1000, ""), ("--guide-scale", guide_scale, 1, 100, ""))
    generate_request.check_ranges(("--draws", draws, 1, 1000, "draws"), ("--reject-below", reject_below, 0, 1, ""))
    generate_request.check_ranges(("--discriminator-cap", discriminator_cap, 1, 100, ""))
    from miniai.recipes.evaluate_fashion import FashionWays, evaluate_fashion

    guidance = (guidance_scale, guidance_interval, guide, guide_scale)
    keeps = (tuple(reject_by or ()), reject_below, discriminator, discriminator_cap)
    ways = FashionWays(sampler, steps, *guidance, churn, spacing, *keeps)
    found = evaluate_fashion(model, classifier, ways, data=data, out=out, n=n, seed=seed, draws=draws, device=device)
    spread = "" if draws == 1 else f", {found['deviation_of_ratio']:.2f} its deviation over {draws} draws"
    typer.echo(
        f"FID {found['fid']:.3f} with {found['calls']} calls, of as many real pictures {found['fid_of_real']:.3f}: "
        f"ratio {found['ratio']:.2f}{spread}"
    )
    if reject_by:
        typer.echo(f"{found['painted_for_each']:.2f} pictures painted for each that was kept")
    if "read_as_asked" in found:
        asked, labelled = (100 * found[name] for name in ("read_as_asked", "real_read_as_labelled"))
        of_real = f"{labelled:.1f} % of the one that they are labelled with, and their FID is"
        typer.echo(f"{asked:.1f} % are of the class that was asked for; of real ones with all classes as often,")
        typer.echo(f"{of_real} {found['fid_of_real_by_class']:.3f}")


@app.command("fashion-classifier")
def fashion_classifier(
    classifier: Annotated[
        list[Path],
        typer.Option(
            help="Folder of a training of fashion-classifier; several, repeated, are also judged together.",
            metavar="<path>",
        ),
    ],
    data: FashionData = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for figures and a sheet of mistakes.", show_default="only printed")
    ] = None,
    device: Device = "auto",
) -> None:
    """Count how many test pictures classifiers name right: each alone, and by the mean of their log-probabilities."""
    from miniai.recipes.evaluate_classifier import evaluate_classifiers

    found = evaluate_classifiers(classifier, data=data, out=out, device=device)
    typer.echo("| classifier | right | with mirror images | cross-entropy |\n| --- | ---: | ---: | ---: |")
    for one in found:
        right, both = (f"{100 * one[name]:.2f} %" for name in ("accuracy", "accuracy_with_mirror_images"))
        typer.echo(f"| {one['classifier']} | {right} | {both} | {one['cross_entropy']:.3f} |")
    shares = {name: share for name, share in found[-1]["by_class"].items() if share is not None}
    least = min(shares, key=lambda name: shares[name])
    typer.echo(f"least often right: {least}, {100 * shares[least]:.1f} %")


@app.command("fashion-steps")
def fashion_steps(
    model: Painter,
    classifier: Classifier,
    data: FashionData = None,
    out: Annotated[Path | None, typer.Option(help="Folder for table and plot.", show_default="that of --model")] = None,
    samplers: Annotated[str, typer.Option(help="Separated by commas, as for generate.")] = "euler,heun,dpmpp_2m",
    steps: Annotated[str, typer.Option(help="Denoising steps, separated by commas, 1 to 1000 each.")] = "5,10,20,50",
    n: Number = 2048,
    guidance_scale: Guidance = None,
    seed: FirstSeed = 0,
    device: Device = "auto",
) -> None:
    """Paint clothes by several samplers in several numbers of steps; FID as a table and a plot. Goes on if broken."""
    counts = [int(one) for one in numbers("--steps", steps, whole=True)]
    _check(n, guidance_scale, *counts)
    from miniai.recipes.fashion_steps import PLOT, fashion_steps

    found = fashion_steps(
        model,
        classifier,
        samplers=words(samplers),
        step_counts=counts,
        data=data,
        out=out,
        n=n,
        guidance_scale=guidance_scale,
        seed=seed,
        device=device,
    )
    typer.echo("| sampler | steps | calls | FID | over real |\n| --- | ---: | ---: | ---: | ---: |")
    for one in found:
        cells = (one["sampler"], one["steps"], one["calls"], f"{one['fid']:.2f}", f"{one['ratio']:.2f}")
        typer.echo("| " + " | ".join(map(str, cells)) + " |")
    typer.echo((out or model) / PLOT)


@app.command("fashion-pictures")
def fashion_pictures(
    model: Painter,
    out: Annotated[Path, typer.Option(help="Folder for the four pictures.")],
    data: FashionData = None,
    at: Annotated[
        str | None,
        typer.Option(
            help="Where noise is shown, separated by commas: timesteps for fashion-ddpm and -latent, else sigmas.",
            show_default="eight levels",
        ),
    ] = None,
    samplers: Annotated[
        str, typer.Option(help="Which to compare, separated by commas, as for generate.")
    ] = "euler,heun,dpmpp_2m,euler_a",
    steps: Annotated[int, typer.Option(help="Denoising steps, 1 to 1000.")] = 20,
    n: Annotated[int, typer.Option("--n", help="Pictures side by side, 1 to 16.")] = 8,
    seed: FirstSeed = 0,
    device: Device = "auto",
) -> None:
    """Show noise put in, the way out of it (a sheet and a GIF), and samplers side by side, with a trained network."""
    generate_request.check_ranges(
        ("--steps", steps, 1, generate_request.MAX_STEPS, "steps"), ("--n", n, 1, 16, "pictures")
    )
    levels = None if at is None else numbers("--at", at)
    if levels == []:
        raise UserError("--at needs at least one number")
    from miniai.recipes.fashion_pictures import fashion_pictures

    for path in fashion_pictures(
        model, out, data=data, at=levels, samplers=words(samplers), steps=steps, n=n, seed=seed, device=device
    ):
        typer.echo(path)


@app.command("fashion-restore")
def fashion_restore(
    model: Painter,
    out: Annotated[Path, typer.Option(help="Folder for a sheet of each damage, and the figures.")],
    data: FashionData = None,
    damages: Annotated[
        str, typer.Option(help="Separated by commas: inpainting, super-resolution, deblurring.")
    ] = "inpainting,super-resolution,deblurring",
    sampler: Annotated[str, typer.Option(help="As for generate.")] = "euler_a",
    steps: Annotated[int, typer.Option(help="Denoising steps, 1 to 1000.")] = 40,
    noise: Annotated[float, typer.Option(help="Deviation of what is measured, 0 to 2: pixels are in [-1, 1].")] = 0.05,
    n: Annotated[int, typer.Option("--n", help="Test pictures to damage and restore, 1 to 512.")] = 8,
    seed: FirstSeed = 0,
    device: Device = "auto",
) -> None:
    """Restore damaged clothes with a network that only ever learned to paint whole ones."""
    generate_request.check_ranges(
        ("--steps", steps, 1, generate_request.MAX_STEPS, "steps"),
        ("--n", n, 1, 512, "pictures"),
        ("--noise", noise, 0, 2, ""),
    )
    if not words(damages):
        raise UserError("--damages needs at least one")
    from miniai.recipes.fashion_restore import fashion_restore

    found = fashion_restore(
        model,
        out,
        data=data,
        damages=words(damages),
        sampler=sampler,
        steps=steps,
        noise=noise,
        n=n,
        seed=seed,
        device=device,
    )
    typer.echo("| damage | PSNR of what is measured | restored |\n| --- | ---: | ---: |")
    for one in found:
        typer.echo(f"| {one['damage']} | {one['psnr_of_measured']:.2f} dB | {one['psnr_of_restored']:.2f} dB |")
    typer.echo("\n".join(str(out / f"{one['damage']}.png") for one in found))


@app.command("samplers")
def samplers(
    out: Annotated[Path, typer.Argument(metavar="FILE.png", help="The plot.", show_default=False)],
    steps: Annotated[str, typer.Option(help="Numbers of steps, separated by commas, 2 to 1000 each.")] = "20,40,80,160",
) -> None:
    """Measure the order of every sampler on normal data, whose exact answer is known: a table and a plot."""
    counts = [int(one) for one in numbers("--steps", steps, whole=True)]
    generate_request.check_ranges(*(("--steps", one, 2, generate_request.MAX_STEPS, "steps") for one in counts))
    if out.suffix.lower() != ".png":
        raise UserError(f"cannot write {out}: the plot is a PNG file, give a name that ends in .png")
    check_writable(out)
    from miniai.recipes.sampler_orders import sampler_orders

    typer.echo(sampler_orders(out, counts) + str(out))
