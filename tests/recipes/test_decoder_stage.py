"""The decoder's own stage: what it sees, what it is pulled by, and what stays as it was."""

from dataclasses import replace

import pytest
import torch
from tiny_model import tiny_pipeline
from torch import Tensor

from miniai.base.seeds import image_generators
from miniai.nn.autoencoder import AutoencoderKL
from miniai.recipes.decoder_stage import Critic, DecoderAndCritic, DecoderObjective, painted_latents
from miniai.recipes.text_to_image_config import TINY, DecoderLossConfig
from miniai.recipes.unet_stage import Latents
from miniai.recipes.vae_stage import edge_error, to_float

Batch = tuple[Tensor, Tensor, Tensor]


def model() -> DecoderAndCritic:
    torch.manual_seed(0)
    return DecoderAndCritic(AutoencoderKL(TINY.vae))


def batch(n: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(1)
    own, painted = torch.randn(2, n, 4, 8, 8, generator=generator)
    return own, painted, torch.randint(256, (n, 3, 16, 16), generator=generator).byte()


def gradients(learner: DecoderAndCritic, weights: DecoderLossConfig, given: Batch) -> dict[str, Tensor]:
    learner.zero_grad()
    DecoderObjective(weights, 1.0)(learner, given, torch.Generator().manual_seed(0))["loss"].backward()
    return {name: weight.grad.clone() for name, weight in learner.named_parameters() if weight.grad is not None}


def test_the_encoder_and_with_it_every_latent_stays() -> None:
    learned = {name.split(".")[0] for name in gradients(model(), DecoderLossConfig(), batch())}
    assert learned == {"vae", "critic"}
    assert not any(p.requires_grad for p in model().vae.encoder.parameters())
    names = {name.split(".")[1] for name, p in model().named_parameters() if p.requires_grad and name[:3] == "vae"}
    assert names == {"decoder", "post_quant_conv"}


def test_the_loss_is_the_sum_of_errors_and_of_the_hinge_by_the_papers() -> None:
    learner, (own, _, images) = model(), batch()
    weights = DecoderLossConfig(painted=0.0, noise=0.0, edges=0.5, features=0.0, adversarial=0.0)
    found = DecoderObjective(weights, 2.0)(learner, (own, own, images), torch.Generator().manual_seed(0))
    target, painted = to_float(images), learner.vae.decode(own / 2)
    errors = (painted - target).abs().mean() + 0.5 * edge_error(painted, target)
    (_, real), (_, fake) = learner.critic(target), learner.critic(painted)
    hinge = (1 - real).clamp_min(0).mean() + (1 + fake).clamp_min(0).mean()
    assert torch.allclose(found["loss"], errors + hinge, rtol=1e-5)
    assert torch.allclose(found["critic"], hinge, rtol=1e-5)


def test_the_critic_learns_only_to_tell_and_the_decoder_only_to_be_taken_for_drawn() -> None:
    learner, given = model(), batch()
    alone = DecoderLossConfig(adversarial=0.0, features=0.0)
    with_critic = gradients(learner, DecoderLossConfig(), given)
    without = gradients(learner, alone, given)
    same = {n for n, gradient in with_critic.items() if torch.allclose(gradient, without[n], rtol=1e-4, atol=1e-7)}
    assert {name for name in same if name.endswith("weight")} == {
        n for n, _ in learner.named_parameters() if n[:6] == "critic" and n.endswith("weight")
    }


@pytest.mark.parametrize("share", [0.25, 2.0])
def test_the_critics_pull_at_the_pictures_is_a_given_share_of_the_errors(share: float) -> None:
    learner, given = model(), batch()
    pull: list[Tensor] = []
    decode = learner.vae.decode

    def watched(latents: Tensor) -> Tensor:
        painted = decode(latents)
        painted.register_hook(pull.append)
        return painted

    learner.vae.decode = watched  # type: ignore[method-assign]
    gradients(learner, DecoderLossConfig(adversarial=0.0), given)
    gradients(learner, DecoderLossConfig(adversarial=share), given)
    # Of each objective's passes the last is that of the whole loss.
    errors, both = pull[len(pull) // 2 - 1], pull[-1]
    assert float((both - errors).norm() / errors.norm()) == pytest.approx(share, rel=1e-3)


def test_a_share_of_the_pictures_comes_from_the_unets_latents_and_the_others_are_noised() -> None:
    own, painted = torch.zeros(4000, 1, 1, 1), torch.full((4000, 1, 1, 1), 9.0)
    objective = DecoderObjective(replace(DecoderLossConfig(), painted=0.3, noise=0.2), 1.0)
    chosen = objective.choose(own, painted, torch.Generator().manual_seed(0))
    assert float((chosen == 9).float().mean()) == pytest.approx(0.3, abs=0.03)
    rest = chosen[chosen != 9]
    # Noise of a deviation that is uniform from 0 to 0.2: its variance is 0.04 / 3.
    assert float(rest.var()) == pytest.approx(0.04 / 3, rel=0.1)
    assert torch.equal(chosen, objective.choose(own, painted, torch.Generator().manual_seed(0)))


def test_a_critics_patch_is_22_pixels_wide() -> None:
    critic = Critic(4)
    image = torch.zeros(1, 3, 64, 64, requires_grad=True)
    critic(image)[1][0, 0, 4, 4].backward()
    assert image.grad is not None
    seen = image.grad.abs().sum(dim=(0, 1)).nonzero()
    assert (seen.amax(0) - seen.amin(0) + 1).tolist() == [22, 22]


def test_what_the_unet_paints_comes_from_the_pictures_own_latents() -> None:
    """Against the pipeline on one picture alone."""
    pipeline = tiny_pipeline()
    config = pipeline.unet.config
    latents = torch.randn(3, config.in_channels, 8, 8, generator=torch.Generator().manual_seed(0))
    captions = ["a red ball", "a cat", "a blue car"]
    ids = torch.cat([pipeline.tokenizer(captions), pipeline.tokenizer([""])])
    rows, counts = torch.arange(3)[:, None], torch.ones(3, dtype=torch.long)
    data = Latents(latents, rows, counts, ids, torch.zeros(0, *ids.shape[1:], config.cross_attention_dim))
    weights = DecoderLossConfig(strength=0.5, n_steps=4, guidance_scale=2.0)
    painted = painted_latents(pipeline, data, weights, seed=7, progress=False)
    alone = pipeline(
        captions[1],
        image=latents[1:2],
        strength=0.5,
        num_inference_steps=4,
        guidance_scale=2.0,
        generator=image_generators(7, 3)[1],
        output_type="latent",
    ).images
    assert isinstance(alone, Tensor)
    assert float((painted[1:2].float() - alone).norm() / alone.norm()) < 0.05  # bfloat16
