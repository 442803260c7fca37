"""29. Three classifiers of small grey images, (b, 1, 28, 28) to (b, 10), each seeing more than the one before."""

from collections.abc import Callable

from miniai.scratch.convolution import Conv2d
from miniai.scratch.modules import Flatten, Linear, Module, ReLU, Sequential
from miniai.scratch.rng import Rng

SIDE, N_CLASSES = 28, 10
N_PIXELS = SIDE * SIDE


def linear(rng: Rng) -> Module:
    """One score for each class: a weighted sum of the 784 pixels."""
    return Sequential(Flatten(), Linear(N_PIXELS, N_CLASSES, rng))


def mlp(rng: Rng, n_hidden: int = 50) -> Module:
    """Two layers, with a nonlinearity between: without it they would be one."""
    return Sequential(Flatten(), Linear(N_PIXELS, n_hidden, rng), ReLU(), Linear(n_hidden, N_CLASSES, rng))


def cnn(rng: Rng) -> Module:
    """Three convolutions that halve the image, 28, 14, 7, 4, and double its channels: pixels near one another belong
    together, and a pattern is the same wherever it stands."""
    return Sequential(
        Conv2d(1, 8, 3, rng, stride=2, padding=1),
        ReLU(),
        Conv2d(8, 16, 3, rng, stride=2, padding=1),
        ReLU(),
        Conv2d(16, 32, 3, rng, stride=2, padding=1),
        ReLU(),
        Flatten(),
        Linear(32 * 4 * 4, N_CLASSES, rng),
    )


MODELS: dict[str, Callable[[Rng], Module]] = {"linear": linear, "mlp": mlp, "cnn": cnn}
