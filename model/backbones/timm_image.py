"""Any image model of timm as a backbone: ``MODEL.NAME: timm:convnext_tiny``."""

from __future__ import annotations

import timm
from torch import Tensor, nn

from utils.errors import UserError, nearest


class TimmBackbone(nn.Module):
    """(B, 3, H, W) -> pooled feature (B, width). Keys are timm's own."""

    def __init__(self, name: str, image_size: tuple[int, int], drop_path: float = 0.0, pretrained: bool = False):
        super().__init__()
        if not timm.is_model(name):
            raise UserError(f"MODEL.NAME: timm has no model {name!r}{nearest(name, timm.list_models())}")
        options = {"num_classes": 0, "pretrained": pretrained, "drop_path_rate": drop_path}
        self.net = None
        for extra in ({"img_size": tuple(image_size)}, {}):  # transformers want the size, convolutions refuse the word
            try:
                self.net = timm.create_model(name, **options, **extra)
                break
            except TypeError:
                continue
        if self.net is None:
            raise UserError(f"MODEL.NAME: timm:{name} takes neither an image size nor a drop path rate")
        self.width = getattr(self.net, "head_hidden_size", None) or self.net.num_features

    def forward(self, images: Tensor, cam_label=None, view_label=None) -> Tensor:
        return self.net(images)
