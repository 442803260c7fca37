"""CLIP: a text transformer and a vision transformer whose outputs meet in one space (Radford et al. 2021),
with the names of transformers' CLIPTextModel, CLIPVisionModel and CLIPModel."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from miniai.base.configs import config_from_dict
from miniai.nn.layers import attend

ACTIVATIONS = {"quick_gelu": lambda x: x * torch.sigmoid(1.702 * x), "gelu": F.gelu}
LOG_SCALE_START = 2.6592  # log(1 / 0.07), Radford et al. 2021, section 2.5
LOG_SCALE_MAX = 4.6052  # log(100), same place: beyond it training becomes unstable


@dataclass(frozen=True)
class CLIPTextConfig:
    """Fields carry transformers' names; `max_position_embeddings` is the tokenizer's window, in tokens."""

    vocab_size: int = 49408
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: int = 512
    bos_token_id: int | None = 49406
    eos_token_id: int | None = 49407
    pad_token_id: int | None = 1

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str) -> "CLIPTextConfig":
        return config_from_dict(cls, _architecture_only(cls, values), where)


@dataclass(frozen=True)
class CLIPVisionConfig:
    """Fields carry transformers' names; sizes in pixels."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: int = 512

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str) -> "CLIPVisionConfig":
        return config_from_dict(cls, _architecture_only(cls, values), where)


@dataclass(frozen=True)
class CLIPConfig:
    """Both towers and the size of the space they share."""

    text_config: CLIPTextConfig = field(default_factory=CLIPTextConfig)
    vision_config: CLIPVisionConfig = field(default_factory=CLIPVisionConfig)
    projection_dim: int = 512

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str) -> "CLIPConfig":
        return cls(
            CLIPTextConfig.from_dict(values["text_config"], where),
            CLIPVisionConfig.from_dict(values["vision_config"], where),
            values.get("projection_dim", 512),
        )


@dataclass(frozen=True)
class CLIPTextOutput:
    """`hidden_states[i]` enters layer i; `last_hidden_state` is after the final norm, `pooled` its end-of-text row."""

    last_hidden_state: Float[Tensor, "b n d"]
    pooled: Float[Tensor, "b d"]
    hidden_states: tuple[Tensor, ...]


