"""SOLIDER, PASS, PersonViT and adapters learn: a few steps on a few images bring the loss down."""

from __future__ import annotations

import pytest
import torch

from loss import make_loss
from model import make_model
from solver import make_optimizer
from tests.model.families import OF_METHODS
from tests.tiny import config

NETWORKS = {name: OF_METHODS[name] for name in ("solider", "pass", "pass, one neck", "personvit")}
NETWORKS |= {"adapters": {"MODEL__LORA__RANK": 4}}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_few_steps_bring_the_loss_down(name, tmp_path):
    changes = {"SOLVER__OPTIMIZER_NAME": "Adam", "SOLVER__BASE_LR": 3e-3, "MODEL__DROP_PATH": 0.0}
    cfg = config(tmp_path, tmp_path, **NETWORKS[name] | changes)
    torch.manual_seed(0)
    model = make_model(cfg, 4).train()
    optimizer, terms = make_optimizer(cfg, model), make_loss(cfg, 4)
    images = torch.randn(16, 3, *cfg.INPUT.SIZE_TRAIN)
    labels, losses = torch.arange(16) // 4, []
    for _ in range(25):
        total = sum(terms(model(images, label=labels), labels).values())
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        losses.append(total.item())
    assert losses[-1] < 0.5 * losses[0], losses
