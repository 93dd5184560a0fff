"""Networks: backbones, layers, and how the configuration combines them."""

from model.base import Backbone, RetrievalModel
from model.make_model import make_model, register_backbone
from utils.former_names import redirect_former_commands
from utils.output import ReIDOutput

redirect_former_commands()

__all__ = ["Backbone", "ReIDOutput", "RetrievalModel", "make_model", "register_backbone"]
