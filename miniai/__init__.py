"""miniai: Stable Diffusion, whole, from its foundations.

`import miniai` is cheap: torch is imported only when a name that needs it is first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from miniai.sd.pipeline import StableDiffusionPipeline as StableDiffusionPipeline

__version__ = "0.1.0"
__all__ = ["StableDiffusionPipeline", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "StableDiffusionPipeline":
        from miniai.sd.pipeline import StableDiffusionPipeline

        return StableDiffusionPipeline
    raise AttributeError(f"module 'miniai' has no attribute {name!r}")
