"""`miniai data`: build data sets."""

from pathlib import Path
from typing import Annotated, Any

import typer

from miniai.cli.options import words

app = typer.Typer(help="Build data sets.")


@app.command("emoji")
def emoji(
    out: Annotated[Path, typer.Option(help="Folder to build; a set built there before is replaced.")],
    styles: Annotated[
        str | None,
        typer.Option(
            help="Separated by commas: noto, noto-v1, twemoji, fluent-emoji, fluent-emoji-flat, emojione, fxemoji, "
            "fluent-emoji-high-contrast; or openmoji, alone.",
            show_default="all but the last two",
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
    combinations: Annotated[
        bool, typer.Option(help="Draw faces that wear things as well: a cat with sunglasses, a panda with a crown.")
    ] = False,
    colours: Annotated[
        bool, typer.Option(help="Draw two things in five once more, in another colour: a blue elephant, a red cat.")
    ] = False,
    skin_tones: Annotated[
        bool, typer.Option(help="Draw hands and people in five skin tones as well, beside the yellow ones.")
    ] = False,
    everyday_weight: Annotated[
        int, typer.Option(help="Times that a caption in everyday words (bee, for honeybee) counts, 1 to 20.")
    ] = 1,
) -> None:
    """Build the text-to-emoji data set, an ImageFolder of captioned pictures, from npm packages at pinned versions."""
    from miniai.recipes.emoji import build_emoji

    chosen: dict[str, Any] = {} if styles is None else {"styles": words(styles)}
    report = build_emoji(
        out,
        groups=None if groups is None else words(groups),
        size=size,
        cache=cache,
        n_jobs=jobs,
        combined=combinations,
        recoloured=colours,
        skin_tones=skin_tones,
        everyday_weight=everyday_weight,
        **chosen,
    )
    typer.echo(f"{report.out}: {report.n_train:,} pictures to train on, {report.n_test:,} held out")


@app.command("openclipart")
def openclipart(
    out: Annotated[Path, typer.Option(help="Folder to build; a set built there before is replaced.")],
    svgs: Annotated[
        Path | None, typer.Option(help="The library's folder `svg`.", show_default="Debian's, of openclipart-svg")
    ] = None,
    size: Annotated[int, typer.Option(help="Edge of the pictures, 16 to 1024 pixels.")] = 64,
    jobs: Annotated[int, typer.Option(help="Drawing threads.")] = 2,
) -> None:
    """Build a set of captioned clip art, in the public domain, from the Open Clip Art Library's drawings."""
    from miniai.recipes.openclipart import DEBIAN, build_openclipart

    report = build_openclipart(out, svgs or DEBIAN, size, jobs)
    typer.echo(
        f"{report.out}: {report.n_train:,} pictures to train on, {report.n_test:,} held out; "
        f"{report.n_left_out:,} files left out"
    )


@app.command("fashion-mnist")
def fashion_mnist(
    data: Annotated[
        Path | None, typer.Option(help="Folder of the four IDX files.", show_default="Debian's, or Hugging Face's")
    ] = None,
) -> None:
    """Say where Fashion-MNIST was looked for, whether it is there, and how to get it."""
    from miniai.base.errors import UserError
    from miniai.train.fashion_mnist import HOW_TO_GET_IT, where_fashion_mnist_is

    places = where_fashion_mnist_is(data)
    for place, found in places:
        typer.echo(f"{'found' if found else 'not there'}: {place}")
    if not any(found for _, found in places):
        raise UserError(f"Fashion-MNIST is not there: {HOW_TO_GET_IT}")
