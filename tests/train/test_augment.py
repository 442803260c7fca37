"""Augmentation: each is what it says, follows from its own generator, and does not know the batch size."""

import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor, nn

from miniai.base.seeds import make_generator
from miniai.train.augment import (
    Augment,
    Augmented,
    RandomCopy,
    RandomCrop,
    RandomErase,
    RandomErasing,
    RandomFlip,
    item_generators,
    uniforms,
)
from miniai.train.callback import Callback
from miniai.train.data import Loader, TensorDataset
from miniai.train.learner import Learner
from miniai.train.trivial_augment import OPERATIONS, TrivialAugment

PICTURES = torch.rand(12, 3, 20, 16, generator=make_generator(1)) * 2 - 1
ALL = [RandomFlip(), RandomCrop(3), RandomErase(), RandomErasing(), RandomCopy(), TrivialAugment()]


@pytest.mark.parametrize("augmentation", ALL, ids=lambda one: type(one).__name__)
def test_a_pictures_augmentation_follows_from_its_generator_alone(augmentation: Any) -> None:
    before = PICTURES.clone()
    together = augmentation(PICTURES, item_generators(0, 0, range(12)))
    assert torch.equal(PICTURES, before)
    assert together.shape == PICTURES.shape
    assert not torch.equal(together, PICTURES)
    for i in (0, 7):
        alone = augmentation(PICTURES[i : i + 1], item_generators(0, 0, [i]))
        torch.testing.assert_close(alone, together[i : i + 1], rtol=0, atol=1e-5)
    assert not torch.equal(together, augmentation(PICTURES, item_generators(0, 1, range(12))))
    torch.manual_seed(7)
    assert torch.equal(together, augmentation(PICTURES, item_generators(0, 0, range(12))))


def test_generators_of_items_epochs_and_augmentations_are_all_their_own() -> None:
    draws = torch.cat(
        [uniforms(item_generators(3, epoch, range(4), k), 1) for epoch in range(3) for k in range(3)]
        + [uniforms([make_generator(3, 0, i + 1) for i in range(4)], 1)]  # the loader's own of these items
    )
    assert len(draws.unique()) == len(draws)


def test_flips_come_with_their_probability_and_turn_left_to_right() -> None:
    many = PICTURES[:1].expand(400, -1, -1, -1)
    flipped = RandomFlip(0.3)(many, item_generators(0, 0, range(400)))
    turned = (flipped == many.flip(-1)).all(dim=(1, 2, 3))
    assert ((flipped == many).all(dim=(1, 2, 3)) | turned).all()
    assert turned.float().mean().item() == pytest.approx(0.3, abs=0.07)


def test_a_crop_is_a_window_of_the_padded_picture_and_every_place_occurs() -> None:
    picture = torch.arange(1.0, 26).reshape(1, 1, 5, 5)
    cropped = RandomCrop(1, value=-1)(picture.expand(300, -1, -1, -1), item_generators(0, 0, range(300)))
    padded = torch.nn.functional.pad(picture, (1,) * 4, value=-1)[0, 0]
    windows = {tuple(padded[y : y + 5, x : x + 5].flatten().tolist()) for y in range(3) for x in range(3)}
    assert {tuple(one.flatten().tolist()) for one in cropped} == windows


def test_erased_patches_are_rectangles_of_noise_with_the_pictures_own_statistics() -> None:
    picture = torch.rand(1, 1, 20, 20, generator=make_generator(2)).expand(300, -1, -1, -1)
    erased = RandomErase(share=0.25, max_patches=1)(picture, item_generators(0, 0, range(300)))
    changed = (erased != picture)[:, 0]
    counts = changed.flatten(1).sum(1)
    assert set((counts > 0).tolist()) == {True, False}
    assert counts.max() == 25
    for one in changed[counts > 0][:20]:
        rows, columns = one.any(dim=1).nonzero(), one.any(dim=0).nonzero()
        assert rows.max() - rows.min() < 5
        assert columns.max() - columns.min() < 5
    noise = erased[:, 0][changed]
    assert noise.mean().item() == pytest.approx(picture[0].mean().item(), abs=0.03)
    assert picture.min() <= noise.min()
    assert noise.max() <= picture.max()
    assert noise.std().item() == pytest.approx(picture[0].std().item(), rel=0.2)  # a little less: it is cut off


