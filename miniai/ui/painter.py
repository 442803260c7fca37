"""A model that stays loaded and paints one order after the other, telling how far it is."""

import base64
import binascii
import io
import math
import os
import re
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from miniai.base.configs import config_from_dict
from miniai.base.device import pick_device
from miniai.base.errors import UserError, UserNotice
from miniai.base.files import make_folder
from miniai.base.images import open_image, read_parameters
from miniai.diffusion.sampling import SAMPLERS
from miniai.recipes.emoji_captions import STYLE_WORDS
from miniai.recipes.emoji_sources import STYLES
from miniai.recipes.generate import (
    as_grid,
    check_sampler,
    load_pipeline,
    memory_to_user_error,
    paint,
    preview,
    save_pictures,
)
from miniai.recipes.generate_request import (
    GenerateRequest,
    check_ranges,
    check_request,
    choose_targets,
    fresh_seed,
    lora_name,
    packaged_model,
    take_lora_tags,
)
from miniai.sd.textual_inversion import read_words
from miniai.ui.settings import read_settings

PREVIEW_SHARE = 0.1  # of the time at most goes to previews, which a large model is slow to decode
N_LISTED = 200
PICTURE_NAME = re.compile(r"[^/\\\0]+\.png")
MAX_STRENGTH = 100  # of a LoRA

