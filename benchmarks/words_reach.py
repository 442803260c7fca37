"""How far from the label the U-Net reads other words for the same thing, for one model or several.

    python benchmarks/words_reach.py --data data/emoji miniai/models/emoji runs/words/model

Of each text and the label that it stands for ("a cup of coffee, noto style" and "hot beverage, noto style"): the mean
square of the difference between what the model's attention reads off the two, as a share of what it reads off the
label (`miniai.recipes.words_stage.distances`). Three kinds of text: captions of training pictures; everyday names in
a style whose picture is not captioned so; and the pairs of `benchmarks/words.txt`, in which no prompt is a caption.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from miniai.recipes.emoji_captions import STYLE_WORDS, with_article
from miniai.recipes.emoji_everyday import EVERYDAY
from miniai.recipes.text_to_image_config import SMALL
from miniai.recipes.unet_stage import compute_latents
from miniai.recipes.words_stage import N_QUESTIONS, PupilAndTeacher, alike, distances, record_questions
from miniai.sd.folder import Components, read_folder
from miniai.train.captions import CaptionedItem, load_images, read_captioned_folder

CPU = torch.device("cpu")
Texts = Sequence[tuple[str, str]]  # a text, and the label that it stands for
SHEET = Path(__file__).with_name("words.txt")


def texts_of(items: Sequence[CaptionedItem], n: int) -> dict[str, Texts]:
    """The three kinds; of the captions `n`, spread evenly."""
    own, names = {item.text: item.captions for item in items}, []
    for label, words in EVERYDAY.items():
        for style in STYLE_WORDS.values():
            first = f"{label}, {style} style"
            texts = [f"{with_article(word)}, {style} style" for word in words]
            names += [(text, first) for text in texts if first in own and text not in own[first]]
    captions = [(text, first) for first in own for text in dict.fromkeys(alike(own[first])) if text != first]
    prompts = [line.split(" = ") for line in SHEET.read_text().splitlines()]
    asked = [
        (f"{p}, {style} style", f"{label}, {style} style") for p, label in prompts for style in STYLE_WORDS.values()
    ]
    return {
        "captions": captions[:: max(1, len(captions) // n)],
        "everyday names not among the captions": names,
        f"prompts of {SHEET.name}": [(text, first) for text, first in asked if first in own],
    }


class Reader:
    """A model's text encoder and what its layers of attention to the text ask."""

    def __init__(self, parts: Components, items: Sequence[CaptionedItem]) -> None:
        few = items[:: max(1, len(items) // 64)][:64]
        pictures = load_images(few, parts.unet.config.sample_size * parts.vae.config.factor)
        captions = [[item.text] for item in few]
        data = compute_latents(parts.vae, parts.text_encoder, parts.tokenizer, pictures, captions, CPU, False)
        listeners, questions = record_questions(parts.unet, parts.text_encoder, data, SMALL, CPU)
        self.model, self.tokenizer = PupilAndTeacher(parts.text_encoder, listeners, 0), parts.tokenizer
        self.asked = [part[:: -(-len(part) // N_QUESTIONS)] for part in questions]

    @torch.no_grad()
    def distances(self, texts: Texts) -> torch.Tensor:
        found = []
        for i in range(0, len(texts), 128):
            said, meant = (self.tokenizer(list(part)) for part in zip(*texts[i : i + 128], strict=True))
            read = (self.model.read(self.model.teacher, ids, self.asked) for ids in (said, meant))
            found.append(distances(*read))
        return torch.cat(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--captions", type=int, default=3000)
    asked = parser.parse_args()
    items = read_captioned_folder(asked.data).train
    kinds = texts_of(items, asked.captions)
    print("| model | texts | number | mean | median | above 0.1 |\n| --- | --- | ---: | ---: | ---: | ---: |")
    for folder in asked.models:
        reader = Reader(read_folder(folder, torch.float32, CPU), items)
        for kind, texts in kinds.items():
            found = reader.distances(texts)
            share = 100 * float((found > 0.1).double().mean())
            cells = f"{len(texts):,} | {float(found.mean()):.4f} | {float(found.median()):.4f} | {share:.1f} %"
            print(f"| {folder} | {kind} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
