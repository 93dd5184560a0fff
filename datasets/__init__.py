"""The catalogue of datasets, the built-in data, transforms, samplers and loaders."""

from datasets.catalogue import CATALOGUE, register_dataset
from datasets.catalogue.spec import DatasetSpec
from datasets.dataset import make_dataset
from datasets.loaders import make_dataloader
from datasets.transforms.pipelines import build_transforms
from utils.former_names import redirect_former_commands

redirect_former_commands()

__all__ = ["CATALOGUE", "DatasetSpec", "build_transforms", "make_dataloader", "make_dataset", "register_dataset"]
