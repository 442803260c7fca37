"""The figures of an evaluation: painted pictures against real ones, through the features of an independent CLIP."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from miniai.base.seeds import make_generator
from miniai.evaluate.fid import frechet_distance, kid, moments
from miniai.evaluate.nearest import Nearest, nearest_by_feature, nearest_by_pixel
from miniai.evaluate.retrieval import classify, draw_candidates, fit_classifier, largest_k, retrieved, standard_error
from miniai.recipes.evaluator import Evaluator
from miniai.train.captions import CaptionedItem, centre_square

K = 32  # captions to choose from
N_DRAWS = 10  # samples of training pictures; the real-versus-real distances are the mean over them


@dataclass(frozen=True)
class Pictures:
    """Painted pictures, the real ones of the same captions, and those of the training, all of the evaluator's size."""

    painted: UInt8[Tensor, "n 3 h w"]
    heldout: UInt8[Tensor, "n 3 h w"]
    train: UInt8[Tensor, "m 3 h w"]

    @staticmethod
    def pil(*images: UInt8[Tensor, "3 h w"]) -> list[Image.Image]:
        return [Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()) for image in images]


def to_levels(images: Sequence[Image.Image], size: int) -> UInt8[Tensor, "n 3 h w"]:
    """Pictures as one tensor, scaled and cropped to squares of `size` pixels as training pictures are."""
    rows = [torch.from_numpy(np.array(centre_square(image, size))) for image in images]
    return torch.stack(rows).permute(0, 3, 1, 2).contiguous()


def measure(
    judge: Evaluator, pictures: Pictures, heldout: Sequence[CaptionedItem], train: Sequence[CaptionedItem]
) -> dict[str, Any]:
    """Every figure, ready for JSON. `heldout[i]` is the caption of both `pictures.painted[i]` and `.heldout[i]`."""
    texts, styles = [item.text for item in heldout], _styles(heldout)
    text_rows = judge.read(texts)
    painted, real, trained = (judge.see(images) for images in (pictures.painted, pictures.heldout, pictures.train))
    candidates = draw_candidates(texts, largest_k(texts, K))
    k_within = largest_k(texts, K, styles)
    within = draw_candidates(texts, k_within, groups=styles) if len(set(styles)) > 1 and k_within > 1 else None
    by_feature, by_pixel = nearest_by_feature(painted, trained), nearest_by_pixel(pictures.painted, pictures.train)
    right = retrieved(painted, text_rows, candidates) == 1
    return {
        "n_pictures": len(texts),
        "retrieval": _retrieval(painted, real, text_rows, candidates),
        "retrieval_within_style": None if within is None else _retrieval(painted, real, text_rows, within),
        "style": _style(painted, real, trained, styles, _styles(train)),
        **_distances(painted, real, trained),
        "nearest_training": {
            "generated": _medians(by_feature, by_pixel),
            "real": _medians(nearest_by_feature(real, trained), nearest_by_pixel(pictures.heldout, pictures.train)),
        },
        "own_picture": _own_picture(painted, real, pictures),
        "pictures": [
            {
                "prompt": item.text,
                "real": str(item.path),
                "right": bool(right[i]),
                "nearest_by_feature": _neighbour(by_feature, i, train),
                "nearest_by_pixel": _neighbour(by_pixel, i, train),
            }
            for i, item in enumerate(heldout)
        ],
    }


def _retrieval(
    painted: Float[Tensor, "n d"],
    real: Float[Tensor, "n d"],
    texts: Float[Tensor, "n d"],
    candidates: Int[Tensor, "n k"],
) -> dict[str, Any]:
    k = candidates.shape[1]
    return _shares(retrieved(painted, texts, candidates), retrieved(real, texts, candidates), k, 1 / k)


