"""`miniai evaluate sampling`: which sampler, how many steps, how much guidance? Retrieval and FID against their cost.

Saved in `out`: sampling.json (a record for each setting), sampling.md (the table), sampling.png (the plot).
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from miniai.base.errors import UserError
from miniai.base.files import atomic_file, make_folder, read_json, write_json
from miniai.base.plots import Line, curve_panels
from miniai.diffusion.sampling import find_sampler, n_calls
from miniai.evaluate.fid import frechet_distance, moments
from miniai.evaluate.retrieval import draw_candidates, largest_k, retrieved
from miniai.recipes.contact_sheet import load_painter, paint
from miniai.recipes.evaluation import Evaluation
from miniai.recipes.evaluator import Evaluator
from miniai.recipes.judging import K, to_levels
from miniai.train.captions import CaptionedItem, load_images

RESULTS, TABLE, PLOT = "sampling.json", "sampling.md", "sampling.png"


@dataclass(frozen=True)
class Setting:
    """One way to paint. `guidance_scale` of 1 or less asks the network without guidance."""

    sampler: str
    steps: int
    guidance_scale: int | float

    @property
    def evaluations(self) -> int:
        """How often the network sees a latent for one picture: guidance shows it two, with the prompt and without."""
        return n_calls(find_sampler(self.sampler), self.steps) * (2 if self.guidance_scale > 1 else 1)


class CaptionJudge:
    """The figures of pictures painted for the held-out captions, in their order, by an independent CLIP."""

    def __init__(self, judge: Evaluator, heldout: Sequence[CaptionedItem]) -> None:
        texts = [item.text for item in heldout]
        self.judge = judge
        self.texts = judge.read(texts)
        self.candidates = draw_candidates(texts, largest_k(texts, K))
        self.reference = moments(judge.see(load_images(heldout, judge.image_size)))

    def figures(self, painted: Sequence[Any]) -> dict[str, float]:
        """retrieval: share that finds its caption among `K`, 0 to 1; fid: distance to the real held-out pictures."""
        features = self.judge.see(to_levels(painted, self.judge.image_size))
        found = retrieved(features, self.texts, self.candidates)
        return {"retrieval": float(found.mean()), "fid": frechet_distance(moments(features), self.reference)}


def sampling_sweep(
    asked: Evaluation,
    out: Path,
    *,
    samplers: Sequence[str],
    step_counts: Sequence[int],
    guidance_scales: Sequence[int | float],
) -> list[dict[str, Any]]:
    """Paint the held-out captions by every sampler, in every number of steps, with every guidance scale.

    Returns the records that `out/sampling.json` then holds: the setting, evaluations of the network for a picture,
    seconds a picture, retrieval, FID. It is written after each setting, and a setting that stands there for the same
    model, judge, seed and captions is not painted again. Raises UserError for an unknown sampler, an empty list or
    numbers out of range, and as `evaluate_text_to_image` does.
    """
    settings = [Setting(*one) for one in product(samplers, step_counts, guidance_scales)]
    if not settings or min(step_counts) < 1 or min(guidance_scales) < 0:
        raise UserError("samplers, steps and guidance scales need at least one each; steps above 0, scales not below")
    for name in samplers:
        find_sampler(name)
    folder, heldout = asked.pictures()
    pipeline = load_painter(asked.model, asked.device)
    judge = asked.judge(folder, pipeline)
    make_folder(out)
    measure = CaptionJudge(judge, heldout)
    places = {"model": str(asked.model.resolve()), "judge": str(judge.folder.resolve())}
    same = {**places, "seed": asked.seed, "n": len(heldout)}
    kept = read_json(out / RESULTS) if (out / RESULTS).is_file() else []
    found: list[dict[str, Any]] = [one for one in kept if same.items() <= one.items()]
    for setting in settings:
        this = {**asdict(setting), "evaluations": setting.evaluations, **same}
        if any(this.items() <= one.items() for one in found):
            continue
        started = time.monotonic()
        texts = [item.text for item in heldout]
        painted = list(paint(pipeline, texts, setting.steps, setting.guidance_scale, setting.sampler, asked.seed))
        seconds = (time.monotonic() - started) / len(painted)
        found.append({**this, "seconds": round(seconds, 4), **measure.figures(painted)})
        write_json(out / RESULTS, found)
    with atomic_file(out / TABLE) as file:
        file.write(markdown(found).encode())
    draw(out / PLOT, found)
    return found


def markdown(found: Sequence[dict[str, Any]]) -> str:
    """A row a setting, best retrieval first and, of equals, lowest FID first."""
    rows = [
        "| sampler | steps | guidance | evaluations | seconds | right caption | FID |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for one in sorted(found, key=lambda one: (-one["retrieval"], one["fid"])):
        cells = (
            one["sampler"],
            one["steps"],
            f"{one['guidance_scale']:g}",
            one["evaluations"],
            f"{one['seconds']:.3f}",
        )
        rows.append(f"| {' | '.join(map(str, cells))} | {one['retrieval']:.3f} | {one['fid']:.2f} |")
    return "\n".join(rows) + "\n"


def draw(path: Path, found: Sequence[dict[str, Any]]) -> None:
    """Both figures over the evaluations for a picture, a line for each sampler and guidance scale."""
    panels: dict[str, dict[str, Line]] = {}
    for key, title in (("retrieval", "right caption, share"), ("fid", "FID")):
        lines: dict[str, dict[int, float]] = {}
        for one in found:
            label = f"{one['sampler']}, guidance {one['guidance_scale']:g}"
            lines.setdefault(label, {})[one["evaluations"]] = one[key]
        panels[title] = {label: (sorted(xy), [xy[x] for x in sorted(xy)]) for label, xy in lines.items()}
    curve_panels(path, panels, xlabel="evaluations of the network for a picture")
