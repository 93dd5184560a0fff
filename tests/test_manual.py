"""The manual builds without a warning, its links lead somewhere, and every public name has its place in it."""

from __future__ import annotations

import contextlib
import importlib
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from glob import glob
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.browser import Browser, needs_browser
from tests.imports import ROOT
from tests.runs import call

pytestmark = pytest.mark.slow  # the manual is built

PUBLIC = {
    "configs": ("get_cfg_defaults", "load_config"),
    "datasets": ("DatasetSpec", "build_transforms", "make_dataloader", "make_dataset", "register_dataset"),
    "lineup": ("Extractor", "load_config", "make_dataset", "make_model"),
    "loss": (
        "ClusterMemory", "DINOLoss", "bn_margins", "center", "cross_entropy", "dissimilarity_distillation", "dmmd",
        "make_loss", "margin_distillation", "simclr", "simsiam", "supervised_contrastive", "triplet",
    ),
    "model": ("ReIDOutput", "RetrievalModel", "make_model", "register_backbone"),
    "model.networks.clip_reid": ("PromptReID.encode_text", "PromptReID.prompts", "PromptReID.text_features"),
    "processor.extractor": ("Extractor", "Extractor.load", "Extractor.identify", "Extractor.same"),
    "processor.run": ("test", "train"),
    "solver": ("average_weights", "make_optimizer", "make_scheduler", "reestimate_batch_norm"),
    "utils.calibration": ("Calibration",),
    "utils.checkpoint": ("LoadReport", "load_pretrained", "load_weights"),
    "utils.errors": ("UserError",),
    "utils.methods": ("register_method",),
    "utils.metrics": (
        "RankResult", "RetrievalResult", "evaluate_features", "evaluate_rank", "evaluate_retrieval", "evaluate_roc",
        "nmi", "roc",
    ),
    "utils.reranking": ("jaccard_distance", "query_expansion", "re_ranking"),
}  # fmt: skip
"""Names that other people's code relies on: module -> names."""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The manual, built as ``make docs`` builds it: any warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class Html(HTMLParser):
    """The links and anchors of a page, and its text."""

    def __init__(self, path: Path):
        super().__init__()
        self.links, self.anchors, self.texts = [], set(), []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.links += [values[name] for name in ("href", "src") if values.get(name)]
        self.anchors |= {values[name] for name in ("id", "name") if values.get(name)}

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Html]:
    return {path: Html(path) for path in sorted(site.rglob("*.html"))}


def resolved(name: str) -> object:
    """The object of a dotted name."""
    module, _, rest = name.rpartition(".")
    for part in reversed(range(1, len(name.split(".")))):
        module, rest = ".".join(name.split(".")[:part]), name.split(".")[part:]
        with contextlib.suppress(ModuleNotFoundError):
            value = importlib.import_module(module)
            for word in rest:
                value = getattr(value, word)
            return value
    raise LookupError(name)


def test_every_public_name_is_documented(pages):
    anchors = {anchor for page in pages.values() for anchor in page.anchors}
    shown = {anchor for anchor in anchors if re.fullmatch(r"[a-z_]+(\.\w+)+", anchor)}
    objects = []
    for name in shown:
        with contextlib.suppress(LookupError, AttributeError):
            objects.append(resolved(name))
    names = [(module, name) for module, some in PUBLIC.items() for name in some]
    assert len(names) > 50
    assert [f"{m}.{n}" for m, n in names if not any(resolved(f"{m}.{n}") == one for one in objects)] == []


def test_a_name_without_a_docstring_has_no_place_in_the_manual(pages):
    for module, some in PUBLIC.items():
        for name in some:
            assert (resolved(f"{module}.{name}").__doc__ or "").strip(), f"{module}.{name}"


