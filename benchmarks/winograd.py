"""3×3 convolutions by Winograd's way beside PyTorch's own in float32, in turn: alone, and in a step of a classifier.

python benchmarks/winograd.py        2 minutes on 2 cores
"""

import os
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from miniai.nn.learning import LearningConv2d, learning
from miniai.nn.resnet import ResNet
from miniai.nn.winograd import winograd_conv2d
from miniai.recipes.fashion_classifier import NETWORKS
from miniai.recipes.model_card import machine
from miniai.recipes.training import channels_last, initial_weights

# Pictures, channels in and out, side: of `fashion-classifier --network wide`, the painters of clothes and of emoji.
SHAPES = (
    *((256, 64, 64, 14), (256, 64, 160, 14), (256, 160, 160, 7), (256, 160, 320, 7), (256, 320, 320, 4)),
    *((64, 32, 32, 32), (64, 96, 96, 16), (64, 192, 192, 8), (64, 256, 256, 4)),
    *((128, 160, 160, 8), (128, 288, 288, 4), (64, 256, 256, 16)),
)


def in_order(tensor: Tensor) -> Tensor:
    """The same, channels last in memory."""
    return tensor.contiguous(memory_format=torch.channels_last)


def in_turn(*ways: Callable[[], object], repeats: int = 7) -> list[float]:
    """Milliseconds of each, the median."""
    times: list[list[float]] = [[] for _ in ways]
    for _ in range(repeats + 1):
        for way, taken in zip(ways, times, strict=True):
            start = time.perf_counter()
            way()
            taken.append(1000 * (time.perf_counter() - start))
    return [statistics.median(one[1:]) for one in times]


def gradients(convolve: Callable[..., Tensor], x: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    """The answers, and the gradients of x and weight."""
    out = convolve(x, weight)
    return out.detach(), *torch.autograd.grad(out, (x, weight), grad)


def compare(b: int, c: int, d: int, side: int) -> str:
    """One row of the table."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((b, c, side, side), (d, c, 3, 3), (b, d, side, side))
    x, weight, grad = (in_order(torch.randn(shape, generator=generator)) for shape in shapes)
    for learned in (x, weight):
        learned.requires_grad_()

    def theirs(x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight, padding=1)

    both = [gradients(way, x, weight, grad) for way in (theirs, winograd_conv2d)]
    error = max(float((ours - plain).norm() / plain.norm()) for plain, ours in zip(*both, strict=True))
    plain, ours = in_turn(*(lambda way=way: gradients(way, x, weight, grad) for way in (theirs, winograd_conv2d)))
    layer = LearningConv2d(c, d, 3, padding=1)
    taken = "yes" if layer.by_tiles(x) else "no"
    return (
        f"| {b} | {c} | {d} | {side}×{side} | {plain:.0f} | {ours:.0f} | {plain / ours:.2f} | {taken} | {error:.0e} |"
    )


def classifier_step(network: nn.Module, by_winograd: bool) -> Callable[[], object]:
    """Forward and backward of one batch; the optimizer is the same for both."""
    x = in_order(torch.randn(256, 1, 28, 28))
    labels = torch.arange(256) % 10

    def step() -> None:
        with learning(network) if by_winograd else nullcontext():
            F.cross_entropy(network(x), labels).backward()

    return step


def main() -> None:
    print(f"{machine()}; float32, channels last, medians of 7, in turn\n")
    print("| pictures | channels in | out | side | PyTorch, ms | Winograd, ms | ratio | taken | difference |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for shape in SHAPES:
        print(compare(*shape), flush=True)
    with initial_weights(0):
        network = channels_last(ResNet(NETWORKS["wide"].model))
    plain, ours = in_turn(classifier_step(deepcopy(network), False), classifier_step(network, True))
    print("\nforward and backward of the `wide` classifier, 256 pictures: ", end="")
    print(f"{plain:.0f} ms by PyTorch's convolutions, {ours:.0f} with these: {plain / ours:.2f}")


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    main()
