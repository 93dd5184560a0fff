"""A tiny CLIP model, built as a YAML would."""

from __future__ import annotations

import torch
from torch import nn

from configs import load_config
from model import make_model
from tests.tiny import CLIP, words


def build(num_class: int = 5, camera_num: int = 3, view_num: int = 2, kind: str = "", **changes) -> nn.Module:
    torch.manual_seed(0)
    return make_model(load_config(opts=words(CLIP | changes)), num_class, camera_num, view_num, kind)
