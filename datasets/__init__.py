"""The catalogue of datasets, the built-in data, transforms, samplers and loaders."""

from datasets.catalogue import CATALOGUE, DatasetSpec, make_dataset, register_dataset
from datasets.loaders import make_dataloader
from datasets.transforms import build_transforms

__all__ = ["CATALOGUE", "DatasetSpec", "build_transforms", "make_dataloader", "make_dataset", "register_dataset"]
