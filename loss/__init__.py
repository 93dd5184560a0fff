"""Losses as functions of tensors, one idea per file."""

from loss.center import center
from loss.cross_entropy import cross_entropy
from loss.make_loss import make_loss, part_weights
from loss.simclr import simclr
from loss.simsiam import simsiam
from loss.supervised_contrastive import supervised_contrastive
from loss.triplet import triplet

__all__ = [
    "center", "cross_entropy", "make_loss", "part_weights", "simclr", "simsiam", "supervised_contrastive", "triplet",
]  # fmt: skip
