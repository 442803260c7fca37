"""Attention over short sequences on a CPU, bfloat16, forward and backward: the fused kernel beside plain products.

python benchmarks/attention_backward.py
"""

import statistics
import time
from datetime import date

import torch
import torch.nn.functional as F

from miniai.nn.layers import attend
from miniai.recipes.model_card import machine

# (batch, heads, queries, dimensions), keys: self- and cross-attention of the shipped U-Net, and a longer sequence
SHAPES = (((64, 5, 64, 32), 64), ((64, 5, 64, 32), 32), ((64, 9, 16, 32), 32), ((16, 5, 256, 32), 256))


def main(repeats: int = 9) -> None:
    torch.set_num_threads(1)
    how = f"median of {repeats} runs in turn, forward and backward"
    print(f"`python benchmarks/attention_backward.py`, {date.today()}, {machine()}: {how}\n")
    print("| queries | keys | fused, ms | products, ms | ratio |\n| --- | --- | ---: | ---: | ---: |")
    for shape, n_keys in SHAPES:
        q = torch.randn(shape).bfloat16().requires_grad_()
        k, v = (torch.randn(*shape[:2], n_keys, shape[3]).bfloat16().requires_grad_() for _ in range(2))
        grad = torch.randn_like(q)
        times: dict[str, list[float]] = {"fused": [], "products": []}
        for _ in range(repeats + 1):
            for name, attention in (("fused", F.scaled_dot_product_attention), ("products", attend)):
                start = time.perf_counter()
                torch.autograd.grad(attention(q, k, v), (q, k, v), grad)
                times[name].append(1e3 * (time.perf_counter() - start))
        slow, fast = (statistics.median(times[name][1:]) for name in ("fused", "products"))
        print(f"| {'×'.join(map(str, shape))} | {n_keys} | {slow:.2f} | {fast:.2f} | {slow / fast:.1f} |")


if __name__ == "__main__":
    main()
