"""What an evaluation of a text-to-image model is asked: which model, on which held-out pictures, and who judges it."""

from dataclasses import dataclass
from pathlib import Path

from miniai.base.errors import UserError
from miniai.recipes.evaluator import Evaluator, find_evaluator, load_evaluator, refuse_own_clip
from miniai.sd.pipeline import StableDiffusionPipeline
from miniai.train.captions import CaptionedFolder, CaptionedItem, read_captioned_folder

MIN_PICTURES = 4


@dataclass(frozen=True)
class Evaluation:
    """The model in folder `model` paints the held-out captions of `data`, on `device`.

    - evaluator: folder of a CLIP that took no part in training the model; see `find_evaluator` for what None finds.
    - seed: picture i is painted from seed + i; limit: at most so many held-out pictures, evenly spread.
    - evaluator_minutes, evaluator_steps: how long to train an evaluator, if it must be (one of them); evaluator_size:
      of that CLIP, a name in `SIZES`.
    """

    model: Path
    data: Path
    evaluator: Path | None = None
    seed: int = 0
    limit: int | None = None
    device: str = "auto"
    evaluator_minutes: float | None = 15.0
    evaluator_steps: int | None = None
    evaluator_size: str = "small"

    def pictures(self) -> tuple[CaptionedFolder, tuple[CaptionedItem, ...]]:
        """All of `data`, and the held-out pictures to paint again. Raises UserError where there are too few."""
        folder = read_captioned_folder(self.data)
        return folder, choose_heldout(folder, self.limit)

    def judge(self, folder: CaptionedFolder, pipeline: StableDiffusionPipeline) -> Evaluator:
        """The evaluator, on the painter's device; None was named: for `folder`, trained now if there is none.

        Raises UserError for one that cannot be read, or that is the painter's own CLIP."""
        if self.evaluator is not None:
            judge = load_evaluator(self.evaluator, pipeline.device)
        else:
            minutes, steps = self.evaluator_minutes, self.evaluator_steps
            judge = find_evaluator(folder, pipeline.device, minutes=minutes, steps=steps, size=self.evaluator_size)
        refuse_own_clip(judge, pipeline.text_encoder)
        return judge


def choose_heldout(folder: CaptionedFolder, limit: int | None = None) -> tuple[CaptionedItem, ...]:
    """The held-out pictures to paint again: all, or `limit` of them, evenly spread."""
    if limit is not None and limit < MIN_PICTURES:
        raise UserError(f"limit {limit} is too small: an evaluation needs at least {MIN_PICTURES} pictures")
    items = folder.heldout
    if len(items) < MIN_PICTURES or len(folder.train) < len(items):
        raise UserError(
            f"{folder.root} holds out {len(items)} of {len(items) + len(folder.train)} pictures: "
            f"put at least {MIN_PICTURES}, and at most half, into a split named test"
        )
    if limit is None or limit >= len(items):
        return items
    return tuple(items[i * len(items) // limit] for i in range(limit))
