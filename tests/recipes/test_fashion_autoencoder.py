"""The autoencoder of clothes and the diffusion in its latents, tiny, on a few hundred pictures of Fashion-MNIST."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_fashion import CPU, DATA, tiny_autoencoder, tiny_latent

from miniai.base.errors import UserError
from miniai.cli import run
from miniai.nn.autoencoder import AutoencoderKL
from miniai.nn.resnet import ResNetConfig
from miniai.nn.unet2d import UNet2DModel
from miniai.recipes.fashion import PADDING
from miniai.recipes.fashion_autoencoder import (
    AutoencoderObjective,
    FashionAutoencoderConfig,
    by_components,
    encoded,
    load_autoencoder,
    psnr,
    reconstructed,
    small_autoencoder,
    squared_error,
    train_fashion_autoencoder,
)
from miniai.recipes.fashion_classifier import FashionClassifierConfig, train_fashion_classifier
from miniai.recipes.fashion_latent import FashionLatentConfig, LatentScale, load_painter, train_fashion_latent
from miniai.recipes.training import initial_weights
from miniai.train.fashion_mnist import load_fashion_mnist


def test_an_autoencoder_learns_to_paint_unseen_pictures_again(tmp_path: Path) -> None:
    results = train_fashion_autoencoder(tmp_path, data=DATA, epochs=3, config=tiny_autoencoder())
    pictures = load_fashion_mnist("test", DATA).scaled(PADDING)
    model = load_autoencoder(tmp_path, CPU)
    painted = reconstructed(model, pictures, CPU)
    assert squared_error(painted, pictures) == pytest.approx(results["squared_error"], rel=1e-4)
    assert squared_error(painted, pictures) < 0.6 * squared_error(pictures.mean(0).expand_as(pictures), pictures)
    assert encoded(model, pictures[:3], CPU).numel() == 3 * results["numbers"] == 3 * 2 * 16 * 16
    for name in ("loss.png", "reconstructions.png", "model.safetensors"):
        assert (tmp_path / name).is_file()
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert train_fashion_autoencoder(tmp_path, data=DATA, epochs=3, resume=True, config=tiny_autoencoder()) == results


def test_a_variational_loss_has_the_divergence_and_the_noise_and_a_plain_one_has_neither() -> None:
    images = load_fashion_mnist("test", DATA).scaled(PADDING)[:8]
    with initial_weights(0):
        model = AutoencoderKL(small_autoencoder((8, 16), 2))
    latents = model.encode(images)

    def loss(kl: float, seed: int) -> dict[str, torch.Tensor]:
        return AutoencoderObjective(kl)(model, images, torch.Generator().manual_seed(seed))

    plain, noisy = loss(0.0, 1), loss(0.1, 1)
    assert plain.keys() == {"loss"}
    torch.testing.assert_close(plain["loss"], (model.decode(latents.mean) - images).square().mean())
    assert torch.equal(plain["loss"], loss(0.0, 2)["loss"])
    normal = torch.distributions.Normal(latents.mean, (0.5 * latents.log_variance).exp())
    divergence = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0, 1)).mean()
    torch.testing.assert_close(noisy["kl"], divergence)
    torch.testing.assert_close(noisy["loss"], noisy["error"] + 0.1 * divergence)
    assert not torch.equal(noisy["error"], loss(0.1, 2)["error"])


def test_principal_components_are_those_of_numpys_singular_vectors() -> None:
    rows = torch.randn(60, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 2, 8) + 0.5
    train, unseen = rows[:50], rows[50:]
    flat = train.flatten(1).double().numpy()
    mean = flat.mean(axis=0)
    vectors = np.linalg.svd(flat - mean)[2][:5]
    expected = (unseen.flatten(1).double().numpy() - mean) @ vectors.T @ vectors + mean
    assert np.allclose(by_components(train, unseen, 5).flatten(1).numpy(), expected, atol=1e-4)


def test_psnr_is_that_of_its_definition_and_padding_does_not_count() -> None:
    pictures = torch.zeros(2, 1, 32, 32)
    off = pictures.clone()
    off[:, :, PADDING:-PADDING, PADDING:-PADDING] += 0.2
    off[:, :, 0] += 9
    assert squared_error(off, pictures) == pytest.approx(0.04)
    assert psnr(0.04) == pytest.approx(20.0)  # a hundredth of the squared range


def test_latents_are_standardised_and_restored() -> None:
    latents = torch.randn(50, 3, 4, 4) * torch.tensor([1.0, 5.0, 0.1])[:, None, None] + 7
    scale = LatentScale.of(latents)
    standard = scale.standardised(latents)
    torch.testing.assert_close(standard.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(standard.std(dim=(0, 2, 3)), torch.ones(3))
    torch.testing.assert_close(scale.restored(standard), latents)


def test_diffusion_in_latents_trains_after_its_autoencoder_resumes_paints_and_is_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, options = tmp_path / "latent", {"data": DATA, "epochs": 0.4, "autoencoder_epochs": 1}

    def die(*arguments: object) -> None:
        raise RuntimeError("the machine went away")

    monkeypatch.setattr("miniai.recipes.fashion_latent.save_model", die)
    with pytest.raises(RuntimeError, match="went away"):
        train_fashion_latent(folder, config=tiny_latent(), **options)  # type: ignore[arg-type]
    monkeypatch.undo()
    with pytest.raises(UserError, match="not finished"):
        load_painter(folder, CPU)
    with pytest.raises(UserError, match="add --resume"):
        train_fashion_latent(folder, config=tiny_latent(), **options)  # type: ignore[arg-type]
    train_fashion_latent(folder, config=tiny_latent(), resume=True, **options)  # type: ignore[arg-type]
    paint, config = load_painter(folder, CPU)
    images = paint(torch.arange(6), seed=3)
    assert images.shape == (6, 1, 32, 32)
    assert images.isfinite().all()
    assert -1 <= images.min() < images.max() <= 1
    torch.testing.assert_close(paint(torch.arange(6)[2:4], seed=5, batch_size=1), images[2:4], rtol=0, atol=0.05)
    assert not torch.equal(paint(torch.full((6,), 7), seed=3), images)
    for name in ("loss.png", "autoencoder/reconstructions.png", "autoencoder/results.json"):
        assert (folder / name).is_file()
    assert list((folder / "samples").glob("*.png"))
    judge = FashionClassifierConfig(model=ResNetConfig(block_out_channels=(8, 16)))
    judge = replace(judge, stage=replace(judge.stage, batch_size=20, learning_rate=1e-2, ema=0.5))
    train_fashion_classifier(tmp_path / "judge", data=DATA, epochs=1, config=judge)
    capsys.readouterr()
    folders = ["--model", str(folder), "--classifier", str(tmp_path / "judge"), "--data", str(DATA)]
    assert run(["evaluate", "fashion", *folders, "--n", "64"]) == 0
    assert "ratio" in capsys.readouterr().out
    assert json.loads((folder / "evaluation.json").read_text())["kind"] == "latent"


def test_the_recipes_own_networks_fit_one_another() -> None:
    config = FashionLatentConfig()
    with torch.device("meta"):
        vae, unet = AutoencoderKL(config.autoencoder.model), UNet2DModel(config.diffusion.model)
        latents = vae.encode(torch.zeros(2, 1, 32, 32)).mode()
        painted = vae.decode(unet(latents, torch.zeros(2), torch.zeros(2, dtype=torch.long)))
    assert latents.shape == (2, 4, 8, 8)
    assert painted.shape == (2, 1, 32, 32)
    assert config.autoencoder.n_numbers == 256
    assert FashionAutoencoderConfig().n_numbers == 64
    assert 7e6 < sum(weight.numel() for weight in unet.parameters()) < 8e6


def test_epochs_must_be_above_0(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--autoencoder-epochs 0 is not possible"):
        train_fashion_latent(tmp_path / "out", data=DATA, autoencoder_epochs=0)
    assert not (tmp_path / "out").exists()
