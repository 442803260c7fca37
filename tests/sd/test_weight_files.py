"""Folders as Diffusers has written them over the years: shards, variants, pickles, old names. And the local cache."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub
import pytest
import torch
from sd_oracle import make_diffusers_pipeline

from miniai.base.errors import UserError
from miniai.base.files import read_json, write_json
from miniai.base.weights import read_weights, write_weights
from miniai.cli import run
from miniai.sd.folder import TEXT_WEIGHTS, UNET_WEIGHTS, VAE_WEIGHTS, Components, read_folder
from miniai.sd.hub import cached_snapshot, default_cache, find_model
from miniai.sd.pipeline import StableDiffusionPipeline
from miniai.sd.tensor_names import text_encoder_names
from miniai.sd.weight_files import PARTS, read_file, read_size

CPU = torch.device("cpu")
HUB_ID = "someone/tiny-diffusion"


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> diffusers.StableDiffusionPipeline:
    return make_diffusers_pipeline(tmp_path_factory.mktemp("tokenizer"), "v_prediction")


@pytest.fixture(scope="module")
def whole(theirs: diffusers.StableDiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "model"
    theirs.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy to be changed."""
    return shutil.copytree(whole, tmp_path / "model")


def states(parts: Components) -> dict[str, torch.Tensor]:
    modules = {"text_encoder": parts.text_encoder, "unet": parts.unet, "vae": parts.vae}
    return {f"{part}.{name}": t for part, module in modules.items() for name, t in module.state_dict().items()}


def assert_same(folder: Path, whole: Path, **options: Any) -> None:
    ours, expected = (
        states(read_folder(path, torch.float32, CPU, **o)) for path, o in ((folder, options), (whole, {}))
    )
    assert ours.keys() == expected.keys()
    exact = 1e-3 if options.get("variant") else 0.0
    assert all(torch.allclose(ours[name], expected[name], rtol=exact, atol=exact) for name in expected)


def pickle_weights(folder: Path, weights: str) -> Path:
    """The weights as a PyTorch file; transformers calls it by another name."""
    tensors = {name: tensor.clone() for name, tensor in read_weights(folder / weights).items()}
    stem = "pytorch_model" if weights == TEXT_WEIGHTS else "diffusion_pytorch_model"
    (folder / weights).unlink()
    torch.save(tensors, (folder / weights).with_name(f"{stem}.bin"))
    return (folder / weights).with_name(f"{stem}.bin")


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_and_variants_that_diffusers_writes_are_read(
    theirs: diffusers.StableDiffusionPipeline, whole: Path, tmp_path: Path, variant: str | None
) -> None:
    theirs.save_pretrained(tmp_path, max_shard_size="20KB", variant=variant)
    indices = sorted(path.name for path in (tmp_path / "unet").glob("*.json") if "index" in path.name)
    assert len(indices) == 1
    assert len(list((tmp_path / "unet").glob("*.safetensors"))) > 2
    assert not (tmp_path / UNET_WEIGHTS).exists()
    assert_same(tmp_path, whole, variant=variant)


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("size", [None, 20_000, "5 KiB"])
def test_shards_and_variants_that_we_write_are_read_here_and_in_diffusers(
    whole: Path, tmp_path: Path, variant: str | None, size: int | str | None
) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(whole)
    pipe.save_pretrained(tmp_path / "model", variant=variant, max_shard_size=size)
    assert_same(tmp_path / "model", whole, variant=variant)
    mark = f".{variant}" if variant else ""
    for part, stem in PARTS.items():
        found = sorted(path.name for path in (tmp_path / "model" / part).glob("*.safetensors"))
        if size is None:
            assert found == [f"{stem}{mark}.safetensors"]
            continue
        assert found == [f"{stem}{mark}-{i + 1:05d}-of-{len(found):05d}.safetensors" for i in range(len(found))]
        assert len(found) > 1
        index = read_json(tmp_path / "model" / part / f"{stem}.safetensors.index{mark}.json")
        n_bytes = sum(t.numel() * t.element_size() for t in getattr(pipe, part).state_dict().values())
        assert index["metadata"] == {"total_size": n_bytes}
        for name in found:
            tensors = read_weights(tmp_path / "model" / part / name)
            n_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
            assert n_bytes <= read_size(size) or len(tensors) == 1
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "model", variant=variant)
    for part in PARTS:
        written, read = getattr(pipe, part).state_dict(), getattr(theirs, part).state_dict()
        read = text_encoder_names(read) if part == "text_encoder" else read
        assert written.keys() == read.keys()
        assert all(torch.equal(written[name], read[name]) for name in written)


