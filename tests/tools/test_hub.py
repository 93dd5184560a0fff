"""Published models: the files, the card, the hub's protocol, and what a stranger's repository may not do."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import constants

from processor import run
from processor.extractor import Extractor
from processor.published import DESCRIPTION, FILES, SETTINGS, WEIGHTS, PublishedModel
from tests.hub_stub import TOKEN, commit_id, running_hub
from tests.runs import call
from tests.tiny import config, options
from tools import hub
from utils.calibration import Calibration
from utils.errors import UserError
from utils.scoring.calibration import Probability, Threshold

LICENCE = "cc-by-nc-4.0"


@pytest.fixture(scope="module")
def trained(market, tmp_path_factory) -> Path:
    """A finished run with a calibration, and a checkpoint whose classifier is of its identities."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    run.train(config(market, folder, SOLVER__MAX_EPOCHS=1, MODEL__SIE_CAMERA=True))
    extractor = Extractor.load(folder)
    calibration_of(extractor.model_hash).write(folder / "calibration.json")
    return folder


def calibration_of(model_hash: str) -> Calibration:
    threshold = Threshold(far=0.01, distance=0.002, low=0.001, high=0.003, got_low=0.0, got_high=0.1, tar=0.5)
    return Calibration(
        model_hash=model_hash, metric="euclidean", normalize=True, camera_norm="off", dataset="market1501",
        pairs="within", identities=4, genuine_pairs=4, impostor_pairs=400, thresholds=[threshold],
        probability=Probability(np.array([0.0, 4.0]), np.array([9.0, 0.0]), 0.01),
    )  # fmt: skip


@pytest.fixture(scope="module")
def images(market) -> list[Path]:
    return sorted((market / "market1501" / "query").iterdir())


@pytest.fixture(scope="module")
def published(trained, tmp_path_factory) -> Path:
    """The run in a folder; tests that change something copy it."""
    folder = tmp_path_factory.mktemp("published") / "mine"
    hub.push(trained, folder=folder, licence=LICENCE)
    return folder


@pytest.fixture
def server(monkeypatch, tmp_path):
    """The stub in place of the hub, an empty cache, and a token."""
    with running_hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


# ---------------------------------------------------------------- a folder


def test_a_folder_gives_the_same_features_to_the_bit(trained, published, images, capsys):
    names = {path.name for path in published.iterdir()}
    assert names == {*FILES, "README.md"}
    ours, theirs = Extractor.load(trained), Extractor.load(str(published))
    assert f"{published}: licence {LICENCE}" in capsys.readouterr().err
    assert np.array_equal(ours(images, camids=[0, 1] * 4), theirs(images, camids=[0, 1] * 4))
    assert not np.array_equal(theirs(images), theirs(images, camids=[1] * 8)), "side information came along"
    assert ours.model_hash == theirs.model_hash and theirs.calibration is not None
    assert 0 <= theirs.same(images[0], images[1]) <= 1


def test_nothing_of_the_machine_and_of_the_identities_is_published(trained, published, market):
    for path in published.iterdir():
        raw = path.read_bytes()
        for secret in (str(market), str(trained.parent), str(published.parent)):
            assert secret.encode() not in raw, (path.name, secret)
    from safetensors import safe_open

    with safe_open(published / WEIGHTS, framework="pt") as file:
        assert not [name for name in file.keys() if "classifier" in name]  # noqa: SIM118 - no mapping


def test_the_card_has_what_a_reader_and_the_hub_need(trained, published):
    text = (published / "README.md").read_text()
    head, body = re.fullmatch(r"---\n(.*?)---\n(.*)", text, re.DOTALL).groups()
    metadata = yaml.safe_load(head)
    assert metadata["license"] == LICENCE and metadata["library_name"] == "lineup"
    metrics = json.loads((trained / "metrics.json").read_text())
    (result,) = metadata["model-index"][0]["results"]
    share = metrics["results"]["market1501"]["mAP"]
    assert result["metrics"][0] == {"type": "mAP", "name": "mAP", "value": round(100 * share, 2)}
    huggingface_hub.ModelCard(text).data.to_dict()  # the hub's own reader
    assert re.search(rf"\| mAP \| {100 * share:.1f} \| \d+\.\d to \d+\.\d \|", body)
    for words in (
        "seed 1234", "one run", metrics["commit"][:10], "| method | supervised |", "| trained on | market1501 |",
        "## Intended use and limits", "## Responsible use", f"Licence: {LICENCE}", "| 0.01 | 0.0020 |",
        'Extractor.load("mine")', "| tested on | market1501 |", "## Decisions",
    ):  # fmt: skip
        assert words in body, words
    assert "## In other runtimes" not in body


