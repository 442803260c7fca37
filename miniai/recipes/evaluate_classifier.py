"""`miniai evaluate fashion-classifier`: how often networks name clothes right, each alone and all together."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from miniai.base.device import pick_device
from miniai.base.errors import UserError
from miniai.base.files import make_folder, write_json
from miniai.base.images import save_png
from miniai.recipes.fashion_classifier import accuracy, load_classifier, log_probabilities, mistakes
from miniai.train.fashion_mnist import CLASSES, load_fashion_mnist

RESULTS, MISTAKES = "evaluation.json", "mistakes.png"


def evaluate_classifiers(
    folders: Sequence[Path], *, data: Path | None = None, out: Path | None = None, device: str = "auto"
) -> list[dict[str, Any]]:
    """One record for each of `folders`, trainings of `fashion-classifier`, and where there are several one more for
    all of them together, by the mean of their log-probabilities (an ensemble: Lakshminarayanan et al. 2017, "Simple and
    scalable predictive uncertainty estimation using deep ensembles", who take that of probabilities), of
    Fashion-MNIST's test pictures:

    - `accuracy`, `accuracy_with_mirror_images`: the share named right, 0 to 1;
    - `cross_entropy`: in nats, of the pictures as they are;
    - `by_class`: the share of each class's pictures named right, as they are; None where there is none.

    With `out`, `out/evaluation.json` says the same and `out/mistakes.png` shows the last record's mistakes. Raises
    UserError for a folder that is named twice or holds no finished training.
    """
    named = [folder.resolve() for folder in folders]
    twice = [folder for i, folder in enumerate(folders) if named[i] in named[:i]]
    if twice:
        raise UserError(f"--classifier {twice[0]} is named twice: it would count as two")
    place = pick_device(device)
    networks = [load_classifier(folder, place) for folder in folders]
    test = load_fashion_mnist("test", data)
    if out is not None:
        make_folder(out)
    pictures = test.scaled()
    said = [log_probabilities(network, pictures, place) for network in networks]
    names = [str(folder) for folder in folders]
    if len(said) > 1:
        said.append(torch.stack(said).mean(dim=0).log_softmax(-1))
        names.append("together")
    found = [{"classifier": name, **_figures(one, test.labels)} for name, one in zip(names, said, strict=True)]
    if out is not None:
        save_png(out / MISTAKES, mistakes(said[-1][0], test))
        write_json(out / RESULTS, found)
    return found


def _figures(said: Float[Tensor, "2 n n_classes"], labels: Int64[Tensor, " n"]) -> dict[str, Any]:
    right = (said[0].argmax(1) == labels).double()
    of_class = {name: right[labels == i] for i, name in enumerate(CLASSES)}
    return {
        **accuracy(said, labels),
        "cross_entropy": F.nll_loss(said[0], labels).item(),
        "by_class": {name: one.mean().item() if len(one) else None for name, one in of_class.items()},
    }
