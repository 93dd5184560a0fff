"""Fixtures of the tools' tests."""

from __future__ import annotations

import pytest
import torch

from model.make_model import make_model
from tests.patches import PATCHES
from tests.tiny import config, write_market


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The configuration of a small network without side information, whose statistics are not those of the start."""
    root, weight = write_market(tmp_path_factory.mktemp("plain")), tmp_path_factory.mktemp("weight") / "patches.pth"
    cfg = config(root, weight.parent, MODEL__NAME=PATCHES, TEST__WEIGHT=str(weight))
    torch.manual_seed(0)
    model = make_model(cfg, 4)
    for name, value in model.named_buffers():
        if "running" in name:
            value.uniform_(0.5, 1.5)
    torch.save(model.state_dict(), weight)
    return cfg
