"""The trainer, the methods as lists of stages, evaluation, and feature extraction."""

from utils.former_names import redirect_former_commands

redirect_former_commands()