def test_every_link_of_the_site_leads_somewhere(site, pages):
    broken, count = [], 0
    for path, page in pages.items():
        for link in page.links:
            target, _, fragment = unquote(link).partition("#")
            if re.match(r"[a-z]+:|//", target) or path.name == "404.html":
                continue
            count += 1
            to = (path.parent / target.partition("?")[0]).resolve() if target else path
            to = to / "index.html" if to.is_dir() else to
            if not to.is_file() or (fragment and to in pages and fragment not in pages[to].anchors):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert count > 1000 and broken == []


def test_the_site_asks_no_other_server_for_anything(site):
    for path in [*site.rglob("*.html"), *site.rglob("*.css")]:
        text = path.read_text(encoding="utf-8")
        assert not re.findall(r"""(?:src=["']?|<link[^>]* href=["']?|url\(["']?)(https?:)?//(?!www\.w3)""", text), path


@needs_browser
def test_pages_fit_a_laptop_and_a_phone_and_the_search_finds(site, tmp_path):
    """From a folder without one request, and from a server, which the search needs."""
    with Browser(tmp_path / "profile") as browser:
        for width, height, phone in ((1280, 800, False), (390, 844, True)):
            browser.size(width, height, phone=phone)
            for name in ("index.html", "transreid.html", "api/losses.html"):
                browser.open(site / name)
                overflow = browser.ask("document.documentElement.scrollWidth - document.documentElement.clientWidth")
                assert overflow <= 0, (name, width)
        assert not [line for line in browser.troubles if line.startswith("request")]
        browser.size(1280, 800)
        with served(site) as address:
            browser.loaded.clear()
            browser.call("Page.navigate", url=f"{address}/index.html")
            assert browser.loaded.wait(60)
            hits = browser.ask(
                "new Promise(done => { const field = document.querySelector('input.md-search__input'); field.focus();"
                " field.value = 'hardest positive'; field.dispatchEvent(new Event('input', {bubbles: true}));"
                " field.dispatchEvent(new KeyboardEvent('keyup', {bubbles: true})); let tries = 0;"
                " const found = () => [...document.querySelectorAll('.md-search-result__link')].map(a => a.href)"
                ".join();"
                " const wait = () => found() || ++tries > 300 ? done(found()) : setTimeout(wait, 100); wait(); })"
            )
    assert ".html" in hits


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a server of a folder, inside the context."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


# ---------------------------------------------------------------- the tutorial


def test_the_tutorial_runs_from_crops_to_a_model_that_is_given_away(tmp_path, monkeypatch):
    """As a reader would do it, on fewer and smaller images."""
    text = (ROOT / "docs" / "tutorial.md").read_text()
    blocks = re.findall(r"```(python|bash)\n(.*?)```", text, re.DOTALL)
    assert [language for language, _ in blocks] == ["python", "bash", "bash", "bash", "bash", "python", "bash"]
    monkeypatch.chdir(tmp_path)
    small = ["INPUT.SIZE_TRAIN", "[64, 32]", "INPUT.SIZE_TEST", "[64, 32]", "SOLVER.IMS_PER_BATCH", "16"]
    small += ["SOLVER.EVAL_PERIOD", "12", "SOLVER.EVAL_BEFORE", "False", "TEST.REPORT", "False"]
    room: dict = {}
    for language, block in blocks:
        if language == "python":
            exec(block.replace("ids=64", "ids=20"), room)
            continue
        command, *words = shlex.split(block.removeprefix("python ").removeprefix("-m "))
        words = [path for word in words for path in (sorted(glob(word)) if "*" in word else [word])]
        if command == "train.py":
            assert call("train", [*words, *small]) == 0
            assert (tmp_path / "runs" / "crops" / "resnet10_12.pth").is_file()
        else:
            settings = small if command in ("tools.extract", "tools.search") else []
            with contextlib.suppress(SystemExit):
                importlib.import_module(command).main([*words, *settings])
    assert len(list((tmp_path / "crops").iterdir())) == 10
    assert "person0" in (tmp_path / "found.html").read_text()
    assert room["features"].shape[1] == 512 and len(room["features"]) >= 4
    assert "mAP" in (tmp_path / "published" / "README.md").read_text()
