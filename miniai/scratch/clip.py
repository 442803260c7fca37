"""37. CLIP's text encoder: token ids become one vector for each token, which knows the tokens before it.

Names are those of nn/clip.py (Radford et al. 2021). Tokens are (n, d), of one text.
"""

from dataclasses import dataclass
from pathlib import Path

from miniai.scratch.attention import causal_mask
from miniai.scratch.folder import Weights, read_config
from miniai.scratch.inference import LayerNorm, Linear, attend, gelu, quick_gelu, split_heads
from miniai.scratch.tensor import Tensor

ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": gelu}


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

    def __post_init__(self) -> None:
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"hidden_act {self.hidden_act!r} is not supported here: {', '.join(ACTIVATIONS)} are")
        if self.num_attention_heads < 1 or self.hidden_size % self.num_attention_heads:
            raise ValueError(f"{self.num_attention_heads} heads cannot share a width of {self.hidden_size}")


class CLIPAttention:
    """Every token looks at those the mask allows."""

    def __init__(self, weights: Weights, dim: int, n_heads: int) -> None:
        self.n_heads = n_heads
        names = ("q_proj", "k_proj", "v_proj", "out_proj")
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (Linear(weights.under(n), dim, dim) for n in names)

    def __call__(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (split_heads(proj(x), self.n_heads) for proj in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(attend(q, k, v, mask))


class CLIPEncoderLayer:
    """Attention and a two-layer network, each behind a layer norm and beside an identity path."""

    def __init__(self, weights: Weights, config: CLIPTextConfig) -> None:
        dim, inner, eps = config.hidden_size, config.intermediate_size, config.layer_norm_eps
        self.self_attn = CLIPAttention(weights.under("self_attn"), dim, config.num_attention_heads)
        self.layer_norm1 = LayerNorm(weights.under("layer_norm1"), dim, eps)
        self.fc1 = Linear(weights.under("mlp.fc1"), dim, inner)
        self.fc2 = Linear(weights.under("mlp.fc2"), inner, dim)
        self.layer_norm2 = LayerNorm(weights.under("layer_norm2"), dim, eps)
        self.activation = ACTIVATIONS[config.hidden_act]

    def __call__(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), mask)
        return x + self.fc2(self.activation(self.fc1(self.layer_norm2(x))))


class CLIPTextModel:
    """Embeddings, causal transformer, final norm."""

    def __init__(self, config: CLIPTextConfig, weights: Weights) -> None:
        self.config = config
        # transformers 5 leaves the prefix out of the names
        weights = weights if "embeddings.token_embedding.weight" in weights.tensors else weights.under("text_model")
        embeddings, dim = weights.under("embeddings"), config.hidden_size
        self.token_embedding = embeddings.take("token_embedding.weight", config.vocab_size, dim)
        self.position_embedding = embeddings.take("position_embedding.weight", config.max_position_embeddings, dim)
        layers = [weights.under(f"encoder.layers.{i}") for i in range(config.num_hidden_layers)]
        self.layers = [CLIPEncoderLayer(layer, config) for layer in layers]
        self.final_layer_norm = LayerNorm(weights.under("final_layer_norm"), dim, config.layer_norm_eps)
        weights.check_all_taken()

    @classmethod
    def from_pretrained(cls, folder: Path) -> "CLIPTextModel":
        """Reads config.json, whose other keys are about generation, and model.safetensors."""
        config = read_config(CLIPTextConfig, folder / "config.json", {}, strict=False)
        # a buffer of position numbers, in the files of transformers before 4.31
        return cls(config, Weights.read(folder / "model.safetensors", ("text_model.embeddings.position_ids",)))

    def __call__(self, input_ids: list[int]) -> Tensor:
        """Token ids, at most `max_position_embeddings`, to `last_hidden_state` (n, hidden_size)."""
        x = self.token_embedding[Tensor(input_ids, "int64")] + self.position_embedding[: len(input_ids)]
        mask = causal_mask(len(input_ids))
        for layer in self.layers:
            x = layer(x, mask)
        return self.final_layer_norm(x)