def test_what_was_there_in_the_other_form_is_removed_and_other_variants_stay(whole: Path, tmp_path: Path) -> None:
    """Otherwise the file of before would be read, or a shard of it."""
    folder, pipe = tmp_path / "model", StableDiffusionPipeline.from_pretrained(whole)
    for variant in ("kept", "kept-too"):  # one's name begins as the other's
        pipe.save_pretrained(folder, variant=variant, max_shard_size=20_000)
    pipe.save_pretrained(folder, variant="kept")

    def weights() -> list[str]:
        return sorted(path.name for path in (folder / "unet").glob("*") if "kept" not in path.name)

    pipe.save_pretrained(folder)
    single = weights()
    assert single == ["config.json", "diffusion_pytorch_model.safetensors"]
    for size in (5_000, 20_000, 20_000, None):  # many shards, few, as many, one file
        with torch.no_grad():
            pipe.unet.conv_in.bias += 1
        pipe.save_pretrained(folder, max_shard_size=size)
        read = read_folder(folder, torch.float32, CPU)
        assert torch.equal(read.unet.conv_in.bias, pipe.unet.conv_in.bias)
        if size is not None:
            index = read_json(folder / "unet" / "diffusion_pytorch_model.safetensors.index.json")
            files = sorted(set(index["weight_map"].values()))
            assert weights() == sorted(["config.json", *files, "diffusion_pytorch_model.safetensors.index.json"])
    assert weights() == single
    for variant in ("kept", "kept-too"):
        kept = read_folder(folder, torch.float32, CPU, variant)
        assert torch.equal(kept.unet.conv_in.bias + 4, pipe.unet.conv_in.bias)


def test_a_folder_in_which_saving_failed_is_not_read_as_a_mixture(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(whole)
    pipe.save_pretrained(tmp_path / "model", max_shard_size=20_000)

    def full(path: Path, tensors: dict[str, torch.Tensor]) -> None:
        if "unet" in str(path) and "-00003-" in str(path):
            raise UserError("the disk is full")
        write_weights(path, tensors)

    monkeypatch.setattr("miniai.sd.weight_files.write_weights", full)
    with pytest.raises(UserError, match="the disk is full"):
        pipe.save_pretrained(tmp_path / "model", max_shard_size=20_000)
    with pytest.raises(UserError, match=r"model_index\.json"):
        read_folder(tmp_path / "model", torch.float32, CPU)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            {"max_shard_size": "five"},
            "max_shard_size 'five' is not possible: give a number of bytes, or a text such as",
        ),
        ({"max_shard_size": 0}, "max_shard_size 0 is not possible"),
        ({"variant": "../fp16"}, "variant '../fp16' is not possible: give letters and digits, such as 'fp16'"),
    ],
)
def test_impossible_ways_to_save_are_refused_before_anything_is_written(
    whole: Path, tmp_path: Path, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        StableDiffusionPipeline.from_pretrained(whole).save_pretrained(tmp_path / "model", **options)
    assert not (tmp_path / "model").exists()


def test_a_variant_is_preferred_and_a_part_without_it_read_all_the_same(folder: Path, whole: Path) -> None:
    half = {name: tensor.half() for name, tensor in read_weights(folder / UNET_WEIGHTS).items()}
    write_weights((folder / UNET_WEIGHTS).with_suffix(".fp16.safetensors"), half)
    (folder / UNET_WEIGHTS).write_bytes(b"not looked at")
    assert_same(folder, whole, variant="fp16")
    (folder / UNET_WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"there is diffusion_pytorch_model.fp16.safetensors\): ask for variant 'fp16'"):
        read_folder(folder, torch.float32, CPU)


def test_pickled_weights_are_read_for_their_tensors(folder: Path, whole: Path) -> None:
    for weights in (TEXT_WEIGHTS, UNET_WEIGHTS, VAE_WEIGHTS):
        pickle_weights(folder, weights)
    assert_same(folder, whole)
    with pytest.raises(UserError, match="save the model as safetensors"):
        StableDiffusionPipeline.from_pretrained(folder, use_safetensors=True)


def test_the_oldest_names_of_the_autoencoders_attention_are_read(folder: Path, whole: Path) -> None:
    new_to_old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def old(name: str, tensor: torch.Tensor) -> tuple[str, torch.Tensor]:
        for new, former in new_to_old.items():
            if f"attentions.0.{new}." in name:
                tensor = tensor[:, :, None, None] if "encoder" in name and name.endswith("weight") else tensor
                return name.replace(f".{new}.", f".{former}."), tensor.clone()
        return name, tensor.clone()

    tensors = dict(old(*item) for item in read_weights(folder / VAE_WEIGHTS).items())
    assert sum("proj_attn" in name for name in tensors) == 4
    write_weights(folder / VAE_WEIGHTS, tensors)
    assert_same(folder, whole)


def test_a_safety_checker_in_the_folder_is_left_alone(folder: Path, whole: Path) -> None:
    index = read_json(folder / "model_index.json")
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    write_json(folder / "model_index.json", index)
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "model.safetensors").write_bytes(b"never read")
    assert_same(folder, whole)


