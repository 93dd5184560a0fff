"""One process of several, each with its share of both stages' batches: writes losses and gradients.

Called by ``tests.processor.shares``.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch

from configs import load_config
from datasets.images import Batch
from model import make_model
from processor.methods.prompt import LearnPrompts, TuneEncoder
from processor.trainer import Trainer
from tests.tiny import CLIP, words
from utils.distributed import gather_objects, is_main, rank, world_size

SETTINGS = CLIP | {
    "MODEL__USE_SSL": True, "MODEL__SIE_CAMERA": True, "MODEL__SYNC_BN": True, "SOLVER__GATHER": True,
    "SOLVER__STAGE1__IMS_PER_BATCH": 7, "SOLVER__STAGE1__OPTIMIZER_NAME": "SGD",
    "SOLVER__STAGE2__OPTIMIZER_NAME": "SGD", "MODEL__NO_MARGIN": False,
}  # fmt: skip


def share(tensor: torch.Tensor) -> torch.Tensor:
    count = len(tensor)
    return tensor[rank() * count // world_size() : (rank() + 1) * count // world_size()]


class Loader:
    """Images in order, each process its share, as ``datasets.loaders.TestLoader``."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor):
        self.images, self.labels, self.records = images, labels, Records(labels)

    def __iter__(self):
        mine = torch.arange(len(self.images)).tensor_split(world_size())[rank()]
        for rows in mine.split(3):
            yield Batch(self.images[rows], *(self.labels[rows],) * 3, rows)


class Records:
    def __init__(self, labels: torch.Tensor):
        self.pids = labels.numpy()

    def __len__(self) -> int:
        return len(self.pids)


def write_share(folder: Path) -> None:
    """Writes the files from the first process."""
    torch.manual_seed(0)
    cpu = torch.device("cpu")
    cfg = load_config(opts=words(SETTINGS))
    model = make_model(cfg, 5, 2)
    images, labels = torch.randn(13, 3, 64, 32), torch.arange(13) % 5
    views = torch.randn(2, 8, 3, 64, 32)
    pairs = torch.arange(8) // 2
    data = SimpleNamespace(plain=Loader(images, labels), num_classes=5, train=[])
    trainer = Trainer(device=cpu, dtype=torch.float32, folder=folder, model_name="", fingerprint={})
    second = TuneEncoder.from_cfg(cfg, data, model)
    found = {}
    for stage in (LearnPrompts.from_cfg(cfg, data, model), second):
        trainer.start_stage(stage)
        model.train()
        if stage is second:
            columns = (share(column) for column in (pairs, pairs % 2, pairs, pairs))
            batch = Batch(share(images[:8]), *columns, views=tuple(share(view) for view in views))
        else:
            batch = next(iter(stage.batches(1)))
        terms = trainer.step(stage, [batch], "here")
        means = {k: sum(t[k] for t in gather_objects(terms)) / world_size() for k in terms}
        grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        found[stage.name] = {"terms": {k: torch.tensor(v) for k, v in means.items()}, "grads": grads}
        model.zero_grad(set_to_none=True)
    found["buffers"] = {n: b for n, b in model.named_buffers() if "running" in n}
    if is_main():
        torch.save(found, folder / f"prompt_{world_size()}.pt")
