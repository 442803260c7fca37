"""`miniai train lora`, `dreambooth`, `textual-inversion` and `imagic`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from miniai.cli.options import Device, GuidanceScale, Resume, numbers, stage_stops
from miniai.cli.train import app

Out = Annotated[Path, typer.Option(help="Folder of the training, and of what is learned.")]
Pictures = Annotated[
    Path, typer.Option(help="Your pictures: a folder of them, and --prompt; or a captioned one, as for text-to-image.")
]
Base = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER|FILE|ID", help="Model to begin from, as for generate.", show_default="the packaged one"
    ),
]
TokenizerFolder = Annotated[Path | None, typer.Option(help="For a single file: folder with CLIP's tokenizer.")]
Prompts = Annotated[
    list[str] | None,
    typer.Option("--prompt", help="What is said of each picture; several: give it again.", show_default="its caption"),
]
Steps = Annotated[int | None, typer.Option(help="Steps to train; or give --minutes.")]
Minutes = Annotated[float | None, typer.Option(help="Minutes to train; or give --steps.")]
Rate = Annotated[float | None, typer.Option(help="Learning rate.", show_default="3e-4; dreambooth 2e-5; words 5e-3")]
Batch = Annotated[int, typer.Option(help="Pictures in each step.")]
TrainText = Annotated[bool, typer.Option("--train-text", help="Let the text encoder learn too.")]
ClassPrompt = Annotated[
    str,
    typer.Option(
        help="What the model shall go on painting as before, such as 'a dog': it paints --class-images first."
    ),
]
ClassImages = Annotated[int, typer.Option(help="Pictures of the class.")]
PriorWeight = Annotated[float, typer.Option(help="How much these count beside your own.")]
Whole = Annotated[
    bool, typer.Option("--whole", help="Show pictures that are no squares whole, on white, instead of their middle.")
]
Shift = Annotated[
    float, typer.Option(help="Above 1 learns more where there is much noise, which decides what is where.")
]
Flip = Annotated[bool, typer.Option("--flip", help="Learn from each picture's mirror image, too.")]
DropText = Annotated[float, typer.Option(help="Share of pictures that are learned without their text, 0 to 1.")]
ImageSize = Annotated[
    int | None, typer.Option(help="Side of the squares that pictures become, in pixels.", show_default="the model's")
]
Seed = Annotated[int, typer.Option(help="Seed of weights, order and noise.")]
SampleMinutes = Annotated[float, typer.Option(help="Minutes between sheets of samples.")]


def _of_pictures(name: str, default_rank: int, text: str) -> None:
    """`lora` and `dreambooth` differ in the rank that they begin with: 0, of dreambooth alone, is all weights."""

    def command(
        data: Pictures,
        out: Out,
        model: Base = None,
        prompt: Prompts = None,
        steps: Steps = None,
        minutes: Minutes = None,
        rank: Annotated[
            int, typer.Option(help="Of a LoRA's changes; more can learn more. With dreambooth 0: all weights.")
        ] = default_rank,
        learning_rate: Rate = None,
        batch_size: Batch = 4,
        train_text: TrainText = False,
        class_prompt: ClassPrompt = "",
        class_images: ClassImages = 64,
        prior_weight: PriorWeight = 1.0,
        whole: Whole = False,
        flip: Flip = False,
        drop_text: DropText = 0.0,
        timestep_shift: Shift = 1.0,
        image_size: ImageSize = None,
        tokenizer: TokenizerFolder = None,
        seed: Seed = 0,
        resume: Resume = False,
        device: Device = "auto",
        sample_minutes: SampleMinutes = 4.0,
    ) -> None:
        all_weights = name == "dreambooth" and rank == 0
        values: dict[str, Any] = {"train_text": train_text, "flip": flip, "drop_text": drop_text}
        values |= {} if all_weights else {"rank": rank}
        values |= {"class_prompt": class_prompt, "n_class": class_images, "prior_weight": prior_weight}
        values |= {"image_size": image_size, "tokenizer": tokenizer, "seed": seed, "prompts": prompt}
        values |= {"whole": whole, "timestep_shift": timestep_shift}
        kind = "dreambooth" if all_weights else "lora"
        budget = (steps, minutes, resume, device, sample_minutes)
        _train(kind, data, out, model, learning_rate, batch_size, values, *budget)

    app.command(name, help=text)(command)


_of_pictures(
    "lora",
    8,
    "Teach a model a style or a thing of your own, as a LoRA: a small file for 'miniai generate --lora', for Diffusers "
    "and for other programs.",
)
_of_pictures(
    "dreambooth",
    0,
    "Teach a model a thing of your own by all weights of its U-Net (or, with --rank, by a LoRA), and with "
    "--class-prompt keep what it knows of that thing's class: the model is then in the subfolder 'model'.",
)


@app.command("textual-inversion")
def textual_inversion(
    data: Annotated[Path, typer.Option(help="A folder of your pictures, a handful of one thing or style.")],
    out: Out,
    word: Annotated[str, typer.Option(help="The new word, such as '<my-cat>'.")],
    init_word: Annotated[str, typer.Option(help="A known word that is like it; it begins as that.")],
    model: Base = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", help="What is said of each picture, {} for the word; several: give it again."),
    ] = None,
    vectors: Annotated[int, typer.Option(help="Tokens that the word becomes; more can say more.")] = 1,
    steps: Steps = None,
    minutes: Minutes = None,
    learning_rate: Rate = None,
    batch_size: Batch = 4,
    whole: Whole = False,
    flip: Flip = False,
    timestep_shift: Shift = 1.0,
    image_size: ImageSize = None,
    tokenizer: TokenizerFolder = None,
    seed: Seed = 0,
    resume: Resume = False,
    device: Device = "auto",
    sample_minutes: SampleMinutes = 4.0,
) -> None:
    """Teach a model a new word for a thing or a style of your own, and nothing else of it changes: a tiny file for
    'miniai generate --embedding', for Diffusers and for other programs."""
    prompts = prompt or ["{}", "a picture of {}"]
    values: dict[str, Any] = {"word": word, "init_word": init_word, "n_vectors": vectors, "prompts": prompts}
    values |= {"flip": flip, "image_size": image_size, "tokenizer": tokenizer, "seed": seed}
    values |= {"whole": whole, "timestep_shift": timestep_shift}
    budget = (steps, minutes, resume, device, sample_minutes)
    _train("textual-inversion", data, out, model, learning_rate, batch_size, values, *budget)


def _train(
    kind: Any,
    data: Path,
    out: Path,
    model: Path | None,
    learning_rate: float | None,
    batch_size: int,
    values: dict[str, Any],
    steps: int | None,
    minutes: float | None,
    resume: bool,
    device: str,
    sample_minutes: float,
) -> None:
    from miniai.recipes.generate_request import packaged_model
    from miniai.recipes.personalise import personalise
    from miniai.recipes.personalise_config import STAGES, PersonaliseConfig

    stage = replace(STAGES[kind], batch_size=batch_size)
    stage = stage if learning_rate is None else replace(stage, learning_rate=learning_rate)
    values["prompts"] = tuple(values["prompts"] or ())
    values["tokenizer"] = None if values["tokenizer"] is None else str(values["tokenizer"])
    config = PersonaliseConfig(kind, str(model or packaged_model()), stage, **values)
    budget: dict[str, Any] = {"steps": steps, "minutes": minutes, "resume": resume}
    with stage_stops():
        made = personalise(data, out, config, device=device, sample_minutes=sample_minutes, **budget)
    typer.echo(made)


@app.command()
def imagic(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="The picture.", show_default=False)],
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="How it shall look.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder of the training, and of the edited pictures.")],
    model: Base = None,
    etas: Annotated[
        str, typer.Option(help="How far to go from the picture, 0, to the text, 1: a picture for each.")
    ] = "0,0.4,0.6,0.7,0.8,0.9,1",
    vector_steps: Annotated[int, typer.Option(help="Steps in which the text's vectors come to the picture.")] = 200,
    model_steps: Annotated[int, typer.Option(help="Steps in which the model learns the picture.")] = 300,
    rank: Annotated[int, typer.Option(help="Of the model's changes; more can learn more.")] = 16,
    guidance_scale: GuidanceScale = 2.5,
    timestep_shift: Shift = 1.0,
    tokenizer: TokenizerFolder = None,
    seed: Seed = 0,
    resume: Resume = False,
    device: Device = "auto",
) -> None:
    """Edit one picture by a text, such as a photo of a dog by 'a sitting dog'."""
    from miniai.recipes.generate_request import packaged_model
    from miniai.recipes.imagic import ImagicConfig
    from miniai.recipes.imagic import imagic as edit

    where = None if tokenizer is None else str(tokenizer)
    config = ImagicConfig(
        str(model or packaged_model()), prompt, rank=rank, timestep_shift=timestep_shift, tokenizer=where, seed=seed
    )
    with stage_stops():
        sheet = edit(
            image,
            out,
            config,
            vector_steps=vector_steps,
            model_steps=model_steps,
            etas=numbers("--etas", etas),
            guidance_scale=guidance_scale,
            resume=resume,
            device=device,
        )
    typer.echo(sheet)
