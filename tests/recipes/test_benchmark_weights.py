"""The weights behind figures on Fashion-MNIST: they load, name real clothes, and paint what is asked for."""

from pathlib import Path

import pytest
import torch

from miniai.base.seeds import make_generator
from miniai.diffusion.discriminative import DiscriminativeObjective
from miniai.evaluate.cache import fingerprint
from miniai.recipes.fashion import PADDING
from miniai.recipes.fashion_classifier import accuracy, load_classifier, log_probabilities
from miniai.recipes.fashion_diffusion import FashionObjective
from miniai.recipes.fashion_discriminator import load_discriminator
from miniai.recipes.fashion_judge import clearness, named
from miniai.recipes.fashion_painting import load_fashion_diffusion, load_guide, paint, to_patches
from miniai.train.fashion_mnist import load_fashion_mnist

DATA = Path(__file__).parent.parent / "data" / "fashion-mnist"
WEIGHTS = Path(__file__).parents[2] / "benchmarks" / "weights"
CPU = torch.device("cpu")


def test_the_refined_painter_finds_real_clothes_likelier_than_the_one_it_was_does() -> None:
    """Compared to what it painted itself before: so it was trained, and the critic knows pictures that neither saw."""
    before, config = load_fashion_diffusion(WEIGHTS / "fashion-conditional", CPU)
    after, _ = load_fashion_diffusion(WEIGHTS / "fashion-refined", CPU)
    real = load_fashion_mnist("test", DATA)
    labels = real.labels[:48]
    painted = paint(before, config, labels, seed=0, sampler="lms", n_steps=10)
    kinds = (real.scaled(PADDING)[:48], ((painted + 1) * 127.5).round() / 127.5 - 1)
    batch = [(to_patches(kind, config.patch_size), labels) for kind in kinds]
    loss = DiscriminativeObjective(FashionObjective(config), before)(after, (batch[0], batch[1]), make_generator(0))
    assert loss.item() < 1.375  # 1.386 is what guessing has


@pytest.mark.parametrize("name", ["fashion-classifier", "fashion-classifier-wide", "fashion-judge"])
def test_each_classifier_names_real_clothes(name: str) -> None:
    test = load_fashion_mnist("test", DATA)
    said = log_probabilities(load_classifier(WEIGHTS / name, CPU), test.scaled(), CPU)
    assert accuracy(said, test.labels)["accuracy"] > 0.9


def test_the_judge_reads_painted_clothes_as_they_were_asked_for() -> None:
    classifier = load_classifier(WEIGHTS / "fashion-judge", CPU)
    network, config = load_fashion_diffusion(WEIGHTS / "fashion-conditional", CPU)
    labels = torch.arange(20) % 10
    guide = load_guide(WEIGHTS / "fashion-guide", config, CPU)
    painted = paint(network, config, labels, seed=0, sampler="lms", n_steps=12, guide=guide)
    assert (named(classifier, painted, CPU) == labels).float().mean() >= 0.7  # 0.1 by chance; 0.87 of 2,048 in 20 steps


def test_the_discriminator_finds_real_clothes_likelier_than_painted_ones() -> None:
    by = [load_classifier(WEIGHTS / name, CPU) for name in ("fashion-classifier", "fashion-classifier-wide")]
    ratio = load_discriminator(WEIGHTS / "fashion-discriminator", by, CPU)
    network, config = load_fashion_diffusion(WEIGHTS / "fashion-refined", CPU)
    assert ratio.painter == fingerprint(network)
    labels = torch.arange(30) % 10
    painted = paint(network, config, labels, seed=0, sampler="lms", n_steps=20)
    clear = painted[clearness(by, painted, labels, CPU) >= 0.5]
    real = load_fashion_mnist("test", DATA).scaled(PADDING)
    assert ratio(real).log().mean() - ratio(clear).log().mean() > 0.1  # 0.4 for 60
