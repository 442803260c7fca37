"""How good is a text-to-image model? It paints the held-out captions of a data set; an independent CLIP judges.

Saved in `out`: results.json (every figure, and a line per picture), results.md (the table), samples.png (painted beside
real), nearest.png (a few beside the training pictures that they are most like), and pictures/ (what was painted).
"""

import time
from pathlib import Path
from typing import Any

from PIL import Image

from miniai.base.files import atomic_file, make_folder, write_json
from miniai.base.images import grid, save_png
from miniai.diffusion.sampling import find_sampler, sampler_from_file
from miniai.recipes.contact_sheet import load_painter, paint
from miniai.recipes.evaluation import Evaluation
from miniai.recipes.generate_request import GUIDANCE_SCALE
from miniai.recipes.judging import Pictures, measure, to_levels
from miniai.recipes.sheets import labelled_grid
from miniai.train.captions import load_images

N_SAMPLES, N_NEAREST = 64, 16  # pictures on the two sheets
FEW = 256  # pictures, below which FID and KID say nothing
SHARES = {
    "retrieval": "right caption of {k}",
    "retrieval_within_style": "right caption of {k}, all of the same style",
    "style": "right style of {k}",
}
NOTES = """\
"Real" are the held-out pictures themselves, which the evaluator never saw either. For FID and KID it is what training
pictures, in samples as large, are from the held-out ones; both depend on the evaluator and, FID, on the number of
pictures ({n}): compare only within this table. ± is one standard error, and for KID the deviation of a subset's figure.
Distances, to the nearest training picture and to the real one, are medians."""


def evaluate_text_to_image(
    asked: Evaluation,
    out: Path,
    n_steps: int = 20,
    guidance_scale: float = GUIDANCE_SCALE,
    sampler: str | None = None,
) -> dict[str, Any]:
    """Paint one picture for each held-out caption, measure, print the table, save all of it in `out`.

    `sampler` None is the model's own. Returns what results.json holds. Raises UserError: no held-out pictures, a model
    folder or evaluator that cannot be read, or an evaluator that is the model's own CLIP.
    """
    folder, heldout = asked.pictures()
    pipeline = load_painter(asked.model, asked.device)
    known = None if asked.evaluator is None else asked.judge(folder, pipeline)
    make_folder(out / "pictures")
    # Paint first: whatever is wrong with the request shows before an evaluator is trained for a quarter of an hour.
    started = time.monotonic()
    painted = list(paint(pipeline, [item.text for item in heldout], n_steps, guidance_scale, sampler, asked.seed))
    seconds = time.monotonic() - started
    for i, image in enumerate(painted):
        save_png(out / "pictures" / f"{i:04d}.png", image)
    judge = known or asked.judge(folder, pipeline)
    pictures = Pictures(
        to_levels(painted, judge.image_size),
        load_images(heldout, judge.image_size),
        load_images(folder.train, judge.image_size),
    )
    own = sampler_from_file(pipeline.scheduler_config, str(asked.model))
    method = own if sampler is None else find_sampler(sampler)
    results: dict[str, Any] = {
        "model": str(asked.model),
        "data": str(asked.data),
        "settings": {
            "n_steps": n_steps,
            "guidance_scale": guidance_scale,
            "sampler": method.title,
            "seed": asked.seed,
            "device": str(pipeline.device),
        },
        "seconds_per_picture": round(seconds / len(painted), 4),
        "evaluator": {"folder": str(judge.folder), **judge.record},
    }
    results |= measure(judge, pictures, heldout, folder.train)
    write_json(out / "results.json", results)
    table = markdown_table(results)
    with atomic_file(out / "results.md") as file:
        file.write(table.encode())
    save_png(out / "samples.png", samples_sheet(pictures, results["pictures"]))
    save_png(out / "nearest.png", nearest_sheet(pictures, results["pictures"]))
    print(table)
    return results


