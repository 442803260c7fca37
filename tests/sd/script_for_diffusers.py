"""A program as people write them for Diffusers: `MODEL` is a folder, `OUT` where it writes."""

# ruff: noqa: I001 (the import that the test changes stands by itself)

from pathlib import Path

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline, StableDiffusionPipeline
from PIL import Image

out = Path(OUT)  # noqa: F821

pipe = StableDiffusionPipeline.from_pretrained(
    MODEL,  # noqa: F821
    torch_dtype=torch.float32,
    use_safetensors=True,
    safety_checker=None,
    requires_safety_checker=False,
)
pipe = pipe.to("cpu")
pipe.set_progress_bar_config(disable=True)

pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
timesteps = []


def on_step_end(pipe, step, timestep, callback_kwargs):
    timesteps.append(float(timestep))
    callback_kwargs["latents"] = callback_kwargs["latents"] * 0.99
    return callback_kwargs


images = pipe(
    prompt=["a cat", "a rocket in the sky"],
    negative_prompt=["red", ""],
    height=16,
    width=24,
    num_inference_steps=4,
    guidance_scale=2.5,
    guidance_rescale=0.3,
    num_images_per_prompt=2,
    generator=[torch.Generator("cpu").manual_seed(i) for i in range(4)],
    callback_on_step_end=on_step_end,
    callback_on_step_end_tensor_inputs=["latents"],
).images
for i, image in enumerate(images):
    image.save(out / f"euler_{i}.png")
np.save(out / "timesteps.npy", timesteps)

pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, use_karras_sigmas=True)
latents = torch.randn(1, 4, 8, 8, generator=torch.manual_seed(3))
result = pipe("a cat", num_inference_steps=5, latents=latents, output_type="np", guidance_scale=3.0)
np.save(out / "karras.npy", result.images)

embeds = torch.randn(2, 16, 16, generator=torch.manual_seed(4))
result = pipe(
    prompt_embeds=embeds[:1],
    negative_prompt_embeds=embeds[1:],
    num_inference_steps=5,
    generator=torch.manual_seed(0),
    output_type="latent",
)
np.save(out / "embeds.npy", result.images.numpy())
pipe.save_pretrained(out / "saved", safe_serialization=True)

embeds, negative = pipe.encode_prompt("a cat", "cpu", 2, True, "red")
generators = [torch.Generator().manual_seed(i) for i in range(2)]
result = pipe(
    prompt_embeds=embeds,
    negative_prompt_embeds=negative,
    num_inference_steps=3,
    generator=generators,
    output_type="pt",
)
np.save(out / "encoded.npy", result.images.numpy())
assert pipe.encode_prompt("a cat", "cpu", 1, False)[1] is None
assert (pipe.scheduler.config.beta_schedule, pipe.scheduler.config["steps_offset"]) == ("scaled_linear", 1)


def stop_after_two(pipe, step, timestep, callback_kwargs):
    if step == 1:
        pipe._interrupt = True
    return callback_kwargs


for scheduler in (EulerDiscreteScheduler, DPMSolverMultistepScheduler):
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    result = pipe(
        "a cat",
        num_inference_steps=6,
        generator=torch.manual_seed(0),
        callback_on_step_end=stop_after_two,
        output_type="latent",
    )
    np.save(out / f"stopped_{scheduler.__name__}.npy", result.images.numpy())

start = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
mask = Image.fromarray(np.pad(np.full((8, 8), 255, dtype=np.uint8), 4))

ancestral = EulerAncestralDiscreteScheduler.from_pretrained(out / "saved", subfolder="scheduler")
from_image = StableDiffusionImg2ImgPipeline.from_pretrained(out / "saved", safety_checker=None, scheduler=ancestral)
from_image.set_progress_bar_config(disable=True)
generator = torch.Generator().manual_seed(5)
result = from_image(prompt="a rocket", image=start, strength=0.5, num_inference_steps=6, generator=generator)
result.images[0].save(out / "from_image.png")
again = StableDiffusionImg2ImgPipeline(**from_image.components, requires_safety_checker=False)
again.set_progress_bar_config(disable=True)
again.enable_attention_slicing()
generator = torch.Generator().manual_seed(5)
result = again("a rocket", image=start, strength=0.5, num_inference_steps=6, generator=generator)
result[0][0].save(out / "from_image_again.png")

inpaint = StableDiffusionInpaintPipeline.from_pretrained(out / "saved", safety_checker=None)
inpaint.set_progress_bar_config(disable=True)
result = inpaint("a rocket", image=start, mask_image=mask, num_inference_steps=4, generator=torch.manual_seed(6))
result.images[0].save(out / "inpainted.png")

torch.manual_seed(8)
lora = {
    f"unet.mid_block.attentions.0.transformer_blocks.0.attn2.{layer}.lora_{part}.weight": torch.randn(size)
    for layer in ("to_q", "to_out.0")
    for part, size in (("A", (2, 16)), ("B", (16, 2)))
}
pipe.load_lora_weights(lora, adapter_name="style")
pipe.load_textual_inversion(torch.randn(3, 16), token="<toy>")
toy = {"prompt": "a <toy>", "num_inference_steps": 3, "output_type": "np"}
for name, weight, scale in (("half", 0.5, 1.0), ("scaled", 1.0, 0.3)):
    pipe.set_adapters(["style"], adapter_weights=[weight])
    result = pipe(**toy, generator=torch.manual_seed(7), cross_attention_kwargs={"scale": scale})
    np.save(out / f"lora_{name}.npy", result.images)
pipe.fuse_lora(lora_scale=0.7)
pipe.unload_lora_weights()
np.save(out / "lora_fused.npy", pipe(**toy, generator=torch.manual_seed(7)).images)
pipe.unload_textual_inversion()
np.save(out / "word_gone.npy", pipe(**toy, generator=torch.manual_seed(7)).images)
