"""The local page paints what `miniai generate` paints, tells how far it is, stops, and answers nobody but itself."""

import base64
import http.client
import io
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_model import tiny_pipeline
from tqdm import TMonitor

import miniai
from miniai.base.errors import UserError
from miniai.base.images import read_parameters
from miniai.base.weights import write_weights
from miniai.cli import run
from miniai.nn.low_rank import LowRankLayers, write_weight
from miniai.recipes.generate import generate, parameters_text
from miniai.recipes.generate_request import GenerateRequest
from miniai.recipes.personalise_config import UNET_LAYERS
from miniai.sd.lora_files import UNET, write_lora
from miniai.sd.pipeline import StableDiffusionPipeline
from miniai.ui.painter import Order, Painter
from miniai.ui.server import MAX_BYTES, SECONDS_BETWEEN_LOOKS, PageServer
from miniai.ui.settings import read_settings

PAGE = Path(miniai.__file__).parent / "ui" / "page"
FAST: dict[str, Any] = {"prompt": "a cat", "seed": 3, "steps": 4}
pytestmark = pytest.mark.filterwarnings("ignore::miniai.base.errors.UserNotice")  # prompts beyond the tiny window


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def lora(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pipe = StableDiffusionPipeline.from_pretrained(model)
    layers = LowRankLayers(pipe.unet, UNET_LAYERS, 2)
    with torch.no_grad():
        for i, weight in enumerate(layers.parameters()):
            weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(i)))
    path = tmp_path_factory.mktemp("lora") / "odd.safetensors"
    write_lora(path, {UNET: layers.changes()})
    return path


@pytest.fixture(scope="module")
def word(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("word") / "learned_embeds.safetensors"
    write_weights(path, {"<thing>": torch.randn(2, 16, generator=torch.Generator().manual_seed(0))})
    return path


@pytest.fixture(scope="module")
def base(model: Path, lora: Path, word: Path, tmp_path_factory: pytest.TempPathFactory) -> GenerateRequest:
    out = tmp_path_factory.mktemp("out") / "pictures"
    return GenerateRequest("", model=model, out=out, loras=((lora, 1.0),), embeddings=(word,), device="cpu")


@pytest.fixture(scope="module")
def server(base: GenerateRequest) -> Iterator[PageServer]:
    with PageServer(port=0) as server:
        server.painter = Painter(base)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
        server.painter.close()


def ask(
    server: PageServer, method: str, path: str, body: Any = None, **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=60)
    try:
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        kind = {} if body is None else {"Content-Type": "application/json"}
        connection.request(method, path, content, kind | named)
        answer = connection.getresponse()
        return answer, answer.read()
    finally:
        connection.close()


def paint(server: PageServer, **order: Any) -> list[dict[str, Any]]:
    answer, content = ask(server, "POST", "/api/paint", FAST | order)
    assert answer.status == 200, content
    return [json.loads(line) for line in content.splitlines()]


def picture(server: PageServer, name: str) -> Image.Image:
    answer, content = ask(server, "GET", f"/pictures/{name}")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "image/png")
    return Image.open(io.BytesIO(content))