def shard(folder: Path) -> Path:
    """Split the U-Net in two by hand, and return the index."""
    tensors = {name: tensor.clone() for name, tensor in read_weights(folder / UNET_WEIGHTS).items()}
    (folder / UNET_WEIGHTS).unlink()
    weight_map = {name: f"part{i % 2}.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(weight_map.values()):
        write_weights(folder / "unet" / file, {name: t for name, t in tensors.items() if weight_map[name] == file})
    index = folder / f"{UNET_WEIGHTS}.index.json"
    write_json(index, {"metadata": {}, "weight_map": weight_map})
    return index


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda values: [], "index.json: expected a weight_map"),
        (lambda values: {"weight_map": {"a": 3}}, "index.json: expected a weight_map"),
        (lambda values: {"weight_map": {"a": "../vae/x.safetensors"}}, "points out of its folder"),
        (lambda values: {"weight_map": {"a": "gone.safetensors"}}, "gone.safetensors is missing"),
        (lambda values: {"weight_map": values["weight_map"] | {"a": "part0.safetensors"}}, "part0.* lacks a"),
        (lambda values: {"weight_map": dict(list(values["weight_map"].items())[1:])}, "index.json lacks"),
    ],
)
def test_an_index_that_is_wrong_is_a_user_error(
    folder: Path, change: Callable[[dict[str, Any]], Any], complaint: str
) -> None:
    index = shard(folder)
    write_json(index, change(read_json(index)))
    with pytest.raises(UserError, match=complaint) as caught:
        read_folder(folder, torch.float32, CPU)
    assert "\n" not in str(caught.value)


@pytest.fixture
def cache(whole: Path, tmp_path: Path) -> Path:
    """A cache as `huggingface_hub` lays it out."""
    model = tmp_path / "hub" / "models--someone--tiny-diffusion"
    commit = "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(whole, model / "snapshots" / commit)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(commit)
    return tmp_path / "hub"


def test_a_hub_id_is_found_in_the_local_cache_where_huggingface_hub_finds_it(cache: Path, whole: Path) -> None:
    theirs = huggingface_hub.snapshot_download(HUB_ID, cache_dir=cache, local_files_only=True)
    assert find_model(HUB_ID, cache_dir=cache) == Path(theirs)
    assert find_model(HUB_ID, cache_dir=cache, revision=Path(theirs).name) == Path(theirs)
    pipe = StableDiffusionPipeline.from_pretrained(HUB_ID, cache_dir=cache)
    assert torch.equal(pipe.unet.conv_in.weight, read_weights(whole / UNET_WEIGHTS)["conv_in.weight"])


def test_the_cache_is_where_the_environment_says(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert default_cache() == Path.home() / ".cache" / "huggingface" / "hub"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert default_cache() == Path("/x/huggingface/hub")
    monkeypatch.setenv("HF_HOME", str(cache.parent))
    assert find_model(HUB_ID).parent.name == "snapshots"
    monkeypatch.setenv("HF_HUB_CACHE", "/elsewhere")
    assert default_cache() == Path("/elsewhere")


def test_a_folder_goes_before_a_hub_id_and_other_paths_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / HUB_ID).mkdir(parents=True)
    assert find_model(HUB_ID, cache_dir=tmp_path) == Path(HUB_ID)
    assert find_model("./no/such/folder") == Path("./no/such/folder")


