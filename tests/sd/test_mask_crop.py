"""Inpainting of what lies around the mask: Diffusers' `padding_mask_crop` and its image processor are the oracle."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from sd_oracle import relative_error
from three_pipelines import Models, mask, picture

from miniai.base.errors import UserError
from miniai.sd.mask_crop import MaskCrop, covered, filled

PROCESSOR = VaeImageProcessor(do_normalize=False, do_binarize=True, do_convert_grayscale=True)


@pytest.fixture(scope="module", params=["epsilon", "inpainting"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def inpainting(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("nine"), "inpainting")


def a_mask(width: int, height: int, random: np.random.Generator) -> Image.Image:
    """A rectangle of any size, white but for a grey corner, anywhere."""
    levels = np.zeros((height, width), dtype=np.uint8)
    (left, right), (top, bottom) = (np.sort(random.integers(0, side, 2)) for side in (width, height))
    levels[top : bottom + 1, left : right + 1] = 255
    levels[top, left] = 1
    return Image.fromarray(levels)


def cases(n: int) -> list[tuple[Image.Image, Image.Image, tuple[int, int], int]]:
    random = np.random.default_rng(0)
    found = []
    for i in range(n):
        width, height, h, w, padding = (int(side) for side in random.integers(9, 60, 5))
        found.append((picture(width, height, i), a_mask(width, height, random), (h, w), padding % 9))
    return found


def test_the_rectangle_around_the_mask_is_that_of_diffusers() -> None:
    shapes = set()
    for image, white, (height, width), padding in cases(400):
        box = MaskCrop.around(image, white, (height, width), padding, "pil").box
        assert box == PROCESSOR.get_crop_region(white, width, height, pad=padding)
        shapes.add((box[0] > 0, box[1] > 0, box[2] < image.width, box[3] < image.height))
    assert len(shapes) > 8  # against all sides of the picture, and none


def test_pictures_are_brought_to_size_as_in_diffusers() -> None:
    edges = 0
    for image, _, (height, width), _ in cases(150):
        for ours, mode in ((filled, "fill"), (covered, "crop")):
            theirs = PROCESSOR.resize(image, height, width, resize_mode=mode)
            assert np.array_equal(np.asarray(ours(image, (height, width))), np.asarray(theirs))
        edges += abs(image.width / image.height - width / height) > 0.2
    assert edges > 50


def test_a_picture_much_longer_than_the_size_is_a_line_at_least() -> None:
    assert filled(picture(90, 2), (8, 8)).size == covered(picture(90, 2), (8, 8)).size == (8, 8)


def test_what_was_painted_is_put_back_as_in_diffusers() -> None:
    for image, white, size, padding in cases(100):
        crop = MaskCrop.around(image, white, size, padding, "pil")
        painted = picture(size[1], size[0], seed=7)
        theirs = PROCESSOR.apply_overlay(white, image, painted, crop.box)
        assert np.array_equal(np.asarray(crop.put_back(painted)), np.asarray(theirs))


@pytest.mark.parametrize(
    ("sides", "request_", "n"),
    [((40, 28), {}, 1), ((23, 50), {"height": 24, "width": 16}, 2), ((16, 16), {"strength": 0.7}, 1)],
)
def test_a_part_is_painted_as_in_diffusers(
    models: Models, sides: tuple[int, int], request_: dict[str, Any], n: int
) -> None:
    white = a_mask(*sides, np.random.default_rng(3))
    asked = {"prompt": "a cat", "image": picture(*sides), "mask_image": white, "padding_mask_crop": 3}
    asked |= request_ | {"output_type": "pil", "num_images_per_prompt": n}
    theirs = models.theirs("inpaint", generator=torch.Generator().manual_seed(0), **asked)
    ours = models.paint(generator=torch.Generator().manual_seed(0), **asked)
    assert len(ours) == len(theirs) == n
    for one, other in zip(ours, theirs, strict=True):
        assert one.size == other.size == sides
        assert np.abs(np.asarray(one).astype(int) - np.asarray(other)).max() <= 1
    kept = np.asarray(white) == 0
    assert np.array_equal(np.asarray(ours[0])[kept], np.asarray(picture(*sides))[kept])
    changed = np.asarray(ours[0])[~kept] != np.asarray(picture(*sides))[~kept]
    assert changed.mean() > 0.5


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("n", [1, 2])
def test_what_the_model_is_shown_of_the_picture_may_be_given(models: Models, channels: int, n: int) -> None:
    shown = torch.rand(n, channels, *((16, 16) if channels == 3 else (8, 8)), generator=torch.Generator())
    asked = {"prompt": ["a cat", "a dog"][:n], "image": [picture(seed=i) for i in range(n)], "mask_image": mask()}
    asked |= {"masked_image_latents": shown}
    models.assert_equal("inpaint", "euler_a", seeds=(3, 4)[:n], **asked)
    if models.ours.unet.config.in_channels == 9:
        given, own = (
            models.paint(generator=torch.Generator().manual_seed(0), **request)
            for request in (asked, asked | {"masked_image_latents": None})
        )
        assert relative_error(given, own) > 0.01


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"padding_mask_crop": -1}, "padding_mask_crop -1 is not possible"),
        ({"padding_mask_crop": True}, "padding_mask_crop True is not possible: give a whole number of pixels"),
        ({"height": -8}, "height -8 is not possible"),
        ({"width": 0}, "width 0 is not possible"),
        ({"masked_image_latents": torch.zeros(1, 3, 8, 8)}, r"are \(1, 3, 8, 8\): give a tensor \(n, 3, 16, 16\) or"),
        ({"masked_image_latents": torch.zeros(3, 16, 16)}, r"are \(3, 16, 16\): give a tensor"),
        ({"masked_image_latents": torch.zeros(2, 4, 8, 8)}, "2 masked pictures for 1 pictures"),
        (
            {"masked_image_latents": torch.zeros(1, 4, 8, 8), "mask_image": None, "padding_mask_crop": None},
            "masked_image_latents belong to a mask",
        ),
        ({"image": torch.zeros(3, 16, 16)}, "needs image and mask_image as PIL images"),
        ({"mask_image": None}, "needs image and mask_image as PIL images"),
        ({"output_type": "pt"}, "needs image and mask_image as PIL images"),
        ({"mask_image": mask(8, 16)}, "the mask has 8x16 pixels, the picture 16x16: resize the mask"),
        ({"mask_image": Image.new("L", (16, 16))}, "the mask is black everywhere"),
        ({"masked_image_latents": torch.zeros(1, 4, 4, 4)}, r"are \(1, 4, 4, 4\): give a .* or \(n, 4, 8, 8\)"),
    ],
)
def test_what_cannot_be_cropped_is_told_in_one_line(inpainting: Models, changed: dict[str, Any], told: str) -> None:
    asked = {"prompt": "a cat", "image": picture(), "mask_image": mask(), "padding_mask_crop": 2, "output_type": "pil"}
    with pytest.raises(UserError, match=told):
        inpainting.paint(**asked | changed)
