"""Helpers of all packages: errors, switches, metrics, re-ranking, checkpoints, distribution, logging."""

from utils.errors import UserError
from utils.switches import switch

__all__ = ["UserError", "switch"]
