"""Pooling over the frames of a clip: one feature a tracklet in training, behind any backbone with necks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

POOLINGS = ("mean", "max", "gem", "attention")


class TemporalPooling(nn.Module):
    """Pools the features of each clip of T consecutive rows, (B T, D) -> (B, D); with T 1 they stay as they are.

    kind: ``mean``; ``max``; ``gem``, the generalised mean with a trainable exponent that starts at 3 (of magnitudes,
    signs kept, as features may be below 0); ``attention`` of one head, whose query is the clip's mean, so that frames
    unlike the others (hidden, out of focus) count less, with a trainable scale that starts at 5.
    """

    def __init__(self, kind: str, frames: int):
        super().__init__()
        self.kind, self.frames = kind, frames
        if kind == "gem":
            self.exponent = nn.Parameter(torch.tensor([3.0]))
        if kind == "attention":
            self.scale = nn.Parameter(torch.tensor([5.0]))

    def forward(self, feats: Tensor) -> Tensor:
        if self.frames == 1:
            return feats
        clips = feats.unflatten(0, (-1, self.frames))  # (B, T, D)
        if self.kind == "max":
            return clips.amax(1)
        if self.kind == "gem":
            powers = clips.sign() * clips.abs().clamp(min=1e-6).pow(self.exponent)
            mean = powers.mean(1)
            return mean.sign() * mean.abs().clamp(min=1e-18).pow(1 / self.exponent)
        mean = clips.mean(1)
        if self.kind == "attention":
            likeness = F.cosine_similarity(clips, mean[:, None], dim=2)  # (B, T)
            return (clips * F.softmax(self.scale * likeness, 1)[..., None]).sum(1)
        return mean
