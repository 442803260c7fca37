"""`miniai train look-inside`: a short training of a small network, watched from all sides, as plots.

The search for a learning rate, the loss and the rate, and what goes on in the layers: means and deviations, histograms
over time, dead units. It is the network of the sweeps, so first weights show what they do.
"""

import math
from pathlib import Path

from miniai.base.device import pick_device
from miniai.base.errors import UserError
from miniai.base.files import make_folder
from miniai.nn.general_relu import GeneralReLU
from miniai.recipes.fashion import load_both
from miniai.recipes.fashion_classifier import BATCH, ClassifierObjective
from miniai.recipes.sweep import LSUV_PICTURES, OPTIMIZERS, SweepConfig, first_network
from miniai.train.activations import ActivationStats
from miniai.train.callbacks import Device
from miniai.train.data import Loader
from miniai.train.guards import NaNGuard
from miniai.train.learner import Learner
from miniai.train.lr_find import lr_find
from miniai.train.progress import Progress, Recorder
from miniai.train.schedule import Budget, Schedule, warmup_constant_cosine
from miniai.train.summary import summary

PLOTS = ("rate-search", "loss", "rate", "activations", "histograms", "dead-units")


def look_inside(
    out: Path,
    *,
    data: Path | None = None,
    init: str = "kaiming",
    optimizer: str = "adamw",
    learning_rate: int | float | None = None,
    batch_size: int = 128,
    steps: int = 200,
    seed: int = 0,
    device: str = "auto",
) -> str:
    """Write the plots named in `PLOTS` into `out`, and return a summary of the network, the rate that was suggested and
    the accuracy on the test pictures. Without `learning_rate` the suggested one is taken.

    Raises UserError for first weights or an optimizer that there is not, or if the data is not there.
    """
    if steps < 1 or (learning_rate is not None and not (math.isfinite(learning_rate) and learning_rate > 0)):
        raise UserError("--steps and --learning-rate must be above 0")
    config = SweepConfig((batch_size,), (1.0,), (init,), (optimizer,), seed=seed)  # refuses what there is not
    train, test = load_both(data)
    place = pick_device(device)
    make_folder(out)
    pictures = train.scaled()
    model = first_network(init, config, pictures[:LSUV_PICTURES])
    text = str(summary(model, pictures[:1]))
    stats = ActivationStats(lambda module: isinstance(module, GeneralReLU), every=max(1, steps // 200))
    recorder = Recorder(every=1)
    learner = Learner(
        model,
        Loader((pictures, train.labels), min(batch_size, len(train)), seed=seed),
        ClassifierObjective(0.0),
        OPTIMIZERS[optimizer](model.parameters(), float(learning_rate or 1e-3)),
        valid=Loader((test.scaled(), test.labels), min(BATCH, len(test)), seed=0, shuffle=False, drop_last=False),
        callbacks=[
            Device(place),
            NaNGuard(),
            stats,
            Schedule(warmup_constant_cosine(0.05, 0.3)),
            recorder,
            Progress(),
            Budget(steps=steps),
        ],
        seed=seed,
    )
    search = lr_find(learner, end=10.0)
    for group in learner.optimizer.param_groups:
        group["lr"] = learning_rate or search.suggestion
    learner.fit()
    accuracy = learner.validate()["accuracy"]
    files = [out / f"{name}.png" for name in PLOTS]
    search.plot(files[0])
    recorder.plot(files[1])
    recorder.plot_rates(files[2])
    stats.plot_stats(files[3])
    stats.plot_histograms(files[4])
    stats.plot_dead(files[5])
    used = learning_rate or search.suggestion
    return (
        f"{text}\nsuggested learning rate {search.suggestion:.2g}; trained with {used:.2g}, {steps} steps: "
        f"accuracy {100 * accuracy:.1f} % of the test pictures\n"
    )