def test_erased_rectangles_have_their_share_area_and_aspect() -> None:
    n = 2000
    picture = torch.rand(1, 1, 60, 40, generator=make_generator(2)).expand(n, -1, -1, -1)
    erase = RandomErasing(p=0.5, area=(0.02, 0.4), aspect=(0.3, 1 / 0.3))
    erased = erase(picture, item_generators(0, 0, range(n)))
    changed = (erased != picture)[:, 0]
    found = changed.any(dim=(1, 2))
    assert found.float().mean().item() == pytest.approx(0.5, abs=0.05)
    changed = changed[found]
    rows, columns = changed.any(dim=2), changed.any(dim=1)
    heights, widths = rows.sum(1), columns.sum(1)
    left = heights * widths - changed.sum((1, 2))
    assert left.max() <= 2  # a rectangle; noise is cut off at the darkest and the lightest pixel, which may lie there
    areas, aspects = heights * widths / (60 * 40), heights / widths
    assert 0.017 < areas.min() < 0.03
    assert 0.36 < areas.max() < 0.42
    assert 0.25 < aspects.min() < 0.36
    assert 2.8 < aspects.max() < 4
    small = areas < 0.15  # those of any shape fit, so the logarithms of their aspects are spread evenly around 0
    assert aspects[small].log().mean().item() == pytest.approx(0, abs=0.1)
    assert aspects[small].log().std().item() == pytest.approx(-2 * math.log(0.3) / math.sqrt(12), rel=0.1)
    assert areas[areas < 0.2].mean().item() == pytest.approx(0.11, abs=0.01)  # and the areas are, too
    for inside in (rows, columns):  # every place occurs, the middle of the free ones as often as others
        first, size = inside.int().argmax(dim=1), inside.sum(1)
        free = inside.shape[1] - size
        assert (first[free > 0] / free[free > 0]).mean().item() == pytest.approx(0.5, abs=0.04)
        assert inside.any(dim=0).all()


def test_a_rectangle_that_never_fits_is_not_erased() -> None:
    picture = torch.rand(9, 3, 4, 40, generator=make_generator(2))
    flat = RandomErasing(p=1, area=(0.5, 0.5), aspect=(1, 1))  # 9 by 9 pixels, in 4 rows
    assert torch.equal(flat(picture, item_generators(0, 0, range(9))), picture)


@pytest.mark.parametrize(
    "wrong", [{"area": (0, 0.4)}, {"area": (0.4, 0.3)}, {"area": (0.4, 1.1)}, {"aspect": (0, 1)}, {"aspect": (2, 1)}]
)
def test_rectangles_of_no_size_or_shape_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="area|height over"):
        RandomErasing(**wrong)


def test_copied_patches_hold_another_part_of_the_same_picture_unbroken() -> None:
    rows = torch.arange(20.0)[:, None] * 100
    picture = (rows + torch.arange(20.0)).expand(200, 1, -1, -1)
    copied = RandomCopy(share=0.2, max_patches=1)(picture, item_generators(0, 0, range(200)))
    changed = (copied != picture)[:, 0]
    assert set(changed.flatten(1).sum(1).tolist()) <= {0, 16}
    for one, where in zip(copied[:, 0], changed, strict=True):
        if where.any():
            patch = one[where].reshape(4, 4)
            assert (patch - patch[0, 0]).tolist() == (rows[:4] + torch.arange(4.0)).tolist()


