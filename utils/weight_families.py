"""Which family of networks a file of weights belongs to, by the names of its tensors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """A family of networks. name: in messages. ends: a network of it has a tensor whose name ends so, for each.

    settings: keys and values that choose the family, for the hint.
    """

    name: str
    ends: tuple[str, ...]
    settings: str


VIT = "MODEL.NAME transformer and a ViT's MODEL.TRANSFORMER_TYPE"

FAMILIES = (
    Family("PASS (a ViT with part tokens)", ("part_token1", "blocks.0.attn.qkv.weight"),
           "MODEL.NAME transformer MODEL.PART_TOKENS True and a ViT's MODEL.TRANSFORMER_TYPE"),
    Family("SOLIDER's Swin", (".0.attn.w_msa.qkv.weight",),
           "MODEL.NAME transformer MODEL.SWIN solider and a Swin's MODEL.TRANSFORMER_TYPE"),
    Family("a Swin", ("layers.0.blocks.0.attn.relative_position_bias_table",),
           "MODEL.NAME transformer MODEL.SWIN transreid_ssl and a Swin's MODEL.TRANSFORMER_TYPE"),
    Family("a ViT", ("cls_token", "blocks.0.attn.qkv.weight"), f"{VIT}, and MODEL.PART_TOKENS False"),
    Family("a CLIP", ("resblocks.0.attn.in_proj_weight",), "MODEL.NAME to a CLIP, such as ViT-B-16"),
    Family("a CLIP", ("attnpool.positional_embedding",), "MODEL.NAME to a CLIP, such as RN50"),
    Family("a ResNet", ("layer1.0.conv1.weight", "layer4.0.conv1.weight"), "MODEL.NAME to a ResNet"),
)  # fmt: skip
"""The first that fits counts."""


def family_of(names: Iterable[str]) -> Family | None:
    """Returns the family of a network with these names of tensors; None if it is not known here."""
    names = list(names)
    for family in FAMILIES:
        if all(any(name.endswith(end) for name in names) for end in family.ends):
            return family
    return None


def other_family(file: Iterable[str], model: Iterable[str]) -> str:
    """Returns what to say if file and model are known to be of two families, and '' if they are not.

    file, model: names of their tensors, those of the file as the model would have them.
    """
    theirs, ours = family_of(file), family_of(model)
    if theirs is None or ours is None or theirs.name == ours.name:
        return ""
    return f"it holds the weights of {theirs.name}, and this model is {ours.name}: set {theirs.settings}"
