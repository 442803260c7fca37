"""`miniai train fashion-ddpm`, `fashion-ddim-cosine`, `fashion-edm`, `fashion-conditional`: painted clothes.

The recipes stand in `fashion_diffusion_config`, how the trained networks paint in `fashion_painting`.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from miniai.base.device import pick_device
from miniai.base.errors import UserError
from miniai.base.files import make_folder, read_json
from miniai.base.images import save_png
from miniai.diffusion.objectives import DiffusionObjective, drop_condition
from miniai.diffusion.schedule import NoiseSchedule
from miniai.nn.unet2d import UNet2DModel
from miniai.recipes.fashion import CONFIG, PADDING, as_sheet, is_trained, load_both, save_model, start_run
from miniai.recipes.fashion_diffusion_config import N_CLASSES, FashionDiffusionConfig, recipe
from miniai.recipes.fashion_painting import load_fashion_diffusion, paint, to_patches
from miniai.recipes.training import StageRun, check_compiler, compiled, initial_weights, run_stage
from miniai.recipes.unet_stage import init_unet
from miniai.train.checkpoint import checkpoints
from miniai.train.data import TensorDataset
from miniai.train.distributed import n_launched


class FashionObjective:
    """The recipe's own objective for (pictures or latents, classes); classes are dropped now and then, or ignored.

    `compiler` puts the network through torch.compile, for the steps of the training alone: minutes at the first."""

    def __init__(self, config: FashionDiffusionConfig, compiler: str | None = None) -> None:
        self.config, self.compiler = config, compiler
        self._network: Callable[..., Tensor] | None = None
        self.objective: Any = (
            config.edm_objective if config.is_edm else DiffusionObjective(NoiseSchedule(config.schedule))
        )

    def __call__(
        self, model: nn.Module, batch: tuple[Float[Tensor, "b c h w"], Int64[Tensor, " b"]], generator: torch.Generator
    ) -> Float[Tensor, ""]:
        if self._network is None:
            self._network = compiled(model, self.compiler, batch[0].device)
        return self.errors(self._network, batch, generator).mean()

    def errors(
        self,
        network: Callable[..., Tensor],
        batch: tuple[Float[Tensor, "b c h w"], Int64[Tensor, " b"]],
        generator: torch.Generator,
    ) -> Float[Tensor, " b"]:
        """Each picture's own part of the loss, which is their mean."""
        images, labels = batch
        condition = None
        if self.config.knows_classes:
            none = torch.tensor(N_CLASSES, device=labels.device)
            condition = drop_condition(labels, none, self.config.drop_label, generator)
        images = images.contiguous(memory_format=torch.channels_last)
        return self.objective.errors(network, (images, condition), generator)


def train_fashion_diffusion(
    kind: str,
    out: Path,
    *,
    data: Path | None = None,
    epochs: int | float = 25,
    resume: bool = False,
    device: str = "auto",
    config: FashionDiffusionConfig | None = None,
    compiler: str | None = None,
    init: Path | None = None,
) -> StageRun:
    """Train the recipe `kind` in `out`: weights, config, log, loss curve and grids of samples over time.

    - compiler: a backend of torch.compile, "inductor" as a rule: minutes to begin with, then more pictures a second.
    - init: the folder of a finished training whose weights are the first ones here, instead of random ones; the rate
      rises and falls anew. The config keeps it, so that a `resume` need not name it again.

    Raises UserError if there is no such recipe, the data is not there, `out` is in use, `init` has another network, or
    there is nothing to compile with.
    """
    config = config or recipe(kind)
    train, _ = load_both(data)
    place = pick_device(device)
    if compiler is not None:
        check_compiler(compiler, place)
        if n_launched() > 1:
            raise UserError("--compile is for a training in one process: leave it out under a launcher of several")
    init = _kept_init(out) if init is None and resume else init
    start = None if init is None or checkpoints(out / "checkpoints") else load_fashion_diffusion(init, place)
    if start is not None and start[1].model != config.model:
        why = "is it told classes, and --classes missing here, or the other way round?"
        raise UserError(f"{init} has another network than fashion-{kind}: {why}")
    config = replace(config, init=None if init is None else str(init))
    run = start_run("diffusion", out, config, epochs, len(train), config.stage.batch_size, place, resume)
    if is_trained(run):
        return run
    with initial_weights(config.seed):
        model = init_unet(UNet2DModel(config.model)) if start is None else start[0].train()

    def show(path: Path) -> None:
        labels = torch.arange(20) % N_CLASSES
        make_folder(path.parent)
        save_png(path, as_sheet(paint(model, config, labels, seed=0, n_steps=min(config.n_steps, 50))))

    items = TensorDataset((to_patches(train.scaled(PADDING), config.patch_size), train.labels))
    run_stage(run, config.stage, model, items, FashionObjective(config, compiler), config.seed, sample=show)
    save_model(model, out)
    return run


def _kept_init(out: Path) -> Path | None:
    """The folder that the training in `out` began from, if its config names one."""
    kept = read_json(out / CONFIG) if (out / CONFIG).is_file() else {}
    return Path(kept["init"]) if isinstance(kept, dict) and kept.get("init") else None