def data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def from_data_url(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,"))))


def test_an_order_is_painted_as_the_command_line_paints_it(
    server: PageServer, base: GenerateRequest, tmp_path: Path
) -> None:
    (*steps, done) = paint(server, n=2, negative_prompt="a dog", guidance_scale=3, sampler="euler_a")
    assert [(news["event"], news["step"], news["n_steps"]) for news in steps] == [("step", i, 4) for i in (1, 2, 3, 4)]
    assert from_data_url(steps[0]["preview"]).size == (32, 16)  # both pictures
    assert (done["event"], done["seed"]) == ("done", 3)
    out = tmp_path / "x.png"
    named: dict[str, Any] = {"negative_prompt": "a dog", "guidance_scale": 3, "sampler": "euler_a", "out": out}
    painted = generate(replace(base, **FAST, n=2, **named))
    for one, path in zip(done["pictures"], painted.files, strict=False):
        ours = picture(server, one["name"])
        assert ours.tobytes() == Image.open(path).tobytes()
        assert one["parameters"] == ours.text["parameters"] == read_parameters(path)  # type: ignore[attr-defined]


@pytest.mark.parametrize("padding", [{}, {"mask_padding": 2}])
def test_pictures_to_start_from_and_masks_are_those_of_the_command_line(
    server: PageServer, base: GenerateRequest, tmp_path: Path, padding: dict[str, Any]
) -> None:
    image, mask = Image.radial_gradient("L").resize((24, 16)).convert("RGB"), Image.new("RGB", (24, 16))
    mask.paste("white", (0, 0, 12, 16))
    for name, one in (("image", image), ("mask", mask)):
        one.save(tmp_path / f"{name}.png")
    done = paint(server, image=data_url(image), mask=data_url(mask), strength=0.75, **padding)[-1]
    files: dict[str, Any] = {name: tmp_path / f"{name}.png" for name in ("image", "mask")} | padding
    painted = generate(replace(base, **FAST, **files, strength=0.75, out=tmp_path / "x.png"))
    ours = picture(server, done["pictures"][0]["name"])
    assert ours.size == (24, 16)
    assert ours.tobytes() == Image.open(painted.files[0]).tobytes()
    assert done["pictures"][0]["parameters"] == read_parameters(painted.files[0])


def test_each_order_has_its_own_strengths_of_loras_and_the_learned_words(server: PageServer, model: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(model)
    without = pipe("a cat", num_inference_steps=4, guidance_scale=2.5, generator=torch.Generator().manual_seed(3))

    def pixels(**order: Any) -> bytes:
        return picture(server, paint(server, **order)[-1]["pictures"][0]["name"]).tobytes()

    whole, none, half = pixels(), pixels(loras=[["odd", 0]]), pixels(loras=[["odd", 0.5]])
    assert none == without.images[0].tobytes()
    assert len({whole, none, half}) == 3
    assert pixels() == whole
    assert pixels(prompt="<lora:odd:0.5>a cat", prompt_syntax="a1111", loras=[["odd", 1]]) == half
    assert pixels(prompt="a <thing>") != pixels(prompt="a <other>")


def test_the_page_knows_what_can_be_chosen(server: PageServer) -> None:
    settings = json.loads(ask(server, "GET", "/api/settings")[1])
    assert (settings["model"], settings["size"], settings["multiple"]) == ("tiny", 16, 2)
    assert {"name": "euler_a", "title": "Euler a"} in settings["samplers"]
    assert (settings["loras"], settings["words"]) == ([{"name": "odd", "strength": 1.0}], ["<thing>"])
    assert settings["styles"] == []  # they are the packaged model's


def test_the_packaged_models_styles_can_be_chosen(tmp_path: Path) -> None:
    painter = Painter(GenerateRequest("", out=tmp_path, device="cpu"))
    assert {"noto", "fluent flat"} <= set(painter.settings()["styles"])  # as prompts have them
    painter.close()


def test_an_order_stops_when_its_connection_closes_and_the_next_is_painted(server: PageServer) -> None:
    before = {one.name for one in server.painter.out.iterdir()}
    with socket.create_connection(("127.0.0.1", server.server_address[1]), timeout=60) as connection:
        body = json.dumps(FAST | {"steps": 900}).encode()
        head = f"POST /api/paint HTTP/1.1\r\nHost: 127.0.0.1:{server.server_address[1]}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        with connection.makefile("rb") as lines:
            assert any(b'"step"' in line for line in lines)
    done = paint(server, prompt="next")[-1]
    assert {one.name for one in server.painter.out.iterdir()} - before == {done["pictures"][0]["name"]}


def test_an_order_that_is_given_up_while_it_waits_is_never_begun(server: PageServer) -> None:
    def begin(steps: int) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=60)
        body = json.dumps(FAST | {"steps": steps, "prompt": f"{steps} steps"})
        connection.request("POST", "/api/paint", body, {"Content-Type": "application/json"})
        return connection

    long = begin(900)
    first = long.getresponse()
    assert any(b'"step"' in line for line in first)  # it is being painted before the other comes
    waits = begin(5)
    second = waits.getresponse()
    assert second.readline() == b'{"event": "waiting"}\n'
    second.close()
    waits.close()
    time.sleep(3 * SECONDS_BETWEEN_LOOKS)
    first.close()
    long.close()
    paint(server)
    assert not [one.name for one in server.painter.out.glob("*steps*")]


def test_what_is_done_otherwise_than_asked_is_said(server: PageServer) -> None:
    news = paint(server, prompt="a cat with sunglasses and a hat and a tie and shoes and gloves and a coat " * 4)
    (notice,) = [one["message"] for one in news if one["event"] == "notice"]
    assert "cut" in notice
    assert news[-1]["event"] == "done"
    assert [one["event"] for one in paint(server) if one["event"] == "notice"] == []


def test_a_preview_that_fails_leaves_the_picture_alone(server: PageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr("miniai.ui.painter.preview", fail)
    news = paint(server)
    assert not any("preview" in one for one in news)
    assert news[-1]["event"] == "done"


def test_a_change_of_strengths_that_fails_is_done_again_by_the_next_order(
    server: PageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pixels(strength: float) -> bytes:
        return picture(server, paint(server, loras=[["odd", strength]])[-1]["pictures"][0]["name"]).tobytes()

    expected = {strength: pixels(strength) for strength in (0.5, 1.0)}
    written: list[Any] = []

    def run_out(layer: Any, weight: Any) -> None:
        written.append(layer)
        if len(written) == 3:
            raise MemoryError
        write_weight(layer, weight)

    for strength in (0.5, 1.0):
        pixels(strength)  # the weights are at it, before the change that fails and after
        written.clear()
        with monkeypatch.context() as patch:
            patch.setattr("miniai.nn.low_rank.write_weight", run_out)
            (news,) = paint(server, loras=[["odd", 0.25]])
        assert "out of memory" in news["message"]
        assert pixels(strength) == expected[strength]


def test_loras_of_one_name_are_told_apart(model: Path, lora: Path, tmp_path: Path) -> None:
    other = tmp_path / lora.name
    other.write_bytes(lora.read_bytes())
    out = tmp_path / "out"
    painter = Painter(GenerateRequest("", model=model, out=out, loras=((lora, 1.0), (other, 0.5)), device="cpu"))
    given = [{"name": "odd", "strength": 1.0}, {"name": "odd 2", "strength": 0.5}]
    assert painter.settings()["loras"] == given
    order = Order.from_json(FAST | {"loras": [["odd 2", 0]]})
    assert order.request(painter.base, painter.loras, tmp_path).loras == ((lora, 1.0), (other, 0.0))
    assert Order("x").request(painter.base, painter.loras, tmp_path).loras == ((lora, 1.0), (other, 0.5))
    painter.close()


def test_half_of_a_surrogate_pair_becomes_a_question_mark(server: PageServer) -> None:
    done = paint(server, prompt="a \ud83d cat")[-1]
    assert done["pictures"][0]["settings"]["prompt"] == "a ? cat"


def test_orders_that_come_together_are_painted_one_after_the_other(server: PageServer) -> None:
    found: dict[int, list[dict[str, Any]]] = {}

    def order(seed: int) -> None:
        found[seed] = paint(server, prompt=f"seed {seed}", seed=seed)

    threads = [threading.Thread(target=order, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(3):
        events = [news["event"] for news in found[seed] if news["event"] != "waiting"]
        assert events == ["step"] * 4 + ["done"]
        assert found[seed][-1]["seed"] == seed


def test_pictures_are_listed_newest_first_with_the_settings_to_take_up_again(server: PageServer) -> None:
    asked: dict[str, Any] = {
        "prompt": 'a cat, "with: commas"\nSteps: and lines',
        "negative_prompt": "dogs, more dogs",
        "steps": 4,
        "sampler": "DPM++ 2M Karras",
        "guidance_scale": 2.5,
        "seed": 3,
        "width": 24,
        "height": 16,
        "clip_skip": 1,
        "eta": 0.5,
        "guidance_rescale": 0.7,
        "guidance_interval": [0.5, 8],
        "cache_interval": 2,
        "prompt_syntax": "comfyui",
        "long_prompts": "chunks",
        "loras": [["odd", 0.25]],
    }
    done = paint(server, **asked)[-1]
    listed = json.loads(ask(server, "GET", "/api/pictures")[1])
    assert listed[0] == done["pictures"][0]
    assert listed[0]["settings"] == asked
    again = paint(server, **listed[0]["settings"])[-1]
    names = [one["pictures"][0]["name"] for one in (done, again)]
    assert picture(server, names[0]).tobytes() == picture(server, names[1]).tobytes()


def test_settings_are_read_back_as_they_were_written(model: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(model)
    for request in (
        GenerateRequest("a cat", seed=2**40, guidance_scale=7.25),
        GenerateRequest("a\nb", negative_prompt="Model: x, Seed: 4", clip_skip=1, steps=7),
    ):
        found = read_settings(parameters_text(pipe, request, model, request.seed or 0, (64, 32)))
        for name in ("prompt", "negative_prompt", "steps", "guidance_scale"):
            assert found[name] == getattr(request, name)
        assert (found["seed"], found["width"], found["height"]) == (request.seed or 0, 64, 32)
    others = (
        'a cat\nSteps: 9, Sampler: Euler, CFG scale: 7, Image CFG scale: 1.5, Seed: 3, Size: 8x8, Hint: "a, Seed: 9"'
    )
    assert (read_settings(others)["guidance_scale"], read_settings(others)["seed"]) == (7, 3)
    assert "seed" not in read_settings(others.replace("Seed: 3", f"Seed: {2**60}"))  # no browser holds it exactly
    assert read_settings("a text of others") == read_settings("x\nSteps: many, Seed: none") == {}


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ({"steps": 5000}, "steps 5000 is out of range: give 1 to 1000 steps"),
        ({"guidance_scale": -1}, "guidance scale -1 is out of range"),
        ({"sampler": "oiler"}, "unknown sampler 'oiler'"),
        ({"width": 15}, "15"),
        ({"mask": "data:image/png;base64,AAAA"}, "mask belongs to a picture"),
        ({"image": "data:image/png;base64,AAAA"}, "image.png"),
        ({"image": "/etc/passwd"}, "data URL"),
        ({"image": "data:image/png;base64,?"}, "data URL"),
        ({"loras": [["even", 1]]}, "there is no LoRA 'even'"),
        ({"loras": [["odd", 10**400]]}, "the strength of odd"),
        ({"guidance_scale": 10**400}, "out of range: give 0 to 100"),
        ({"n": 257}, "n 257 is out of range"),
    ],
)
def test_what_cannot_be_painted_is_answered_in_one_line_and_leaves_nothing(
    server: PageServer, order: dict[str, Any], message: str
) -> None:
    before = set(server.painter.out.iterdir())
    (news,) = paint(server, **order)
    assert news["event"] == "error"
    assert message in news["message"]
    assert "\n" not in news["message"]
    assert "--" not in news["message"].replace("--lora FILE", "")  # that is an option of `miniai ui` itself
    assert set(server.painter.out.iterdir()) == before
    assert paint(server)[-1]["event"] == "done"


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"no JSON", {}, 400),
        (b"[" * 100_000, {}, 400),
        ({"prompt": "x", "colour": 1}, {}, 400),
        ({"prompt": 3}, {}, 400),
        ({"steps": 4}, {}, 400),
        ([], {}, 400),
        (FAST, {"Content_Type": "text/plain"}, 415),
        (FAST, {"Content_Length": str(MAX_BYTES + 1)}, 413),
        (FAST, {"Content_Length": "-1"}, 411),
        (FAST, {"Content_Length": "9" * 5000}, 411),
        (FAST, {"Sec_Fetch_Site": "cross-site"}, 403),
        (FAST, {"Sec_Fetch_Site": "same-site"}, 403),
        (FAST, {"Host": "evil.example"}, 403),
        (FAST, {"Host": "[evil"}, 403),
        (FAST, {"Origin": "http://evil.example"}, 403),
        (FAST, {"Origin": "null"}, 403),
    ],
)
def test_what_is_no_order_of_the_page_is_refused(
    server: PageServer, body: Any, headers: dict[str, str], status: int
) -> None:
    answer, content = ask(server, "POST", "/api/paint", body, **headers)
    assert answer.status == status
    assert json.loads(content)["message"]


def test_only_pictures_of_the_folder_are_given_out(server: PageServer) -> None:
    (server.painter.out.parent / "secret.png").write_bytes(b"secret")
    (server.painter.out / "notes.txt").write_text("secret")
    for name in ("../secret.png", "..%2Fsecret.png", "%2e%2e%2fsecret.png", "notes.txt", "nowhere.png", "a%00.png", ""):
        answer, content = ask(server, "GET", f"/pictures/{name}")
        assert answer.status == 404, name
        assert b"secret\n" not in content
    assert "notes.txt" not in ask(server, "GET", "/api/pictures")[1].decode()
    for path in ("/painter.py", "/../server.py", "/page/index.html"):
        assert ask(server, "GET", path)[0].status == 404
    assert ask(server, "GET", "/api/settings", Host="evil.example:80")[0].status == 403
    assert ask(server, "GET", "/api/settings", Sec_Fetch_Site="cross-site")[0].status == 403
    assert ask(server, "GET", "/", Sec_Fetch_Site="cross-site")[0].status == 200  # a link to it
    with socket.create_connection(("127.0.0.1", server.server_address[1]), timeout=60) as connection:
        connection.sendall(b"GET http://[/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 400 ")


def test_the_server_knows_its_own_names(server: PageServer) -> None:
    own = ("127.0.0.1", "127.0.0.1:80", "localhost:8000", f"{socket.gethostname()}:1", "[::1]:80")
    for host in own:  # any port: a tunnel has another
        assert server.is_named(host), host
    for host in ("", "evil.example", "127.0.0.1.evil.example", "192.168.1.5", "localhost.evil.example:80", "[::"):
        assert not server.is_named(host), host
    with PageServer("0.0.0.0", 0) as open_to_all:
        assert open_to_all.is_named("192.168.1.5:7860")
        assert not open_to_all.is_named("evil.example:7860")


def test_the_page_asks_nobody_else_and_says_so(server: PageServer) -> None:
    for path, kind in (("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")):
        answer, content = ask(server, "GET", path)
        assert answer.status == 200
        assert answer.headers["Content-Type"] == f"{kind}; charset=utf-8"
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'self'; img-src 'self' data: blob:;")
        assert b"http" not in content
        assert b"innerHTML" not in content  # what is painted or typed is text, never markup


def test_the_script_finds_what_it_looks_for_in_the_page() -> None:
    html, script = (PAGE / "index.html").read_text(), (PAGE / "page.js").read_text()
    looked_for = set(re.findall(r'find\("([^"]+)"\)', script))
    assert len(looked_for) > 20
    assert looked_for <= set(re.findall(r'id="([^"]+)"', html))
    lists = re.findall(r"^const (?:NUMBERS|TEXTS) = \[(.*?)\];$", script, re.MULTILINE | re.DOTALL)
    named = set(re.findall(r'"(\w+)"', " ".join(lists)))
    assert named == set(re.findall(r'name="(\w+)"', html)) - {"viewport", "guide_above", "guide_up_to"}
    assert named | {"image", "mask", "loras", "guidance_interval"} == {field.name for field in fields(Order)}


@pytest.mark.parametrize(
    "arguments", [["--port", "70000"], ["--model", "nowhere"], ["--lora", "nowhere"], ["--out", "file/pictures"]]
)
def test_a_page_that_cannot_be_shown_is_one_line(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    known = [] if "--model" in arguments else ["--model", str(model)]
    assert run(["ui", *known, *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_port_that_is_taken_is_one_line(server: PageServer) -> None:
    with pytest.raises(UserError, match="cannot listen on 127.0.0.1, port .*--port"):
        PageServer(port=server.server_address[1])


def test_closed_it_leaves_no_thread_that_holds_the_model(base: GenerateRequest, tmp_path: Path) -> None:
    before = set(threading.enumerate())
    with PageServer(port=0) as own:
        own.painter = Painter(replace(base, out=tmp_path))
        serving = threading.Thread(target=own.serve_forever)
        serving.start()
        idle, painting = (http.client.HTTPConnection("127.0.0.1", own.server_address[1], timeout=60) for _ in range(2))
        idle.request("GET", "/api/settings")
        idle.getresponse().read()  # and stays connected, as a browser does
        order = json.dumps(FAST | {"steps": 900})
        painting.request("POST", "/api/paint", order, {"Content-Type": "application/json"})
        answer = painting.getresponse()
        assert b'"step"' in answer.readline()
        own.shutdown()
        serving.join()
        own.painter.close()
    left = [one for one in threading.enumerate() if one not in before and not isinstance(one, TMonitor)]
    assert left == []  # but the progress bar's own, which knows nothing of the model
    assert json.loads(answer.read().splitlines()[-1]) == {"event": "stopped"}
    idle.close()
    painting.close()


def test_the_command_shows_the_page_until_ctrl_c(model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "miniai", "ui", "--port", "0", "--model", str(model), "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        address = process.stdout.readline().strip()
        port = int(re.fullmatch(r"http://127\.0\.0\.1:(\d+)/", address)[1])  # type: ignore[index]
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", "/api/paint", json.dumps(FAST), {"Content-Type": "application/json"})
        assert b'"done"' in connection.getresponse().read()
        connection.request(
            "POST", "/api/paint", json.dumps(FAST | {"steps": 900}), {"Content-Type": "application/json"}
        )
        answer = connection.getresponse()
        assert b'"step"' in answer.readline()
        process.send_signal(signal.SIGINT)  # while it paints
        code, errors = process.wait(60), process.stderr.read()
        assert (code, errors) == (0, "stopping when the step is done; once more to stop at once\n")
        assert json.loads(answer.read().splitlines()[-1]) == {"event": "stopped"}
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 1


def test_ctrl_c_twice_does_not_wait_for_the_step(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "miniai", "ui", "--port", "0", "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        port = int(process.stdout.readline().strip().rstrip("/").rpartition(":")[2])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        order = {"prompt": "a cat", "n": 64, "steps": 3}  # the packaged model needs seconds for a step of so many
        connection.request("POST", "/api/paint", json.dumps(order), {"Content-Type": "application/json"})
        assert b'"step"' in connection.getresponse().readline()
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline().startswith("stopping")
        process.send_signal(signal.SIGINT)
        assert (process.wait(60), process.stderr.read()) == (130, "")
    assert not list((tmp_path / "pictures").glob("*.png"))
