"""Short trainings of the text-to-image U-Net from nothing, equal but for one thing each: what helps, and by how much.

    miniai data emoji --out data/emoji-core --styles noto,twemoji,fluent-emoji-flat --groups core
    miniai data emoji --out data/emoji-everyday --styles noto,twemoji,fluent-emoji-flat \\
        --groups "core,hand-*,hands" --combinations --colours                           for the trial `everyday`
    miniai data emoji --out data/emoji-skin-tones --styles noto,twemoji,fluent-emoji-flat \\
        --groups "core,hand-*,hands" --skin-tones                                       for the trial `skin-tones`
    miniai data openclipart --out data/clipart                                     for the trial `clipart`
    python benchmarks/stamps_folder.py --out data/stamps                           for the trial `stamps`
    python benchmarks/trials.py --data data/emoji-core --out runs/trials            all of them, those done are kept
    python benchmarks/trials.py --data data/emoji-core --out runs/trials labels muon   these alone
    python benchmarks/trials.py --list

Each sees the same number of pictures (`--steps` batches of 128) with the same first weights, order and noise; a smaller
U-Net than the packaged one, on the packaged VAE's latents, under a CLIP that is trained here once for all of them. Then
each paints the held-out pictures' captions and is judged as by `miniai evaluate text-to-image`, and its error in x0 on
these pictures is taken at three noise levels, the same noise for all. The table goes to `--out`/trials.md.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from trial_bench import BASE, LEVELS, Bench, Trial
from trial_parts import (
    Both,
    FlowLoss,
    NoisyVAEObjective,
    OffsetLoss,
    Pooled,
    mirrored,
    moved,
    with_groups,
    with_seen_colours,
)
from trial_vaes import AlignedVAEObjective, CriticObjective, PerceptualObjective, critic, projection

from miniai.base.configs import config_to_dict
from miniai.base.device import pick_device
from miniai.base.files import write_json
from miniai.nn.clip import CLIPModel
from miniai.recipes.evaluator import SHIPPED
from miniai.recipes.text_to_image_config import SMALL, TextToImageConfig, VAELossConfig, finer
from miniai.recipes.vae_stage import VAEObjective
from miniai.train.captions import CaptionedItem

EVERYDAY, SKIN_TONES, CLIPART, STAMPS = (
    Path("data") / name for name in ("emoji-everyday", "emoji-skin-tones", "clipart", "stamps")
)


def stage(**changes: Any) -> Callable[[TextToImageConfig], TextToImageConfig]:
    return lambda config: replace(config, unet_stage=replace(config.unet_stage, **changes))


def schedule(**changes: Any) -> Callable[[TextToImageConfig], TextToImageConfig]:
    return lambda config: replace(config, schedule=replace(config.schedule, **changes))


def plain(loss: VAELossConfig) -> VAELossConfig:
    return replace(loss, equivariant=0.0)


def like_the_recipe(loss: VAELossConfig, clip: CLIPModel) -> VAEObjective:
    return VAEObjective(loss)


def channels(n: int) -> Callable[[TextToImageConfig], TextToImageConfig]:
    return lambda config: replace(
        config,
        vae=replace(config.vae, latent_channels=n),
        unet=replace(config.unet, in_channels=n, out_channels=n),
    )


TRIALS: dict[str, Trial] = {
    "recipe": Trial("the recipe as it stands"),
    "seed": Trial("the same from another seed: what chance does", lambda config: replace(config, seed=1)),
    "labels": Trial("captions: the label alone, with its style", captions=lambda item: [item.text]),
    "labels-tags": Trial(
        "captions: label with style, and those with tags",
        captions=lambda item: [item.text, *(text for text in item.captions[1:] if text.count(",") > 1)],
    ),
    "no-style": Trial("captions: none names a style", captions=lambda item: without_style(item)),
    "groups": Trial("captions: a third of them with Unicode's group and subgroup", captions=with_groups),
    "seen-colours": Trial("captions: a third of them with colours read off the picture", captions=with_seen_colours),
    "frozen-text": Trial("CLIP's text encoder stays as it is", lambda config: replace(config, train_text=False)),
    "epsilon": Trial(
        "the U-Net predicts epsilon, min-SNR",
        lambda config: replace(schedule(prediction_type="epsilon")(config), weighting="min_snr"),
    ),
    "plain-v": Trial("v without weighting", lambda config: replace(config, weighting="none")),
    "zero-snr": Trial("the last timestep is noise alone", schedule(rescale_betas_zero_snr=True)),
    "offset": Trial(
        "a tenth of the noise's deviation is the same for a whole channel",
        loss=lambda schedule: OffsetLoss(schedule, 0.1, SMALL.timestep_shift),
    ),
    "uniform": Trial("timesteps drawn evenly", lambda config: replace(config, timestep_shift=1.0)),
    "shift-4": Trial("timesteps shifted by 4", lambda config: replace(config, timestep_shift=4.0)),
    "drop-20": Trial("a fifth of the captions dropped", lambda config: replace(config, drop_text=0.2)),
    "text-noise-1": Trial("noise as strong as themselves on the text's tokens", lambda c: replace(c, text_noise=1.0)),
    "text-noise-3": Trial("noise three times as strong as that", lambda config: replace(config, text_noise=3.0)),
    "text-swap": Trial("half of the texts end in the tail of another", lambda config: replace(config, text_swap=0.5)),
    "rate-0.0007": Trial("a learning rate of 0.0007", stage(learning_rate=7e-4)),
    "rate-0.001": Trial("a learning rate of 0.001", stage(learning_rate=1e-3)),
    "rate-0.004": Trial("a learning rate of 0.004", stage(learning_rate=4e-3)),
    "decay-late": Trial("the rate falls from 0.7 of the steps on, not from 0.4", stage(decay_from=0.7)),
    "batch-64": Trial("batches of 64, twice as many", stage(batch_size=64)),
    "batch-256": Trial("batches of 256, half as many", stage(batch_size=256)),
    "batch-64-minutes": Trial(
        "batches of 64, as many pictures as they see in the others' minutes", stage(batch_size=64), pictures=2 / 3
    ),
    "ema-short": Trial("weights averaged over 50 steps instead of 1,000", stage(ema=0.98)),
    "adamw": Trial("AdamW for all weights, at 0.0007", stage(optimizer="adamw", learning_rate=7e-4)),
    "mirrored": Trial("half of the pictures are seen in the mirror", others=mirrored),
    "moved": Trial("half of the pictures are turned by up to 10° and shifted by up to 4 pixels", others=moved),
    "flow": Trial("times and weights of rectified flow, logit-normal, for v", loss=FlowLoss),
    "pooled": Trial("the U-Net hears of the text its pooled vector alone", listener=Pooled),
    "both": Trial("the tokens' vectors and the pooled one", listener=Both),
    "text-2": Trial("a text encoder of two layers, the first of CLIP's four", text_layers=2),
    "everyday": Trial("1,484 pictures more: hands, combinations, colours", data=EVERYDAY),
    "clipart": Trial("1,207 pieces of clip art more, a style of their own", beside=CLIPART),
    "stamps": Trial("pictures that children stamp, a style of their own", beside=STAMPS),
    "skin-tones": Trial("hands, and these and others in five skin tones more", data=SKIN_TONES),
    "alignment": Trial("the U-Net's middle is drawn to CLIP's image patches (REPA)", alignment=0.5),
    "vae-on": Trial("the VAE goes on for `--vae-steps` first", vae=lambda loss, clip: VAEObjective(plain(loss))),
    "vae-equivariant": Trial(
        "the same; latents of half of the batches are turned, mirrored or halved, and so are the pictures to decode",
        vae=like_the_recipe,
    ),
    "vae-noise": Trial(
        "the same without; noise on the latents, of up to 0.6 of their deviation",
        vae=lambda loss, clip: NoisyVAEObjective(plain(loss), 0.6),
    ),
    "vae-both": Trial("the same with both", vae=lambda loss, clip: NoisyVAEObjective(loss, 0.6)),
    "vae-kl": Trial(
        "the same without either; KL counts ten times as much",
        vae=lambda loss, clip: VAEObjective(replace(plain(loss), kl=10 * loss.kl)),
    ),
    "vae-perceptual": Trial(
        "`vae-on` with the error of CLIP's image encoder's states beside that of pixels",
        vae=lambda loss, clip: PerceptualObjective(plain(loss), clip, 0.5),
    ),
    "vae-critic": Trial(
        "`vae-on` against a critic of patches",
        vae=lambda loss, clip: CriticObjective(plain(loss), 0.5),
        vae_beside=critic,
    ),
    "vae-aligned": Trial(
        "`vae-on` with latents drawn to what CLIP's image encoder says of their patch",
        vae=lambda loss, clip: AlignedVAEObjective(plain(loss), clip, 0.5),
        vae_beside=projection,
    ),
    "factor-8": Trial("a VAE of the recipe's kind from nothing, latents 16×8×8", vae=like_the_recipe, new_vae=True),
    "channels-8": Trial("the same with latents 8×8×8", channels(8), vae=like_the_recipe, new_vae=True),
    "channels-4": Trial("the same with latents 4×8×8", channels(4), vae=like_the_recipe, new_vae=True),
    "factor-4": Trial(
        "the same with latents 4×16×16, and a U-Net with a level more",
        lambda config: finer(config, top=48),
        vae=like_the_recipe,
        new_vae=True,
    ),
}


def without_style(item: CaptionedItem) -> list[str]:
    """The captions that hold none of the words behind the last comma of the first: "…, noto style"."""
    style = item.text.rsplit(", ", 1)[-1].removesuffix(" style")
    return [text for text in item.captions if style not in text] or [item.text]


def table(results: list[Mapping[str, Any]]) -> str:
    lines = [
        f"| trial | what | pictures | minutes | error in x0 at {', '.join(map(str, LEVELS))} | error of pixels | right"
        " caption | of the same style | style | FID | KID | nearest training picture |",
        "| --- | --- | ---: | ---: | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for found in results:
        errors = [", ".join(f"{e:.4f}" for e in found.get(key, {}).values()) for key in ("errors", "pixel_errors")]
        figures = [
            f"{found[key]['generated']:.{digits}f}" if key in found else ""
            for key, digits in (("retrieval", 3), ("retrieval_within_style", 3), ("style", 3), ("fid", 2))
        ]
        figures.append(f"{found['kid']['generated']['mean']:.4f}" if "kid" in found else "")
        figures.append(
            f"{found['nearest_training']['generated']['feature']:.3f}" if "nearest_training" in found else ""
        )
        cells = [found["name"], found["why"], f"{found['images']:,}", f"{found['minutes']:.1f}", *errors, *figures]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="TRIAL", help="which to run; all, if none is named")
    parser.add_argument("--list", action="store_true", help="name them and stop")
    parser.add_argument("--data", type=Path, default=Path("data/emoji-core"))
    parser.add_argument("--out", type=Path, default=Path("runs/trials"))
    parser.add_argument("--steps", type=int, default=400, help="batches of 128 pictures that each sees")
    parser.add_argument("--clip-steps", type=int, default=800, help="batches of 64 pairs that the CLIP sees")
    parser.add_argument("--vae-steps", type=int, default=400, help="batches of 24 for which a trial's VAE goes on")
    parser.add_argument(
        "--evaluator", type=Path, default=SHIPPED, help="folder of the judge, the packaged one if none is named"
    )
    parser.add_argument("--device", default="auto")
    asked = parser.parse_args()
    if asked.list:
        print("\n".join(f"{name:12} {trial.why}" for name, trial in TRIALS.items()))
        return
    unknown = [name for name in asked.names if name not in TRIALS]
    if unknown:
        parser.error(f"there is no trial {unknown[0]}: see --list")
    device = pick_device(asked.device)
    bench = Bench(asked.data, asked.out, asked.steps, asked.clip_steps, asked.vae_steps, device, asked.evaluator, BASE)
    for path in asked.out.glob("*/trial.json"):
        if json.loads(path.read_text()).get("settings", bench.settings) != bench.settings:
            parser.error(f"{path} was made with other numbers of steps: choose another --out, or the same numbers")
    bench.prepare()
    write_json(asked.out / "config.json", {"steps": asked.steps, **config_to_dict(BASE)})
    for name in asked.names or TRIALS:
        bench.run(name, TRIALS[name])
        done = [
            json.loads(path.read_text()) for known in TRIALS if (path := asked.out / known / "trial.json").is_file()
        ]
        (asked.out / "trials.md").write_text(table(done))
    print(table(done))


if __name__ == "__main__":
    main()