class Keep(Callback):
    """Keeps the batches that the objective sees."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def after_loss(self, learner: Learner) -> None:
        self.seen.append((learner.training, learner.batch))


def run(batch_size: int, n_epochs: int, start: int = 0) -> list[tuple[bool, Any]]:
    model, keep = nn.Linear(1, 1), Keep()
    data = (PICTURES, torch.arange(12))

    def objective(model: nn.Module, batch: Any, generator: torch.Generator) -> Tensor:
        return model(batch[0].mean().reshape(1, 1)).sum()

    learner = Learner(
        model,
        Loader(data, batch_size, seed=5),
        objective,
        torch.optim.SGD(model.parameters(), 0.0),
        valid=Loader(data, 12, seed=5, shuffle=False),
        callbacks=[Augment(RandomCrop(2), RandomFlip(), RandomErase()), keep],
    )
    learner.epoch = start
    learner.fit(n_epochs)
    return keep.seen


def test_the_callback_augments_each_item_by_seed_epoch_and_index_at_any_batch_size_and_after_a_resume() -> None:
    def last_epoch(seen: list[tuple[bool, Any]], n_batches: int) -> Tensor:
        batches = [batch for training, batch in seen if training][-n_batches:]
        images, indices = (torch.cat([batch[part] for batch in batches]) for part in (0, 1))
        return images[indices.argsort()]

    small = run(4, 2)
    whole = last_epoch(run(12, 2), 1)
    assert torch.equal(last_epoch(small, 3), whole)
    assert torch.equal(last_epoch(run(4, 2, start=1), 3), whole)
    assert not torch.equal(last_epoch(run(4, 1), 3), whole)
    validation = [batch for training, batch in small if not training]
    assert torch.equal(validation[0][0], PICTURES)


def test_the_callback_finds_the_pictures_in_every_kind_of_batch() -> None:
    augment = Augment(RandomFlip(1.0))
    flipped = PICTURES.flip(-1)
    for batch in (PICTURES, {"image": PICTURES, "label": 1}, [PICTURES, 1], (PICTURES, 1)):
        learner = Learner.__new__(Learner)
        vars(learner).update(training=True, epoch=0, batch_index=0, batch=batch, train=Loader(PICTURES, 12, seed=0))
        augment.before_batch(learner)
        assert type(learner.batch) is type(batch)
        assert torch.equal(augment._images(learner.batch), flipped)


def test_augmentation_in_the_loader_follows_from_seed_epoch_and_index_and_pickles() -> None:
    pictures = list(PICTURES)
    data = Augmented(pictures, RandomFlip(), RandomCrop(2), TrivialAugment())
    one, other = Loader(data, 4, seed=5), Loader(pickle.loads(pickle.dumps(data)), 3, seed=5)

    def epoch(loader: Loader, number: int) -> Tensor:
        return torch.cat(list(loader.batches(number)))[loader.order(number).argsort()]

    assert torch.equal(epoch(one, 1), epoch(other, 1))
    assert not torch.equal(epoch(one, 1), epoch(one, 2))
    assert data.copy()[0] is pictures[0]  # a list's own method
    with pytest.raises(AttributeError, match="classes"):
        data.classes  # noqa: B018
    labelled = Augmented([(image, i) for i, image in enumerate(PICTURES)], RandomFlip(1.0))
    images, labels = next(iter(Loader(labelled, 12, seed=5, shuffle=False).batches(0)))
    assert torch.equal(images, PICTURES.flip(-1))
    assert labels.tolist() == list(range(12))


# TrivialAugment's operations against Pillow's

LEVELS = (torch.rand(2, 3, 20, 16, generator=make_generator(3)) * 200 + 20).floor()


def pillow(image: Tensor) -> Image.Image:
    return Image.fromarray(image.to(torch.uint8).permute(1, 2, 0).numpy())


def enhanced(kind: Any) -> Any:
    return lambda image, strength, sign: kind(image).enhance(1 + 0.9 * strength * sign)


PILLOW = {
    "autocontrast": lambda image, strength, sign: ImageOps.autocontrast(image),
    "equalize": lambda image, strength, sign: ImageOps.equalize(image),
    "solarize": lambda image, strength, sign: ImageOps.solarize(image, 256 * (1 - strength)),
    "posterize": lambda image, strength, sign: ImageOps.posterize(image, 8 - round(4 * strength)),
    "colour": enhanced(ImageEnhance.Color),
    "contrast": enhanced(ImageEnhance.Contrast),
    "brightness": enhanced(ImageEnhance.Brightness),
    "sharpness": enhanced(ImageEnhance.Sharpness),
}


@pytest.mark.parametrize("name", PILLOW)
def test_colour_operations_are_pillows_to_one_level(name: str) -> None:
    for strength, sign in ((0.5, 1.0), (0.9, -1.0), (0.3, 1.0)):
        ours = OPERATIONS[name](LEVELS, torch.full((2,), strength), torch.full((2,), sign))
        for image, changed in zip(LEVELS, ours, strict=True):
            expected = np.asarray(PILLOW[name](pillow(image), strength, sign)).astype(float)
            assert np.abs(changed.permute(1, 2, 0).numpy() - expected).max() <= 1
    if name not in ("autocontrast", "equalize"):
        assert torch.equal(OPERATIONS[name](LEVELS, torch.zeros(2), torch.ones(2)), LEVELS)


def test_equalize_and_autocontrast_leave_a_picture_of_one_level_as_it_is() -> None:
    flat = torch.full((1, 3, 8, 8), 77.0)
    for name in ("equalize", "autocontrast"):
        assert torch.equal(OPERATIONS[name](flat, torch.ones(1), torch.ones(1)), flat)


def test_translations_move_by_whole_pixels_where_the_strength_says_so() -> None:
    square = LEVELS[:, :, :16, :16]
    moved = OPERATIONS["translate_x"](square, torch.tensor([0.4, 0.4]), torch.tensor([1.0, -1.0]))  # 2 pixels
    torch.testing.assert_close(moved[0, :, :, :-2], square[0, :, :, 2:], rtol=0, atol=1e-3)
    torch.testing.assert_close(moved[1, :, :, 2:], square[1, :, :, :-2], rtol=0, atol=1e-3)
    assert moved[0, :, :, -2:].abs().max() < 1e-3
    down = OPERATIONS["translate_y"](square, torch.tensor([0.4, 0.0]), torch.ones(2))
    torch.testing.assert_close(down[0, :, :-2], square[0, :, 2:], rtol=0, atol=1e-3)
    torch.testing.assert_close(down[1], square[1], rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["rotate", "shear_x", "shear_y"])
def test_geometric_operations_are_pillows_linear_ones_within_the_picture(name: str) -> None:
    ramp = (torch.arange(24.0)[:, None] * 5 + torch.arange(24.0) * 4).expand(1, 3, 24, 24)
    strength = 0.6
    ours = OPERATIONS[name](ramp, torch.tensor([strength]), torch.ones(1))[0, 0]
    middle = 12.0
    if name == "rotate":
        theirs = pillow(ramp[0]).rotate(30 * strength, Image.Resampling.BILINEAR)
    else:
        k = 0.3 * strength
        matrix = (1, k, -k * middle, 0, 1, 0) if name == "shear_x" else (1, 0, 0, k, 1, -k * middle)
        theirs = pillow(ramp[0]).transform((24, 24), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    expected = torch.from_numpy(np.asarray(theirs).astype(np.float32))[..., 0]
    torch.testing.assert_close(ours[7:17, 7:17], expected[7:17, 7:17], rtol=0, atol=2.5)


def test_trivial_augment_uses_every_operation_and_stays_within_the_range() -> None:
    many = PICTURES[:1].expand(600, -1, -1, -1)
    changed = TrivialAugment()(many, item_generators(0, 0, range(600)))
    assert changed.abs().max() <= 1
    same = (changed == many).all(dim=(1, 2, 3)).float().mean().item()
    assert same == pytest.approx(1 / 14, abs=0.05)  # the identity
    flipped = TrivialAugment(("identity",))(many, item_generators(0, 0, range(600)))
    assert torch.equal(flipped, many)
    grey = TrivialAugment()(PICTURES[:, :1], item_generators(0, 0, range(12)))
    assert grey.shape == (12, 1, 20, 16)
    with pytest.raises(ValueError, match="no operation 'warp'"):
        TrivialAugment(("warp",))


def test_pictures_in_memory_are_augmented_in_the_loader_too() -> None:
    pictures = torch.rand(4, 1, 2, 2)
    alone = Loader(Augmented(TensorDataset(pictures), RandomFlip(1.0)), 4, seed=0, shuffle=False)
    assert torch.equal(next(alone.batches(0)), pictures.flip(-1))
    labelled = Augmented(TensorDataset((pictures, torch.arange(4))), RandomFlip(1.0))
    images, labels = next(Loader(labelled, 4, seed=0, shuffle=False).batches(0))
    assert torch.equal(images, pictures.flip(-1))
    assert labels.tolist() == [0, 1, 2, 3]


def test_trivial_augment_needs_two_strengths() -> None:
    with pytest.raises(ValueError, match="at least 2, not 1"):
        TrivialAugment(n_strengths=1)
