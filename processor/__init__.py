"""The trainer, the methods as lists of stages, evaluation, and the commands after training."""
