"""Where the networks lie: moved by Diffusers' idioms, their weights are laid out as when they were loaded there."""

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from sd_oracle import make_diffusers_pipeline, relative_error
from tiny_model import tiny_pipeline

from miniai.base.errors import UserError
from miniai.base.seeds import make_generator
from miniai.nn.autoencoder import AutoencoderKL
from miniai.nn.packed import can_pack, is_packed
from miniai.sd.pipeline import StableDiffusionPipeline
from miniai.sd.placement import Placement

HALF = pytest.mark.skipif(not can_pack(torch.bfloat16), reason="this CPU has no instructions for packed bfloat16")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("placement")
    make_diffusers_pipeline(folder / "tokenizer", "epsilon").save_pretrained(folder / "model")
    return folder / "model"


def paint(pipe: StableDiffusionPipeline) -> torch.Tensor:
    return pipe("a cat", num_inference_steps=3, generator=make_generator(0), output_type="pt").images


@HALF
def test_converted_to_bfloat16_it_is_packed_as_it_is_when_loaded_so(model: Path) -> None:
    loaded = StableDiffusionPipeline.from_pretrained(model, torch_dtype=torch.bfloat16)
    moved = StableDiffusionPipeline.from_pretrained(model).to(torch.bfloat16)
    assert is_packed(loaded.unet)
    assert is_packed(moved.unet)
    assert is_packed(moved.vae.decoder)
    assert torch.equal(paint(moved), paint(loaded))


@HALF
def test_converted_to_float32_no_weight_stays_packed(model: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(model, torch_dtype=torch.bfloat16)
    pipe.to("cpu", torch.float32)
    assert not is_packed(pipe.unet)
    assert not is_packed(pipe.vae)
    exact = StableDiffusionPipeline.from_pretrained(model)
    for module in (exact.text_encoder, exact.unet, exact.vae):
        module.to(torch.bfloat16).to(torch.float32)  # rounded once, as the weights of the other
    assert relative_error(paint(pipe), paint(exact)) < 1e-5


@HALF
def test_moved_to_where_it_is_nothing_is_unpacked(model: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(model, torch_dtype=torch.bfloat16)
    before = [id(tensor) for tensor in (*pipe.unet.buffers(), *pipe.vae.buffers())]
    kept = pipe.unet.conv_in.weight
    pipe.to("cpu").to(torch.bfloat16).to(torch.device("cpu"), torch.bfloat16)
    assert kept.is_mkldnn
    assert [id(tensor) for tensor in (*pipe.unet.buffers(), *pipe.vae.buffers())] == before


@HALF
def test_what_lies_elsewhere_is_moved_though_the_rest_is_there(model: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(model, torch_dtype=torch.bfloat16)
    pipe.vae.decoder.conv_norm_out.float()
    pipe.to(torch.bfloat16)
    assert pipe.vae.decoder.conv_norm_out.weight.dtype == torch.bfloat16
    assert is_packed(pipe.vae.decoder)


@HALF
def test_a_compiled_network_is_not_packed_when_it_is_moved() -> None:
    pipe = tiny_pipeline().compiled().to(torch.bfloat16)
    assert not is_packed(pipe.unet)
    assert is_packed(pipe.vae.decoder)


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as a machine without one can tell: what is decided, not what comes of it."""
    monkeypatch.setattr(Placement, "device", property(lambda self: torch.device("cuda")))


@pytest.mark.usefixtures("on_a_gpu")
def test_on_a_gpu_the_unets_half_precision_is_channels_last_and_the_decoders_is_not() -> None:
    pipe = tiny_pipeline().to(torch.float16)
    weight = pipe.unet.mid_block.resnets[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert pipe.vae.decoder.mid_block.resnets[0].conv1.weight.is_contiguous()
    assert tiny_pipeline().packed().unet.mid_block.resnets[0].conv1.weight.is_contiguous()  # float32


def options_of_compiler(pipe: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    given: dict[str, Any] = {}
    monkeypatch.setattr(pipe.unet, "compile", lambda **options: given.update(options))
    pipe.compiled()
    return given


def test_the_compiler_is_asked_for_frozen_weights_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert options_of_compiler(tiny_pipeline(), monkeypatch) == {"options": {"freezing": True}}
    assert "freezing" in torch._inductor.list_options()


@pytest.mark.usefixtures("on_a_gpu")
def test_the_compiler_is_asked_for_cuda_graphs_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    given = options_of_compiler(tiny_pipeline(), monkeypatch)
    assert given == {"mode": "reduce-overhead"}
    assert torch._inductor.list_mode_options(given["mode"])["triton.cudagraphs"] is True


def test_an_autoencoder_of_diffusers_is_taken_as_one_of_ours(model: Path) -> None:
    own = diffusers.AutoencoderKL.from_pretrained(model / "vae")
    with torch.no_grad():
        for weight in own.parameters():
            weight.mul_(0.9)
    pipe = StableDiffusionPipeline.from_pretrained(model, vae=own)
    assert isinstance(pipe.vae, AutoencoderKL)
    latents = torch.randn(1, 4, 8, 8, generator=make_generator(0))
    with torch.no_grad():
        assert relative_error(pipe.vae.decode(latents), own.decode(latents).sample) < 1e-5
    with pytest.raises(UserError, match="vae is Linear: give an AutoencoderKL, or the file or folder of one"):
        StableDiffusionPipeline.from_pretrained(model, vae=torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("where", "complaint"),
    [
        ({"device": "tpux"}, "device 'tpux' cannot be used"),
        ({"torch_dtype": torch.int8}, "torch_dtype torch.int8 is not possible: give torch.float32"),
        *([] if torch.cuda.is_available() else [({"device": "cuda"}, "device 'cuda' cannot be used")]),
    ],
)
def test_a_place_that_there_is_not_is_a_user_error(model: Path, where: dict[str, Any], complaint: str) -> None:
    for read, source in (("from_pretrained", model), ("from_single_file", model / "none.safetensors")):
        with pytest.raises(UserError, match=complaint) as caught:
            getattr(StableDiffusionPipeline, read)(source, **where)
        assert "\n" not in str(caught.value)


def test_no_other_format_than_safetensors_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="only safetensors are written"):
        tiny_pipeline().save_pretrained(tmp_path / "model", safe_serialization=False)
    assert not (tmp_path / "model").exists()
