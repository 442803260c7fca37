"""Layers of Stable Diffusion 1.5 on a CPU in bfloat16: plain weights, and weights packed by miniai/nn/packed.py.

    python benchmarks/packed_layers.py [--repeats 5] [--threads 1]

A guided step sees two pictures. Times are those of the processor, for one thread right even where it is shared. The
ratios are medians over calls in turn, of the time of plain weights with the channels first, which is how Diffusers
computes. The last column says whether oneDNN lays the packed weights out again at each call, by its own log.
"""

import argparse
import copy
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from miniai.nn.packed import PackedConv2d, pack_weights

Forms = dict[str, Callable[[], Tensor]]
PLAIN, LAST, PACKED, OLD = "plain", "channels last", "packed", "packed as a convolution"
BATCH = 2
# in and out channels, width of the kernel, side of the picture
CONVOLUTIONS = (
    *((320, 320, 3, 64), (640, 320, 3, 64), (640, 640, 3, 32), (1280, 1280, 3, 16), (1280, 1280, 3, 8)),
    *((2560, 1280, 3, 8), (320, 320, 1, 64), (640, 640, 1, 32), (1280, 1280, 1, 16), (2560, 1280, 1, 16)),
)
# in and out channels, tokens
LINEARS = ((320, 320, 4096), (1280, 320, 4096), (640, 640, 1024), (1280, 1280, 256), (5120, 1280, 256), (768, 1280, 77))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of each, in turn")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shrink", type=int, default=1, help="divide all channels, to try the script out")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    capability = torch.backends.cpu.get_cpu_capability()
    print(
        f"torch {torch.__version__}, {capability}, {options.threads} thread(s), median of {options.repeats} in turn\n"
    )
    print(f"| layer | {PLAIN}, ms | {LAST} | {PACKED} | {OLD} | laid out again |")
    print("| --- | ---: | ---: | ---: | ---: | --- |")
    clock = time.thread_time if options.threads == 1 else time.perf_counter
    with torch.inference_mode():
        for c_in, c_out, kernel, side in CONVOLUTIONS:
            c_in, c_out = c_in // options.shrink, c_out // options.shrink
            name = f"{kernel}×{kernel}, {c_in} to {c_out} at {side}×{side}"
            measure(name, convolution(c_in, c_out, kernel, side), options.repeats, clock)
        for c_in, c_out, n_tokens in LINEARS:
            c_in, c_out = c_in // options.shrink, c_out // options.shrink
            measure(
                f"linear, {c_in} to {c_out}, {n_tokens} tokens", linear(c_in, c_out, n_tokens), options.repeats, clock
            )


def convolution(c_in: int, c_out: int, kernel: int, side: int) -> Forms:
    first = nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2).bfloat16()
    last = copy.deepcopy(first).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    packed = pack_weights(copy.deepcopy(first))
    x = torch.randn(BATCH, c_in, side, side).bfloat16()
    x_last = x.contiguous(memory_format=torch.channels_last)
    forms = {PLAIN: lambda: first(x), LAST: lambda: last(x_last), PACKED: lambda: packed(x_last)}
    if kernel == 1:
        old = copy.deepcopy(first)
        weight = old.weight.detach()
        del old.weight
        old.__class__ = PackedConv2d
        old.take(weight)
        forms[OLD] = lambda: old(x_last)
    return forms


def linear(c_in: int, c_out: int, n_tokens: int) -> Forms:
    plain = nn.Linear(c_in, c_out).bfloat16()
    packed = pack_weights(copy.deepcopy(plain))
    x = torch.randn(BATCH, n_tokens, c_in).bfloat16()
    return {PLAIN: lambda: plain(x), PACKED: lambda: packed(x)}


def measure(name: str, forms: Forms, repeats: int, clock: Callable[[], float]) -> None:
    """Time every form of a layer and print its row; the first call of each is not timed."""
    times: dict[str, list[float]] = {form: [] for form in forms}
    for _ in range(repeats + 1):
        for form, call in forms.items():
            start = clock()
            call()
            times[form].append(clock() - start)
    plain = times[PLAIN][1:]

    def ratio(form: str) -> str:
        if form not in times:
            return ""
        return f"{statistics.median(a / b for a, b in zip(times[form][1:], plain, strict=True)):.2f}"

    again = [form for form in (PACKED, OLD) if form in forms and n_reorders(forms[form])]
    ratios = " | ".join(ratio(form) for form in (LAST, PACKED, OLD))
    print(f"| {name} | {1e3 * statistics.median(plain):.1f} | {ratios} | {', '.join(again) or 'none'} |", flush=True)


def n_reorders(call: Callable[[], Tensor]) -> int:
    """How many tensors oneDNN brings into another order in a call."""
    sys.stdout.flush()
    stdout = os.dup(1)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 1)  # oneDNN prints where Python does not see it
        try:
            with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
                call()
        finally:
            os.dup2(stdout, 1)
            os.close(stdout)
        log.seek(0)
        lines = log.read().decode().splitlines()
    if not any("exec,cpu" in line for line in lines):
        raise RuntimeError("oneDNN did not log what it computed")
    return sum("exec,cpu,reorder" in line for line in lines)


if __name__ == "__main__":
    main()
