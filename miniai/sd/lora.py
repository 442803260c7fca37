"""LoRA on a pipeline: by the methods that Diffusers' pipelines have for it."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from miniai.base.errors import UserError
from miniai.nn.clip import CLIPTextModel
from miniai.nn.low_rank import Adapters, adapters_of
from miniai.nn.unet import UNet2DConditionModel
from miniai.sd.lora_files import PARTS, find_lora, read_lora

Strength = int | float | Mapping[str, int | float]


class LoraNames:
    """What Diffusers' pipelines have for LoRA, under its names.

    A LoRA is added to the weights themselves, not computed beside them at each step as there: painting takes no longer,
    and the pictures are those of Diffusers up to rounding. The weights as they were are kept as long as one is active.
    The changes belong to the networks: other pipelines of the same parts have them too, and `save_pretrained` writes
    the weights as they are at that moment.
    """

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | os.PathLike[str] | dict[str, Tensor],
        adapter_name: str | None = None,
        *,
        weight_name: str | None = None,
        revision: str = "main",
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = True,
    ) -> None:
        """Read a LoRA, in any of the forms of `miniai.sd.lora_files`, and paint with it from now on; with no other, but
        that a part which it does not change goes on with those it had, as in Diffusers.

        `adapter_name` is what `set_adapters` calls it; None counts: default_0, default_1, … `weight_name` is its file,
        where it is in a folder with several; the rest is what `find_model` takes.
        Raises UserError, and changes nothing, as `find_lora` and `read_lora` do, and for a name that is taken.
        """
        self._check_changeable()
        hub: dict[str, Any] = {"revision": revision, "cache_dir": cache_dir, "local_files_only": local_files_only}
        file = find_lora(pretrained_model_name_or_path_or_dict, weight_name, **hub)
        changes = read_lora(file, self.unet, self.text_encoder)
        taken = self._all_adapters()
        name = adapter_name or next(one for i in range(len(taken) + 1) if (one := f"default_{i}") not in taken)
        if name in taken:
            raise UserError(f"there is a LoRA {name!r} already: give this one another name, or leave it out")
        for part, change in changes.items():
            adapters = self._adapters(part)
            adapters.loaded[name], adapters.strengths = change, {name: 1.0}
            adapters.apply(self._network(part))

    def paint_with(self, loras: Sequence[tuple[str | os.PathLike[str], int | float]]) -> None:
        """Read these files and paint with all of them, each as strongly as its number says."""
        for path, _ in loras:
            self.load_lora_weights(path, adapter_name=str(path))
        if loras:
            self.set_adapters([str(path) for path, _ in loras], [strength for _, strength in loras])

    def set_adapters(
        self, adapter_names: str | list[str], adapter_weights: Strength | list[Strength] | None = None
    ) -> None:
        """Paint with these LoRAs from now on, each as strongly as its weight says: 1 is as it was trained.

        A weight may be one for each of "unet" and "text_encoder". Raises UserError, and changes nothing, for a name
        that is not there and a weight that is no number (weights for single blocks are not there).
        """
        self._check_changeable()
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        given = adapter_weights if isinstance(adapter_weights, Sequence) else [adapter_weights] * len(names)
        if len(given) != len(names):
            raise UserError(f"{len(names)} LoRAs and {len(given)} weights: give one weight for each")
        self._check_known(names)
        strengths = {part: [_strength(one, part) for one in given] for part in PARTS}
        for part in PARTS:
            adapters, pairs = self._adapters(part), zip(names, strengths[part], strict=True)
            adapters.strengths = {name: strength for name, strength in pairs if name in adapters.loaded}
            adapters.apply(self._network(part))

    def get_active_adapters(self) -> list[str]:
        """The LoRAs that are painted with."""
        return list(dict.fromkeys(name for part in PARTS for name in self._adapters(part).strengths))

    def get_list_adapters(self) -> dict[str, list[str]]:
        """All that are loaded, for each part that they change."""
        lists = {part: list(self._adapters(part).loaded) for part in PARTS}
        return {part: names for part, names in lists.items() if names}

    def delete_adapters(self, adapter_names: str | list[str]) -> None:
        """Forget these. Raises UserError for a name that is not there."""
        self._check_changeable()
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        self._check_known(names)
        for part in PARTS:
            adapters = self._adapters(part)
            adapters.remove(self._network(part), set(names) & set(adapters.loaded))

    def disable_lora(self) -> None:
        """Paint without any, until `enable_lora`; what is fused stays."""
        self._enable(False)

    def enable_lora(self) -> None:
        """Paint again with those that are active."""
        self._enable(True)

    def fuse_lora(
        self,
        components: Sequence[str] = PARTS,
        lora_scale: int | float = 1.0,
        safe_fusing: bool = False,
        adapter_names: list[str] | None = None,
    ) -> None:
        """Let the active LoRAs, or those named, stay in the weights, at `lora_scale` times their strength, until
        `unfuse_lora`; after `unload_lora_weights` or `delete_adapters` for good. `safe_fusing` is there for programs
        written for Diffusers: a file with numbers that are not finite is not read in the first place."""
        self._check_changeable()
        self._check_known(adapter_names or [])
        for part in _parts(components):
            adapters = self._adapters(part)
            chosen = [name for name in adapter_names or list(adapters.strengths) if name in adapters.loaded]
            adapters.fused |= {name: lora_scale * adapters.strengths.get(name, 1.0) for name in chosen}
            adapters.apply(self._network(part))

    def unfuse_lora(self, components: Sequence[str] = PARTS) -> None:
        """Undo `fuse_lora`: those that are active stay active."""
        self._check_changeable()
        for part in _parts(components):
            self._adapters(part).fused.clear()
            self._adapters(part).apply(self._network(part))

    def unload_lora_weights(self) -> None:
        """Forget all LoRAs; the weights are again, bit for bit, what they were, but for what is fused."""
        self.delete_adapters(self._all_adapters())

    def _scale_lora(self, cross_attention_kwargs: Mapping[str, Any] | None) -> None:
        """Before painting: {"scale": 0.5} takes half of each active LoRA's strength, for this time."""
        options = dict(cross_attention_kwargs or {})
        scale = options.pop("scale", 1.0)
        if options:
            raise UserError(f"cross_attention_kwargs has {next(iter(options))!r}: miniai knows 'scale', of a LoRA")
        for part in PARTS:
            adapters = self._adapters(part)
            if adapters.wanted(scale) != adapters.wanted():
                self._check_changeable()
            adapters.apply(self._network(part), scale)

    def _enable(self, enabled: bool) -> None:
        self._check_changeable()
        for part in PARTS:
            self._adapters(part).enabled = enabled
            self._adapters(part).apply(self._network(part))

    def _network(self, part: str) -> nn.Module:
        return {"unet": self.unet, "text_encoder": self.text_encoder}[part]

    def _adapters(self, part: str) -> Adapters:
        return adapters_of(self._network(part))

    def _all_adapters(self) -> list[str]:
        return list(dict.fromkeys(name for part in PARTS for name in self._adapters(part).loaded))

    def _check_known(self, names: Iterable[str]) -> None:
        loaded = self._all_adapters()
        for name in names:
            if name not in loaded:
                raise UserError(f"there is no LoRA {name!r}: loaded are {', '.join(loaded) or 'none'}")

    def _check_changeable(self) -> None:
        compiled = self.unet._compiled_call_impl is not None
        if compiled and self.unet.conv_in.weight.device.type == "cpu":
            raise UserError("compiled kernels hold the weights as they were: load and set LoRAs before compiled()")


def _strength(given: Strength | None, part: str) -> float:
    if isinstance(given, Mapping) and not set(given) <= set(PARTS):
        raise UserError(f"a LoRA's weight is a number, or one for each of {' and '.join(PARTS)}, not {dict(given)}")
    strength: Any = given.get(part, 1.0) if isinstance(given, Mapping) else 1.0 if given is None else given
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not math.isfinite(strength):
        raise UserError(f"a LoRA's weight is a number for the whole {part}, such as 0.8, not {strength!r}")
    return float(strength)


def _parts(components: Sequence[str]) -> Sequence[str]:
    unknown = sorted(set(components) - set(PARTS))
    if unknown or not components:
        raise UserError(f"components {list(components)} are not possible: there are {' and '.join(PARTS)}")
    return components