def test_a_hub_id_that_cannot_be_had_is_a_user_error(cache: Path) -> None:
    with pytest.raises(UserError, match="there is no folder someone/else, and no model of that name in"):
        find_model("someone/else", cache_dir=cache)
    with pytest.raises(UserError, match="revision v2"):
        find_model(HUB_ID, cache_dir=cache, revision="v2")
    for revision in ("../../..", "/etc"):
        with pytest.raises(UserError, match="is not possible: give a branch"):
            find_model(HUB_ID, cache_dir=cache, revision=revision)
    (cache / "models--someone--tiny-diffusion" / "refs" / "main").write_text("../../../x")
    assert cached_snapshot(cache, HUB_ID, "main") is None
    with pytest.raises(UserError, match="HF_HUB_OFFLINE forbids it"):
        find_model("someone/else", cache_dir=cache, local_files_only=False)


REMOTE = [
    *("model_index.json", "README.md", "v1-5-pruned.ckpt", "scheduler/scheduler_config.json"),
    *("tokenizer/vocab.json", "tokenizer/merges.txt", "safety_checker/model.safetensors", "unet/config.json"),
    *("text_encoder/config.json", "text_encoder/pytorch_model.bin", "vae/config.json"),
    *(
        "unet/diffusion_pytorch_model.safetensors.index.json",
        "unet/diffusion_pytorch_model.safetensors.index.fp16.json",
    ),
    *(f"unet/diffusion_pytorch_model{mark}-0000{i}-of-00002.safetensors" for i in (1, 2) for mark in ("", ".fp16")),
    *("vae/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.fp16.safetensors"),
    *("vae/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.non_ema.safetensors"),
]


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_what_is_downloaded_is_what_is_read_and_no_other_form_of_it(
    cache: Path, monkeypatch: pytest.MonkeyPatch, variant: str | None
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    asked: dict[str, Any] = {}
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda *_, **__: REMOTE)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **options: asked.update(options) or "here")
    found = find_model("someone/else", cache_dir=cache, local_files_only=False, variant=variant, token="secret")
    assert found == Path("here")
    assert (asked["token"], asked["revision"], asked["cache_dir"]) == ("secret", "main", cache)
    mark = f".{variant}" if variant else ""
    stem = "diffusion_pytorch_model"
    assert sorted(asked["allow_patterns"]) == sorted(
        [
            *("model_index.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json", "tokenizer/merges.txt"),
            *("text_encoder/config.json", "unet/config.json", "vae/config.json"),
            "text_encoder/pytorch_model.bin",  # the only form there is
            f"unet/{stem}.safetensors.index{mark}.json",
            *(f"unet/{stem}{mark}-0000{i}-of-00002.safetensors" for i in (1, 2)),
            f"vae/{stem}{mark}.safetensors",
        ]
    )


def test_what_is_given_is_not_downloaded(cache: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    asked: list[str] = []

    def download(name: str, *, allow_patterns: list[str], **_: Any) -> str:
        asked.extend(allow_patterns)
        return str(whole)

    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda *_, **__: REMOTE)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    own = StableDiffusionPipeline.from_pretrained(whole)
    place = {"cache_dir": cache, "local_files_only": False}
    StableDiffusionPipeline.from_pretrained("someone/else", unet=own.unet, tokenizer=own.tokenizer, **place)
    assert {name.split("/")[0] for name in asked} == {"model_index.json", "scheduler", "text_encoder", "vae"}


def test_without_huggingface_hub_a_download_says_what_to_install(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="needs the package huggingface_hub: install it"):
        find_model("someone/else", cache_dir=cache, local_files_only=False)
    assert find_model(HUB_ID, cache_dir=cache).parent.name == "snapshots"  # and what is there needs it not


def test_the_command_line_takes_a_hub_id(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    out = tmp_path / "cat.png"
    command = ["generate", "a cat", "--steps", "2", "--seed", "1", "--device", "cpu", "--out", str(out)]
    assert run([*command, "--model", HUB_ID]) == 0
    assert out.is_file()
    assert run([*command, "--model", "someone/else"]) == 2


def test_the_network_is_asked_for_only_by_name_and_its_failure_is_a_user_error(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")  # sockets stay shut
    with pytest.raises(UserError, match="cannot download someone/else") as caught:
        find_model("someone/else", cache_dir=cache, local_files_only=False)
    assert "\n" not in str(caught.value)


def test_a_variant_that_no_part_has_is_refused(whole: Path) -> None:
    with pytest.raises(UserError, match="has no weights of variant 'fp17': leave the variant out"):
        StableDiffusionPipeline.from_pretrained(whole, variant="fp17")


def test_a_safetensors_file_by_another_name_is_read_as_what_it_is(tmp_path: Path) -> None:
    write_weights(tmp_path / "x.ckpt", {"a": torch.ones(2)})
    assert torch.equal(read_file(tmp_path / "x.ckpt")["a"], torch.ones(2))
