"""Prompts: paired, cut to the model's window, and read by the text encoder."""

import warnings
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from miniai.base.errors import UserError, UserNotice
from miniai.nn.clip import CLIPTextModel
from miniai.sd.tokenizer import CLIPTokenizer


@dataclass(frozen=True)
class PromptReader:
    """Texts to vectors, one for each token.

    `clip_skip`: how many of the text encoder's last layers a prompt passes over, as in Diffusers: None and 0 are none,
    and negative prompts, as there, are read with all layers.
    """

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    clip_skip: int | None = None

    def __post_init__(self) -> None:
        n_layers = self.text_encoder.config.num_hidden_layers
        if self.clip_skip is not None and not 0 <= self.clip_skip <= n_layers:
            raise UserError(f"clip_skip {self.clip_skip} is not possible: the text encoder has {n_layers} layers")

    def read(
        self,
        prompt: str | list[str] | None,
        negative_prompt: str | list[str] | None,
        prompt_embeds: Float[Tensor, "p n d"] | None,
        negative_prompt_embeds: Float[Tensor, "p n d"] | None,
        guidance: bool,
    ) -> tuple[Float[Tensor, "p n d"], Float[Tensor, "p n d"]]:
        """(condition, unconditional) for each prompt, from texts or from vectors that were made before.

        Without `guidance` nothing asks for the second, and it is the first again. Raises UserError where texts and
        vectors do not go together.
        """
        if (prompt is None) == (prompt_embeds is None):
            raise UserError("give either prompt or prompt_embeds")
        if negative_prompt is not None and negative_prompt_embeds is not None:
            raise UserError("give either negative_prompt or negative_prompt_embeds")
        prompts = [prompt] if isinstance(prompt, str) else prompt
        n_prompts = len(prompts) if prompts is not None else 0 if prompt_embeds is None else len(prompt_embeds)
        if n_prompts == 0:
            raise UserError("there is nothing to paint: give at least one prompt")
        negatives = negative_prompt if isinstance(negative_prompt, list) else [negative_prompt or ""] * n_prompts
        n_negatives = len(negatives) if negative_prompt_embeds is None else len(negative_prompt_embeds)
        if n_negatives != n_prompts:
            raise UserError(f"{n_prompts} prompts and {n_negatives} negative prompts: give one, or one for each")

        condition = self._vectors(prompts, prompt_embeds, self.clip_skip)
        if not guidance:
            return condition, condition
        unconditional = self._vectors(negatives, negative_prompt_embeds, None)
        if condition.shape != unconditional.shape:
            raise UserError(
                f"prompt_embeds have shape {tuple(condition.shape)} and those of the negative prompt "
                f"{tuple(unconditional.shape)}: give negative_prompt_embeds of the same shape"
            )
        return condition, unconditional

    def encode(self, texts: list[str], clip_skip: int | None = None) -> Float[Tensor, "b n d"]:
        """One vector for each token of each text; a text that occurs several times is encoded once."""
        unique = list(dict.fromkeys(texts))
        for text in unique:
            self._say_what_is_cut(text)
        weight = self.text_encoder.text_model.final_layer_norm.weight
        out = self.text_encoder(self.tokenizer(unique).to(weight.device))
        last = out.last_hidden_state
        if clip_skip is not None:
            last = self.text_encoder.text_model.final_layer_norm(out.hidden_states[-1 - clip_skip])
        return last[[unique.index(text) for text in texts]]

    def _vectors(self, texts: list[str] | None, given: Tensor | None, clip_skip: int | None) -> Tensor:
        if given is None:
            assert texts is not None
            return self.encode(texts, clip_skip)
        width = self.text_encoder.config.hidden_size
        if given.ndim != 3 or given.shape[2] != width:
            raise UserError(
                f"prompt vectors have shape {tuple(given.shape)}: this model reads (prompts, tokens, {width})"
            )
        weight = self.text_encoder.text_model.final_layer_norm.weight
        return given.to(weight.device, weight.dtype)

    def _say_what_is_cut(self, text: str) -> None:
        beyond = self.tokenizer.cut(text)
        if beyond:
            n_tokens = self.tokenizer.model_max_length - 2
            notice = f"the prompt is longer than the model's {n_tokens} tokens; cut off: '{beyond}'"
            warnings.warn(notice, UserNotice, stacklevel=2)
