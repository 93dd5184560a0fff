"""Defaults of the public scoring functions are those of the contract, and features of no length stay finite."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch

from utils import metrics, reranking
from utils.scoring.distances import unit_length

DEFAULTS = [
    (metrics.evaluate_rank, {"max_rank": 50, "protocol": "market1501", "ap": "rectangle", "seed": 0, "repeats": 10}),
    (metrics.evaluate_features, {"metric": "euclidean", "normalize": True, "rerank": None, "protocol": "market1501",
                                 "ap": "rectangle", "max_rank": 50, "block_size": None, "same_list": False}),
    (metrics.evaluate_retrieval, {"ks": (1, 2, 4, 8), "nmi": True}),
    (metrics.roc, {"fars": (1e-4, 1e-3, 1e-2)}),
    (metrics.evaluate_roc, {"fars": (1e-4, 1e-3, 1e-2)}),
    (reranking.re_ranking, {"k1": 20, "k2": 6, "lambda_value": 0.3}),
    (reranking.jaccard_distance, {"k1": 30, "k2": 6, "max_distance": None}),
    (reranking.query_expansion, {"times": 1, "k": 5, "alpha": 3.0}),
]  # fmt: skip


@pytest.mark.parametrize("function, defaults", DEFAULTS, ids=lambda value: getattr(value, "__name__", ""))
def test_the_defaults_are_the_contract_s(function, defaults):
    parameters = inspect.signature(function).parameters
    assert {name: parameters[name].default for name in defaults} == defaults


def test_lengths_below_the_floor_are_divided_by_it():
    feats = torch.tensor([[3.0, 4.0], [0.0, 0.0], [3e-13, 4e-13], [3e-9, 4e-9]])
    expected = torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.3, 0.4], [0.6, 0.8]])
    torch.testing.assert_close(unit_length(feats), expected)


def test_a_rank_curve_longer_than_the_gallery_repeats_its_last_value():
    dist = np.array([[0.3, 0.1, 0.2]])
    result = metrics.evaluate_rank(dist, [1], [1, 2, 3])
    assert len(result.cmc) == 50
    assert result.cmc[:3].tolist() == [0.0, 0.0, 1.0] and set(result.cmc[2:].tolist()) == {1.0}
