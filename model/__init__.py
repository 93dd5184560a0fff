"""Backbones, necks, heads and how a YAML puts them together."""

from model.make_model import make_model, register_backbone
from model.output import ReIDOutput
from utils.former_names import redirect_former_commands

redirect_former_commands()

__all__ = ["ReIDOutput", "make_model", "register_backbone"]
