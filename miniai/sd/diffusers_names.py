"""What programs written for Diffusers' pipelines ask of ours beside painting."""

from dataclasses import dataclass
from typing import Any

from miniai.nn.autoencoder import AutoencoderKL


@dataclass(frozen=True)
class SchedulerFile:
    """What Diffusers' scheduler classes ask of another: `EulerDiscreteScheduler.from_config(pipe.scheduler.config)`."""

    config: dict[str, Any]


class DiffusersNames:
    """Methods and properties of Diffusers' pipelines, over the parts that ours has."""

    vae: AutoencoderKL
    scheduler_config: dict[str, Any]

    @property
    def scheduler(self) -> SchedulerFile:
        """For programs written for Diffusers: they may put one of its schedulers here, which then names the sampler."""
        return SchedulerFile(self.scheduler_config)

    @scheduler.setter
    def scheduler(self, scheduler: Any) -> None:
        config = dict(scheduler.config)
        named = isinstance(scheduler, SchedulerFile)
        self.scheduler_config = config if named else config | {"_class_name": type(scheduler).__name__}

    def set_progress_bar_config(self, **options: Any) -> None:
        """For programs written for Diffusers: nothing is shown here, `callback_on_step_end` sees every step."""

    def enable_vae_slicing(self) -> None:
        """Decode and encode one picture at a time: several then take no more memory than one."""
        self.vae.enable_slicing()

    def disable_vae_slicing(self) -> None:
        self.vae.disable_slicing()

    def enable_vae_tiling(self) -> None:
        """Decode and encode pictures larger than those trained on in tiles: any size then takes the memory of one."""
        self.vae.enable_tiling()

    def disable_vae_tiling(self) -> None:
        self.vae.disable_tiling()
