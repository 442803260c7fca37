"""Every number of the trainings that teach a model something of one's own, from a few pictures."""

from dataclasses import dataclass
from typing import Literal

from miniai.recipes.text_to_image_config import StageConfig

Kind = Literal["lora", "dreambooth", "textual-inversion"]
# The layers that LoRA changes, by the ends of their names: all linear layers of the U-Net's transformers, and of the
# text encoder those of attention.
UNET_LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")
TEXT_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj")


def _stage(learning_rate: float, **numbers: float) -> StageConfig:
    shared = {"share": 1.0, "batch_size": 4, "warmup": 0.05, "decay_from": 0.5, "ema": 0.98, "weight_decay": 0.0}
    return StageConfig(learning_rate=learning_rate, **(shared | numbers))  # type: ignore[arg-type]


@dataclass(frozen=True)
class PersonaliseConfig:
    """What is learned, from which model.

    - kind: "lora", thin changes of the model's layers; "dreambooth", all weights of its U-Net; "textual-inversion",
      nothing but the vectors of a new word.
    - model: the folder or file that it begins from; tokenizer: folder of one, for a file, which has none.
    - prompts: what is said of each picture, in place of its captions; {} in them is the new word.
    - train_text: let the text encoder learn too.
    - rank: of a LoRA's changes. `word`, `init_word`, `n_vectors`: the new word, what its vectors begin as, how many.
    - class_prompt: what the model shall go on painting as it does now, so that it does not take all of a kind for the
      new one; `n_class` pictures of it are painted beforehand, and count `prior_weight` (Ruiz et al. 2022, equation 2).
    - whole: show pictures that are no squares whole, on white, and not their middle.
    - flip: also learn from each picture's mirror image; drop_text: share of pictures that are learned without text.
    - timestep_shift: above 1 learns more at high noise, where it is decided what is where: see `draw_timesteps`.
    - image_size: in pixels; None is the model's own.
    """

    kind: Kind
    model: str
    stage: StageConfig
    tokenizer: str | None = None
    prompts: tuple[str, ...] = ()
    train_text: bool = False
    rank: int = 8
    word: str = ""
    init_word: str = ""
    n_vectors: int = 1
    class_prompt: str = ""
    n_class: int = 64
    prior_weight: int | float = 1.0
    whole: bool = False
    flip: bool = False
    drop_text: float = 0.0
    timestep_shift: int | float = 1.0
    image_size: int | None = None
    unet_layers: tuple[str, ...] = UNET_LAYERS
    text_layers: tuple[str, ...] = TEXT_LAYERS
    seed: int = 0


STAGES: dict[Kind, StageConfig] = {
    "lora": _stage(3e-4),
    "dreambooth": _stage(2e-5),
    "textual-inversion": _stage(5e-3),
}
