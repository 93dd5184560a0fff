"""Text features of free sentences, for models of the prompt method, whose image features stay comparable to text.

The words are looked up in the token embedding of the CLIP that training started from (MODEL.PRETRAIN_PATH, or fetched),
which checkpoints do not hold.
"""

from __future__ import annotations

import open_clip
import torch
from torch import Tensor
from yacs.config import CfgNode

from model.networks.clip_reid import PromptReID
from model.pretrained import pretrained_source
from utils.checkpoint import LoadReport, as_tensors
from utils.errors import UserError
from utils.methods import method_of


@torch.no_grad()
def sentence_features(model: PromptReID, table: Tensor, sentences: list[str]) -> Tensor:
    """Returns the text features (S, P) of sentences. table: CLIP's token embedding (V, W)."""
    ids = open_clip.tokenize(sentences, context_length=len(model.text_encoder.positional_embedding))
    if table.shape[1] != model.text_encoder.width or len(table) <= int(ids.max()):
        raise UserError(
            f"MODEL.PRETRAIN_PATH: its token embedding of {tuple(table.shape)} is not that of the model's text tower"
        )
    device = next(model.parameters()).device
    return model.text_encoder(table.float()[ids].to(device), ids.argmax(1).to(device))


def token_table(cfg: CfgNode) -> Tensor:
    """Returns the token embedding (V, W) of the CLIP that MODEL.PRETRAIN_PATH names."""
    state, name = as_tensors(pretrained_source(cfg), key=cfg.MODEL.WEIGHT_KEY)
    tables = [value for key, value in state.items() if key.endswith("token_embedding.weight")]
    if not tables:
        raise UserError(
            f"MODEL.PRETRAIN_PATH: {name} holds no token embedding; name the CLIP that training started from"
        )
    return tables[0]


def refuse_without_text(cfg: CfgNode) -> None:
    """Raises ``UserError`` for a method whose models no sentence can search."""
    if method_of(cfg).network != "prompt":
        raise UserError(
            f"PROCESSOR.NAME: {cfg.PROCESSOR.NAME!r} trains no model that a sentence can search; 'prompt' does"
        )


def refuse_missing_text_tower(cfg: CfgNode, report: LoadReport) -> None:
    """Raises ``UserError`` if the weights that were loaded hold no text tower."""
    if any(key.startswith("text_encoder.") for key in (*report.missing, *report.mismatched)):
        raise UserError(f"TEST.WEIGHT: {cfg.TEST.WEIGHT} holds no text tower of this architecture to encode sentences")
