"""One process of several, each with its slice of one source and one target batch: writes the adaptation's gradients.

In double precision: batch statistics of few images amplify rounding.
"""

from __future__ import annotations

from pathlib import Path

import torch

import loss
from configs import load_config
from datasets.images import Batch
from model import make_model
from processor.methods.cluster import ClusterContrast
from processor.methods.dmmd import DMMD
from processor.methods.domains import DomainBatches
from processor.methods.mtda_kd import Distillation, TargetBatch
from processor.trainer import Trainer
from solver import make_optimizer, make_scheduler
from utils.distributed import is_main, rank, world_size

SETTINGS = [
    "MODEL.NAME", "timm:test_resnet", "MODEL.DROP_PATH", 0.0, "INPUT.SIZE_TRAIN", [64, 32], "SOLVER.GATHER", True,
    "DATALOADER.SAMPLER", "softmax_triplet", "MODEL.SYNC_BN", True, "SOLVER.OPTIMIZER_NAME", "SGD",
]  # fmt: skip


def slice_of(seed: int) -> Batch:
    """This process's part of 16 images of 8 identities."""
    images = torch.randn(16, 3, 64, 32, generator=torch.Generator().manual_seed(seed)).double()
    labels = torch.arange(8).repeat_interleave(2)
    share = slice(rank() * 16 // world_size(), (rank() + 1) * 16 // world_size())
    nothing = torch.zeros(share.stop - share.start, dtype=torch.int64)
    return Batch(images[share], labels[share], nothing, nothing, torch.arange(16)[share])


def clustering(make_solver) -> ClusterContrast:
    """The stage of cluster contrast with a memory of 8 clusters."""
    model = make_model(load_config(opts=[*SETTINGS, "PROCESSOR.NAME", "cluster"]), 0).double()
    stage = ClusterContrast(model, 1, loader=None, clusters=None, make_solver=make_solver)
    feats = torch.randn(16, model.width, generator=torch.Generator().manual_seed(3)).double()
    stage.remember(feats, torch.arange(8).repeat_interleave(2), torch.device("cpu"))
    return stage


def write_share(folder: Path) -> None:
    """Writes the files from the first process."""
    cfg = load_config(opts=SETTINGS)
    terms = loss.make_loss(cfg, 8)

    def make_solver(module):
        optimizer = make_optimizer(cfg, module)
        return optimizer, make_scheduler(cfg, optimizer)

    pair = DomainBatches([slice_of(1), slice_of(2)])
    for name in ("cluster", "dmmd", "mtda_kd"):
        torch.manual_seed(0)
        model, teacher = make_model(cfg, 8).double(), make_model(cfg, 8).double()
        if name == "cluster":
            torch.manual_seed(0)
            stage, batch = clustering(make_solver), slice_of(1)
            model = stage.model
        elif name == "dmmd":
            stage, batch = DMMD(
                model, 1, source=None, target=None, loss_function=terms, make_solver=make_solver, num_instances=2,
                warmup=0, gather=True,
            ), pair  # fmt: skip
            stage.epoch = 1
        else:
            weights = (1.0, 1.0, 100.0)
            stage = Distillation(
                model, 1, teachers=[teacher], source=None, targets=[None], loss_function=terms, make_solver=make_solver,
                num_instances=2, weights=weights, gather=True,
            )  # fmt: skip
            batch = TargetBatch(pair, 0)
        trainer = Trainer(device=torch.device("cpu"), dtype=torch.float32, folder=folder, model_name="", fingerprint={})
        trainer.start_stage(stage)
        model.train()
        trainer.step(stage, [batch], "here")
        if is_main():
            grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
            if name == "cluster":
                grads["memory"] = stage.memory.features.double()  # as it is after the step
            torch.save({"grads": grads}, folder / f"{name}_{world_size()}.pt")
