"""Training steps of the text-to-image U-Net with its text encoder, as `miniai train text-to-image` takes them: how many
pictures a second at which batch, compiled or not, on the GPU if there is one.

    python benchmarks/train_rates.py --batches 128,256,512             as they are
    python benchmarks/train_rates.py --batches 256 --compile           through torch.compile, minutes at the first step

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
from miniai.recipes.text_to_image_config import GPU
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


def random_data(n: int) -> Latents:
    """As many pictures' latents, and captions for them."""
    generator, config = make_generator(0), GPU
    shape = (n, config.unet.in_channels, config.latent_size, config.latent_size)
    return Latents(
        latents=torch.randn(shape, generator=generator),
        rows=torch.randint(N_CAPTIONS, (n, EACH), generator=generator),
        counts=torch.full((n,), EACH),
        ids=torch.randint(config.vocab_size, (N_CAPTIONS + 1, config.window), generator=generator),
        texts=torch.zeros(0, config.window, config.text.hidden_size),
    )


def measure(batch: int, compiler: str | None, device: torch.device, warm: int, timed: int) -> None:
    """Print a row of the table."""
    config = replace(GPU, unet_stage=replace(GPU.unet_stage, batch_size=batch))
    data = random_data(max(4096, batch))
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
    print(f"| {batch} | {compiler or 'no'} | {1000 * seconds:.2f} | {batch / seconds:,.0f} | {first:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", default="256", help="pictures a step, separated by commas")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--warm", type=int, default=40, help="steps before the clock starts, 1 at least")
    parser.add_argument("--steps", type=int, default=100, help="steps that are timed")
    asked = parser.parse_args()
    device = pick_device(asked.device)
    print(f"{machine()}\n\n| batch | compiled by | ms a step | pictures/s | first step, s |")
    print("| ---: | --- | ---: | ---: | ---: |")
    for batch in map(int, asked.batches.split(",")):
        measure(batch, "inductor" if asked.compile else None, device, max(1, asked.warm), asked.steps)


if __name__ == "__main__":
    main()
