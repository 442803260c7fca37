"""Training steps of the text-to-image U-Net with its text encoder, as `miniai train text-to-image` takes them: how many
pictures a second at which batch, compiled or not, on the GPU if there is one.

    python benchmarks/train_rates.py --batches 128,256,512             as they are
    python benchmarks/train_rates.py --batches 256 --compile           through torch.compile, minutes at the first step
    python benchmarks/train_rates.py --sizes gpu,gpu-fine              latents of two shapes side by side

The whole stage runs, optimizer, averages and log included, on latents and captions drawn at random; what is timed are
the last steps, after a warm-up.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from miniai.base.device import pick_device
from miniai.base.seeds import make_generator
from miniai.nn.clip import CLIPTextModel
from miniai.nn.unet import UNet2DConditionModel
from miniai.recipes.model_card import machine
from miniai.recipes.text_to_image_config import SIZES, TextToImageConfig
from miniai.recipes.training import StageRun, initial_weights, run_stage
from miniai.recipes.unet_stage import Latents, TextToImageModel, TextToImageObjective, init_unet
from miniai.train.callback import Callback
from miniai.train.data import TensorDataset
from miniai.train.learner import Learner

N_CAPTIONS, EACH = 5000, 12  # distinct captions, and how many a picture has


class Clock(Callback):
    """When the steps of these numbers were done."""

    order = 95

    def __init__(self, *steps: int) -> None:
        self.steps, self.done = steps, dict[int, float]()

    def after_batch(self, learner: Learner) -> None:
        if learner.step in self.steps:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.done[learner.step] = time.perf_counter()


def random_data(config: TextToImageConfig, n: int) -> Latents:
    """As many pictures' latents, and captions for them."""
    generator = make_generator(0)
    shape = (n, config.unet.in_channels, config.latent_size, config.latent_size)
    return Latents(
        latents=torch.randn(shape, generator=generator),
        rows=torch.randint(N_CAPTIONS, (n, EACH), generator=generator),
        counts=torch.full((n,), EACH),
        ids=torch.randint(config.vocab_size, (N_CAPTIONS + 1, config.window), generator=generator),
        texts=torch.zeros(0, config.window, config.text.hidden_size),
    )


def measure(size: str, batch: int, compiler: str | None, device: torch.device, warm: int, timed: int) -> None:
    """Print a row of the table."""
    config = replace(SIZES[size], unet_stage=replace(SIZES[size].unet_stage, batch_size=batch))
    data = random_data(config, max(4096, batch))
    text = replace(config.text, vocab_size=config.vocab_size, max_position_embeddings=config.window)
    with initial_weights(0):
        model = TextToImageModel(init_unet(UNet2DConditionModel(config.unet)), CLIPTextModel(text), True)
    pictures = TensorDataset((data.latents, data.rows, data.counts))
    objective = TextToImageObjective(config, data, device, compiler)
    clock = Clock(1, warm, warm + timed)
    with tempfile.TemporaryDirectory() as folder:
        run = StageRun("rate", Path(folder), device, None, warm + timed, compiler=compiler)
        start = time.perf_counter()
        run_stage(run, config.unet_stage, model, pictures, objective, 0, callbacks=[clock])
    seconds = (clock.done[warm + timed] - clock.done[warm]) / timed
    first = clock.done[1] - start
    cells = (size, batch, compiler or "no", f"{1000 * seconds:.2f}", f"{batch / seconds:,.0f}", f"{first:.1f}")
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="gpu", help=f"of {', '.join(SIZES)}, separated by commas")
    parser.add_argument("--batches", default="256", help="pictures a step, separated by commas")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--warm", type=int, default=40, help="steps before the clock starts, 1 at least")
    parser.add_argument("--steps", type=int, default=100, help="steps that are timed")
    asked = parser.parse_args()
    sizes = asked.sizes.split(",")
    if unknown := [size for size in sizes if size not in SIZES]:
        parser.error(f"there is no size {unknown[0]}: choose of {', '.join(SIZES)}")
    device, compiler = pick_device(asked.device), "inductor" if asked.compile else None
    print(f"{machine()}\n\n| size | batch | compiled by | ms a step | pictures/s | first step, s |")
    print("| --- | ---: | --- | ---: | ---: | ---: |")
    for batch in map(int, asked.batches.split(",")):
        for size in sizes:
            measure(size, batch, compiler, device, max(1, asked.warm), asked.steps)


if __name__ == "__main__":
    main()
