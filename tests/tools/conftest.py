"""Fixtures of the tools' tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from yacs.config import CfgNode

from model.make_model import make_model
from tests.patches import PATCHES
from tests.tiny import config, write_market


def untrained(folder: Path, name: str) -> CfgNode:
    """The configuration of a small network without side information, whose statistics are not those of the start."""
    root, weight = write_market(folder / "data"), folder / f"{name}.pth"
    cfg = config(root, folder, MODEL__NAME=name, TEST__WEIGHT=str(weight))
    torch.manual_seed(0)
    model = make_model(cfg, 4)
    for key, value in model.named_buffers():
        if "running" in key:
            value.uniform_(0.5, 1.5)
    torch.save(model.state_dict(), weight)
    return cfg


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> CfgNode:
    """The configuration of a ResNet."""
    return untrained(tmp_path_factory.mktemp("plain"), "resnet10")


@pytest.fixture(scope="module")
def one_layer(tmp_path_factory) -> CfgNode:
    """The configuration of a network that is traced in a second."""
    return untrained(tmp_path_factory.mktemp("one_layer"), PATCHES)