class CLIPAttention(nn.Module):
    """Multi-head self-attention with biases, and an optional mask that is added to the scores."""

    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.q_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "b n d"], mask: Float[Tensor, "n n"] | None) -> Float[Tensor, "b n d"]:
        q, k, v = (
            proj(x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(attend(q, k, v, mask).transpose(1, 2).flatten(2))


class CLIPMLP(nn.Module):
    """Two linear layers with an activation between."""

    def __init__(self, dim: int, inner: int, activation: str) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.fc1 = nn.Linear(dim, inner)
        self.fc2 = nn.Linear(inner, dim)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        return self.fc2(self.activation(self.fc1(x)))


class CLIPEncoderLayer(nn.Module):
    """Attention and MLP, each behind a layer norm and beside an identity path."""

    def __init__(self, config: CLIPTextConfig | CLIPVisionConfig) -> None:
        super().__init__()
        dim, eps = config.hidden_size, config.layer_norm_eps
        self.self_attn = CLIPAttention(dim, config.num_attention_heads)
        self.layer_norm1 = nn.LayerNorm(dim, eps=eps)
        self.mlp = CLIPMLP(dim, config.intermediate_size, config.hidden_act)
        self.layer_norm2 = nn.LayerNorm(dim, eps=eps)

    def forward(self, x: Float[Tensor, "b n d"], mask: Float[Tensor, "n n"] | None) -> Float[Tensor, "b n d"]:
        x = x + self.self_attn(self.layer_norm1(x), mask)
        return x + self.mlp(self.layer_norm2(x))


class CLIPEncoder(nn.Module):
    """The stack of layers."""

    def __init__(self, config: CLIPTextConfig | CLIPVisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(CLIPEncoderLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Float[Tensor, "b n d"], mask: Float[Tensor, "n n"] | None) -> tuple[Tensor, ...]:
        """The input of each layer, then the output of the last."""
        states = [x]
        for layer in self.layers:
            states.append(layer(states[-1], mask))
        return tuple(states)


class CLIPTextEmbeddings(nn.Module):
    """What each token is, plus where it stands."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def forward(self, input_ids: Int[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
        return self.token_embedding(input_ids) + self.position_embedding.weight[: input_ids.shape[1]]


class CLIPTextTransformer(nn.Module):
    """Embeddings, causal transformer, final norm."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = CLIPTextEmbeddings(config)
        self.encoder = CLIPEncoder(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, input_ids: Int[Tensor, "b n"]) -> CLIPTextOutput:
        x = self.embeddings(input_ids)
        n = input_ids.shape[1]
        causal = torch.full((n, n), float("-inf"), device=x.device, dtype=x.dtype).triu(1)
        states = self.encoder(x, causal)
        last = self.final_layer_norm(states[-1])
        return CLIPTextOutput(last, last[torch.arange(len(last)), self._end(input_ids)], states)

    def _end(self, input_ids: Int[Tensor, "b n"]) -> Int[Tensor, " b"]:
        """Where the first end-of-text token stands. Stable Diffusion 1.x's file says 2 there, from a time when
        transformers took the largest id, which is the end-of-text token in CLIP's vocabulary."""
        if self.config.eos_token_id in (None, 2):
            return input_ids.argmax(dim=-1)
        return (input_ids == self.config.eos_token_id).int().argmax(dim=-1)


class CLIPTextModel(nn.Module):
    """The text encoder of Stable Diffusion."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.config = config
        self.text_model = CLIPTextTransformer(config)

    def forward(self, input_ids: Int[Tensor, "b n"]) -> CLIPTextOutput:
        """Token ids (b, n), n at most `max_position_embeddings`, to a vector for each token."""
        return self.text_model(input_ids)

    @torch.no_grad()
    def give_tokens(self, vectors: Float[Tensor, "n_tokens d"]) -> None:
        """Know these tokens from now on, and no others: one vector for each id, converted to the own dtype."""
        embeddings = self.text_model.embeddings
        old = embeddings.token_embedding.weight
        table = nn.Embedding.from_pretrained(vectors.to(old.device, old.dtype), freeze=not old.requires_grad)
        embeddings.token_embedding = table.train(self.training)
        self.config = self.text_model.config = replace(self.config, vocab_size=len(vectors))


class CLIPVisionEmbeddings(nn.Module):
    """Square patches through one convolution, a class token before them, positions added."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.randn(config.hidden_size))
        self.patch_embedding = nn.Conv2d(
            config.num_channels, config.hidden_size, config.patch_size, stride=config.patch_size, bias=False
        )
        n_positions = (config.image_size // config.patch_size) ** 2 + 1
        self.position_embedding = nn.Embedding(n_positions, config.hidden_size)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        patches = self.patch_embedding(images).flatten(2).transpose(1, 2)
        first = self.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        return torch.cat([first, patches], dim=1) + self.position_embedding.weight


class CLIPVisionTransformer(nn.Module):
    """Patches, norm, transformer; the class token, normed, is the picture's feature."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        self.embeddings = CLIPVisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)  # transformers' spelling
        self.encoder = CLIPEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        states = self.encoder(self.pre_layrnorm(self.embeddings(images)), None)
        return self.post_layernorm(states[-1][:, 0])


class CLIPVisionModel(nn.Module):
    """The image encoder alone."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_model = CLIPVisionTransformer(config)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """Pictures (b, 3, image_size, image_size) to one vector each."""
        return self.vision_model(images)


class CLIPModel(nn.Module):
    """Both towers, their projections into the shared space, and the learned temperature.

    >>> text = CLIPTextConfig(100, 32, 64, 2, 4, 16, bos_token_id=98, eos_token_id=99)
    >>> clip = CLIPModel(CLIPConfig(text, CLIPVisionConfig(32, 64, 2, 4, image_size=16, patch_size=8), 24))
    >>> words = clip.encode_text(torch.tensor([[98, 7, 99], [98, 8, 99]]))
    >>> pictures = clip.encode_image(torch.zeros(2, 3, 16, 16))
    >>> cosines = pictures @ words.T
    >>> cosines.shape, contrastive_loss(pictures, words, clip.logit_scale).item() > 0
    (torch.Size([2, 2]), True)
    """

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.config = config
        self.text_model = CLIPTextTransformer(config.text_config)
        self.vision_model = CLIPVisionTransformer(config.vision_config)
        self.visual_projection = nn.Linear(config.vision_config.hidden_size, config.projection_dim, bias=False)
        self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(LOG_SCALE_START))  # log of 1 / temperature
        init_clip(self)

    def encode_text(self, input_ids: Int[Tensor, "b n"]) -> Float[Tensor, "b d"]:
        """Unit vectors (b, projection_dim) of texts."""
        return F.normalize(self.text_projection(self.text_model(input_ids).pooled).float(), dim=-1)

    def encode_image(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """Unit vectors (b, projection_dim) of pictures in [-1, 1]."""
        return F.normalize(self.visual_projection(self.vision_model(images)).float(), dim=-1)


def contrastive_loss(
    image_vectors: Float[Tensor, "b d"], text_vectors: Float[Tensor, "b d"], log_scale: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """Symmetric cross entropy over the pairs' cosines (Radford et al. 2021, figure 3). Vectors have unit length."""
    logits = log_scale.clamp(max=LOG_SCALE_MAX).exp() * image_vectors @ text_vectors.T
    target = torch.arange(len(logits), device=logits.device)
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))


def init_clip(model: nn.Module) -> None:
    """Initial weights after GPT-2, as CLIP does: deviation 0.02 for tokens, 0.01 for positions, and layers whose
    residual sums keep their size with depth (Radford et al. 2019, section 2.3)."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.01 if "position" in name else 0.02)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, CLIPVisionEmbeddings):
            nn.init.normal_(module.class_embedding, std=0.02)
    for encoder in (m for m in model.modules() if isinstance(m, CLIPEncoder)):
        for name, weight in encoder.named_parameters():
            if name.endswith(("out_proj.weight", "fc2.weight")):
                with torch.no_grad():
                    weight.mul_((2 * len(encoder.layers)) ** -0.5)


def _architecture_only(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """transformers' config.json holds dozens of keys about generation; keep those that shape the network."""
    names = cls.__dataclass_fields__  # type: ignore[attr-defined]
    return {k: v for k, v in values.items() if k in names}
