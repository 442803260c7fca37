"""Attention forward on a CPU: the forms of miniai/nn/attention.py and others, at Stable Diffusion's shapes.

    python benchmarks/attention_forward.py [--repeats 9] [--threads 2] [--float32]

Rates count the two products alone, 4 operations for each query, key and number of a head. The error is that against
float64, root mean square over the root mean square of the output.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from miniai.nn.attention import by_sigmoid, fused, in_whole_vectors
from miniai.nn.packed import can_pack
from miniai.recipes.model_card import machine

Form = Callable[[Tensor, Tensor, Tensor], Tensor]
QUERIES_AT_ONCE = 256


def widened(multiple: int) -> Form:
    """PyTorch's kernel, with heads filled up with zeros to a multiple of a width."""

    def form(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        width = q.shape[-1]
        q, k, v = (F.pad(t, (0, -width % multiple)) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, scale=width**-0.5)[..., :width]

    return form


def heads_apart(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's kernel, with the keys and values of each head side by side in memory."""
    return fused(q, k.contiguous(), v.contiguous())


def products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Two products and a softmax. The scores are rounded once more than in the kernel."""
    return ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(dim=-1) @ v


def in_blocks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Products and a softmax in float32, for some queries at a time."""
    k = k.transpose(-1, -2)
    blocks = (q * q.shape[-1] ** -0.5).split(QUERIES_AT_ONCE, dim=2)
    return torch.cat([(b @ k).softmax(dim=-1, dtype=torch.float32).to(v.dtype) @ v for b in blocks], dim=2)


BATCH, HEADS = 2, 8  # a guided step of one picture
SHAPES = (
    *((4096, 4096, 40), (1024, 1024, 80), (256, 256, 160), (64, 64, 160), (4096, 4096, 64), (256, 256, 64)),
    (4096, 4096, 512),
    *((4096, 77, 40), (1024, 77, 80), (256, 77, 160), (64, 77, 160)),
)
FORMS: dict[str, Form] = {
    "fused": fused,
    "fused, keys in whole vectors": in_whole_vectors,
    "fused, keys of a head side by side": heads_apart,
    "fused, heads widened to 16": widened(16),
    "fused, heads widened to 64": widened(64),
    "products": products,
    "blocks of queries, softmax in float32": in_blocks,
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="timed calls of each, in turn")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--float32", action="store_true", help="not in bfloat16")
    parser.add_argument("--shrink", type=int, default=1, help="divide the numbers of tokens, to try the script out")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    dtype = torch.float32 if options.float32 else torch.bfloat16
    if can_pack(dtype):
        FORMS["products, a sigmoid between"] = by_sigmoid
    print(f"{machine()}, {dtype}, median of {options.repeats} runs in turn\n")
    print("| queries × keys × width | form | ms | TFLOP/s | error |\n| --- | --- | ---: | ---: | ---: |")
    with torch.inference_mode():
        for n_queries, n_keys, width in SHAPES:
            n_queries, n_keys = (max(1, n // options.shrink) for n in (n_queries, n_keys))
            measure(n_queries, n_keys, width, dtype, options.repeats)


def measure(n_queries: int, n_keys: int, width: int, dtype: torch.dtype, repeats: int) -> None:
    """Time every form at one shape and print its rows."""
    generator = torch.Generator().manual_seed(0)

    def heads(n: int) -> Tensor:
        """As a linear layer leaves them: the heads of one token side by side."""
        tokens = torch.randn(BATCH, n, HEADS * width, generator=generator).to(dtype)
        return tokens.unflatten(-1, (HEADS, -1)).transpose(1, 2)

    q, k, v = heads(n_queries), heads(n_keys), heads(n_keys)
    exact = torch.cat([fused(*(t[:, i : i + 1].double() for t in (q, k, v))) for i in range(HEADS)], dim=1)
    times: dict[str, list[float]] = {name: [] for name in FORMS}
    errors = {}
    for turn in range(repeats + 1):
        for name, form in FORMS.items():
            start = time.perf_counter()
            out = form(q, k, v).transpose(1, 2).flatten(2)  # as the next linear layer wants them
            times[name].append(time.perf_counter() - start)
            if turn == 0:
                difference = out.unflatten(-1, (HEADS, -1)).transpose(1, 2) - exact
                errors[name] = float(difference.square().mean().sqrt() / exact.square().mean().sqrt())
    n_operations = 4 * BATCH * HEADS * n_queries * n_keys * width
    for name in FORMS:
        seconds = statistics.median(times[name][1:])
        rate = n_operations / seconds / 1e12
        shape = f"{n_queries} × {n_keys} × {width}"
        print(f"| {shape} | {name} | {1e3 * seconds:.2f} | {rate:.2f} | {errors[name]:.1e} |", flush=True)


if __name__ == "__main__":
    main()
