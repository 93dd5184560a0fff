"""Backbones, necks, heads and how a YAML puts them together."""

from model.make_model import make_model, register_backbone
from model.output import ReIDOutput

__all__ = ["ReIDOutput", "make_model", "register_backbone"]
