"""Group normalisation's backward pass on a CPU, bfloat16 in channels-last memory: PyTorch's beside ours, in turn.

python benchmarks/group_norm.py
"""

import statistics
import time
from datetime import date

import torch
import torch.nn.functional as F

from miniai.nn.group_norm import GroupNorm
from miniai.recipes.model_card import machine

SHAPES = (((24, 16, 64, 64), 8), ((24, 48, 32, 32), 8), ((24, 96, 16, 16), 8), ((64, 160, 8, 8), 32))


def main(repeats: int = 9) -> None:
    torch.set_num_threads(1)
    print(f"`python benchmarks/group_norm.py`, {date.today()}, {machine()}, median of {repeats} runs in turn\n")
    print("| shape | PyTorch backward, ms | ours, ms | ratio |\n| --- | ---: | ---: | ---: |")
    for shape, groups in SHAPES:
        x = torch.randn(shape).bfloat16().contiguous(memory_format=torch.channels_last).requires_grad_()
        grad = torch.randn_like(x)
        norm = GroupNorm(groups, shape[1])

        def theirs(x: torch.Tensor = x, norm: GroupNorm = norm) -> torch.Tensor:
            return F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)

        times: dict[str, list[float]] = {"theirs": [], "ours": []}
        for _ in range(repeats + 1):
            for name, forward in (("theirs", theirs), ("ours", lambda x=x, norm=norm: norm(x))):
                y = forward()
                start = time.perf_counter()
                torch.autograd.grad(y, (x, norm.weight, norm.bias), grad)
                times[name].append(1e3 * (time.perf_counter() - start))
        slow, fast = (statistics.median(times[name][1:]) for name in ("theirs", "ours"))
        print(f"| {'×'.join(map(str, shape))} | {slow:.2f} | {fast:.2f} | {slow / fast:.1f} |")


if __name__ == "__main__":
    main()