def test_the_verdict_of_an_export_joins_the_card(trained, tmp_path):
    figure = {"value": 0.5, "before": 0.52, "low": -0.03, "high": 0.01}
    row = {
        "precision": "int8", "runtime": "onnxruntime", "megabytes": 1.5, "speed": {"1": 10.0, "2": 18.0},
        "trouble": "", "tests": {"a|b": {"figures": {"mAP": figure}, "same_first": 1.0}},
    }  # fmt: skip
    content = {"model_hash": Extractor.load(trained).model_hash, "verdict": {"rows": [row], "machine": "2 cores"}}
    exported = tmp_path / "exported"
    exported.mkdir()
    (exported / DESCRIPTION).write_text(json.dumps(content))
    hub.push(trained, folder=tmp_path / "out", licence=LICENCE, exported=exported)
    card = (tmp_path / "out" / "README.md").read_text()
    line = "| int8 | onnxruntime | 1.50 | 18 | a\\|b | mAP 50.00 | -2.00 (-3.00 to +1.00) |"
    assert line in card and "2 cores" in card
    for damage in ([{}], 7, [row | {"tests": {"a": {"figures": {}}}}], [row | {"speed": {"1": "fast"}}]):
        (exported / DESCRIPTION).write_text(json.dumps(content | {"verdict": {"rows": damage, "machine": ""}}))
        with pytest.raises(UserError, match="model.json: damaged: not the verdict of an export"):
            hub.push(trained, folder=tmp_path / "other", licence=LICENCE, exported=exported)
    (exported / DESCRIPTION).write_text(json.dumps(content | {"model_hash": "0"}))
    with pytest.raises(UserError, match="model.json: is of another model or setting"):
        hub.push(trained, folder=tmp_path / "other", licence=LICENCE, exported=exported)
    assert not (tmp_path / "other").exists()


def test_weights_and_figures_are_those_of_the_last_evaluation(trained, market, tmp_path):
    folder = tmp_path / "tested"
    weight = trained / "transformer_1.pth"
    words = options(market, folder, TEST__WEIGHT=weight, MODEL__SIE_CAMERA=True, TEST__FLIP=True)
    assert call("test", words) == 0
    hub.push(folder, folder=tmp_path / "out", licence=LICENCE)
    loaded = Extractor.load(tmp_path / "out")
    assert loaded.flip and json.loads((tmp_path / "out" / DESCRIPTION).read_text())["weight"] == weight.name
    assert "whose seed is not known" in (tmp_path / "out" / "README.md").read_text()


# ---------------------------------------------------------------- the hub


def test_pushing_and_loading_through_the_hub_keeps_features_to_the_bit(trained, images, server, capsys):
    address = hub.push(trained, "me/model", licence=LICENCE)
    commit = commit_id("me/model", 1)
    assert address == f"hf://me/model@{commit}" and server.private == {"me/model"}
    assert {"PUT /objects", "POST /api/models/me/model/commit/main"} <= set(server.requests)
    assert set(server.repos["me/model"][-1]) == {*FILES, "README.md"}
    ours, theirs = Extractor.load(trained), Extractor.load("hf://me/model")
    assert f"hf://me/model@{commit}: licence {LICENCE}\n" in capsys.readouterr().err
    assert np.array_equal(ours(images), theirs(images))
    assert b'Extractor.load("hf://me/model")' in server.repos["me/model"][-1]["README.md"]


