"""Losses as functions of tensors, one idea per file."""

from loss.center import center
from loss.cluster_memory import ClusterMemory
from loss.cross_entropy import cross_entropy
from loss.dino import DINOLoss
from loss.distillation import (
    dissimilarity_distillation,
    distance_distillation,
    logit_distillation,
    margin_distillation,
)
from loss.dmmd import dmmd
from loss.make_loss import make_loss, part_weights
from loss.simclr import simclr
from loss.simsiam import simsiam
from loss.supervised_contrastive import supervised_contrastive
from loss.triplet import triplet
from utils.statistics import bn_margins

__all__ = [
    "ClusterMemory", "DINOLoss", "bn_margins", "center", "cross_entropy", "dissimilarity_distillation",
    "distance_distillation", "dmmd", "logit_distillation", "make_loss", "margin_distillation", "part_weights", "simclr",
    "simsiam", "supervised_contrastive", "triplet",
]  # fmt: skip