def markdown_table(results: dict[str, Any]) -> str:
    """The figures side by side: of the painted pictures, of real ones, and of chance."""
    n, settings = results["n_pictures"], results["settings"]
    lines = [
        f"{n} held-out captions, one picture each: {settings['sampler']}, {settings['n_steps']} steps, "
        f"guidance {settings['guidance_scale']:g}, seed {settings['seed']}",
        "",
        "| measure | painted | real | painted / real | chance |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for key, name in SHARES.items():
        figures = results[key]
        if figures is not None:
            lines.append(f"| {name.format(**figures)} | {_both(figures)} | {figures['chance']:.3f} |")
        if key == "style" and figures is not None:
            each = figures["each"].items()
            lines += [f"| – of {name} (n = {of['n']}) | {_both(of)} | |" for name, of in each]
    fid, kid, near = results["fid"], results["kid"], results["nearest_training"]
    lines.append(f"| FID | {fid['generated']:.2f} | {fid['real']:.2f} | | |")
    cells = [f"{kid[who]['mean']:.4f} ± {kid[who]['deviation']:.4f}" for who in ("generated", "real")]
    lines.append(f"| KID | {' | '.join(cells)} | | |")
    for key, name in (("feature", "nearest training picture, cosine distance"), ("pixel", "the same, by pixels, RMS")):
        lines.append(f"| {name} | {near['generated'][key]:.3f} | {near['real'][key]:.3f} | | |")
    own = results["own_picture"]
    lines.append(f"| the real picture of its caption, cosine distance | {own['feature']:.3f} | | | |")
    lines.append(f"| the same, by pixels, RMS | {own['pixel']:.3f} | | | |")
    few = [] if n >= FEW else ["", f"{n} pictures are too few for FID and KID to mean anything: take {FEW} or more."]
    return "\n".join([*lines, *few, "", NOTES.format(n=n)]) + "\n"


def _both(figures: dict[str, Any]) -> str:
    """Three cells: painted, real, and how one is to the other."""
    cells = [f"{figures[who]:.3f} ± {figures['standard_error'][who]:.3f}" for who in ("generated", "real")]
    return " | ".join([*cells, "" if figures["ratio"] is None else f"{figures['ratio']:.2f}"])


def samples_sheet(pictures: Pictures, records: list[dict[str, Any]]) -> Image.Image:
    """Painted pictures, each beside the real one of its caption; the label says where the evaluator was misled."""
    cells = []
    for i in _spread(len(records), N_SAMPLES):
        pair = grid(pictures.pil(pictures.painted[i], pictures.heldout[i]), 2, gap=2)
        cells.append((pair, records[i]["prompt"] if records[i]["right"] else f"(?) {records[i]['prompt']}"))
    return labelled_grid(cells, 8, "left: painted, right: real and held out; (?): another caption was judged closer")


def nearest_sheet(pictures: Pictures, records: list[dict[str, Any]]) -> Image.Image:
    """A few painted pictures beside the training pictures that they are most like."""
    cells = []
    for i in _spread(len(records), N_NEAREST):
        by_feature, by_pixel = records[i]["nearest_by_feature"], records[i]["nearest_by_pixel"]
        nearest = pictures.train[[by_feature["index"], by_pixel["index"]]]
        row = pictures.pil(pictures.painted[i], pictures.heldout[i], nearest[0], nearest[1])
        label = f"{records[i]['prompt']} ({by_feature['distance']:.2f}, {by_pixel['distance']:.2f})"
        cells.append((grid(row, 4, gap=2), label))
    title = "painted, real and held out, nearest in training by feature, by pixels (cosine distance, RMS of pixels)"
    return labelled_grid(cells, 2, title)


def _spread(n: int, n_wanted: int) -> list[int]:
    """`n_wanted` of n places, evenly spread, or all of them."""
    return list(range(n)) if n <= n_wanted else [i * n // n_wanted for i in range(n_wanted)]