def test_a_revision_is_pinned_and_offline_the_copy_is_read(trained, images, server, monkeypatch, capsys):
    first = hub.push(trained, "me/model", licence=LICENCE, public=True)
    assert not server.private
    hub.push(trained, "me/model", licence="apache-2.0")  # a second commit of the same repository
    Extractor.load(first)
    assert f"{first}: licence {LICENCE}" in capsys.readouterr().err
    Extractor.load("hf://me/model@main")
    assert "licence apache-2.0" in capsys.readouterr().err
    seen = len(server.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for address in (first, "hf://me/model@main"):
        feats = Extractor.load(address)(images)
    assert np.array_equal(feats, Extractor.load(trained)(images)) and len(server.requests) == seen
    with pytest.raises(UserError, match="^hf://me/other: HF_HUB_OFFLINE is set, and no copy of it is on this machine$"):
        Extractor.load("hf://me/other")
    with pytest.raises(UserError, match="^HF_HUB_OFFLINE is set: nothing can be pushed; --folder DIR writes the same"):
        hub.push(trained, "me/model", licence=LICENCE)


def test_files_that_are_not_ours_are_not_fetched(trained, server):
    hub.push(trained, "me/model", licence=LICENCE)
    server.repos["me/model"][-1] |= {"evil.py": b"raise SystemExit", "pytorch_model.bin": b"pickle"}
    Extractor.load("hf://me/model")
    assert not [line for line in server.requests if "evil" in line or "pytorch" in line]


@pytest.mark.parametrize(
    ("address", "line"),
    [
        ("hf://model", "hf://model: expected hf://OWNER/NAME or hf://OWNER/NAME@REVISION"),
        ("hf://a/b/c", "hf://a/b/c: expected hf://OWNER/NAME or"),
        ("hf://me/../x", "hf://me/../x: expected hf://"),
        ("hf://me/..", "hf://me/..: cannot be fetched"),
        ("hf://me/nothing", "hf://me/nothing: no such repository, or a private one: log in with 'hf auth login'"),
        ("hf://me/model@v9", "hf://me/model@v9: the repository has no revision 'v9'"),
        ("hf://me/strange", "hf://me/strange@.{40}: no model.safetensors, config.yml, model.json: not a model"),
    ],
)  # fmt: skip
def test_addresses_that_lead_nowhere(address, line, trained, server):
    server.repos |= {"me/model": [{}], "me/strange": [{"README.md": b"hello", "model.bin": b"x"}]}
    with pytest.raises(UserError, match=f"^{line}"):
        Extractor.load(address)


def test_without_a_network_there_is_one_line(trained, monkeypatch, tmp_path):
    with running_hub() as server:
        endpoint = server.endpoint
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)  # where nobody listens any more
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(UserError, match="^hf://me/model: the hub cannot be reached, and no copy of it is on this"):
        Extractor.load("hf://me/model")
    with pytest.raises(UserError, match="^me/model: the hub cannot be reached .*--folder DIR writes the same files$"):
        hub.push(trained, "me/model", licence=LICENCE)


def test_pushing_needs_a_token_that_may_write(trained, server, monkeypatch):
    with pytest.raises(UserError, match=r"^you/model: the hub refuses \(403\): log in with 'hf auth login', or set"):
        hub.push(trained, "you/model", licence=LICENCE)
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(UserError, match=r"^me/model: the hub refuses \(401\): log in with"):
        hub.push(trained, "me/model", licence=LICENCE)
    monkeypatch.delenv("HF_TOKEN")
    seen = len(server.requests)
    with pytest.raises(UserError, match="^no token of the hub: log in with 'hf auth login', or set HF_TOKEN; --folder"):
        hub.push(trained, "me/model", licence=LICENCE)
    assert len(server.requests) == seen and not server.repos


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["me/model"], "--license: name the licence that you give the weights out under, as the hub spells it"),
        (["me/model", "--license", "Free for all"], "--license: 'Free for all' is not spelt as a licence of the hub"),
        (["--license", "mit"], "expected a repository, OWNER/NAME, or --folder DIR, and not both"),
        (["me/model", "--folder", "x", "--license", "mit"], "expected a repository, OWNER/NAME, or --folder DIR"),
        (["model", "--license", "mit"], "model: expected OWNER/NAME of letters, digits"),
        (["--folder", "{run}", "--license", "mit"], "--folder: .* holds something else; name a new folder"),
    ],
)
def test_options_that_cannot_be_met(words, line, trained):
    words = [word.replace("{run}", str(trained)) for word in words]
    with pytest.raises(UserError, match=f"^{line}"):
        hub.main(["push", str(trained), *words])


def test_what_is_not_finished_needs_code_or_is_of_another_model_is_not_published(trained, tmp_path, published):
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: no metrics.json or test_metrics.json of a finished run"):
        hub.push(tmp_path / "empty", folder=out, licence=LICENCE)
    other = shutil.copytree(trained, tmp_path / "other")
    calibration_of("0" * 64).write(other / "calibration.json")
    with pytest.raises(UserError, match="calibration.json: is of another model or setting; calibrate this one with"):
        hub.push(other, folder=out, licence=LICENCE)
    (tmp_path / "mine.py").write_text("")
    text = (trained / "config.yml").read_text().replace("EXTRA_MODULES: []", f"EXTRA_MODULES: [{tmp_path / 'mine.py'}]")
    (other / "config.yml").write_text(text)
    with pytest.raises(UserError, match="EXTRA_MODULES .*: nobody can load this model without code"):
        hub.push(other, folder=out, licence=LICENCE)
    assert not out.exists()
    hub.push(trained, folder=shutil.copytree(published, out), licence="mit")  # a folder of ours may be written again
    assert json.loads((out / DESCRIPTION).read_text())["license"] == "mit"


