"""From features of a test set to metrics and the file of single queries."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from datasets import CATALOGUE
from datasets.loaders import TestSet, make_dataloader
from datasets.records import Records
from model import RetrievalModel, make_model
from processor import evaluate as module
from processor.evaluate import Scored, Settings, evaluate, extract_features, per_query_csv, score
from tests.runs import call
from tests.tiny import config, options, write_market
from utils.errors import UserError
from utils.metrics import evaluate_features, evaluate_retrieval
from utils.reranking import neighbour_centralisation, query_expansion
from utils.scoring.blocks import free_memory
from utils.scoring.camera_norm import CameraReference

COLUMNS = ["path", "pid", "camid", "AP", "INP", "first_match_rank", "valid"]


def records(prefix, pids, camids):
    return Records.of([f"{prefix}/{i:03d}.jpg" for i in range(len(pids))], pids, camids)


def example(protocol="market1501", same_list=False):
    """A set of 12 queries and 40 gallery images, and features for its list; query 3 has no match."""
    rng = np.random.default_rng(0)
    pids, cams = np.arange(52) % 8, rng.integers(0, 3, 52)
    pids[3] = 99
    feats = rng.standard_normal((8, 16))[pids % 8] + rng.standard_normal((52, 16))
    query, gallery = records("query", pids[:12], cams[:12]), records("gallery", pids[12:], cams[12:])
    feats = torch.from_numpy(feats.astype(np.float32))
    if same_list:
        return TestSet("all", protocol, query, query, None, same_list=True), feats[:12]
    return TestSet("some/set", protocol, query, gallery, None), feats


def rows(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(content.decode().splitlines()))


def test_scores_of_single_queries_are_those_of_the_ranking():
    test, feats = example()
    scored = score(test, feats, Settings())
    ids = test.query.pids, test.gallery.pids, test.query.camids, test.gallery.camids
    expected = evaluate_features(feats[:12], feats[12:], *ids)
    assert scored.metrics["mAP"] == expected.mAP and scored.metrics["valid_queries"] == 11
    found = rows(per_query_csv(scored))
    assert [row["path"] for row in found] == test.query.paths and list(found[0]) == COLUMNS
    for i, row in enumerate(found):
        assert (int(row["pid"]), int(row["camid"])) == (test.query.pids[i], test.query.original_camids()[i])
        assert row["valid"] == str(int(i != 3))
        if i == 3:
            assert row["AP"] == row["INP"] == row["first_match_rank"] == ""
        else:
            assert float(row["AP"]) == pytest.approx(expected.per_query["AP"][i], abs=1e-6)
            assert float(row["INP"]) == pytest.approx(expected.per_query["INP"][i], abs=1e-6)
            assert int(row["first_match_rank"]) == expected.per_query["first_match_rank"][i]


def test_queries_that_nobody_in_the_gallery_shows_give_open_set_figures():
    test, feats = example()
    metrics = score(test, feats, Settings()).metrics  # query 3's identity is absent by itself
    assert metrics["absent_queries"] == 1 and 0 <= metrics["DIR@FPIR=0.01"] <= metrics["DIR@FPIR=0.1"] <= 1
    taken_out = score(test, feats, Settings(open_share=0.5)).metrics
    assert taken_out["absent_queries"] > 1 and 0 <= taken_out["AUROC"] <= 1
    assert taken_out["mAP"] == metrics["mAP"]  # the ranking itself is of the whole gallery
    test.query.pids[3] = test.gallery.pids[0]
    assert "AUROC" not in score(test, feats, Settings()).metrics


def test_a_test_run_reports_the_open_set(tmp_path):
    root = write_market(tmp_path / "data", ids=6)
    folder = tmp_path / "run"
    assert call("train", options(root, folder, SOLVER__MAX_EPOCHS=1)) == 0
    weight = folder / "transformer_1.pth"
    assert call("test", options(root, folder, TEST__WEIGHT=weight, TEST__OPEN_SET=True, TEST__REPORT=True)) == 0
    metrics = json.loads((folder / "test_metrics.json").read_text())["results"]["market1501"]
    assert metrics["absent_queries"] == 6 and {"DIR@FPIR=0.01", "AUROC"} <= metrics.keys()
    page = (folder / "report.html").read_text()
    assert "DIR@FPIR=0.01" in page and "Open-set curve" in page


@pytest.mark.parametrize("kind", ["mean", "pair"])
def test_a_test_run_normalises_by_cameras(kind, tmp_path):
    root, folder = write_market(tmp_path / "data", ids=6, images=4), tmp_path / "run"
    cfg = config(root, folder, TEST__CAMERA_NORM=kind)
    data = make_dataloader(cfg, training=False)
    (test,) = data.tests
    assert test.reference is not None and len(test.reference.records) == 48
    torch.manual_seed(0)
    model, settings = make_model(cfg, 6, 2, 1), replace(Settings.from_cfg(cfg), roc=True, report=True)
    feats = extract_features(model, test.loader, torch.device("cpu"))
    reference = extract_features(model, test.reference, torch.device("cpu"))
    norm = CameraReference(kind, reference, test.reference.records.camids)
    qf, gf = (norm.centred(rows, ids, True) for rows, ids in (
        (feats[: len(test.query)], test.query.camids), (feats[len(test.query) :], test.gallery.camids)))  # fmt: skip
    ids = test.query.pids, test.gallery.pids, test.query.camids, test.gallery.camids
    expected = evaluate_features(qf, gf, *ids, camera_pairs=norm.pairs("euclidean", True))
    found = evaluate(model, [test], settings, torch.device("cpu"), tmp_path)["market1501"]
    assert found["mAP"] == pytest.approx(expected.mAP) and "TAR@FAR=0.01" in found
    plain = evaluate(model, [test], replace(settings, camera_norm="off"), torch.device("cpu"))["market1501"]
    assert plain["mAP"] != found["mAP"]


def test_camera_norms_that_cannot_be_fitted_are_one_line(tmp_path):
    root = write_market(tmp_path / "data", ids=6, images=4)
    images = sorted((root / "market1501").glob("*/*.jpg"))

    def refused(match: str, keep, names: str = "path,pid,camid,split", **changes) -> None:
        table = tmp_path / "table.csv"
        splits = {"bounding_box_train": "train", "bounding_box_test": "gallery", "query": "query"}
        rows = [{"path": p, "pid": p.name[:4], "camid": p.name[6], "split": splits[p.parent.name]} for p in images]
        lines = [",".join(str(row[name]) for name in names.split(",")) for row in rows if keep(row["path"])]
        table.write_text("\n".join([names, *lines]) + "\n")
        changes |= {"DATASETS__NAMES": "csv", "DATASETS__ROOT_DIR": str(table), "TEST__CAMERA_NORM": "mean"}
        with pytest.raises(UserError, match=match):
            make_dataloader(config(root, tmp_path / "run", **changes), training=False)

    train = "bounding_box_train"
    refused("csv has no training images to fit it on", lambda p: p.parent.name != train)
    refused("or its training or its test images are of one only", lambda p: p.parent.name != train or "_c1" in p.name)
    refused("csv has 8 training images of camera 1; it needs 10", lambda p: p.parent.name != train or p.name < "0003")
    refused("csv has no cameras", lambda p: True, names="path,pid,split")
    refused("TEST.PROTOCOL 'retrieval' cannot go together", lambda p: True, TEST__PROTOCOL="retrieval")
    cfg = config(root, tmp_path / "run", TEST__CAMERA_NORM="pair", TEST__RE_RANKING=True)
    with pytest.raises(UserError, match="'pair' and TEST.RE_RANKING cannot go together"):
        Settings.from_cfg(cfg)


def test_identities_held_out_are_normalised_by_the_others(tmp_path):
    root = write_market(tmp_path / "data", ids=8, images=4)
    cfg = config(root, tmp_path / "run", TEST__CAMERA_NORM="mean", DATASETS__VAL_SHARE=0.25)
    data = make_dataloader(cfg)
    assert data.validation is not None and data.validation.reference is not None
    used = {str(path) for path in data.validation.reference.records.paths}
    assert len(used) == 48 and not used & {str(path) for path in data.validation.query.paths}


def test_one_list_with_cameras_leaves_out_the_image_itself_only():
    test, feats = example(same_list=True)
    plain = evaluate_features(feats, feats, test.query.pids, test.query.pids, same_list=True)
    scored = score(test, feats, Settings(roc=True))
    assert scored.metrics["mAP"] == plain.mAP and scored.metrics["valid_queries"] == plain.num_valid_q
    assert any(name.startswith("TAR@FAR") for name in scored.metrics)


def test_expansion_counts_an_image_of_one_list_once():
    test, feats = example(same_list=True)
    expanded = torch.empty_like(feats)
    for row in range(len(feats)):
        cosines = torch.cosine_similarity(feats[row][None], feats)
        near = sorted(range(len(feats)), key=lambda i, cosines=cosines: (-float(cosines[i]), i))[:4]
        expanded[row] = sum(cosines[i] ** 3 * feats[i] for i in near) / 4
    pids, settings = test.query.pids, Settings(expansion=(1, 4, 3.0))
    plain = evaluate_features(expanded, expanded, pids, pids, same_list=True)
    assert score(test, feats, settings).metrics["mAP"] == pytest.approx(plain.mAP, abs=1e-6)
    with_cameras = replace(test, same_list=False)  # as ``test`` rows of a table with cameras
    camids = test.query.camids
    filtered = evaluate_features(expanded, expanded, pids, pids, camids, camids)
    found = score(with_cameras, torch.cat([feats, feats]), settings).metrics["mAP"]
    assert found == pytest.approx(filtered.mAP, abs=1e-6)


def test_a_drawn_gallery_shows_the_queries_of_the_first_draw():
    test, feats = example("vehicleid")
    scored = score(test, feats, Settings(repeats=3, seed=4))
    first = score(test, feats, Settings(repeats=1, seed=4))
    assert per_query_csv(scored) == per_query_csv(first)
    assert scored.metrics["mAP"] != first.metrics["mAP"] and scored.metrics["mAP std"] > 0
    found = rows(per_query_csv(scored))
    assert len(found) == 52 - 9 and all(row["valid"] == "1" for row in found)
    assert first.metrics["mAP"] == pytest.approx(np.mean([float(row["AP"]) for row in found]), abs=1e-6)


@pytest.mark.parametrize("same_list", [False, True])
def test_retrieval_shows_the_rank_of_the_first_match(same_list):
    test, feats = example("retrieval", same_list)
    found = rows(per_query_csv(score(test, feats, Settings())))
    gallery = () if same_list else (feats[12:], test.gallery.pids)
    result = evaluate_retrieval(feats[:12], test.query.pids, *gallery, nmi=False)
    assert np.mean([row["valid"] == "1" and row["first_match_rank"] == "1" for row in found]) == result.recall[1]
    assert found[3]["valid"] == "0" and all(row["AP"] == "" for row in found)


@pytest.mark.parametrize(("share", "k"), [("1%", 1), ("10%", 4), ("100%", 40)])
def test_a_share_of_the_gallery_is_a_k_and_what_the_protocol_has_not_is_not_computed(share, k):
    test, feats = example("retrieval")
    scored = score(test, feats, Settings())
    assert set(scored.metrics) == {"Recall@1", "Recall@2", "Recall@4", "Recall@8", "NMI"}
    other = replace(test, ks=(1, k, share), also=("mAP",))
    found = score(other, feats, Settings(ap="trapezoid")).metrics
    assert set(found) == {"Recall@1", f"Recall@{k}", f"Recall@{share}", "mAP"}
    assert found[f"Recall@{share}"] == found[f"Recall@{k}"]
    unit = torch.nn.functional.normalize(feats)
    pids = (test.query.pids, test.gallery.pids)
    assert found["mAP"] == pytest.approx(evaluate_features(unit[:12], unit[12:], *pids, ap="trapezoid").mAP, abs=1e-6)


def test_sets_of_the_retrieval_protocol_report_what_their_papers_report():
    assert {name: (spec.ks, spec.also) for name, spec in CATALOGUE.items() if spec.protocol == "retrieval"} == {
        "car196": ((1, 2, 4, 8), ("NMI",)), "cub200": ((1, 2, 4, 8), ("NMI",)), "sop": ((1, 10, 100, 1000), ()),
        "inshop": ((1, 10, 20, 30), ()), "university1652": ((1, 5, 10, "1%"), ("mAP",)),
    }  # fmt: skip


class Given(RetrievalModel):
    """Stands for a model; features are given through ``extract_features``."""


def test_the_keys_choose_the_ks_and_the_clustering(tmp_path):
    root = write_market(tmp_path)
    for changes, names in (
        ({}, {"Recall@1", "Recall@2", "Recall@4", "Recall@8", "NMI"}),
        ({"TEST__RECALL_KS": [1, 0.5], "TEST__NMI": False}, {"Recall@1", "Recall@50%"}),
    ):
        cfg = config(root, tmp_path, TEST__PROTOCOL="retrieval", **changes)
        (test,) = make_dataloader(cfg, training=False).tests
        feats = torch.randn(len(test.query) + len(test.gallery), 8, generator=torch.Generator().manual_seed(0))
        assert score(test, feats, Settings.from_cfg(cfg)).metrics.keys() == names


def test_classes_are_found_among_the_best_scores():
    test = replace(example("classification", same_list=True)[0], query=records("val", [0, 1, 2, 6], [0] * 4))
    rows_of = [[9.0, 1, 1, 1, 1, 1, 1], [5, 4, 3, 2, 1, 0, 0], [1, 2, 3, 4, 5, 6, 7], [7, 6, 5, 4, 3, 2, 1]]
    scores = torch.tensor(rows_of)
    scored = module.classification(test, scores)
    assert scored.metrics == {"Top-1": 0.25, "Top-5": 0.75}
    assert scored.per_query["first_match_rank"].tolist() == [1, 2, 5, 7]


def test_files_are_one_for_a_set_and_one_each_for_several(tmp_path, monkeypatch):
    (one, feats), (two, _) = example(), example()
    two.name = "b"
    monkeypatch.setattr(module, "extract_features", lambda *_: feats)
    cpu = torch.device("cpu")
    evaluate(Given(), [one], Settings(), cpu)
    assert not list(tmp_path.iterdir())
    evaluate(Given(), [one], Settings(), cpu, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["per_query.csv"]
    evaluate(Given(), [one, two], Settings(), cpu, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "per_query.csv", "per_query_some_set.csv", "per_query_b.csv"
    }  # fmt: skip
    monkeypatch.setattr(module, "is_main", lambda: False)
    evaluate(Given(), [one], Settings(), cpu, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_paths_with_commas_quotes_and_line_breaks_come_back():
    names = ['a,"b".jpg', "line\nbreak.jpg", "ü.jpg"]
    query = Records.of(names, [1, 2, 3])
    ranks = {"AP": np.ones(3), "INP": np.ones(3), "first_match_rank": np.array([1, 2, -1])}
    content = per_query_csv(Scored({}, query, ranks)).decode()
    found = list(csv.DictReader(content.splitlines(keepends=True)))
    assert [row["path"] for row in found] == names


def test_training_and_testing_write_the_file(tmp_path):
    root = write_market(tmp_path / "data")
    assert call("train", options(root, tmp_path / "run", SOLVER__MAX_EPOCHS=1)) == 0
    words = options(root, tmp_path / "test", TEST__WEIGHT=tmp_path / "run" / "transformer_1.pth")
    assert call("test", [*words, "TEST.MAX_MEMORY_GB", "0.001"]) == 0
    trained, tested = ((tmp_path / name / "per_query.csv").read_bytes() for name in ("run", "test"))
    assert trained == tested
    result = json.loads((tmp_path / "test" / "test_metrics.json").read_text())["mean"]
    found = rows(tested)
    assert len(found) == result["queries"]
    assert np.mean([float(row["AP"]) for row in found if row["valid"] == "1"]) == pytest.approx(result["mAP"], abs=1e-6)


def test_memory_comes_from_the_key_or_is_a_quarter_of_what_is_free(tmp_path, monkeypatch):
    seen = []

    def spy(*arguments, **settings):
        seen.append(settings["max_memory"])
        return evaluate_features(*arguments, **settings)

    monkeypatch.setattr(module, "evaluate_features", spy)
    test, feats = example()
    cfg = config(tmp_path, tmp_path, TEST__MAX_MEMORY_GB=1.5)
    score(test, feats, Settings.from_cfg(cfg))
    score(test, feats, Settings.from_cfg(config(tmp_path, tmp_path)))
    assert seen[0] == 1_500_000_000 and 0 < seen[1] <= free_memory()
    with pytest.raises(UserError, match="TEST.MAX_MEMORY_GB: -1.0 must be at least 0"):
        Settings.from_cfg(config(tmp_path, tmp_path, TEST__MAX_MEMORY_GB=-1.0))


def centralised(tmp_path, **changes):
    return Settings.from_cfg(config(tmp_path, tmp_path, TEST__NFC=True, TEST__NFC_K=(4, 3), **changes))


@pytest.mark.parametrize("of", ["both", "query", "gallery"])
@pytest.mark.parametrize("norm", ["yes", "no"])
def test_neighbour_centralisation_changes_each_list_by_itself(tmp_path, of, norm):
    test, feats = example()
    qf, gf = feats[:12], feats[12:]
    ids = test.query.pids, test.gallery.pids, test.query.camids, test.gallery.camids
    qf = neighbour_centralisation(qf, 4, 3, norm == "yes") if of != "gallery" else qf
    gf = neighbour_centralisation(gf, 4, 3, norm == "yes") if of != "query" else gf
    found = score(test, feats, centralised(tmp_path, TEST__NFC_OF=of, TEST__FEAT_NORM=norm))
    assert found.metrics["mAP"] == evaluate_features(qf, gf, *ids, normalize=norm == "yes").mAP
    assert found.metrics["mAP"] != score(test, feats, Settings(normalize=norm == "yes")).metrics["mAP"]


def test_neighbour_centralisation_comes_before_expansion_and_re_ranking(tmp_path):
    test, feats = example()
    ids = test.query.pids, test.gallery.pids, test.query.camids, test.gallery.camids
    lists = [neighbour_centralisation(some, 4, 3, True) for some in (feats[:12], feats[12:])]
    settings = {"TEST__RE_RANKING": True, "TEST__RERANK": (4, 2, 0.3), "TEST__QUERY_EXPANSION": (1, 2, 3.0)}
    expected = evaluate_features(*query_expansion(*lists, 1, 2, 3.0), *ids, rerank=(4, 2, 0.3))
    assert score(test, feats, centralised(tmp_path, **settings)).metrics["mAP"] == expected.mAP


@pytest.mark.parametrize("of", ["both", "query", "gallery"])
@pytest.mark.parametrize("protocol", ["market1501", "retrieval"])
def test_one_list_is_centralised_once_whatever_its_halves_are_called(tmp_path, protocol, of):
    halves, feats = example(protocol)
    every = records("all", *(np.concatenate([getattr(halves.query, name), getattr(halves.gallery, name)])
                             for name in ("pids", "camids")))  # fmt: skip
    test = TestSet("all", protocol, every, every, None, same_list=True)
    changed = neighbour_centralisation(feats, 4, 3, normalize=True)
    found = score(test, feats, centralised(tmp_path, TEST__NFC_OF=of)).metrics
    assert found == score(test, changed, Settings()).metrics
    assert found != score(test, feats, Settings()).metrics


def test_an_unknown_protocol_is_told():
    test, feats = example("market")
    with pytest.raises(UserError, match="TEST.PROTOCOL: unknown 'market'. Known: market1501, cuhk03"):
        score(test, feats, Settings())


def test_images_of_the_query_s_own_sequence_do_not_count():
    """Sequences of a table reach the scoring: the nearest image of the query's sequence is removed."""
    seqs = {"query": np.array([7]), "gallery": np.array([7, 8, 9])}
    query = replace(Records.of(["q"], [1]), seqs=seqs["query"])
    gallery = replace(Records.of(["a", "b", "c"], [1, 2, 1], [1, 1, 1]), seqs=seqs["gallery"])
    feats = torch.tensor([[1.0, 0.0], [1.0, 0.01], [1.0, 0.1], [1.0, 0.5]])
    test = TestSet("own", "market1501", query, gallery, None)
    assert score(test, feats, Settings()).metrics["mAP"] == 0.5
    without = replace(test, query=replace(query, seqs=None))
    assert score(without, feats, Settings()).metrics["mAP"] > 0.8


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("TEST__RERANK", (0, 6, 0.3), r"TEST.RERANK: .* \(0, 6, 0.3\)"),
        ("TEST__RERANK", (20, 6, 1.5), r"TEST.RERANK: .* \(20, 6, 1.5\)"),
        ("TEST__QUERY_EXPANSION", (1, 2), r"expected \(\) or \(times, k, alpha\), not \(1.0, 2.0\)"),
        ("TEST__QUERY_EXPANSION", (1, 0, 3.0), "TEST.QUERY_EXPANSION"),
        ("TEST__NFC_K", (0, 2), "TEST.NFC_K: 0 must be at least 1"),
        ("TEST__NFC_OF", "queries", "TEST.NFC_OF: .*'queries'.*gallery"),
    ],
)
def test_scoring_settings_are_checked_before_any_work(tmp_path, key, value, line):
    with pytest.raises(UserError, match=line):
        Settings.from_cfg(config(tmp_path, tmp_path, **{key: value}))