def _style(
    painted: Float[Tensor, "n d"],
    real: Float[Tensor, "n d"],
    trained: Float[Tensor, "m d"],
    styles: Sequence[str],
    train_styles: Sequence[str],
) -> dict[str, Any] | None:
    """Whether a linear classifier of style, fitted to the training pictures, finds the style that the caption names: of
    all captions, and of those of each style.

    None if the data names fewer than two styles. Chance is the share of the most frequent one.
    """
    names = sorted(set(train_styles))
    if len(names) < 2 or not set(styles) <= set(names):
        return None
    weights = fit_classifier(trained, torch.tensor([names.index(style) for style in train_styles]), len(names))
    classes = torch.tensor([names.index(style) for style in styles])
    right_painted = (classify(painted, weights) == classes).double()
    right_real = (classify(real, weights) == classes).double()
    counts = Counter(styles)
    members = {name: classes == names.index(name) for name in sorted(counts)}
    each = {
        name: _side_by_side(right_painted[of], right_real[of]) | {"n": counts[name]} for name, of in members.items()
    }
    return _shares(right_painted, right_real, len(names), max(counts.values()) / len(styles)) | {"each": each}


def _shares(generated: Float[Tensor, " n"], real: Float[Tensor, " n"], k: int, chance: float) -> dict[str, Any]:
    return {"k": k, "chance": chance, **_side_by_side(generated, real)}


def _side_by_side(generated: Float[Tensor, " n"], real: Float[Tensor, " n"]) -> dict[str, Any]:
    shares = {"generated": float(generated.mean()), "real": float(real.mean())}
    return {
        **shares,
        "ratio": shares["generated"] / shares["real"] if shares["real"] else None,
        "standard_error": {who: standard_error(share, len(generated)) for who, share in shares.items()},
    }


def _distances(
    painted: Float[Tensor, "n d"], real: Float[Tensor, "n d"], trained: Float[Tensor, "m d"]
) -> dict[str, Any]:
    """FID and KID of the painted pictures from the held-out ones; and, as "real", of as many training pictures.

    The held-out pictures are the reference, not the training's, which a model that copied them would be closest to.
    """
    orders = [torch.randperm(len(trained), generator=make_generator(0, i))[: len(real)] for i in range(N_DRAWS)]
    samples = [trained[order] for order in orders]
    reference = moments(real)
    of_samples = [kid(sample, real) for sample in samples]
    mean_kid = replace(
        of_samples[0],
        mean=sum(one.mean for one in of_samples) / N_DRAWS,
        deviation=sum(one.deviation for one in of_samples) / N_DRAWS,
    )
    return {
        "fid": {
            "generated": frechet_distance(moments(painted), reference),
            "real": sum(frechet_distance(moments(sample), reference) for sample in samples) / N_DRAWS,
        },
        "kid": {"generated": asdict(kid(painted, real)), "real": asdict(mean_kid)},
    }


def _own_picture(painted: Float[Tensor, "n d"], real: Float[Tensor, "n d"], pictures: Pictures) -> dict[str, float]:
    """How far each painted picture is from the held-out one of its caption; medians, as of the nearest in training."""
    apart = (pictures.painted.double() - pictures.heldout.double()).square().flatten(1).mean(1).sqrt() / 255
    return {
        "feature": float((1 - torch.cosine_similarity(painted.double(), real.double())).median()),
        "pixel": float(apart.median()),
    }


def _medians(by_feature: Nearest, by_pixel: Nearest) -> dict[str, float]:
    return {"feature": float(by_feature.distances.median()), "pixel": float(by_pixel.distances.median())}


def _neighbour(nearest: Nearest, i: int, train: Sequence[CaptionedItem]) -> dict[str, Any]:
    index = int(nearest.indices[i, 0])
    return {
        "index": index,
        "file": str(train[index].path),
        "text": train[index].text,
        "distance": float(nearest.distances[i, 0]),
    }


def _styles(items: Sequence[CaptionedItem]) -> list[str]:
    return [str(item.fields.get("style", "")) for item in items]
