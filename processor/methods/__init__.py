"""The training methods, one file each. Importing this package fills in ``utils.methods.METHODS``."""

from processor.methods import cluster, dino, distill, dmmd, mtda_kd, prompt, self_distill, supervised

__all__ = ["cluster", "dino", "distill", "dmmd", "mtda_kd", "prompt", "self_distill", "supervised"]
