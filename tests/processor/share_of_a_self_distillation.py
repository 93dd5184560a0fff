"""One process of several, each with its slice of both views of two sources: writes gradients and moved memories.

In double precision: batch statistics of few images amplify rounding.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from configs import load_config
from datasets.loaders import Source
from model import make_model
from processor.methods.domains import DomainBatches
from processor.methods.self_distill import Recipe, SelfDistillation
from processor.trainer import Trainer
from solver import make_optimizer, make_scheduler
from tests.processor.share_of_an_adaptation import slice_of
from utils.distributed import is_main, world_size

SETTINGS = [
    "PROCESSOR.NAME", "self_distill", "MODEL.NAME", "ssdvit", "MODEL.TRANSFORMER_TYPE", "vit_micro_patch8_TransReID",
    "MODEL.STEM_CONV", True, "MODEL.STRIDE_SIZE", [8, 8], "MODEL.DROP_PATH", 0.0, "INPUT.SIZE_TRAIN", [64, 32],
    "SSD.RANDOM_BLOCK", 1,
    "SOLVER.OPTIMIZER_NAME", "SGD", "SOLVER.BASE_LR", 0.5, "SOLVER.GATHER", True, "MODEL.SYNC_BN", True,
]  # fmt: skip


def write_share(folder: Path) -> None:
    """Writes the files from the first process."""
    cpu = torch.device("cpu")
    for mode in ("released", "logits"):
        cfg = load_config(opts=[*SETTINGS, "SSD.MODE", mode])
        torch.manual_seed(0)
        model = make_model(cfg, 0).double()

        def make_solver(module, cfg=cfg):
            optimizer = make_optimizer(cfg, module)
            return optimizer, make_scheduler(cfg, optimizer)

        sources = [Source(name, 8, [], None) for name in ("a", "b")]
        stage = SelfDistillation(
            model, 4, sources=sources, recipe=Recipe.from_cfg(cfg), make_solver=make_solver, iterations=1
        )
        for memory in stage.memories:
            memory.features.copy_(F.normalize(torch.randn(8, 32)))
        batches = [slice_of(seed) for seed in range(4)]
        batches = [replace(batch, pids=(batch.pids + seed) % 8) for seed, batch in enumerate(batches)]
        trainer = Trainer(device=cpu, dtype=torch.float32, folder=folder, model_name="", fingerprint={})
        trainer.start_stage(stage)
        stage.epoch = 2
        model.train()
        trainer.step(stage, [DomainBatches(batches)], "here")
        if is_main():
            grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
            memories = dict(stage.memories.named_buffers())
            torch.save({"grads": grads, "memories": memories}, folder / f"{mode}_{world_size()}.pt")
