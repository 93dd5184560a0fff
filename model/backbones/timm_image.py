"""Any image model of timm as a backbone: ``MODEL.NAME: timm:convnext_tiny``."""

from __future__ import annotations

import logging

import timm
from torch import Tensor, nn

from utils.errors import UserError, nearest

log = logging.getLogger("lineup")


class TimmBackbone(nn.Module):
    """(B, 3, H, W) -> pooled feature (B, width). Keys are timm's own.

    image_size: (H, W), told to the models that want it (transformers). drop_path: told to those that know it, and a
    line in the log for the others. grad_checkpoint: as timm does it; ``UserError`` where the model does not.
    """

    def __init__(
        self, name: str, image_size: tuple[int, int], drop_path: float = 0.0, grad_checkpoint: bool = False
    ):
        super().__init__()
        if not timm.is_model(name):
            raise UserError(f"MODEL.NAME: timm has no model {name!r}{nearest(name, timm.list_models())}")
        size, path = {"img_size": tuple(image_size)}, {"drop_path_rate": drop_path}
        for options in (size | path, path, size, {}):  # transformers want the size, convolutions refuse the word
            try:
                self.net = timm.create_model(name, num_classes=0, **options)
                break
            except TypeError:
                if not options:
                    raise
        if drop_path and "drop_path_rate" not in options:
            log.info("MODEL.DROP_PATH does nothing here: timm:%s has no stochastic depth", name)
        if grad_checkpoint:
            try:
                self.net.set_grad_checkpointing(True)
            except (AttributeError, AssertionError):
                raise UserError(
                    f"MODEL.GRAD_CHECKPOINT and MODEL.NAME 'timm:{name}' cannot go together: timm has none for it"
                ) from None
        self.width = getattr(self.net, "head_hidden_size", None) or self.net.num_features

    def forward(self, images: Tensor, cam_label=None, view_label=None) -> Tensor:
        return self.net(images)
