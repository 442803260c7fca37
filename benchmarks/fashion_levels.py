"""At which noise levels does the clothes' painter go wrong? Real pictures, noised to a level and painted from there.

    python benchmarks/fashion_levels.py                     benchmarks/weights, five levels, 12 minutes of one core
    python benchmarks/fashion_levels.py --n 128 --from 0.5  a quick look; FID of few pictures is biased

Whatever FID has above real pictures' at a level comes from the steps below it.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from miniai.base.device import autocast
from miniai.base.seeds import make_generator
from miniai.diffusion.continuous_objectives import EDMDenoiser
from miniai.diffusion.multistep import lms
from miniai.recipes.evaluate_fashion import Judge
from miniai.recipes.fashion import PADDING
from miniai.recipes.fashion_painting import from_patches, load_fashion_diffusion, to_patches

WEIGHTS = Path(__file__).parent / "weights"
BATCH = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=WEIGHTS / "fashion-conditional")
    parser.add_argument("--classifier", type=Path, default=WEIGHTS / "fashion-judge")
    parser.add_argument("--from", dest="levels", type=float, nargs="+", default=[0.1, 0.5, 2, 8, 100], metavar="SIGMA")
    parser.add_argument("--n", type=int, default=2048, help="pictures")
    parser.add_argument("--data", type=Path, help="folder of Fashion-MNIST's IDX files")
    options = parser.parse_args()
    place = torch.device("cpu")
    judge = Judge(options.classifier, options.data, place)
    network, config = load_fashion_diffusion(options.model, place)
    chosen = torch.linspace(0, len(judge.train) - 1, options.n).long()
    real = to_patches(judge.train.scaled(PADDING)[chosen], config.patch_size)
    labels = judge.train.labels[chosen]
    noise = torch.randn(real.shape, generator=make_generator(1))
    denoiser = EDMDenoiser(network.eval(), config.sigma_data)
    print("| from sigma | steps | FID over real |\n| ---: | ---: | ---: |")
    for level in options.levels:
        sigmas = config.edm_sigmas(20)
        sigmas = sigmas[sigmas <= level]
        start = (real + sigmas[0].float() * noise).split(BATCH)
        parts = [painted(denoiser, x, y, sigmas) for x, y in zip(start, labels.split(BATCH), strict=True)]
        ratio = judge.fid(from_patches(torch.cat(parts).clamp(-1, 1), config.patch_size))["ratio"]
        print(f"| {float(sigmas[0]):.3g} | {len(sigmas) - 1} | {ratio:.2f} |", flush=True)


@torch.no_grad()
def painted(denoiser: EDMDenoiser, x: Tensor, labels: Tensor, sigmas: Tensor) -> Tensor:
    with autocast(x.device):
        return lms(lambda x, sigma: denoiser(x, sigma, labels), x, sigmas.float()).float()


if __name__ == "__main__":
    main()
