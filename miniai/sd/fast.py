"""Faster pictures that are not quite the same: deep features of the U-Net used for several steps."""

from jaxtyping import Float
from torch import Tensor

from miniai.base.errors import UserError
from miniai.nn.unet import DeepFeatures, UNet2DConditionModel


class ReusedDeepFeatures:
    """`unet` with its deep layers computed at every `interval`-th call alone, and its outer ones at each (Ma et al.
    2023, "DeepCache: Accelerating Diffusion Models for Free", sections 3.3 and 3.4, 1:N caching, uniform).

    It remembers: one for each painting. `branch_id` is `DeepFeatures.branch`. Samplers of second order call twice a
    step. A call with another number of pictures, or of another size, computes all layers too.
    Raises UserError for an interval or a branch that there is not.
    """

    def __init__(self, unet: UNet2DConditionModel, interval: int, branch_id: int = 0) -> None:
        if interval < 1:
            raise UserError(f"cache_interval {interval} is not possible: give 1, for none, or more steps")
        n_branches = unet.config.layers_per_block + 1
        if not 0 <= branch_id < n_branches:
            raise UserError(f"cache_branch_id {branch_id} is not there: give 0 to {n_branches - 1}")
        self.unet = unet
        self.interval = interval
        self.deep = DeepFeatures(branch_id)
        self.age = 0

    def __call__(
        self, x: Float[Tensor, "b c h w"], timestep: Float[Tensor, " b"], condition: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "b c2 h w"]:
        features = self.deep.features
        fits = features is not None and (len(features), *features.shape[2:]) == (len(x), *x.shape[2:])
        if self.age == 0 or not fits:
            self.age, self.deep.features = 0, None
        prediction = self.unet(x, timestep, condition, self.deep)
        if self.age == 0 and self.deep.features is not None and x.device.type == "cuda":
            self.deep.features = self.deep.features.clone()  # a CUDA graph writes over what it gave
        self.age = (self.age + 1) % self.interval
        return prediction
