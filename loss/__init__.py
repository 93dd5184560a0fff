"""Losses as functions of tensors, one idea per file."""

from loss.center import center
from loss.cross_entropy import cross_entropy
from loss.make_loss import make_loss, part_weights
from loss.triplet import triplet

__all__ = ["center", "cross_entropy", "make_loss", "part_weights", "triplet"]
