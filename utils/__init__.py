"""What every room needs: errors, switches, metrics, re-ranking, checkpoints, distributed helpers, logging."""

from utils.errors import UserError
from utils.switches import switch

__all__ = ["UserError", "switch"]
