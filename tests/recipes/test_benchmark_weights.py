"""The weights behind figures on Fashion-MNIST: they load, name real clothes, and paint what is asked for."""

from pathlib import Path

import pytest
import torch

from miniai.recipes.evaluate_fashion import named
from miniai.recipes.fashion_classifier import accuracy, load_classifier
from miniai.recipes.fashion_painting import load_fashion_diffusion, load_guide, paint
from miniai.train.fashion_mnist import load_fashion_mnist

DATA = Path(__file__).parent.parent / "data" / "fashion-mnist"
WEIGHTS = Path(__file__).parents[2] / "benchmarks" / "weights"
CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["fashion-classifier", "fashion-judge"])
def test_each_classifier_names_real_clothes(name: str) -> None:
    classifier = load_classifier(WEIGHTS / name, CPU)
    assert accuracy(classifier, load_fashion_mnist("test", DATA), CPU)["accuracy"] > 0.9


def test_the_judge_reads_painted_clothes_as_they_were_asked_for() -> None:
    classifier = load_classifier(WEIGHTS / "fashion-judge", CPU)
    network, config = load_fashion_diffusion(WEIGHTS / "fashion-conditional", CPU)
    labels = torch.arange(20) % 10
    guide = load_guide(WEIGHTS / "fashion-guide", config, CPU)
    painted = paint(network, config, labels, seed=0, sampler="lms", n_steps=12, guide=guide)
    assert (named(classifier, painted, CPU) == labels).float().mean() >= 0.7  # 0.1 by chance; 0.87 of 2,048 in 20 steps
