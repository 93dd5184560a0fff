"""Forgetting scores: the cosine of two networks' features, a list by falling score, read back by the filter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from datasets import make_dataloader
from datasets.readers.filter_list import relative_names
from datasets.storage.pillow_decoding import load_image
from datasets.transforms.pipelines import build_transforms
from model import make_model
from tests.tiny import config, options
from tools import cfs
from utils.errors import UserError


@pytest.fixture(scope="module")
def files(market, tmp_path_factory):
    """Weights before and after: a bare backbone, and a whole ReID model."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    before, after = (make_model(config(market, folder), 4) for _ in range(2))
    torch.save(before.base.state_dict(), folder / "before.pth")
    torch.save(after.state_dict(), folder / "after.pth")
    return folder, before.eval(), after.eval()


def command(market, files, out, *more) -> list[str]:
    words = ["--before", files[0] / "before.pth", "--after", files[0] / "after.pth", "--out", out, *more]
    return [str(word) for word in words]


@pytest.mark.parametrize("name", ["market1501", "images"])
def test_the_list_is_sorted_by_the_cosine_and_read_back(market, files, tmp_path, name, capsys):
    root = market / "market1501" / "bounding_box_train" if name == "images" else market
    out = tmp_path / "list.txt"
    settings = options(root, tmp_path, DATASETS__NAMES=name)
    cfs.main(command(market, files, out, *settings))
    assert "16 images, scores" in capsys.readouterr().out
    names, scores = out.read_text().splitlines(), np.load(tmp_path / "list.txt.scores.npy")
    assert len(names) == len(set(names)) == 16 and (np.diff(scores) <= 0).all()
    transform = build_transforms(config(root, tmp_path), is_train=False)
    for name_, score in list(zip(names, scores, strict=True))[::5]:
        image = transform(load_image(str(root / name_)))[None]
        with torch.no_grad():
            wanted = F.cosine_similarity(files[1].base(image), files[2].base(image))
        assert score == pytest.approx(float(wanted), abs=1e-5)
    kept = {"PROCESSOR__NAME": "dino", "DATALOADER__SAMPLER": "softmax", "DINO__CROP_HEIGHT": 16, "DINO__CROP_WIDTH": 8}
    kept |= {"DATASETS__NAMES": name, "DATASETS__FILTER_PATH": str(out), "DATASETS__KEEP_NUM": 10}
    data = make_dataloader(config(root, tmp_path, **kept))
    assert set(relative_names(data.train.records, root)) == set(names[:10])


def test_equal_scores_keep_their_order_and_the_same_network_forgets_nothing(market, files, tmp_path):
    names, scores = cfs.sorted_by_score(["a", "b", "c", "d"], np.array([0.1, 0.5, 0.1, 0.9], np.float32))
    assert names == ["d", "b", "a", "c"] and scores.tolist() == pytest.approx([0.9, 0.5, 0.1, 0.1])
    before = str(files[0] / "before.pth")
    _, scores = cfs.score_images(config(market, tmp_path), before, before, tmp_path / "same.txt")
    assert scores == pytest.approx(np.ones(16), abs=1e-5)


def test_mistakes_are_one_line_and_leave_no_list(market, files, tmp_path):
    settings = options(market, tmp_path)
    with pytest.raises(UserError, match="list.pkl: the list is written as text"):
        cfs.main(command(market, files, tmp_path / "list.pkl", *settings))
    torch.save({"cls_token": torch.zeros(1, 1, 32)}, tmp_path / "partial.pth")
    words = command(market, files, tmp_path / "list.txt", *settings)
    words[1] = str(tmp_path / "partial.pth")
    with pytest.raises(UserError, match="of the model's tensors are not in it"):
        cfs.main(words)
    assert not (tmp_path / "list.txt").exists()
