"""One process of several, each with its slice of one batch of crops: writes DINO's gradients, loss, centre and teacher.

In double precision: batch statistics of few images amplify rounding.
"""

from __future__ import annotations

from pathlib import Path

import torch

from configs import load_config
from datasets.images import Batch
from loss import DINOLoss
from model import make_model
from processor.methods.dino import DINO, Ranges, make_following_teacher
from processor.trainer import Trainer
from solver.optimizer import matrices_and_vectors
from utils.distributed import gather_objects, is_main, rank, world_size

SETTINGS = [
    "PROCESSOR.NAME", "dino", "MODEL.NAME", "transformer", "MODEL.TRANSFORMER_TYPE", "vit_micro_patch8_TransReID",
    "MODEL.STEM_CONV", True, "MODEL.STRIDE_SIZE", [8, 8], "MODEL.DROP_PATH", 0.0, "INPUT.SIZE_TRAIN", [32, 16],
    "DINO.CROP_HEIGHT", 16, "DINO.CROP_WIDTH", 8, "DINO.OUT_DIM", 16, "DINO.HIDDEN_DIM", 32,
    "DINO.USE_BN_IN_HEAD", True,
]  # fmt: skip


def slice_of_crops(images: int = 8) -> Batch:
    """This process's part of the crops of 8 images: two global ones and three local ones."""
    generator = torch.Generator().manual_seed(1)
    share = slice(rank() * images // world_size(), (rank() + 1) * images // world_size())
    sizes = [(32, 16)] * 2 + [(16, 8)] * 3
    crops = [torch.randn(images, 3, *size, generator=generator).double()[share] for size in sizes]
    nothing = torch.zeros(share.stop - share.start, dtype=torch.int64)
    return Batch(crops[0], nothing, nothing, nothing, nothing, views=tuple(crops[1:]))


def write_share(folder: Path) -> None:
    """Writes the files from the first process."""
    torch.manual_seed(0)
    model = make_model(load_config(opts=SETTINGS), 1).double()
    function = DINOLoss(16, 5, 0.04, 0.04, 0, 2).double()
    ranges = Ranges(rate=(0.1, 0.1), decay=(0.0, 0.0), momentum=0.5)
    stage = DINO(
        model, 2, teacher=make_following_teacher(model), loader=None, loss_function=function,
        make_solver=lambda module: (torch.optim.SGD(matrices_and_vectors(module, 0.0), lr=0.1), None), ranges=ranges,
    )  # fmt: skip
    trainer = Trainer(device=torch.device("cpu"), dtype=torch.float32, folder=folder, model_name="", fingerprint={})
    trainer.start_stage(stage)
    model.train()
    stage.teacher.train()
    stage.epoch = 2  # the prototypes move
    losses, batch = [], slice_of_crops()
    for step in range(2):
        stage.set_rates(1, step, 2)
        value = trainer.step(stage, [batch], "here")["loss"]
        losses.append(sum(gather_objects(value)) / world_size())
    if is_main():
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        kept = {"grads": grads, "losses": losses, "center": function.center, "teacher": stage.teacher.state_dict()}
        torch.save(kept, folder / f"dino_{world_size()}.pt")
