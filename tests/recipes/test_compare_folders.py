"""FID and KID of two folders of pictures: the figures, the cache, and what cannot be compared."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from miniai.base.errors import UserError
from miniai.base.images import to_tensor
from miniai.cli import run
from miniai.evaluate.fid import fid, kid
from miniai.recipes.compare_folders import batches, compare_folders

pytestmark = pytest.mark.filterwarnings("ignore::miniai.base.errors.UserNotice")


class Means(nn.Module):
    """The mean of each colour of each quarter, by weights that a fingerprint sees."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))
        self.n_seen = 0

    def forward(self, images: Tensor) -> Tensor:
        self.n_seen += len(images)
        return nn.functional.adaptive_avg_pool2d(images, 2).flatten(1) * self.scale


def write(folder: Path, n: int, seed: int, shift: int = 0) -> list[Image.Image]:
    """`n` pictures of two sizes and two formats; returns them in the order of their paths."""
    generator, images = torch.Generator().manual_seed(seed), []
    (folder / "deeper").mkdir(parents=True)
    for i in range(n):
        side = 6 if i % 3 else 8
        levels = torch.randint(0, 200, (side, side, 3), generator=generator, dtype=torch.uint8) + shift
        images.append(Image.fromarray(levels.numpy()))
        images[-1].save(folder / "deeper" / f"{i:02d}.{'png' if i % 2 else 'BMP'}")
    (folder / "deeper" / "00.txt").write_text("a caption")
    return images


def test_the_figures_are_those_of_the_pictures_features(tmp_path: Path) -> None:
    network = Means()
    rows = [
        torch.cat([network(to_tensor([image])) for image in write(tmp_path / name, n, seed, shift)]).detach()
        for name, n, seed, shift in (("a", 12, 0, 0), ("b", 9, 1, 40))
    ]
    found = compare_folders(tmp_path / "a", tmp_path / "b", network, cache=tmp_path / "cache", batch_size=2, seed=3)
    assert (found["n_a"], found["n_b"]) == (12, 9)
    assert found["fid"] == pytest.approx(fid(*rows), rel=1e-5)
    expected = kid(*rows, seed=3)
    assert (found["kid_mean"], found["kid_deviation"]) == pytest.approx((expected.mean, expected.deviation), rel=1e-4)


def test_large_pictures_are_read_fewer_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = []
    for i, side in enumerate((10, 10, 10, 40, 40)):
        paths.append(tmp_path / f"{i}.png")
        Image.new("RGB", (side, side)).save(paths[-1])
    assert [len(batch) for batch in batches(paths, 2)] == [2, 1, 2]
    monkeypatch.setattr("miniai.recipes.compare_folders.MOST_PIXELS", 1000)
    assert [len(batch) for batch in batches(paths, 32)] == [3, 1, 1]


def test_a_folder_is_looked_at_again_only_if_a_picture_or_the_network_has_changed(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        write(tmp_path / name, 5, seed)

    def n_seen(network: Means) -> int:
        compare_folders(tmp_path / "a", tmp_path / "b", network, cache=tmp_path / "cache")
        return network.n_seen

    assert n_seen(Means()) == 10
    assert n_seen(Means()) == 0
    assert n_seen(Means(2.0)) == 10
    Image.new("RGB", (6, 6)).save(tmp_path / "b" / "deeper" / "03.png")
    assert n_seen(Means()) == 5


def test_what_cannot_be_compared_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name, n in (("a", 4), ("few", 3)):
        write(tmp_path / name, n, 0)
    a, few, nowhere = (str(tmp_path / name) for name in ("a", "few", "nowhere"))
    for folders, message in (
        ((a, nowhere), f"{nowhere} is no folder: check the path"),
        ((few, a), f"{few} has 3 pictures (.png, .jpg, .jpeg, .webp, .bmp, .gif): at least 4 are needed"),
        ((a, a), "Inception's weights are not there (looked for pt_inception-2015-12-05-6726825d.pth and "),
    ):
        assert run(["evaluate", "folders", *folders]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {message}")
        assert error.count("\n") == 1
    (tmp_path / "a" / "broken.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="broken.png"):
        compare_folders(tmp_path / "a", tmp_path / "a", Means(), cache=tmp_path / "cache")
