"""`miniai evaluate fashion-classifier`, with untrained networks on a few hundred real pictures."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from miniai.base.configs import config_to_dict
from miniai.cli import run
from miniai.nn.resnet import ResNet, ResNetConfig
from miniai.recipes.evaluate_classifier import evaluate_classifiers
from miniai.recipes.fashion import save_model
from miniai.recipes.fashion_classifier import FashionClassifierConfig
from miniai.train.fashion_mnist import CLASSES, load_fashion_mnist

DATA = Path(__file__).parent.parent / "data" / "fashion-mnist"


def make_classifier(folder: Path, seed: int) -> ResNet:
    """Untrained, but with a last layer large enough to be sure of what it says."""
    config = ResNetConfig(block_out_channels=(8, 8 + 4 * seed), dropout=0.0)
    torch.manual_seed(seed)
    network = ResNet(config).eval()
    torch.nn.init.normal_(network.head.weight)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config_to_dict(FashionClassifierConfig(model=config))))
    save_model(network, folder)
    return network


@torch.no_grad()
def test_figures_are_those_of_each_network_and_of_their_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [Path("1"), Path("together")]
    networks = [make_classifier(folder, seed) for folder, seed in zip(folders, (1, 2), strict=True)]
    found = evaluate_classifiers(folders, data=DATA, out=tmp_path / "out", device="cpu")
    assert [one["classifier"] for one in found] == [*map(str, folders), "together"]
    test = load_fashion_mnist("test", DATA)
    each = [[network(view).log_softmax(1) for view in (test.scaled(), test.scaled().flip(3))] for network in networks]
    each.append([(one + other) / 2 for one, other in zip(*each, strict=True)])
    expected = [(views[0], torch.stack(views).mean(0)) for views in each]
    for one, (plain, mirrored) in zip(found, expected, strict=True):
        right = plain.argmax(1) == test.labels
        assert one["accuracy"] == right.double().mean().item()
        assert one["accuracy_with_mirror_images"] == (mirrored.argmax(1) == test.labels).double().mean().item()
        assert one["cross_entropy"] == pytest.approx(F.cross_entropy(plain, test.labels).item(), rel=1e-4)
        for i, name in enumerate(CLASSES):
            assert one["by_class"][name] == right[test.labels == i].double().mean().item()
    assert len({one["cross_entropy"] for one in found}) == 3
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == found
    assert (tmp_path / "out" / "mistakes.png").read_bytes()[:4] == b"\x89PNG"


def test_one_alone_has_no_row_of_all_and_writes_nothing_unasked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_classifier(tmp_path / "1", 1)
    before = sorted(tmp_path.rglob("*"))
    assert run(["evaluate", "fashion-classifier", "--classifier", str(tmp_path / "1"), "--data", str(DATA)]) == 0
    lines = capsys.readouterr().out.splitlines()
    (found,) = evaluate_classifiers([tmp_path / "1"], data=DATA)
    assert lines[2].startswith(f"| {tmp_path / '1'} | {100 * found['accuracy']:.2f} % |")
    least = min(found["by_class"].values())
    assert lines[3].endswith(f"{100 * least:.1f} %")
    assert len(lines) == 4
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_no_classifier_or_named_twice_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_classifier(tmp_path / "1", 1)
    command = ["evaluate", "fashion-classifier", "--data", str(DATA), "--out", str(tmp_path / "out")]
    first = ["--classifier", str(tmp_path / "1")]
    assert run([*command, *first, "--classifier", f"{tmp_path}/2/../1"]) == 2
    assert capsys.readouterr().err == f"error: --classifier {tmp_path}/2/../1 is named twice: it would count as two\n"
    assert run([*command, *first, "--classifier", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    (tmp_path / "1" / "model.safetensors").unlink()
    assert run([*command, *first]) == 2
    assert "its training is not finished" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
