"""`miniai evaluate sampling`: which sampler, how many steps, how much guidance? Retrieval and FID against their cost.

Saved in `out`: sampling.json (a record for each setting), sampling.md (the table), sampling.png (the plot).
"""

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from PIL import Image

from miniai.base.errors import UserError
from miniai.base.files import atomic_file, make_folder, read_records, write_json
from miniai.base.plots import Line, curve_panels
from miniai.diffusion.sampling import find_sampler
from miniai.evaluate.cache import fingerprint
from miniai.evaluate.fid import frechet_distance, moments
from miniai.evaluate.retrieval import draw_candidates, largest_k, retrieved
from miniai.recipes.contact_sheet import load_painter, paint
from miniai.recipes.evaluation import Evaluation
from miniai.recipes.evaluator import Evaluator
from miniai.recipes.judging import K, to_levels
from miniai.sd.pipeline import StableDiffusionPipeline
from miniai.sd.request_checks import noise_interval
from miniai.train.captions import CaptionedItem, load_images

Interval = tuple[int | float, int | float] | None
RESULTS, TABLE, PLOT = "sampling.json", "sampling.md", "sampling.png"


@dataclass(frozen=True)
class Setting:
    """One way to paint. `guidance_scale` of 1 or less asks the network without guidance; `guidance_interval` are the
    noise levels, as sigma, between which guidance acts (None: everywhere)."""

    sampler: str
    steps: int
    guidance_scale: int | float
    guidance_interval: Interval = None

    def paint(self, pipeline: StableDiffusionPipeline, texts: Sequence[str], seed: int) -> Iterator[Image.Image]:
        return paint(
            pipeline,
            texts,
            self.steps,
            self.guidance_scale,
            self.sampler,
            seed,
            guidance_interval=self.guidance_interval,
        )

    def record(self) -> dict[str, Any]:
        """As JSON has it; guidance everywhere is not mentioned."""
        values = asdict(self)
        interval = values.pop("guidance_interval")
        return values if interval is None else {**values, "guidance_interval": list(interval)}


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
    guidance_intervals: Sequence[Interval] = (None,),
) -> list[dict[str, Any]]:
    """Paint the held-out captions by every sampler, in every number of steps, with every guidance scale, in every
    interval of noise levels.

    Returns the records that `out/sampling.json` then holds: the setting; how often the network sees a latent for one
    picture (where there is guidance two a step, with the prompt and without); seconds a picture; retrieval; FID. It is
    written after each setting, and a setting that stands there for the same model, judge, seed and captions is not
    painted again; records of others stay. Raises UserError for an unknown sampler, an empty list or numbers out of
    range, and as `evaluate_text_to_image` does.
    """
    settings = [Setting(*one) for one in product(samplers, step_counts, guidance_scales, guidance_intervals)]
    if not settings or min(step_counts) < 1 or min(guidance_scales) < 0:
        raise UserError("samplers, steps and guidance scales need at least one each; steps above 0, scales not below")
    for name in samplers:
        find_sampler(name)
    for interval in guidance_intervals:
        noise_interval(interval)
    folder, heldout = asked.pictures()
    pipeline = load_painter(asked.model, asked.device)
    judge = asked.judge(folder, pipeline)
    make_folder(out)
    measure = CaptionJudge(judge, heldout)
    places = {"model": str(asked.model.resolve()), "judge": str(judge.folder.resolve())}
    same = {**places, "seed": asked.seed, "n": len(heldout), "of": _digest(pipeline, judge, heldout)}
    kept = read_records(out / RESULTS)
    others = [one for one in kept if not same.items() <= one.items()]
    found = [one for one in kept if same.items() <= one.items()]
    for setting in settings:
        if any(_is_of(one, {**setting.record(), **same}) for one in found):
            continue
        texts = [item.text for item in heldout]
        seen: list[int] = []
        started = time.monotonic()
        with pipeline.unet.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(len(inputs[0]))):
            painted = list(setting.paint(pipeline, texts, asked.seed))
        costs = {"evaluations": sum(seen) / len(painted), "seconds": (time.monotonic() - started) / len(painted)}
        rounded = {name: round(value, 4) for name, value in costs.items()}
        found.append({**setting.record(), **same, **rounded, **measure.figures(painted)})
        write_json(out / RESULTS, others + found)
    with atomic_file(out / TABLE) as file:
        file.write(markdown(found).encode())
    draw(out / PLOT, found)
    return found


def _digest(pipeline: StableDiffusionPipeline, judge: Evaluator, heldout: Sequence[CaptionedItem]) -> str:
    """Of all weights, and of the captions and pictures that they are measured by."""
    parts = (pipeline.text_encoder, pipeline.unet, pipeline.vae, judge.model)
    said = [(item.text, hashlib.sha256(item.path.read_bytes()).hexdigest()) for item in heldout]
    return hashlib.sha256(repr([*map(fingerprint, parts), said]).encode()).hexdigest()


def _is_of(record: Mapping[str, Any], setting: Mapping[str, Any]) -> bool:
    """Whether a kept record is of this setting, model, judge and captions; without an interval, guidance was
    everywhere."""
    return setting.items() <= record.items() and ("guidance_interval" in record) == ("guidance_interval" in setting)


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
            _guidance(one),
            f"{one['evaluations']:g}",
            f"{one['seconds']:.3f}",
        )
        rows.append(f"| {' | '.join(map(str, cells))} | {one['retrieval']:.3f} | {one['fid']:.2f} |")
    return "\n".join(rows) + "\n"


def _guidance(record: Mapping[str, Any]) -> str:
    low, high = record.get("guidance_interval") or (None, None)
    return f"{record['guidance_scale']:g}" + ("" if low is None else f" from {low:g} to {high:g}")


def draw(path: Path, found: Sequence[dict[str, Any]]) -> None:
    """Both figures over the evaluations for a picture, a line for each sampler and guidance scale."""
    panels: dict[str, dict[str, Line]] = {}
    for key, title in (("retrieval", "right caption, share"), ("fid", "FID")):
        lines: dict[str, dict[int, float]] = {}
        for one in found:
            label = f"{one['sampler']}, guidance {_guidance(one)}"
            lines.setdefault(label, {})[one["evaluations"]] = one[key]
        panels[title] = {label: (sorted(xy), [xy[x] for x in sorted(xy)]) for label, xy in lines.items()}
    curve_panels(path, panels, xlabel="evaluations of the network for a picture")