Tell = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Order:
    """What the page asks for: the fields of `GenerateRequest` by their names, pictures as data URLs ("data:image/png;
    base64,..."), and each LoRA that the model was given by its name, with a strength."""

    prompt: str
    negative_prompt: str = ""
    n: int = 1
    seed: int | None = None
    steps: int = GenerateRequest.steps
    sampler: str | None = None
    guidance_scale: int | float = GenerateRequest.guidance_scale
    width: int | None = None
    height: int | None = None
    image: str | None = None
    strength: int | float | None = None
    mask: str | None = None
    mask_padding: int | None = None
    guidance_rescale: int | float = 0.0
    guidance_interval: tuple[int | float, int | float] | None = None
    cache_interval: int = 1
    eta: int | float = 0.0
    clip_skip: int | None = None
    prompt_syntax: str = "plain"
    long_prompts: str = "cut"
    loras: tuple[tuple[str, int | float], ...] = ()

    @classmethod
    def from_json(cls, values: Any) -> "Order":
        """Raises UserError for an unknown field, and for a value of another type."""
        if not isinstance(values, dict):
            raise UserError('an order is a JSON object, such as {"prompt": "a cat"}')
        order = config_from_dict(cls, values, "the order")
        # Half of a surrogate pair, which JSON can hold and a PNG cannot, becomes a question mark.
        texts = {name: getattr(order, name).encode(errors="replace").decode() for name in ("prompt", "negative_prompt")}
        return replace(order, **texts)

    def request(self, base: GenerateRequest, loras: dict[str, Path], folder: Path) -> GenerateRequest:
        """As `miniai generate` has it, with the options of `base` that hold for all orders, and the files that `loras`
        names; pictures are written to `folder`. Raises UserError for what is no picture, an unknown LoRA, and a number
        out of range."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in ("image", "mask"):
            if given[name] is not None:
                given[name] = _write_picture(given[name], folder / f"{name}.png")
        if self.guidance_interval is not None:
            given["guidance_interval"] = tuple(map(float, self.guidance_interval))
        strengths = dict(base.loras)
        for name, strength in self.loras:
            if name not in loras:
                raise UserError(f"there is no LoRA {name!r}: give its file when you start the page, --lora FILE")
            check_ranges((f"the strength of {name}", strength, -MAX_STRENGTH, MAX_STRENGTH, ""))
            strengths[loras[name]] = float(strength)
        given["loras"] = tuple(strengths.items())
        request = replace(base, **given)
        check_request(request)
        check_sampler(request.sampler)
        return request


class Stopped(Exception):  # noqa: N818 (a person's wish, not an error)
    """Whoever ordered the picture does not want it any more."""


class Painter:
    """Paints orders with the model, LoRAs and learned words of `base`, and saves them in its folder `out`.

    One order at a time is painted, in a thread of its own; those that come meanwhile wait. Raises UserError if the
    model or something else of `base` cannot be read.
    """

    def __init__(self, base: GenerateRequest) -> None:
        assert base.out is not None
        self.base, self.out = base, base.out
        self.model = base.model or packaged_model()
        self.pipe = load_pipeline(self.model, base, pick_device(base.device))
        self.loras = named(path for path, _ in base.loras)
        self.words = [one.word for path in base.embeddings for one in read_words(path)]
        self._strengths = {str(path): float(strength) for path, strength in base.loras}
        make_folder(self.out)
        self._closed = False
        self._line = threading.Lock()  # who comes first is painted first, and all others hear that they wait
        self._stops: set[threading.Event] = set()
        self._read: dict[tuple[str, int, int], dict[str, Any]] = {}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="painter")

    def settings(self) -> dict[str, Any]:
        """What the page needs to know before it asks: names, defaults, what can be chosen."""
        size = self.pipe.unet.config.sample_size * self.pipe.vae.config.factor
        return {
            "model": self.model.name,
            "size": size,
            "multiple": self.pipe.vae.config.factor,
            "samplers": [{"name": one.name, "title": one.title} for one in SAMPLERS.values()],
            "styles": [STYLE_WORDS[style] for style in STYLES] if self.base.model is None else [],
            "loras": [{"name": name, "strength": dict(self.base.loras)[path]} for name, path in self.loras.items()],
            "words": self.words,
            "defaults": {"steps": self.base.steps, "guidance_scale": self.base.guidance_scale},
        }

    def order(self, order: Order, tell: Tell, stop: threading.Event) -> None:
        """Paint, when it is this order's turn, and return when that is done; `stop` set from elsewhere stops it.

        `tell` hears {"event": "waiting"} if another is being painted, {"event": "notice", "message"} of what is done
        otherwise than asked, {"event": "step", "step", "n_steps"} after each step, now and then with a "preview" (a
        data URL), and at last one of {"event": "done", "seed", "pictures"} (each as `picture` has it), {"event":
        "error", "message"} and {"event": "stopped"}.
        """
        try:
            with self._line:
                if self._stops:
                    tell({"event": "waiting"})
                self._stops.add(stop)
                painted = self._thread.submit(self._told, order, tell, stop)
            painted.result()
        except RuntimeError:
            if not self._closed:
                raise
            self._stops.discard(stop)
            tell({"event": "stopped"})

    def close(self) -> None:
        """Stop what is being painted and what waits."""
        self._closed = True
        for stop in list(self._stops):
            stop.set()
        self._thread.shutdown()

    def _told(self, order: Order, tell: Tell, stop: threading.Event) -> None:
        try:
            if stop.is_set():
                raise Stopped
            with notices_to(lambda text: tell({"event": "notice", "message": text})):
                done = self._painted(order, tell, stop)
            tell(done)
        except Stopped:
            tell({"event": "stopped"})
        except UserError as error:
            tell({"event": "error", "message": in_words(error)})
        except OSError as error:  # such as a full disk
            tell({"event": "error", "message": f"cannot read or write: {error.strerror}"})
        finally:
            self._stops.discard(stop)

    def _painted(self, order: Order, tell: Tell, stop: threading.Event) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            request = order.request(self.base, self.loras, Path(folder))
            targets = choose_targets(request)
            try:
                image, mask = (None if path is None else open_image(path) for path in (request.image, request.mask))
            except UserError as error:
                raise UserError(str(error).replace(f"{folder}{os.sep}", "")) from error
        seed = fresh_seed() if request.seed is None else request.seed
        asked = take_lora_tags(request)
        steps = Steps(self.pipe, tell, stop)
        with memory_to_user_error():
            self._take_strengths({str(path): strength for path, strength in asked.loras})
            images, _ = paint(self.pipe, asked, seed, image, mask, on_step=steps)
        if stop.is_set():
            raise Stopped
        save_pictures(self.pipe, request, self.model, seed, images, targets)
        names = [path.name for path in targets.singles or (targets.main,)]
        return {"event": "done", "seed": seed, "pictures": [self.picture(self.out / name) for name in names]}

    def _take_strengths(self, strengths: dict[str, float]) -> None:
        if strengths != self._strengths:
            self._strengths = {}  # should memory run out halfway
            self.pipe.set_adapters(list(strengths), list(strengths.values()))
            self._strengths = strengths

    def pictures(self) -> list[dict[str, Any]]:
        """The newest pictures of the folder, the newest first."""
        found = []
        for path in self.out.glob("*.png"):
            with suppress(OSError, UnicodeError):  # gone meanwhile; a name that no address can hold
                path.name.encode()
                if path.is_file():
                    found.append((path.stat().st_mtime_ns, path))
        return [self.picture(path) for _, path in sorted(found, reverse=True)[:N_LISTED]]

    def picture(self, path: Path) -> dict[str, Any]:
        """Its name and time (of its last change), the text that it carries, and the settings in that, to be taken up
        again; remembered while the file is the same."""
        try:
            stat = path.stat()
            key = (path.name, stat.st_mtime_ns, stat.st_size)
            if key not in self._read:
                text = read_parameters(path) or ""
                settings = read_settings(text)
                self._read[key] = {"name": path.name, "time": key[1], "parameters": text, "settings": settings}
            return self._read[key]
        except (OSError, UserError):
            return {"name": path.name, "time": 0, "parameters": "", "settings": {}}


class Steps:
    """Tells how far a painting is, with a preview as often as a share of PREVIEW_SHARE of the time allows, and stops
    it if that is wished."""

    def __init__(self, pipe: Any, tell: Tell, stop: threading.Event) -> None:
        self.pipe, self.tell, self.stop = pipe, tell, stop
        self.next_preview = 0.0

    def __call__(self, step: int, n_steps: int, denoised: Float[Tensor, "b c h w"]) -> None:
        """After step number `step`, from 1. Raises Stopped."""
        if self.stop.is_set():
            raise Stopped
        news: dict[str, Any] = {"event": "step", "step": step, "n_steps": n_steps}
        begin = time.monotonic()
        if begin >= self.next_preview:
            try:
                news["preview"] = as_data_url(as_grid(preview(self.pipe, denoised)))
                self.next_preview = begin + (time.monotonic() - begin) / PREVIEW_SHARE
            except (UserError, MemoryError, RuntimeError):  # the picture itself may do without
                self.next_preview = math.inf
        self.tell(news)


def named(paths: Iterable[Path]) -> dict[str, Path]:
    """Each LoRA by its file's name, and those of one name by numbers, too.

    >>> list(named([Path("a/ink.safetensors"), Path("b/ink.safetensors")]))
    ['ink', 'ink 2']
    """
    found: dict[str, Path] = {}
    for path in paths:
        name = lora_name(path)
        same = [known for known in found.values() if lora_name(known) == name]
        found[f"{name} {len(same) + 1}" if same else name] = path
    return found


@contextmanager
def notices_to(tell: Callable[[str], None]) -> Iterator[None]:
    """Notices for the user go to `tell` inside the `with`, each text once."""
    told: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
        if issubclass(category, UserNotice) and str(message) not in told:
            told.add(str(message))
            tell(str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserNotice)
        warnings.showwarning = show
        yield


def in_words(error: UserError) -> str:
    """An error's line for those who see a page: what the page asks for by name is called so, "guidance scale" and not
    "--guidance-scale"; other options are those of `miniai ui`."""
    own = {field.name.replace("_", "-") for field in fields(Order)}

    def word(match: re.Match[str]) -> str:
        return match[1].replace("-", " ") if match[1] in own else match[0]

    return re.sub(r"(?<![\w-])--([a-z]+(?:-[a-z]+)*)", word, str(error))


def as_data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _write_picture(url: str, path: Path) -> Path:
    """The picture of a data URL, as a file; what it is, `open_image` finds out from its bytes."""
    head, _, content = url.partition(";base64,")
    try:
        if not head.startswith("data:image/"):
            raise ValueError
        path.write_bytes(base64.b64decode(content, validate=True))
    except (ValueError, binascii.Error):
        raise UserError("the picture to start from is none: give one as a data URL, data:image/png;base64,…") from None
    return path
