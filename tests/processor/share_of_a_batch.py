"""One process of several, each with its slice of one global batch: writes the gradients of the supervised losses.

Called by ``tests.processor.shares``.
"""

from __future__ import annotations

from pathlib import Path

import torch

import loss
from configs import load_config
from datasets.images import Batch
from model import make_model
from processor.methods.supervised import Supervised
from processor.trainer import Trainer
from solver import make_optimizer, make_scheduler
from utils.distributed import gather_objects, is_main, rank, world_size

SETTINGS = [
    "MODEL.NAME", "transformer", "MODEL.TRANSFORMER_TYPE", "vit_micro_patch8_TransReID", "MODEL.STEM_CONV", True,
    "MODEL.STRIDE_SIZE", [8, 8],
    "MODEL.DROP_PATH", 0.0, "MODEL.JPM", True, "MODEL.SHIFT_NUM", 2, "INPUT.SIZE_TRAIN", [64, 32],
    "DATALOADER.SAMPLER", "softmax_triplet", "SOLVER.GATHER", True, "MODEL.SYNC_BN", True,
    "SOLVER.OPTIMIZER_NAME", "SGD",
]  # fmt: skip


def write_share(folder: Path) -> None:
    """Writes the files from the first process."""
    torch.manual_seed(0)
    cpu = torch.device("cpu")
    cfg = load_config(opts=SETTINGS)
    model = make_model(cfg, 4)
    images, labels = torch.randn(8, 3, 64, 32), torch.arange(4).repeat_interleave(2)
    share = slice(rank() * 8 // world_size(), (rank() + 1) * 8 // world_size())
    nothing = torch.zeros_like(labels[share])
    batch = Batch(images[share], labels[share], nothing, nothing, nothing)

    def make_solver(module):
        optimizer = make_optimizer(cfg, module)
        return optimizer, make_scheduler(cfg, optimizer)

    stage = Supervised(model, 1, loader=None, loss_function=loss.make_loss(cfg, 4), make_solver=make_solver)
    trainer = Trainer(device=cpu, dtype=torch.float32, folder=folder, model_name="", fingerprint={})
    trainer.start_stage(stage)
    model.train()
    trainer.step(stage, [batch], "here")
    watched = next(n for n, _ in model.named_buffers() if n.endswith("running_mean"))
    norms = model.get_buffer(watched)
    norms += rank()  # as without SYNC_BN, where every process has statistics of its own
    trainer.evaluate = lambda model: {"norms": gather_objects(norms.clone())}
    trainer.evaluate_stage(stage, 1)
    seen = trainer.progress.history[-1]["norms"]
    assert all(torch.equal(s, seen[0]) for s in seen), "processes evaluate different models"
    if is_main():
        grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        buffers = {n: b for n, b in model.named_buffers() if "running" in n}
        torch.save({"grads": grads, "buffers": buffers}, folder / f"world_{world_size()}.pt")
