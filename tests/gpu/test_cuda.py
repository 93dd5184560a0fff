"""What only a GPU shows. ``make gpu`` runs it; without a GPU it is skipped.

``LINEUP_GPU_TESTS=cpu`` runs the same checks on the CPU, which shows that the tests themselves work.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from configs import load_config
from datasets import make_dataloader
from model import make_model
from model.layers.norms import convert_sync_batch_norm
from processor import run
from tests.tiny import options, write_market
from utils.device import choose_device, choose_precision, random_states, restore_random_states
from utils.distributed import gather_rows
from utils.metrics import evaluate_features, evaluate_rank, evaluate_roc
from utils.reranking import jaccard_distance, query_expansion, re_ranking
from utils.scoring.distances import Distances
from utils.scoring.neighbours import nearest_rows

ON_CPU = os.environ.get("LINEUP_GPU_TESTS") == "cpu"
pytestmark = pytest.mark.skipif(not (torch.cuda.is_available() or ON_CPU), reason="no GPU is visible here")
DEVICE = "cpu" if ON_CPU else "cuda"


def features(count: int, seed: int, width: int = 64) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def labels(count: int, seed: int, classes: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, classes, count)


@pytest.fixture(scope="module")
def gpu_market(tmp_path_factory):
    return write_market(tmp_path_factory.mktemp("data"), ids=6, cameras=3)


# ---------------------------------------------------------------- scores


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_distances_are_those_of_the_cpu(metric):
    qf, gf = features(70, 1), features(300, 2)
    here = Distances(qf, gf, metric, None).rows(0, 70)
    there = Distances(qf.to(DEVICE), gf.to(DEVICE), metric, None).rows(0, 70)
    assert there.device.type == DEVICE
    torch.testing.assert_close(there.cpu(), here, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("rerank", [None, (20, 6, 0.3)])
@pytest.mark.parametrize("protocol", ["market1501", "cuhk03"])
def test_an_evaluation_equals_that_on_the_cpu(rerank, protocol):
    qf, gf = features(80, 1), features(400, 2)
    where = labels(80, 3, 12), labels(400, 4, 12), labels(80, 5, 4), labels(400, 6, 4)
    shared = {"rerank": rerank, "protocol": protocol}
    here = evaluate_features(qf, gf, *where, **shared)
    there = evaluate_features(qf.to(DEVICE), gf.to(DEVICE), *where, **shared)
    assert abs(here.mAP - there.mAP) < 1e-4 and abs(here.mINP - there.mINP) < 1e-4
    np.testing.assert_allclose(there.cmc, here.cmc, atol=1e-4)


def test_ranks_and_verification_equal_those_of_the_cpu():
    qf, gf = features(60, 1), features(300, 2)
    where = labels(60, 3, 10), labels(300, 4, 10), labels(60, 5, 3), labels(300, 6, 3)
    dist = torch.cdist(qf, gf)
    assert abs(evaluate_rank(dist.to(DEVICE), *where).mAP - evaluate_rank(dist, *where).mAP) < 1e-4
    here, there = (evaluate_roc(qf.to(d), gf.to(d), *where) for d in ("cpu", DEVICE))
    assert here.keys() == there.keys() and all(abs(here[far] - there[far]) < 1e-4 for far in here)


def test_neighbours_are_those_of_the_cpu():
    feats = torch.nn.functional.normalize(features(500, 7), dim=1)
    here, there = (nearest_rows(Distances(f, f, "euclidean", None), 12) for f in (feats, feats.to(DEVICE)))
    assert (here[0] == there[0]).mean() > 0.999
    for one, other in zip(here[1:], there[1:], strict=True):
        np.testing.assert_allclose(other, one, atol=1e-4)


def test_re_ranking_and_its_relatives_equal_those_of_the_cpu():
    qf, gf = features(40, 1), features(200, 2)
    np.testing.assert_allclose(re_ranking(qf.to(DEVICE), gf.to(DEVICE)), re_ranking(qf, gf), atol=1e-4)
    feats = torch.nn.functional.normalize(features(240, 3), dim=1)
    here, there = jaccard_distance(feats), jaccard_distance(feats.to(DEVICE))
    np.testing.assert_allclose(there.toarray(), here.toarray(), atol=1e-4)
    for one, other in zip(query_expansion(qf, gf), query_expansion(qf.to(DEVICE), gf.to(DEVICE)), strict=True):
        torch.testing.assert_close(other.cpu(), one, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- training


def test_auto_means_the_gpu_and_half_precision():
    device = choose_device("auto")
    assert device.type == DEVICE
    assert choose_precision("auto", device) == (torch.float32 if ON_CPU else torch.float16)


@pytest.mark.parametrize("precision", ["fp32", "bf16"] if ON_CPU else ["fp32", "fp16", "bf16"])
def test_a_run_learns_and_its_scores_are_those_of_the_cpu(gpu_market, tmp_path, precision):
    changes = {"MODEL__DEVICE": DEVICE, "SOLVER__PRECISION": precision, "SOLVER__MAX_EPOCHS": 4}
    changes |= {"DATALOADER__NUM_WORKERS": 1}
    trained = run.train(load_config(opts=options(gpu_market, tmp_path / "run", **changes)))
    losses = [entry["mAP"] for entry in trained["history"]]
    assert len(losses) == 4 and all(np.isfinite(losses))
    weight = tmp_path / "run" / "transformer_4.pth"
    cfg = load_config(opts=options(gpu_market, tmp_path / "test", TEST__WEIGHT=weight, MODEL__DEVICE="cpu"))
    assert abs(run.test(cfg)["mean"]["mAP"] - trained["mean"]["mAP"]) < 1e-4


def test_a_scaled_run_that_stops_goes_on_where_it_was(gpu_market, tmp_path):
    changes = {"MODEL__DEVICE": DEVICE, "SOLVER__PRECISION": "bf16" if ON_CPU else "fp16", "MODEL__DROP_OUT": 0.1}
    whole = load_config(opts=options(gpu_market, tmp_path / "whole", SOLVER__MAX_EPOCHS=3, **changes))
    run.train(whole)
    stopped = load_config(opts=options(gpu_market, tmp_path / "stopped", SOLVER__MAX_EPOCHS=3, **changes))

    class Stop(Exception):
        pass

    def stop(*args):
        raise Stop

    from processor.trainer import Trainer

    save = Trainer._save_last
    Trainer._save_last = lambda self, *args, **more: (save(self, *args, **more), self.progress.epoch == 2 and stop())
    try:
        with pytest.raises(Stop):
            run.train(stopped)
    finally:
        Trainer._save_last = save
    run.train(stopped)
    one, two = (torch.load(tmp_path / f / "transformer_3.pth", weights_only=True) for f in ("whole", "stopped"))
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_random_states_of_the_gpu_come_back():
    states = random_states()
    first = torch.rand(5, device=DEVICE)
    restore_random_states(states)
    assert torch.equal(torch.rand(5, device=DEVICE), first)


def test_batches_are_in_pinned_memory(gpu_market, tmp_path):
    cfg = load_config(opts=options(gpu_market, tmp_path, MODEL__DEVICE=DEVICE))
    batch = next(iter(make_dataloader(cfg).train.epoch(1)))
    assert ON_CPU or batch.images.is_pinned()
    assert batch.to(torch.device(DEVICE)).images.device.type == DEVICE


def test_synchronised_batch_norm_on_one_process_of_nccl(tmp_path):
    if not torch.distributed.is_available():
        pytest.skip("torch was built without distributed support")
    torch.distributed.init_process_group(
        "gloo" if ON_CPU else "nccl", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1
    )
    try:
        torch.manual_seed(0)
        plain = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)).to(DEVICE)
        synced = convert_sync_batch_norm(torch.nn.Sequential(*plain))
        images = torch.randn(4, 3, 8, 8, device=DEVICE)
        torch.testing.assert_close(synced(images), plain(images))
        assert gather_rows(images).shape == images.shape
    finally:
        torch.distributed.destroy_process_group()


def test_a_compiled_model_trains(gpu_market, tmp_path):
    changes = {"MODEL__DEVICE": DEVICE, "MODEL__COMPILE": True, "SOLVER__MAX_EPOCHS": 1}
    trained = run.train(load_config(opts=options(gpu_market, tmp_path / "run", **changes)))
    assert np.isfinite(trained["mean"]["mAP"])


def test_features_of_every_precision_are_close(gpu_market):
    torch.manual_seed(0)
    model = make_model(load_config(opts=options(gpu_market, "runs/none")), 6).eval()
    images = torch.randn(4, 3, 32, 16)
    with torch.no_grad():
        here, there = model(images), model.to(DEVICE)(images.to(DEVICE)).cpu()
    torch.testing.assert_close(there, here, rtol=1e-3, atol=1e-3)