def rewrite(folder: Path, name: str, change) -> None:
    """Changes a file as its author may: the description goes with it."""
    (folder / name).write_text(change((folder / name).read_text()))
    from utils.files import sha256_of

    content = json.loads((folder / DESCRIPTION).read_text())
    content["sha256"][name] = sha256_of(folder / name).hex()
    (folder / DESCRIPTION).write_text(json.dumps(content))


def test_a_strangers_settings_import_nothing_and_read_nothing(published, tmp_path):
    code = tmp_path / "evil.py"
    code.write_text("raise SystemExit('it ran')")
    for name, change, line in (
        ("code", lambda text: re.sub("EXTRA_MODULES:.*", f"EXTRA_MODULES: ['{code}']", text), "asks for code"),
        ("base", lambda text: "_BASE_: /etc/passwd\n" + text, "has its settings in one file, and this one has _BASE_"),
        ("list", lambda text: "- 1\n- 2\n", "damaged, expected sections of settings"),
        ("yaml", lambda text: "a: [", "damaged \\(line 1: not valid YAML"),
        ("key", lambda text: text + "NOTHING: 3\n", "NOTHING: unknown section or key"),
    ):  # fmt: skip
        folder = shutil.copytree(published, tmp_path / name)
        rewrite(folder, SETTINGS, change)
        with pytest.raises(UserError, match=line):
            Extractor.load(folder)
    folder = shutil.copytree(published, tmp_path / "paths")

    def hostile(text: str) -> str:
        tree = yaml.safe_load(text)
        tree["MODEL"]["PRETRAIN_PATH"] = tree["TEST"]["CALIBRATION"] = tree["TEST"]["WEIGHT"] = "/etc/passwd"
        return yaml.safe_dump(tree)

    rewrite(folder, SETTINGS, hostile)
    cfg = PublishedModel.read(folder).config()
    assert ("", str(folder / WEIGHTS)) == (cfg.MODEL.PRETRAIN_PATH, cfg.TEST.WEIGHT)
    assert Extractor.load(folder).calibration is not None
    assert "evil" not in sys.modules


def test_damaged_and_edited_models_are_refused(published, tmp_path, images):
    folder = shutil.copytree(published, tmp_path / "bit")
    raw = bytearray((folder / WEIGHTS).read_bytes())
    raw[-5] ^= 1
    (folder / WEIGHTS).write_bytes(raw)
    with pytest.raises(UserError, match="model.safetensors is not the file that model.json describes"):
        Extractor.load(folder)
    folder = shutil.copytree(published, tmp_path / "flip")
    rewrite(folder, SETTINGS, lambda text: text.replace("FLIP: false", "FLIP: true"))
    (folder / "calibration.json").unlink()
    with pytest.raises(UserError, match="its features are not those that model.json describes; it was edited"):
        Extractor.load(folder)
    Extractor.load(folder, None, "TEST.FLIP", False)  # the user's own settings are the user's own
    folder = shutil.copytree(published, tmp_path / "calibration")
    other = json.dumps(calibration_of("0" * 64).content())
    rewrite(folder, "calibration.json", lambda text: other)
    with pytest.raises(UserError, match="calibration.json: is of another model or setting"):
        Extractor.load(folder)
    folder = shutil.copytree(published, tmp_path / "pickle")
    torch.save({"a": torch.ones(1)}, folder / WEIGHTS)
    rewrite(folder, "calibration.json", lambda text: text)
    content = json.loads((folder / DESCRIPTION).read_text())
    from utils.files import sha256_of

    content["sha256"][WEIGHTS] = sha256_of(folder / WEIGHTS).hex()
    (folder / DESCRIPTION).write_text(json.dumps(content))
    with pytest.raises(UserError, match="model.safetensors: not a readable checkpoint: damaged"):
        Extractor.load(folder)
    for damage in ("", "[]", "{}", '{"sha256": 3, "model_hash": ""}', '{"sha256": {}, "model_hash": "", "license": 3}'):
        (folder / DESCRIPTION).write_text(damage)
        with pytest.raises(UserError, match="model.json"):
            Extractor.load(folder)


def test_a_model_without_a_licence_says_so(published, tmp_path, capsys):
    folder = shutil.copytree(published, tmp_path / "bare")
    content = json.loads((folder / DESCRIPTION).read_text())
    del content["license"]
    (folder / DESCRIPTION).write_text(json.dumps(content))
    Extractor.load(folder)
    assert "it names no licence: ask its author before you use it" in capsys.readouterr().err


