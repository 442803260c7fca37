"""More from a trained model at the time of asking: averages over augmented inputs, and over dropout with its doubt."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from miniai.base.modes import in_eval_mode
from miniai.base.seeds import make_generator
from miniai.train.callback import Callback
from miniai.train.learner import Learner

View = Callable[[Float[Tensor, "b c h w"]], Float[Tensor, "b c h w"]]


def as_it_is(images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """The pictures themselves."""
    return images


def flipped(images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Left as right.

    >>> flipped(torch.tensor([[[[1.0, 2.0]]]]))
    tensor([[[[2., 1.]]]])
    """
    return images.flip(-1)


@torch.no_grad()
def predict_with_views(
    model: nn.Module,
    images: Float[Tensor, "b c h w"],
    views: Sequence[View] = (as_it_is, flipped),
    activation: Callable[[Tensor], Tensor] | None = None,
) -> Float[Tensor, "b ..."]:
    """Test-time augmentation: the mean of the model's predictions for several views of the same pictures.

    `activation` is applied to each before the mean: softmax over the classes averages probabilities instead of logits.
    The model runs in eval mode and is left in the mode it had.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(2, 3))
    >>> images = torch.tensor([[[[1.0, 2.0]]]])
    >>> both = (model(images) + model(images.flip(-1))) / 2
    >>> torch.allclose(predict_with_views(model, images), both)
    True
    """
    with in_eval_mode(model):
        predictions = [model(view(images)) for view in views]
    if activation is not None:
        predictions = [activation(prediction) for prediction in predictions]
    return torch.stack(predictions).mean(dim=0)


class TestTimeAugmentation(Callback):
    """In validation, the "prediction" becomes the mean over `views` of the batch's pictures (its first part).

    Metrics that come after see it; the loss stays that of the plain prediction.

    >>> from miniai.train.data import Loader
    >>> from miniai.train.train_learner import TrainLearner
    >>> x, y = torch.randn(8, 1, 2, 2), torch.randint(3, (8,))
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    >>> optimizer, data = torch.optim.SGD(model.parameters(), 0.1), Loader((x, y), 4, seed=0)
    >>> tta = TestTimeAugmentation()
    >>> TrainLearner(model, data, nn.functional.cross_entropy, optimizer, valid=data, callbacks=[tta]).fit(1)
    """

    __test__ = False  # pytest: the name only looks like a test's
    order = -10

    def __init__(
        self, views: Sequence[View] = (as_it_is, flipped), activation: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        self.views, self.activation = tuple(views), activation

    def after_loss(self, learner: Learner) -> None:
        if not learner.training:
            images = learner.batch[0]
            learner.outputs["prediction"] = predict_with_views(learner.model, images, self.views, self.activation)


@dataclass(frozen=True)
class Uncertain:
    """The mean of several predictions, and how far they stray: its deviation (unbiased), in the mean's own units."""

    mean: Float[Tensor, "b ..."]
    deviation: Float[Tensor, "b ..."]
    samples: Float[Tensor, "n b ..."]


@torch.no_grad()
def predict_with_dropout(
    model: nn.Module,
    *inputs: Tensor,
    n_samples: int = 20,
    seed: int = 0,
    activation: Callable[[Tensor], Tensor] | None = None,
) -> Uncertain:
    """Test-time dropout: Gal & Ghahramani 2016, "Dropout as a Bayesian approximation", equations 6 and 7.

    Only dropout layers are in training mode; batch norm and the rest are not. Sample i draws from (seed, i), and
    torch's global generators are afterwards what they were. Raises ValueError if the model has no dropout.

    >>> model = nn.Sequential(nn.Linear(4, 50), nn.Dropout(0.5), nn.Linear(50, 1))
    >>> found = predict_with_dropout(model, torch.randn(3, 4), n_samples=10)
    >>> found.samples.shape, bool((found.deviation > 0).all()), model.training
    (torch.Size([10, 3, 1]), True, True)
    """
    layers = [module for module in model.modules() if isinstance(module, nn.modules.dropout._DropoutNd)]
    if not layers or n_samples < 2:
        raise ValueError(f"test-time dropout needs dropout layers and 2 samples, not {len(layers)} and {n_samples}")
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    samples = []
    with in_eval_mode(model), torch.random.fork_rng(devices):
        for layer in layers:
            layer.train()
        for i in range(n_samples):
            torch.manual_seed(make_generator(seed, i).initial_seed())
            prediction = model(*inputs)
            samples.append(prediction if activation is None else activation(prediction))
    stacked = torch.stack(samples)
    return Uncertain(stacked.mean(dim=0), stacked.std(dim=0), stacked)
