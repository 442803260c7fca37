"""Stage 5: every caption of a picture comes to mean to the U-Net what the picture's first caption means.

A word that few captions hold ("a bee", where the label says "honeybee") is learned slowly from pictures: at high noise,
where the text decides, the error of each single guess is many times what the word could change. But under the first
caption, the most frequent, the U-Net knows already. So what it predicts under that is the target under any other, a
target with no noise of its own, and the text encoder alone learns to bring it about: distillation (Hinton et al. 2015)
of one text into another. The U-Net stays as it is.
"""

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from miniai.diffusion.objectives import draw_timesteps
from miniai.diffusion.parametrisation import like_images
from miniai.diffusion.schedule import NoiseSchedule
from miniai.nn.clip import CLIPTextModel
from miniai.nn.unet import UNet2DConditionModel
from miniai.recipes.clip_stage import choose_captions
from miniai.recipes.text_to_image_config import TextToImageConfig
from miniai.recipes.training import StageRun, run_stage
from miniai.recipes.unet_stage import Latents
from miniai.train.data import TensorDataset


class PupilAndTeacher(nn.Module):
    """The text encoder that learns, beside what stays: a copy of it as it was, and the U-Net that listens to both."""

    def __init__(self, text_encoder: CLIPTextModel, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.teacher = copy.deepcopy(text_encoder).requires_grad_(False)
        self.unet = unet.requires_grad_(False)
        self.pupil = text_encoder.requires_grad_(True)


class WordsObjective:
    """Mean squared difference of what the U-Net predicts for a noised picture under one of its captions, read by the
    pupil, and under its first caption, read by the teacher. Where a caption is dropped, both read the empty prompt."""

    def __init__(self, config: TextToImageConfig, data: Latents, device: torch.device) -> None:
        self.ids = data.ids.to(device)
        self.alpha_bar = NoiseSchedule(config.schedule).alpha_bar
        self.drop_text, self.shift = config.drop_text, config.words_shift

    def __call__(
        self, model: nn.Module, batch: tuple[Tensor, Tensor, Tensor], generator: torch.Generator
    ) -> Float[Tensor, ""]:
        assert isinstance(model, PupilAndTeacher)
        latents, rows, counts = batch
        dropped = torch.rand(len(latents), generator=generator, device=generator.device) < self.drop_text
        empty = len(self.ids) - 1
        chosen = choose_captions(rows, counts, generator).masked_fill(dropped.to(rows.device), empty)
        first = rows[:, 0].masked_fill(dropped.to(rows.device), empty)

        t = draw_timesteps(len(latents), len(self.alpha_bar), generator, shift=self.shift, stratified=True)
        noise = torch.randn(latents.shape, generator=generator, device=generator.device).to(latents.device)
        level = self.alpha_bar[t.to(self.alpha_bar.device)].to(latents.device, torch.float32)
        x_t = like_images(level.sqrt(), latents) * latents + like_images((1 - level).sqrt(), latents) * noise
        x_t, t = x_t.contiguous(memory_format=torch.channels_last), t.to(latents.device, torch.float32)

        with torch.no_grad():
            target = model.unet(x_t, t, model.teacher(self.ids[first]).last_hidden_state.float()).float()
        said = model.unet(x_t, t, model.pupil(self.ids[chosen]).last_hidden_state.float()).float()
        return (said - target).square().mean()


def train_words(
    config: TextToImageConfig, data: Latents, text_encoder: CLIPTextModel, unet: UNet2DConditionModel, run: StageRun
) -> CLIPTextModel:
    """Train `text_encoder` in place, so that the U-Net paints under any caption of `data` what it paints under the
    first of the same picture."""
    model = PupilAndTeacher(text_encoder, unet)
    pictures = TensorDataset((data.latents, data.rows, data.counts))
    run_stage(run, config.words_stage, model, pictures, WordsObjective(config, data, run.device), config.seed)
    return model.pupil
