"""Every link of the README, the documents and the records of benchmarks leads to something that is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks" / "results").glob("*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)")
TOPICS = "### Topics"
MUST_BE_THERE = (
    *("matrices", "iterators, generators", "products of matrices", "broadcasting", "statistics", "APL", "Frobenius"),
    *(
        "random numbers",
        "dual numbers",
        "linear classifier",
        "cross entropy",
        "modules, hooks",
        "optimizers, schedules",
    ),
    *("IDX files", "mean shift", "a real run", "from nothing: Stable Diffusion"),
    *("Learner: events", "rate finder, summary, captured predictions", "both styles of learner", "device, bfloat16"),
    *("single batch", "several processes", "EMA", "checkpoints", "NaN guard", "TensorBoard, W&B", "live plot"),
    *("PyTorch's schedulers", "dropout at test time", "activation statistics", "DatasetDicts", "captioned folders"),
    *("augmentation", "TrivialAugment", "initialisation, LSUV, general ReLU", "CNN", "residual network", "autoencoder"),
    *("U-Net, VAE, CLIP", "without text", "self-attention", "time embedding", "transformer blocks"),
    *("super-resolution", "style transfer", "neural cellular automata", "sweeps", "keywords handed on", "notebook"),
    *("metrics", "DDPM", "DDIM", "EDM", "continuous time", "predicting the noise level", "Karras, exponential"),
    *("samplers", "class labels, text", "classifier-free guidance", "negative prompts", "byte-pair tokenizer"),
    *("image to image, inpainting", "textual inversion", "DreamBooth", "LoRA", "Imagic", "inverse problems"),
    *("guidance by CLIP", "distillation", "FID, KID", "CLIP score", "prompt retrieval", "perceptual distance"),
    *("pipeline, model folders", "orders of all samplers"),
)


def links(text: str) -> list[str]:
    return LINK.findall(re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def anchors(text: str) -> set[str]:
    """What the headings of a page are linked by."""
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def topics() -> list[list[str]]:
    """The cells of each row of the README's table of topics."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").split(TOPICS)[1].split("\n## ")[0]
    rows = [line.strip().strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return rows[2:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    broken = []
    for link in links(text):
        place, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = page.parent / place if place else page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            broken.append(link)
    assert broken == []


def test_the_check_of_links_sees_links_and_broken_ones() -> None:
    assert sum(len(links(page.read_text(encoding="utf-8"))) for page in PAGES) > 200
    assert links("[a](b/c.md) and [d](#e-f)\n```\n[x](y)\n```") == ["b/c.md", "#e-f"]
    assert anchors("# One, two\n## The house") == {"one-two", "the-house"}


def test_every_topic_has_its_code_and_its_test() -> None:
    rows = topics()
    assert len(rows) > 50
    lacking = [word for word in MUST_BE_THERE if not any(word.lower() in topic.lower() for topic, _, _ in rows)]
    assert lacking == []
    for topic, code, check in rows:
        assert any(link.startswith(("miniai/", "lessons/")) for link in links(code)), f"{topic.strip()}: no code"
        tests = [link for link in links(check) if link.startswith("tests/")]
        assert tests, f"{topic.strip()}: no test"
        assert all((ROOT / link).is_dir() or "def test_" in (ROOT / link).read_text() for link in tests), topic
