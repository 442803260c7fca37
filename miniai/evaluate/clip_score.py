"""Does a picture show what its caption says? The cosine of the two in CLIP's space (Hessel et al. 2021)."""

import torch
from jaxtyping import Float
from torch import Tensor


def clip_scores(
    image_features: Float[Tensor, "n d"], text_features: Float[Tensor, "n d"], weight: int | float = 100
) -> Float[Tensor, " n"]:
    """max(weight * cos, 0) for each picture and its own caption, in float64.

    Hessel et al. 2021, eq. 1, have a weight of 2.5; 100 is what papers on text to image and torchmetrics report. The
    features are CLIP's projected ones, of any length. Figures of different CLIP models do not compare.

    >>> clip_scores(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, -1.0]])).tolist()
    [100.0, 0.0]
    """
    if len(image_features) == 0:
        raise ValueError("there are no pictures to score")
    images, texts = image_features.double(), text_features.double()
    return (weight * torch.nn.functional.cosine_similarity(images, texts, dim=-1)).clamp(min=0)


def clip_score(
    image_features: Float[Tensor, "n d"], text_features: Float[Tensor, "n d"], weight: int | float = 100
) -> float:
    """The mean of `clip_scores`.

    >>> clip_score(torch.eye(2), torch.eye(2))
    100.0
    """
    return float(clip_scores(image_features, text_features, weight).mean())


def reference_clip_scores(
    image_features: Float[Tensor, "n d"],
    text_features: Float[Tensor, "n d"],
    reference_features: Float[Tensor, "n d"],
    weight: int | float = 100,
) -> Float[Tensor, " n"]:
    """RefCLIPScore, Hessel et al. 2021, eq. 2, with one reference each: the harmonic mean of the score and of the
    caption's cosine with the reference's, scaled alike.

    >>> one = torch.tensor([[1.0, 0.0]])
    >>> reference_clip_scores(one, one, one).tolist()
    [100.0]
    """
    with_image = clip_scores(image_features, text_features, weight)
    with_reference = clip_scores(reference_features, text_features, weight)
    total = with_image + with_reference
    return torch.where(total > 0, 2 * with_image * with_reference / total.clamp(min=1e-12), 0.0)


def spherical_distances(a: Float[Tensor, "n d"], b: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """Half of the squared angle between each pair of vectors: 2 arcsin(|a - b| / 2)^2 of their unit vectors.

    As a loss of a picture's and a text's features it guides painting by CLIP (the pipeline's `guidance_loss`): unlike
    the cosine's its gradient does not fade as they come to agree. It was Katherine Crowson's, in 2021, for CLIP-guided
    diffusion.

    >>> right_angle = spherical_distances(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
    >>> round(right_angle.item(), 4) == round((torch.pi / 2) ** 2 / 2, 4)
    True
    """
    half = (torch.nn.functional.normalize(a, dim=-1) - torch.nn.functional.normalize(b, dim=-1)).norm(dim=-1) / 2
    return 2 * half.clamp(max=1 - 1e-6).arcsin().square()
