"""`miniai train style`: one picture painted in the manner of another, by its features (Gatys et al. 2016)."""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from miniai.base.device import pick_device
from miniai.base.errors import UserError
from miniai.base.files import check_writable
from miniai.base.images import open_image, save_png, to_pil, to_tensor
from miniai.evaluate.perceptual import layer_outputs
from miniai.nn.style import RandomFeatures, content_loss, gram_matrix, style_loss, total_variation
from miniai.nn.vgg import load_vgg
from miniai.train.captions import centre_square

VGG_STYLE = ("features.1", "features.6", "features.11", "features.18", "features.25")
VGG_CONTENT = ("features.18",)


def feature_network(vgg: Path | None) -> tuple[nn.Module, tuple[str, ...], tuple[str, ...]]:
    """A network, its layers for style, and those for content: VGG-16 of the file `vgg`, or random filters.

    Raises UserError for a file that holds another network.
    """
    if vgg is None:
        random = RandomFeatures()
        return random, tuple(random.layers), (random.layers[0],)
    return load_vgg(16, vgg), VGG_STYLE, VGG_CONTENT


def style_transfer(
    content: Path,
    style: Path,
    out: Path,
    *,
    vgg: Path | None = None,
    size: int = 128,
    steps: int = 300,
    style_weight: int | float = 10.0,
    device: str = "auto",
) -> Path:
    """Paint the middle square of the picture `content`, `size` pixels wide, as `style` is painted, into the PNG `out`.

    Raises UserError for a picture that cannot be read, or numbers that make no picture.
    """
    if not 32 <= size <= 2048 or steps < 1 or not 0 <= style_weight < float("inf"):
        raise UserError("give a --size of 32 to 2048 pixels, --steps above 0, and a --style-weight of at least 0")
    shown, manner = (to_tensor([centre_square(open_image(path), size)]) for path in (content, style))
    check_writable(out)
    network, style_layers, content_layers = feature_network(vgg)
    place = pick_device(device)
    painted = painted_in_style(
        shown.to(place),
        manner.to(place),
        network.to(place),
        style_layers,
        content_layers,
        steps=steps,
        style_weight=style_weight,
    )
    save_png(out, to_pil(painted)[0])
    return out


def painted_in_style(
    content: Float[Tensor, "1 c h w"],
    style: Float[Tensor, "1 c h2 w2"],
    network: nn.Module,
    style_layers: Sequence[str],
    content_layers: Sequence[str],
    *,
    steps: int,
    style_weight: int | float = 10.0,
    smooth: int | float = 0.02,
    rate: float = 0.03,
) -> Float[Tensor, "1 c h w"]:
    """Pixels that descend from `content` down the gradient of what it shows, how `style` is painted, and roughness.

    Losses are divided by what they are for `content` and `style` as they stand, so that the weights compare.
    """
    with torch.no_grad():
        wanted = layer_outputs(network, content, content_layers)
        grams = {name: gram_matrix(one) for name, one in layer_outputs(network, style, style_layers).items()}
        far = content_loss(layer_outputs(network, content.flip(-1).flip(-2), content_layers), wanted)
        unlike = style_loss(layer_outputs(network, content, style_layers), grams)
    pixels = content.clone().requires_grad_()
    optimizer = torch.optim.Adam([pixels], lr=rate)
    layers = list(dict.fromkeys([*style_layers, *content_layers]))
    for step in range(steps):
        found = layer_outputs(network, pixels, layers)
        how = style_loss(found, grams) / unlike.clamp(min=1e-12)
        what = content_loss(found, wanted) / far.clamp(min=1e-12)
        loss = style_weight * how + what + smooth * total_variation(pixels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            pixels.clamp_(-1, 1)
        if (step + 1) % 50 == 0:
            print(f"step {step + 1}: style {how.item():.4f}, content {what.item():.4f}", file=sys.stderr, flush=True)
    return pixels.detach()
