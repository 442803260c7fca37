"""The network of FID: its published shapes and numbers of parameters, and its weights read from a file."""

import re
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from miniai.base.errors import UserError
from miniai.base.weights import write_weights
from miniai.cli import run
from miniai.evaluate.fid import moments
from miniai.evaluate.inception import BLOCKS, FILES, InceptionV3, load_inception, resized_as_in_2015
from miniai.evaluate.perceptual import features_in_batches, layer_outputs

# From torchvision's documentation: 27,161,264 in all, less 3,326,696 of the second classifier, which FID's file lacks,
# and 1,008 classes instead of 1,000.
N_PARAMETERS = 27_161_264 - 3_326_696 + 8 * 2049


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Random ones under the names in the file, such that features neither vanish nor explode."""
    with torch.device("meta"):
        wanted = InceptionV3().state_dict()
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, value in wanted.items():
        if name.endswith("conv.weight"):
            found[name] = torch.randn(value.shape, generator=generator) * (2 / value[0].numel()) ** 0.5
        elif value.is_floating_point():
            found[name] = torch.rand(value.shape, generator=generator) * 0.1 + (
                "bias" not in name and "mean" not in name
            )
    return {name: value.half() for name, value in found.items()}


def meta_network() -> InceptionV3:
    with torch.device("meta"):
        return InceptionV3()


def test_the_network_has_the_published_number_of_parameters_under_the_names_of_the_file() -> None:
    network = meta_network()
    assert sum(weight.numel() for weight in network.parameters()) == N_PARAMETERS
    names = network.state_dict().keys()
    assert sum(name.endswith("conv.weight") for name in names) == 94
    assert len([name for name in names if not name.endswith("num_batches_tracked")]) == 94 * 5 + 2
    for name, shape in {
        "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
        "Mixed_5b.branch_pool.bn.running_var": (32,),
        "Mixed_6a.branch3x3dbl_3.conv.weight": (96, 96, 3, 3),
        "Mixed_6c.branch7x7dbl_2.conv.weight": (160, 160, 7, 1),
        "Mixed_6e.branch7x7_2.conv.weight": (192, 192, 1, 7),
        "Mixed_7a.branch7x7x3_4.conv.weight": (192, 192, 3, 3),
        "Mixed_7b.branch3x3_2a.conv.weight": (384, 384, 1, 3),
        "Mixed_7c.branch3x3dbl_3b.bn.bias": (384,),
        "fc.weight": (1008, 2048),
    }.items():
        assert tuple(network.state_dict()[name].shape) == shape


def test_maps_have_the_sizes_of_the_papers_table_1() -> None:
    with torch.device("meta"):
        pictures = torch.zeros(2, 3, 40, 500)
    layers = ["Conv2d_1a_3x3", "Conv2d_2b_3x3", "Conv2d_4a_3x3", *BLOCKS]
    maps = layer_outputs(meta_network(), pictures, layers)
    assert [tuple(maps[name].shape[1:3]) for name in layers] == [
        *((32, 149), (64, 147), (192, 71)),
        *((256, 35), (288, 35), (288, 35)),
        *((768, 17),) * 5,
        *((1280, 8), (2048, 8), (2048, 8)),
    ]


def test_features_are_read_from_files_with_and_without_counts_of_batches(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    pictures = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    torch.save(weights, tmp_path / FILES[0])
    counts = {name.replace("weight", "num_batches_tracked"): torch.tensor(7) for name in weights if "bn.weight" in name}
    write_weights(tmp_path / "other.safetensors", weights | counts)
    network = load_inception(tmp_path / FILES[0])
    assert torch.equal(network.Mixed_7c.branch1x1.conv.weight, weights["Mixed_7c.branch1x1.conv.weight"].float())
    other = load_inception(tmp_path / "other.safetensors").state_dict()
    assert all(torch.equal(value, other[name]) for name, value in network.state_dict().items())
    features = features_in_batches(network, pictures)
    assert features.shape == (2, 2048)
    assert features.isfinite().all()
    assert (features >= 0).all()
    assert float((features[0] - features[1]).abs().mean()) > 1e-3
    levels = ((pictures + 1) * 127.5).round() / 127.5 - 1  # what a file would have of them
    assert torch.equal(features_in_batches(network, levels), features)
    assert moments(features).mean.shape == (2048,)


def test_the_command_line_measures_two_folders_with_it(
    weights: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(weights, tmp_path / "inception.pth")
    for name, brightest in (("dark", 90), ("light", 256)):
        (tmp_path / name).mkdir()
        for i in range(4):
            levels = np.random.default_rng(i).integers(0, brightest, (9, 9, 3), dtype=np.uint8)
            Image.fromarray(levels).save(tmp_path / name / f"{i}.png")
    folders, options = [str(tmp_path / "dark"), str(tmp_path / "light")], ["--cache", str(tmp_path / "cache")]
    assert run(["evaluate", "folders", *folders, *options, "--inception", str(tmp_path / "inception.pth")]) == 0
    output = capsys.readouterr()
    assert re.fullmatch(r"FID \d+\.\d{3} of 4 and 4 pictures\nKID .* among 100 subsets of 2\n", output.out)
    assert "FID of 4 pictures is biased upward" in output.err
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_fork_and_the_poolings_are_their_definitions() -> None:
    network = InceptionV3()
    block = network.Mixed_7c
    assert isinstance(block, nn.Module)
    x = torch.rand(1, 2048, 4, 5, generator=torch.Generator().manual_seed(2))
    units = dict(block.named_children())
    y = units["branch3x3_1"](x)
    z = units["branch3x3dbl_2"](units["branch3x3dbl_1"](x))
    expected = [
        units["branch1x1"](x),
        *(units["branch3x3_2a"](y), units["branch3x3_2b"](y)),
        *(units["branch3x3dbl_3a"](z), units["branch3x3dbl_3b"](z)),
        units["branch_pool"](F.max_pool2d(F.pad(x, (1, 1, 1, 1), value=-1e9), 3, stride=1)),
    ]
    torch.testing.assert_close(block(x), torch.cat(expected, dim=1))
    ones = F.pad(torch.ones(1, 1, 4, 5), (1, 1, 1, 1))
    share = F.conv2d(ones, torch.ones(1, 1, 3, 3))  # places of a window that lie inside
    sums = F.conv2d(F.pad(x[:, :288], (1, 1, 1, 1)), torch.ones(288, 1, 3, 3), groups=288)
    pooled = dict(network.Mixed_5d.named_children())["branch_pool"](sums / share)
    torch.testing.assert_close(network.Mixed_5d(x[:, :288])[:, -64:], pooled)


@pytest.mark.parametrize("shape", [(32, 32), (64, 48), (400, 7)])
def test_pictures_are_resized_from_i_times_the_ratio_without_half_a_pixel(shape: tuple[int, int]) -> None:
    picture = torch.rand(*shape, generator=torch.Generator().manual_seed(3)) * 255
    places = np.meshgrid(*(np.arange(299) * n / 299 for n in shape), indexing="ij")
    expected = scipy.ndimage.map_coordinates(picture.double().numpy(), places, order=1, mode="nearest")
    assert np.allclose(resized_as_in_2015(picture[None, None], 299)[0, 0].numpy(), expected, atol=0.02)


def test_another_networks_file_and_none_at_all_are_one_line(
    weights: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {name: weights[name] for name in list(weights)[:30]}
    torch.save(few, tmp_path / "few.pth")
    with pytest.raises(UserError, match="few.pth lacks Mixed_5b"):
        load_inception(tmp_path / "few.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match="Inception's weights are not there .*pt_inception-2015-12-05-6726825d.pth and"):
        load_inception()
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / FILES[1]).write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(UserError, match="git-LFS pointer"):
        load_inception()
