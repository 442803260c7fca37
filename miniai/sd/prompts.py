"""Prompts: paired, weighted, fitted to the model's window, and read by the text encoder."""

import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from miniai.base.errors import UserError, UserNotice
from miniai.nn.clip import CLIPTextModel
from miniai.sd.prompt_chunks import Token, into_chunks, section_tokens, windows
from miniai.sd.prompt_parts import PromptParts
from miniai.sd.prompt_weights import SYNTAXES
from miniai.sd.tokenizer import CLIPTokenizer

PromptSyntax = Literal["plain", "a1111", "comfyui"]
LongPrompts = Literal["cut", "chunks"]


@dataclass(frozen=True)
class PromptReader:
    """Texts to vectors, one for each token.

    - clip_skip: how many of the text encoder's last layers a prompt passes over, as in Diffusers: None and 0 are none,
      and negative prompts, as there, are read with all layers.
    - syntax: how weights are written in a prompt, see `miniai.sd.prompt_weights`; "plain" knows none.
    - long_prompts: what becomes of tokens beyond the window. "cut" leaves them out, with a UserNotice; "chunks" reads
      as many windows as it takes, as A1111 does, and shorter texts of the request get windows of the empty text.
    """

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    clip_skip: int | None = None
    syntax: PromptSyntax = "plain"
    long_prompts: LongPrompts = "cut"

    def __post_init__(self) -> None:
        n_layers = self.text_encoder.config.num_hidden_layers
        if self.clip_skip is not None and not 0 <= self.clip_skip <= n_layers:
            raise UserError(f"clip_skip {self.clip_skip} is not possible: the text encoder has {n_layers} layers")
        if self.syntax not in SYNTAXES:
            raise UserError(f"unknown prompt_syntax {self.syntax!r}: there are {', '.join(SYNTAXES)}")
        if self.long_prompts not in ("cut", "chunks"):
            raise UserError(f"unknown long_prompts {self.long_prompts!r}: there are cut and chunks")

    def read(
        self,
        prompt: str | list[str] | None,
        negative_prompt: str | list[str] | None,
        prompt_embeds: Float[Tensor, "p n d"] | None,
        negative_prompt_embeds: Float[Tensor, "p n d"] | None,
        guidance: bool,
    ) -> tuple[Float[Tensor, "p m d"], Float[Tensor, "p m d"]]:
        """(condition, unconditional) for each prompt, from texts or from vectors that were made before.

        Without `guidance` nothing asks for the second, and it is the first again. Raises UserError where texts and
        vectors do not go together.
        """
        if (prompt is None) == (prompt_embeds is None):
            raise UserError("give either prompt or prompt_embeds")
        if negative_prompt is not None and negative_prompt_embeds is not None:
            raise UserError("give either negative_prompt or negative_prompt_embeds")
        prompts = [prompt] if isinstance(prompt, str) else None if prompt is None else list(prompt)
        n_prompts = len(prompts) if prompts is not None else 0 if prompt_embeds is None else len(prompt_embeds)
        if n_prompts == 0:
            raise UserError("there is nothing to paint: give at least one prompt")
        if negative_prompt is None or isinstance(negative_prompt, str):
            negatives = [negative_prompt or ""] * n_prompts
        else:
            negatives = list(negative_prompt)
        n_negatives = len(negatives) if negative_prompt_embeds is None else len(negative_prompt_embeds)
        if n_negatives != n_prompts:
            raise UserError(f"{n_prompts} prompts and {n_negatives} negative prompts: give one, or one for each")

        given = [vectors for vectors in (prompt_embeds, negative_prompt_embeds) if vectors is not None]
        texts = (prompts or []) + (negatives if guidance and negative_prompt_embeds is None else [])
        n_windows = max([len(self._chunks(text)) for text in texts] + [self._n_windows(vectors) for vectors in given])
        condition = self._vectors(prompts, prompt_embeds, self.clip_skip, n_windows)
        if not guidance:
            return condition, condition
        unconditional = self._vectors(negatives, negative_prompt_embeds, None, n_windows)
        if condition.shape != unconditional.shape:
            raise UserError(
                f"prompt_embeds have shape {tuple(condition.shape)} and those of the negative prompt "
                f"{tuple(unconditional.shape)}: give negative_prompt_embeds of the same shape"
            )
        return condition, unconditional

    def read_parts(
        self,
        parts: PromptParts,
        negative_prompt: str | list[str] | None,
        negative_prompt_embeds: Float[Tensor, "p n d"] | None,
    ) -> tuple[Float[Tensor, "m p k d"], Float[Tensor, "p k d"]]:
        """(conditions, unconditional) of prompts in several parts. Raises UserError as `read` does."""
        n_parts, n_prompts = len(parts.texts), len(parts.texts[0])
        for given in (negative_prompt, negative_prompt_embeds):
            if not (given is None or isinstance(given, str)) and len(given) != n_prompts:
                raise UserError(f"{n_prompts} prompts and {len(given)} negative prompts: give one, or one for each")
        if isinstance(negative_prompt, list):
            negative_prompt = negative_prompt * n_parts
        if negative_prompt_embeds is not None:
            negative_prompt_embeds = negative_prompt_embeds.repeat(n_parts, 1, 1)
        texts = [text for of_part in parts.texts for text in of_part]
        condition, unconditional = self.read(texts, negative_prompt, None, negative_prompt_embeds, guidance=True)
        return condition.unflatten(0, (n_parts, n_prompts)), unconditional[:n_prompts]

    def encode(self, texts: list[str], clip_skip: int | None = None, n_windows: int = 1) -> Float[Tensor, "b n d"]:
        """One vector for each token of each text, at least `n_windows` of them; equal texts are encoded once."""
        unique = list(dict.fromkeys(texts))
        chunks = [self._chunks(text, notice=True) for text in unique]
        n_windows = max([n_windows, *map(len, chunks)])
        vectors = self._encode_chunks([chunk for own in chunks for chunk in _padded(own, n_windows)], clip_skip)
        vectors = vectors.unflatten(0, (len(unique), n_windows)).flatten(1, 2)
        return vectors[[unique.index(text) for text in texts]]

    def _vectors(
        self, texts: list[str] | None, given: Tensor | None, clip_skip: int | None, n_windows: int
    ) -> Float[Tensor, "p n d"]:
        if given is None:
            assert texts is not None
            return self.encode(texts, clip_skip, n_windows)
        width = self.text_encoder.config.hidden_size
        if given.ndim != 3 or given.shape[2] != width:
            raise UserError(
                f"prompt vectors have shape {tuple(given.shape)}: this model reads (prompts, tokens, {width})"
            )
        weight = self.text_encoder.text_model.final_layer_norm.weight
        return given.to(weight.device, weight.dtype)

    def _n_windows(self, vectors: Tensor) -> int:
        return max(1, vectors.shape[1] // self.tokenizer.model_max_length) if vectors.ndim == 3 else 1

    def _chunks(self, text: str, notice: bool = False) -> list[list[Token]]:
        """The windows of a text; cut to one with a notice, if asked for, of what is lost."""
        sections = [section_tokens(self.tokenizer, section) for section in SYNTAXES[self.syntax](text)]
        if self.long_prompts == "chunks":
            return into_chunks(self.tokenizer, sections)
        tokens = [token for section in sections for token in section]
        n_tokens = self.tokenizer.model_max_length - 2
        if notice and len(tokens) > n_tokens:
            beyond = self.tokenizer.decode(token.token_id for token in tokens[n_tokens:])
            said = f"the prompt is longer than the model's {n_tokens} tokens; cut off: '{beyond}'"
            warnings.warn(said, UserNotice, stacklevel=2)
        return [tokens[:n_tokens]]

    def _encode_chunks(self, chunks: list[list[Token]], clip_skip: int | None) -> Float[Tensor, "b n d"]:
        """The weighted vectors of windows."""
        ids, weights = windows(self.tokenizer, chunks)
        vectors = self._encode_ids(ids, clip_skip)
        strength = torch.tensor(weights, device=vectors.device, dtype=vectors.dtype)[:, :, None]
        if bool((strength == 1).all()):
            return vectors
        if self.syntax == "comfyui":
            empty = self._encode_ids(windows(self.tokenizer, [[]])[0], clip_skip)
            return weigh_against(vectors, strength, empty)
        return weigh_and_restore_mean(vectors, strength)

    def _encode_ids(self, ids: list[list[int]], clip_skip: int | None) -> Float[Tensor, "b n d"]:
        final_layer_norm = self.text_encoder.text_model.final_layer_norm
        out = self.text_encoder(torch.tensor(ids, device=final_layer_norm.weight.device))
        return out.last_hidden_state if clip_skip is None else final_layer_norm(out.hidden_states[-1 - clip_skip])


def weigh_and_restore_mean(vectors: Float[Tensor, "b n d"], weights: Float[Tensor, "b n 1"]) -> Float[Tensor, "b n d"]:
    """Vectors times their weights, then each window scaled back to the mean it had: A1111, "Original" emphasis.

    A1111 takes the mean over all texts of a batch; here a picture does not depend on those beside it. A mean that is
    nothing but rounding (of a text encoder whose last norm is still as it began) cannot be restored, and is left.
    """
    weighted = vectors * weights
    mean, new_mean = (v.float().mean(dim=(1, 2), keepdim=True) for v in (vectors, weighted))
    is_real = new_mean.abs() > 1e-5 * weighted.float().abs().mean(dim=(1, 2), keepdim=True)
    return weighted * torch.where(is_real, mean / new_mean, 1.0).to(weighted.dtype)


def weigh_against(
    vectors: Float[Tensor, "b n d"], weights: Float[Tensor, "b n 1"], empty: Float[Tensor, "1 n d"]
) -> Float[Tensor, "b n d"]:
    """Vectors carried on from those of the empty text, as far as their weights say: ComfyUI."""
    return torch.where(weights == 1, vectors, empty + (vectors - empty) * weights)


def _padded(chunks: list[list[Token]], n_windows: int) -> list[list[Token]]:
    return chunks + [[]] * (n_windows - len(chunks))
