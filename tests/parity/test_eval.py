"""Evaluation against the reference cases: every ``eval_*`` case, and the other methods' cases of the same kinds.

A case's kind follows from the names of its outputs; its settings, sizes and tolerances from the case itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from tests.parity import cases
from utils.metrics import evaluate_features, evaluate_rank, evaluate_retrieval, nmi, roc
from utils.reranking import jaccard_distance, neighbour_centralisation, query_expansion, re_ranking
from utils.scoring.distances import Distances
from utils.scoring.matching import Matching
from utils.scoring.neighbours import nearest_rows

pytestmark = pytest.mark.parity

IDS = ("q_pids", "g_pids", "q_camids", "g_camids")
PREFIXES = ("eval_", "mtda_rank", "ssdvit_rank", "msvit_ap", "msvit_recall", "ssl_jaccard", "nfc_")


@dataclass(frozen=True)
class Kind:
    """Cases that have the outputs ``needs``, and no other outputs than those and ``may`` (regular expressions)."""

    needs: tuple[str, ...]
    may: tuple[str, ...]
    check: Callable

    def fits(self, case) -> bool:
        names = set(case.outputs())
        known = re.compile("|".join((*self.needs, *self.may)))
        has_all = all(any(re.fullmatch(need, name) for name in names) for need in self.needs)
        return has_all and all(known.fullmatch(name) for name in names)


KINDS: list[Kind] = []


def kind(*needs: str, may: tuple[str, ...] = ()) -> Callable:
    def register(check: Callable) -> Callable:
        KINDS.append(Kind(needs, may, check))
        return check

    return register


def close(case, ours, name: str) -> None:
    np.testing.assert_allclose(ours, case.outputs()[name], rtol=case.rtol, atol=case.atol, err_msg=name)


def find(case) -> Kind | None:
    fitting = [one for one in KINDS if one.fits(case)] if case.params.get("mode") in (None, "function") else []
    assert len(fitting) < 2, f"{case.name} fits several kinds"
    return fitting[0] if fitting else None


@pytest.mark.skipif(not cases.names() and not cases.REQUIRED, reason=f"no reference cases in {cases.GOLDEN}")
def test_the_folder_holds_evaluation_cases():
    assert cases.names("eval_"), f"no eval_* case in {cases.GOLDEN}"


@pytest.mark.parametrize("name", [name for prefix in PREFIXES for name in cases.names(prefix)])
def test_case(name):
    case = cases.load(name)
    found = find(case)
    assert found, f"no handler for {name}: mode {case.params.get('mode')}, outputs {sorted(case.outputs())}"
    found.check(case)


RANKS = ("AP", "INP", "first_match_rank")


@kind(
    "cmc",
    "mAP",
    "num_valid_q",
    may=("mINP", *RANKS, "ap_per_query", "cmc_expected", "mAP_(best|worst|rectangle)", "upstream_mAP", "upstream_cmc"),
)
def check_rank(case):
    params, inputs, expected = case.params, case.inputs(), case.outputs()
    settings = {key: params[key] for key in ("max_rank", "protocol", "ap", "seed") if key in params}
    if "num_repeats" in params:
        settings["repeats"] = params["num_repeats"]
    ids = [inputs[key] for key in IDS]
    result = evaluate_rank(inputs["distmat"], *ids, **settings)
    assert result.num_valid_q == expected["num_valid_q"]
    assert result.cmc.shape == (params["max_rank"],)
    close(case, result.cmc, "cmc")
    close(case, result.mAP, "mAP")
    for name in set(RANKS) & set(expected):
        close(case, result.per_query[name], name)
    if "mINP" in expected:
        close(case, result.mINP, "mINP")
    if "ap_per_query" in expected:
        close(case, result.per_query["AP"], "ap_per_query")
    if "cmc_expected" in expected:
        exact = evaluate_rank(inputs["distmat"], *ids, **settings | {"repeats": None})
        close(case, exact.cmc, "cmc_expected")
        close(case, exact.mAP, "mAP")
    if "mAP_best" in expected:
        assert expected["mAP_worst"] <= result.mAP <= expected["mAP_best"]
    if "mAP_rectangle" in expected:
        close(case, evaluate_rank(inputs["distmat"], *ids, **settings | {"ap": "rectangle"}).mAP, "mAP_rectangle")
    if "upstream_mAP" in expected:  # an invalid query counts as 0 there
        close(case, np.maximum(result.per_query["AP"], 0).mean(), "upstream_mAP")


@kind("num_valid_q", "reason")
def check_no_valid_query(case):
    inputs, reason = case.inputs(), case.outputs()["reason"]
    assert case.outputs()["num_valid_q"] == 0
    for protocol in ("market1501", "cuhk03"):
        for ap in ("rectangle", "trapezoid"):
            with pytest.raises(ValueError) as error:
                evaluate_rank(inputs["distmat"], *[inputs[key] for key in IDS], case.params["max_rank"], protocol, ap)
            text = str(error.value)
            assert "\n" not in text and "different camera" in text
            numbers = [int(number) for number in re.findall(r"\d+", text)]
            assert numbers == [len(reason), (reason == 0).sum(), (reason == 1).sum()]


@kind(r"dist_\d+_\d+_[\d.]+")
def check_rerank(case):
    source = cases.load(case.params["inputs_from"]) if "inputs_from" in case.params else case
    inputs = source.inputs()
    for k1, k2, lambda_value in case.params["settings"]:
        ours = re_ranking(inputs["qf"], inputs["gf"], k1, k2, lambda_value)
        assert ours.dtype == np.float32
        close(case, ours, case.params["key"].format(k1=k1, k2=k2, **{"lambda": lambda_value}))


@kind(r"dist_\d+_\d+", may=("neighbours",))
def check_jaccard(case):
    feats = case.inputs()["feats"]
    for k1, k2 in case.params["settings"]:
        close(case, dense(jaccard_distance(feats, k1, k2)), case.params["key"].format(k1=k1, k2=k2))
    if "neighbours" in case.outputs():
        expected = case.outputs()["neighbours"]
        tensor = torch.from_numpy(feats)
        np.testing.assert_array_equal(nearest_rows(Distances(tensor, tensor), expected.shape[1])[0], expected)


@kind("distance")
def check_one_jaccard(case):
    ours = jaccard_distance(case.inputs()["feats"], case.params["k1"], case.params["k2"])
    close(case, dense(ours), "distance")


def dense(matrix) -> np.ndarray:
    """Entries that are not stored are 1; stored zeros are 0."""
    out = np.ones(matrix.shape, matrix.dtype)
    rows = np.repeat(np.arange(len(out)), np.diff(matrix.indptr))
    out[rows, matrix.indices] = matrix.data
    return out


@kind(r"\w[\w.]*\.mAP", may=(r"\w[\w.]*\.(cmc|mINP|num_valid_q|AP|INP|first_match_rank)",))
def check_features(case):
    inputs, expected = case.inputs(), case.outputs()
    for variant in case.params["variants"]:
        first, *words = variant.split("_")
        if first == "rerank":
            rerank = [float(word) if "." in word else int(word) for word in words]
            assert rerank in case.params["rerank"]
            settings = {"rerank": tuple(rerank)}
        else:
            settings = {"metric": first, "normalize": words != ["raw"]}
        ids = [inputs[key] for key in IDS]
        result = evaluate_features(inputs["qf"], inputs["gf"], *ids, max_rank=case.params["max_rank"], **settings)
        for name in expected:
            if name.startswith(f"{variant}."):
                field = name.removeprefix(f"{variant}.")
                close(case, result.per_query[field] if field in RANKS else getattr(result, field), name)


@kind("recall", "nmi_assigned", may=("nmi_(min|max)", "easy_nmi", "easy_recall"))
def check_retrieval(case):
    inputs, expected, ks = case.inputs(), case.outputs(), case.params["ks"]
    result = evaluate_retrieval(inputs["feats"], inputs["labels"], ks=ks)
    close(case, [result.recall[k] for k in ks], "recall")
    close(case, nmi(inputs["labels"], inputs["assignment"]), "nmi_assigned")
    # The case gives the range of other k-means runs; a run of ours may lie a little outside.
    assert expected["nmi_min"] - 0.03 <= result.nmi <= expected["nmi_max"] + 0.03
    easy = evaluate_retrieval(inputs["easy_feats"], inputs["easy_labels"], ks=ks)
    close(case, [easy.recall[k] for k in ks], "easy_recall")
    close(case, easy.nmi, "easy_nmi")


@kind("recall", "nmi")
def check_recall_and_given_clusters(case):
    inputs, ks = case.inputs(), case.params["ks"]
    result = evaluate_retrieval(inputs["feats"], inputs["labels"], ks=ks)
    close(case, [result.recall[k] for k in ks], "recall")
    close(case, nmi(inputs["labels"], inputs["cluster_labels"]), "nmi")
    if "kmeans" in case.params:
        low, high = case.params["kmeans"]["range"]
        assert low <= result.nmi <= high


@kind(r"q_\d+_\d+_[\d.]+", r"g_\d+_\d+_[\d.]+")
def check_query_expansion(case):
    inputs = case.inputs()
    for times, k, alpha in case.params["settings"]:
        ours = query_expansion(inputs["qf"], inputs["gf"], times, k, alpha)
        key = case.params["key"].format(times=times, k=k, alpha=alpha)
        for letter, feats in zip("qg", ours, strict=True):
            close(case, feats, letter + key[1:])


@kind(r"\w+\.qf", r"\w+\.gf")
def check_centralisation(case):
    inputs = case.inputs()
    for variant, settings in case.params["variants"].items():
        for name in ("qf", "gf"):
            close(case, neighbour_centralisation(inputs[name], **settings), f"{variant}.{name}")


@kind("tar_at_far", may=("num_genuine", "num_impostor", "genuine_sorted", "fastreid_tpr_at_fpr", "auc"))
def check_roc(case):
    inputs, expected = case.inputs(), case.outputs()
    ids, fars = [inputs[key] for key in IDS], case.params["fprs"]
    ours = roc(inputs["distmat"], *ids, fars=fars)
    close(case, [ours[far] for far in fars], "tar_at_far")
    matching = Matching(*ids)
    if "num_genuine" in expected:
        assert matching.num_positives.sum() == expected["num_genuine"]
    if "num_impostor" in expected:
        assert inputs["distmat"].size - matching.count.sum() == expected["num_impostor"]
