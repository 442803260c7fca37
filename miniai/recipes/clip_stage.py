"""Stage 2: a text encoder and an image encoder learn together which caption belongs to which picture."""

from dataclasses import replace

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from miniai.nn.clip import CLIPConfig, CLIPModel, contrastive_loss
from miniai.recipes.text_to_image_config import TextToImageConfig
from miniai.recipes.training import StageRun, initial_weights, run_stage
from miniai.recipes.vae_stage import to_float
from miniai.sd.prompt_chunks import cut_ids
from miniai.sd.tokenizer import CLIPTokenizer
from miniai.train.data import TensorDataset


class CaptionTable:
    """Every distinct caption once, as token ids, and for each picture the rows that are its own.

    `ids`: (captions, window); `lengths`: (captions,), tokens, the end-of-text one included; `rows`: (pictures,
    most captions of one), padded; `counts`: (pictures,).
    """

    def __init__(self, captions: list[list[str]], tokenizer: CLIPTokenizer) -> None:
        numbers: dict[str, int] = {}
        for texts in captions:
            for text in texts:
                numbers.setdefault(text, len(numbers))
        self.texts = list(numbers)
        self.ids: Int[Tensor, "m window"] = cut_ids(tokenizer, self.texts)
        self.lengths: Int[Tensor, " m"] = (self.ids == tokenizer.eos_id).int().argmax(1) + 1
        self.counts = torch.tensor([len(texts) for texts in captions])
        self.rows = torch.zeros(len(captions), int(self.counts.max()), dtype=torch.long)
        for i, texts in enumerate(captions):
            self.rows[i, : len(texts)] = torch.tensor([numbers[text] for text in texts])


def choose_captions(
    rows: Int[Tensor, "b most"], counts: Int[Tensor, " b"], generator: torch.Generator
) -> Int[Tensor, " b"]:
    """One of each picture's captions, each as likely as the next."""
    place = torch.rand(len(counts), generator=generator, device=generator.device).to(counts.device)
    place = (place * counts).long().to(rows.device)
    return rows.gather(1, place[:, None])[:, 0]


class CLIPObjective:
    """The symmetric contrastive loss over a batch of pictures, each with one of its captions."""

    def __init__(self, table: CaptionTable, max_shift: int) -> None:
        self.ids, self.lengths, self.max_shift = table.ids, table.lengths, max_shift

    def __call__(
        self, model: nn.Module, batch: tuple[Tensor, Tensor, Tensor], generator: torch.Generator
    ) -> dict[str, Tensor]:
        assert isinstance(model, CLIPModel)
        images, rows, counts = batch
        chosen = choose_captions(rows, counts, generator).cpu()
        # What follows the end of a text is never looked at: the text encoder is causal and is read at that end.
        texts = self.ids[chosen, : int(self.lengths[chosen].max())].to(rows.device)
        moved = shift_on_white(images, self.max_shift, generator)
        image_vectors, text_vectors = model.encode_image(to_float(moved)), model.encode_text(texts)
        loss = contrastive_loss(image_vectors, text_vectors, model.logit_scale)
        nearest = (image_vectors.detach() @ text_vectors.detach().T).argmax(1)
        right = (nearest == torch.arange(len(nearest), device=nearest.device)).float().mean()
        return {"loss": loss, "right_in_batch": right}


def shift_on_white(
    images: UInt8[Tensor, "b 3 h w"], max_shift: int, generator: torch.Generator
) -> UInt8[Tensor, "b 3 h w"]:
    """Each picture moved by up to `max_shift` pixels each way; what comes into view is white."""
    height, width = images.shape[2:]
    padded = nn.functional.pad(images, (max_shift,) * 4, value=255)
    drawn = torch.randint(0, 2 * max_shift + 1, (2, len(images)), generator=generator, device=generator.device)
    offset = drawn.to(images.device)
    y = offset[0][:, None] + torch.arange(height, device=images.device)
    x = offset[1][:, None] + torch.arange(width, device=images.device)
    pictures = torch.arange(len(images), device=images.device)[:, None, None]
    return padded[pictures, :, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)


def train_clip(
    config: TextToImageConfig,
    images: UInt8[Tensor, "n 3 h w"],
    captions: list[list[str]],
    tokenizer: CLIPTokenizer,
    run: StageRun,
    seed: int,
) -> CLIPModel:
    """Train both encoders on `images` and their `captions`; a seed of its own gives an independent judge."""
    with initial_weights(seed):
        model = CLIPModel(clip_config(config, tokenizer))
    table = CaptionTable(captions, tokenizer)
    data = TensorDataset((images, table.rows, table.counts))
    run_stage(run, config.clip_stage, model, data, CLIPObjective(table, config.clip_shift), seed)
    return model


def clip_config(config: TextToImageConfig, tokenizer: CLIPTokenizer) -> CLIPConfig:
    """The encoders' config with what only the trained tokenizer knows: its size, its window, its special tokens."""
    text = replace(
        config.text,
        vocab_size=len(tokenizer),
        max_position_embeddings=config.window,
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
    )
    return CLIPConfig(text, config.vision, config.vision.projection_dim)


@torch.no_grad()
def image_features(model: CLIPModel, images: UInt8[Tensor, "n 3 h w"], device: torch.device) -> Float[Tensor, "n d"]:
    """Unit vectors of pictures, in batches, on the CPU."""
    return torch.cat([model.encode_image(to_float(part.to(device))).cpu() for part in images.split(256)])


@torch.no_grad()
def text_features(model: CLIPModel, ids: Int[Tensor, "n window"], device: torch.device) -> Float[Tensor, "n d"]:
    """Unit vectors of texts, in batches, on the CPU."""
    return torch.cat([model.encode_text(part.to(device)).cpu() for part in ids.split(256)])
