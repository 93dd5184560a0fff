"""Jigsaw patch module (TransReID, section 3.3): features of the whole image and of four shuffled groups of patches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from utils.errors import UserError, conflict

LOCAL_PARTS = 4


def rearrange(patches: Tensor, shift: int, groups: int) -> Tensor:
    """Returns the patches shifted and interleaved by groups (TransReID, eq. 3). (B, N, D) -> (B, N', D), N' >= N.

    Rotation left by ``shift - 1``; if N is not a multiple of ``groups``, the last-but-one token pads it (once, as
    published; a longer rest repeats it); then patch k of group g comes before patch k of group g + 1.
    """
    batch, length, width = patches.shape
    if 0 < shift <= length:
        patches = torch.roll(patches, 1 - shift, dims=1)
    rest = -length % groups
    if rest:
        patches = torch.cat([patches, patches[:, -2:-1].expand(-1, rest, -1)], dim=1)
    return patches.reshape(batch, groups, -1, width).transpose(1, 2).reshape(batch, -1, width)


def jigsaw_pieces(tokens: Tensor, shift: int, groups: int, divide: int, shuffled: bool = True) -> list[Tensor]:
    """Returns the four pieces, each after the class token. (B, 1 + N, D) -> four of (B, 1 + N // divide, D).

    With ``divide`` above 4 the last tokens are unused; below 4 the last pieces are short or have the class token alone,
    as published.
    """
    cls, patches = tokens[:, :1], tokens[:, 1:]
    length = patches.shape[1] // divide
    if shuffled:
        patches = rearrange(patches, shift, groups)
    return [torch.cat([cls, patches[:, i * length : (i + 1) * length]], dim=1) for i in range(LOCAL_PARTS)]


def jigsaw_features(
    tokens: Tensor, whole: nn.Module, local: nn.Module, pool: Callable[[Tensor], Tensor], **layout: Any
) -> list[Tensor]:
    """Returns five features (B, D): the whole image's, then the four pieces'; pieces of one length share a pass.

    tokens: (B, 1 + N, D) before the last block. whole, local: copies of (last block, norm). pool: tokens -> feature.
    layout: arguments of ``jigsaw_pieces``.
    """
    return [pool(whole(tokens)), *local_features(tokens, local, pool, **layout)]


def local_features(tokens: Tensor, local: nn.Module, pool: Callable[[Tensor], Tensor], **layout: Any) -> list[Tensor]:
    """Returns the four pieces' features alone; arguments as for ``jigsaw_features``."""
    pieces = jigsaw_pieces(tokens, **layout)
    if len({piece.shape[1] for piece in pieces}) == 1:
        feats = pool(local(torch.cat(pieces))).unflatten(0, (LOCAL_PARTS, -1))
        return [feats[part] for part in range(LOCAL_PARTS)]  # chunk() would be a sequence in an exported file
    return [pool(local(piece)) for piece in pieces]


def jigsaw_layout(cfg: CfgNode, patches: int) -> dict[str, int] | None:
    """Returns the arguments of ``jigsaw_pieces``, None without JPM.

    patches: of an image, 0 for a network without patch tokens, for which JPM is refused.
    """
    if not cfg.MODEL.JPM:
        return None
    if not patches:
        raise conflict("MODEL.JPM", f"MODEL.NAME {cfg.MODEL.NAME!r}", "JPM needs patch tokens")
    layout = {"shift": cfg.MODEL.SHIFT_NUM, "groups": cfg.MODEL.SHUFFLE_GROUP, "divide": cfg.MODEL.DEVIDE_LENGTH}
    if layout["groups"] < 1 or not 1 <= layout["divide"] <= patches:
        raise UserError(
            f"MODEL.SHUFFLE_GROUP must be at least 1 and MODEL.DEVIDE_LENGTH between 1 and the {patches} patches "
            f"of an image, got {layout['groups']} and {layout['divide']}"
        )
    return layout | {"shuffled": cfg.MODEL.RE_ARRANGE}
