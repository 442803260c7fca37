"""20. How wrong a network is, as one number to differentiate."""

from miniai.scratch.autograd import Variable
from miniai.scratch.creation import arange
from miniai.scratch.functional import log_softmax
from miniai.scratch.ieee import Number
from miniai.scratch.tensor import Tensor


def mse_loss(prediction: Variable, target: Variable) -> Variable:
    """The mean of (prediction - target)², over all elements."""
    if prediction.shape != target.shape:
        raise RuntimeError(f"prediction {list(prediction.shape)} and target {list(target.shape)} differ in shape")
    difference = prediction - target
    return (difference * difference).mean()


def nll_loss(log_probabilities: Variable, target: Tensor) -> Variable:
    """Minus the mean log probability of the right class. (n, classes) and int64 (n,).

    The gather trick: of a one-hot target times log probabilities, only one term of each row is not 0; so that one is
    looked up, and nothing is multiplied.
    """
    check_target(log_probabilities, target)
    return -log_probabilities.gather(1, target[:, None]).mean()


def cross_entropy(logits: Variable, target: Tensor) -> Variable:
    """nll_loss of log_softmax. (n, classes) and int64 (n,)."""
    check_target(logits, target)
    return nll_loss(log_softmax(logits, -1), target)


def check_target(scores: Variable, target: Tensor) -> None:
    if scores.ndim != 2 or target.ndim != 1:
        raise ValueError(f"expected scores (n, classes) and target (n,), got {scores.ndim}D and {target.ndim}D")
    if len(scores) != len(target):
        raise ValueError(f"Expected input batch_size ({len(scores)}) to match target batch_size ({len(target)}).")
    for label in target.flat():
        if not 0 <= label < scores.shape[1]:
            raise IndexError(f"Target {label} is out of bounds.")


def contrastive_loss(a: Variable, b: Variable, scale: Variable | Number) -> Variable:
    """Row i of `a` belongs to row i of `b`, and to no other: cross entropy of `scale` times all cosines, both ways
    (CLIP; Radford et al. 2021, figure 3). `scale` is 1 over the temperature."""
    if a.shape != b.shape or a.ndim != 2:
        raise RuntimeError(f"expected two matrices of one shape, got {list(a.shape)} and {list(b.shape)}")
    logits = normalise(a) @ normalise(b).transpose(0, 1) * scale
    own = arange(len(a))
    return (cross_entropy(logits, own) + cross_entropy(logits.transpose(0, 1), own)) * 0.5


def normalise(x: Variable) -> Variable:
    """Each row divided by its length."""
    return x / (x * x).sum(-1, True) ** 0.5


def accuracy(logits: Tensor, target: Tensor) -> float:
    """The share of rows whose greatest logit is that of the right class."""
    right = sum(row.index(max(row)) == label for row, label in zip(logits.tolist(), target.flat(), strict=True))
    return right / max(len(target), 1)
