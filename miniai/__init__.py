"""miniai: Stable Diffusion, whole, from its foundations.

`import miniai` is cheap: torch is imported only when a name that needs it is first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from miniai.recipes.generate_request import packaged_model as packaged_model
    from miniai.sd.pipeline import StableDiffusionImg2ImgPipeline as StableDiffusionImg2ImgPipeline
    from miniai.sd.pipeline import StableDiffusionInpaintPipeline as StableDiffusionInpaintPipeline
    from miniai.sd.pipeline import StableDiffusionPipeline as StableDiffusionPipeline

__version__ = "0.1.0"
# One class under the three names that programs written for Diffusers know.
_PIPELINES = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline")
__all__ = [*_PIPELINES, "__version__", "packaged_model"]


def __getattr__(name: str) -> Any:
    if name in _PIPELINES:
        from miniai.sd import pipeline

        return getattr(pipeline, name)
    if name == "packaged_model":
        from miniai.recipes.generate_request import packaged_model

        return packaged_model
    raise AttributeError(f"module 'miniai' has no attribute {name!r}")
