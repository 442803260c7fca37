"""Networks against Diffusers' and transformers' own, with the same weights."""

from typing import Any

import diffusers
import pytest
import torch
import transformers
from torch import nn

from miniai.base.configs import config_to_dict
from miniai.base.errors import UserError
from miniai.nn.autoencoder import AutoencoderKL, VAEConfig
from miniai.nn.clip import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, contrastive_loss
from miniai.nn.packed import pack_weights
from miniai.nn.unet import DeepFeatures, UNet2DConditionModel, UNetConfig


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def randomize(module: nn.Module, seed: int = 0) -> None:
    """Weights none of which is zero or one, so that each of them matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


UNETS = {
    "two levels, linear projection": UNetConfig(
        sample_size=8,
        in_channels=16,
        out_channels=16,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        layers_per_block=1,
        cross_attention_dim=24,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        norm_num_groups=8,
    ),
    "Stable Diffusion 1 in small": UNetConfig(
        sample_size=16,
        block_out_channels=(16, 32, 32, 48),
        layers_per_block=2,
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=8,
    ),
    "no attention at the top, two transformer blocks": UNetConfig(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        transformer_layers_per_block=2,
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=8,
        use_linear_projection=True,
    ),
}


@pytest.mark.parametrize("name", UNETS)
@pytest.mark.parametrize("grad", [False, True])
def test_unet_equals_diffusers_with_the_same_weights(name: str, grad: bool) -> None:
    config = UNETS[name]
    theirs = diffusers.UNet2DConditionModel(**config_to_dict(config)).eval()
    randomize(theirs)
    ours = UNet2DConditionModel(config)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, config.in_channels, config.sample_size, config.sample_size)
    t, text = torch.tensor([3, 721]), torch.randn(2, 7, config.cross_attention_dim)
    with torch.set_grad_enabled(grad):
        assert relative_error(ours(x, t, text), theirs(x, t, encoder_hidden_states=text).sample) < 1e-5


def first_resnet_sees(unet: UNet2DConditionModel, *inputs: Any, **keywords: Any) -> tuple[int, torch.Tensor]:
    """How many pictures the first residual block is given, and what the U-Net makes."""
    seen: list[int] = []
    hook = unet.down_blocks[0].resnets[0].register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    with torch.no_grad():
        made = unet(*inputs, **keywords)
    hook.remove()
    return seen[0], made


@pytest.mark.parametrize("name", UNETS)
def test_pictures_that_guidance_asks_for_twice_are_computed_once_up_to_the_text(name: str) -> None:
    config = UNETS[name]
    theirs = diffusers.UNet2DConditionModel(**config_to_dict(config)).eval()
    randomize(theirs)
    ours = UNet2DConditionModel(config).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    pictures = torch.randn(2, config.in_channels, config.sample_size, config.sample_size)
    x, t, text = torch.cat([pictures] * 2), torch.tensor([721, 30] * 2), torch.randn(4, 7, config.cross_attention_dim)
    attends = config.down_block_types[0] != "DownBlock2D"
    n_seen, made = first_resnet_sees(ours, x, t, text)
    assert n_seen == (2 if attends else 4)
    with torch.no_grad():
        assert relative_error(made, theirs(x, t, encoder_hidden_states=text).sample) < 1e-5
    for other_x, other_t in ((x + torch.arange(4)[:, None, None, None], t), (x, torch.tensor([721, 30, 721, 31]))):
        n_seen, made = first_resnet_sees(ours, other_x, other_t, text)
        assert n_seen == 4
        with torch.no_grad():
            assert relative_error(made, theirs(other_x, other_t, encoder_hidden_states=text).sample) < 1e-5
    assert first_resnet_sees(ours, x[:3], t[:3], text[:3])[0] == 3


def test_twins_are_seen_in_packed_weights_and_with_deep_features_kept() -> None:
    config = UNETS["Stable Diffusion 1 in small"]
    unet = pack_weights(UNet2DConditionModel(config).to(torch.bfloat16).eval())
    x = torch.cat([torch.randn(1, 4, 16, 16)] * 2).bfloat16()
    t, text = torch.tensor([500, 500]), torch.randn(2, 7, 32).bfloat16()
    for branch in range(3):
        n_seen, made = first_resnet_sees(unet, x, t, text, DeepFeatures(branch))
        assert n_seen == 1
        kept = DeepFeatures(branch)
        with torch.no_grad():
            unet(x, t, text, kept)
            again = unet(x, t, text, kept)
        # With a third picture beside them the two are no halves of the batch.
        three = torch.cat([x, x[:1] + 1]), torch.tensor([500] * 3), torch.cat([text, text[:1]])
        n_seen, expected = first_resnet_sees(unet, *three, DeepFeatures(branch))
        assert n_seen == 3
        for got in (made, again):
            assert relative_error(got.float(), expected[:2].float()) < 2e-2


def test_unet_reads_the_config_that_diffusers_writes() -> None:
    config = UNETS["Stable Diffusion 1 in small"]
    written = dict(diffusers.UNet2DConditionModel(**config_to_dict(config)).config)
    assert UNetConfig.from_dict(written, "config.json") == config


def test_unet_refuses_an_option_it_does_not_have() -> None:
    with pytest.raises(UserError, match="class_embed_type"):
        UNetConfig.from_dict({"class_embed_type": "timestep"}, "unet/config.json")


def test_unet_handles_sizes_that_do_not_halve_evenly_as_diffusers_does() -> None:
    config = UNETS["Stable Diffusion 1 in small"]
    theirs = diffusers.UNet2DConditionModel(**config_to_dict(config)).eval()
    ours = UNet2DConditionModel(config)
    ours.load_state_dict(theirs.state_dict())
    x, text = torch.randn(1, 4, 13, 10), torch.randn(1, 7, 32)
    with torch.no_grad():
        expected = theirs(x, torch.tensor([5]), encoder_hidden_states=text).sample
        assert relative_error(ours(x, torch.tensor([5]), text), expected) < 1e-5


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("quant", [True, False])
def test_autoencoder_equals_diffusers_with_the_same_weights(attention: bool, quant: bool) -> None:
    config = VAEConfig(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 16, 24),
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=32,
        mid_block_add_attention=attention,
        use_quant_conv=quant,
        use_post_quant_conv=quant,
    )
    theirs = diffusers.AutoencoderKL(**config_to_dict(config)).eval()
    randomize(theirs)
    assert VAEConfig.from_dict(dict(theirs.config), "config.json") == config
    ours = AutoencoderKL(config)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        ours_dist, their_dist = ours.encode(images), theirs.encode(images).latent_dist
        assert relative_error(ours_dist.mean, their_dist.mean) < 1e-5
        assert relative_error(ours_dist.log_variance, their_dist.logvar) < 1e-5
        assert relative_error(ours_dist.kl(), their_dist.kl()) < 1e-5
        z = their_dist.mean
        assert relative_error(ours.decode(z), theirs.decode(z).sample) < 1e-5
        noise = torch.Generator().manual_seed(3)
        expected = their_dist.sample(torch.Generator().manual_seed(3))
        assert relative_error(ours_dist.sample(noise), expected) < 1e-5


TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
TEXT |= {"vocab_size": 100, "max_position_embeddings": 16, "projection_dim": 24, "bos_token_id": 98}


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("eos", [99, 2])
def test_text_encoder_equals_transformers_with_the_same_weights(activation: str, eos: int) -> None:
    values = {**TEXT, "hidden_act": activation, "eos_token_id": eos, "pad_token_id": 99}
    theirs = transformers.CLIPTextModel(transformers.CLIPTextConfig(**values)).eval()
    randomize(theirs)
    ours = CLIPTextModel(CLIPTextConfig.from_dict(theirs.config.to_dict(), "config.json"))
    state = theirs.state_dict()
    if not any(key.startswith("text_model.") for key in state):  # transformers 5 left the prefix out of the module
        state = {f"text_model.{key}": value for key, value in state.items()}
    state.pop("text_model.embeddings.position_ids", None)
    ours.load_state_dict(state, strict=True)
    ids = torch.tensor([[98, 5, 7, 99, 99, 99], [98, 1, 4, 6, 8, 99]])
    with torch.no_grad():
        expected = theirs(input_ids=ids, output_hidden_states=True)
        out = ours(ids)
    assert relative_error(out.last_hidden_state, expected.last_hidden_state) < 1e-5
    assert relative_error(out.pooled, expected.pooler_output) < 1e-5
    for ours_state, their_state in zip(out.hidden_states, expected.hidden_states, strict=True):
        assert relative_error(ours_state, their_state) < 1e-5


def test_clip_equals_transformers_with_the_same_weights() -> None:
    text = CLIPTextConfig(**{**TEXT, "eos_token_id": 99, "pad_token_id": 99})
    vision = CLIPVisionConfig(
        hidden_size=40,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
        projection_dim=24,
    )
    ours = CLIPModel(CLIPConfig(text, vision, projection_dim=24))
    theirs = transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config=config_to_dict(text), vision_config=config_to_dict(vision), projection_dim=24
        )
    ).eval()
    assert CLIPConfig.from_dict(theirs.config.to_dict(), "config.json") == ours.config
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ids = torch.tensor([[98, 5, 7, 99], [98, 1, 99, 99], [98, 2, 3, 99]])
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        expected = theirs(input_ids=ids, pixel_values=images, return_loss=True)
        image_vectors, text_vectors = ours.encode_image(images), ours.encode_text(ids)
        assert relative_error(image_vectors, expected.image_embeds) < 1e-5
        assert relative_error(text_vectors, expected.text_embeds) < 1e-5
        ours_loss = contrastive_loss(image_vectors, text_vectors, ours.logit_scale)
        assert relative_error(ours_loss, expected.loss) < 1e-5
