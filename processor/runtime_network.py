"""A network in another runtime, in the place of the network itself: normalised images in, features out."""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from model import RetrievalModel
from model.exporting import write_onnx
from model.layers.lora import merge_adapters
from processor.exported import ExportedFile
from processor.runtimes import READERS, RUNTIMES, TORCH, FileRuntime, Unreadable, import_runtime
from utils.errors import UserError

log = logging.getLogger("lineup")

Feed = Callable[[Tensor], Tensor]
"""Makes a file's images of normalised ones, (B, 3, H, W) float32."""


class RuntimeNetwork(RetrievalModel):
    """A file's network as every other one: ``forward`` gives the retrieval feature (B, D). It cannot be trained.

    size: (H, W) of the images. sides: names of the labels that the file takes beside the images. feed: makes the file's
    images of normalised ones; None where it takes these. mirrored: the feature is the mean with the mirrored image's.
    The computation is on the CPU; features come on the device of the images.
    """

    def __init__(
        self,
        runtime: FileRuntime,
        size: tuple[int, int],
        width: int,
        sides: tuple[str, ...] = (),
        feed: Feed | None = None,
        mirrored: bool = False,
    ):
        super().__init__()
        self.runtime, self.size, self.width = runtime, size, width
        self.feed: Feed = feed or torch.Tensor.contiguous
        self.sides = tuple(name for name in sides if name in runtime.inputs)  # a label that changes nothing is left out
        self.batch, self.averages_mirrored, self.runs_in = runtime.inputs["images"][0], mirrored, runtime.name

    def forward(
        self,
        images: Tensor,
        label: Tensor | None = None,
        cam_label: Tensor | None = None,
        view_label: Tensor | None = None,
    ) -> Tensor:
        """Returns features (B, D) float32. labels: int64 (B,); None, and those that training never saw, add nothing.

        Raises ``UserError`` for images of another size, and for more of them than the file takes.
        """
        count, size = len(images), (images.shape[2], images.shape[3])
        if size != self.size:
            raise UserError(f"the file takes images of {shown(self.size)}, not {shown(size)}: set INPUT.SIZE_TEST")
        self.refuse_batch(count)
        missing = 0 if self.batch is None else self.batch - count
        given = self.feed(images.detach().cpu())
        if missing:
            given = torch.cat([given, given.new_zeros(missing, *given.shape[1:])])
        columns = {"cam_label": cam_label, "view_label": view_label}
        labels = {name: label_column(columns[name], count, missing) for name in self.sides}
        feats = torch.from_numpy(self.runtime(given.numpy(), **labels)[:count])
        return feats.float().to(images.device)

    def refuse_batch(self, count: int) -> None:
        """Raises ``UserError`` if the file takes fewer images at a time."""
        if self.batch is not None and count > self.batch:
            raise UserError(
                f"the file takes {self.batch} images at a time, not {count}: set TEST.IMS_PER_BATCH {self.batch}, or "
                "export the model again, whose files take any number"
            )

    def class_scores(self, images: Tensor, cam_label: Tensor | None = None, view_label: Tensor | None = None) -> Tensor:
        raise UserError("TEST.RUNTIME: images are classified by the network itself alone; set TEST.RUNTIME torch")


def label_column(labels: Tensor | None, count: int, missing: int) -> np.ndarray:
    """Returns labels as a file takes them, int64 (count + missing,); -1, which nobody has, for None and padding."""
    column = torch.full((count,), -1) if labels is None else labels.detach().cpu().long()
    return pad(column, (0, missing), value=-1).numpy()


def shown(size: tuple[int, int]) -> str:
    """Returns height and width in words."""
    return f"{size[0]} x {size[1]}"


# ---------------------------------------------------------------- exported files


def network_of_file(file: ExportedFile, name: str, batch_size: int | None = None) -> RuntimeNetwork:
    """Opens an exported file. name: a word of TEST.RUNTIME; torch, which reads no such file, means the file's own.

    batch_size: of the images that will come, where it is set. Raises ``UserError`` for a runtime that is missing or
    cannot read the file, and for a batch that it does not take.
    """
    readers = READERS[file.path.suffix]
    if name == TORCH:
        log.info("TEST.RUNTIME torch reads no %s file: %s runs in %s", file.path.suffix, file.path, readers[0])
        name = readers[0]
    if name not in readers:
        endings = " and ".join(ending for ending, names in READERS.items() if name in names)
        raise UserError(
            f"TEST.RUNTIME: {name} reads {endings} files, and {file.path} is none; set TEST.RUNTIME {readers[0]}"
        )
    runtime, mirrored = RUNTIMES[name](file.path), file.settings["TEST.FLIP"]
    network = RuntimeNetwork(runtime, file.size, file.width, file.sides, make_feed(file), mirrored)
    if batch_size is not None:
        network.refuse_batch(batch_size)
    return network


def make_feed(file: ExportedFile) -> Feed:
    """Returns what undoes the normalisation as the file's layout wants it."""
    mean, std = (torch.tensor(file.settings[f"INPUT.PIXEL_{name}"]).view(3, 1, 1) for name in ("MEAN", "STD"))
    given = file.layout.given
    if given is None:
        margin = file.settings["INPUT.RESIZE_MARGIN"]
        return WholeImages(mean, std, margin)
    return Scaled(mean, std, given.mean, given.std)


class WholeImages:
    """Feeds a file that resizes itself: uint8 (B, H, W, 3), of the size at which its resize changes nothing.

    margin: pixels that the file cuts off after its resize; zeros stand there.
    """

    def __init__(self, mean: Tensor, std: Tensor, margin: int = 0):
        self.mean, self.std, self.margin = mean, std, margin

    def __call__(self, images: Tensor) -> Tensor:
        levels = ((images * self.std + self.mean) * 255).round().clamp(0, 255).to(torch.uint8)
        near, far = self.margin // 2, self.margin - self.margin // 2
        return pad(levels, (near, far, near, far)).permute(0, 2, 3, 1).contiguous()


class Scaled:
    """Feeds a file for a tracker: float32 (B, 3, H, W), scaled as the tracker does."""

    def __init__(self, mean: Tensor, std: Tensor, given_mean: Sequence[float], given_std: Sequence[float]):
        scale, shift = (torch.tensor(values).view(3, 1, 1) for values in (given_std, given_mean))
        self.factor, self.offset = std / scale, (mean - shift) / scale

    def __call__(self, images: Tensor) -> Tensor:
        return (images * self.factor + self.offset).contiguous()


# ---------------------------------------------------------------- networks that are exported for it


class ByPosition(nn.Module):
    """A network that takes its labels by position, as tracing has them."""

    def __init__(self, model: nn.Module, sides: tuple[str, ...]):
        super().__init__()
        self.model, self.sides = model, sides

    def forward(self, images: Tensor, *labels: Tensor) -> Tensor:
        return self.model(images, **dict(zip(self.sides, labels, strict=True)))


@contextmanager
def exported_network(model: RetrievalModel, size: tuple[int, int], sides: tuple[str, ...]) -> Iterator[Path]:
    """Exports a network into a temporary folder, to a file that takes and gives what the network does.

    The model stays as it is; the file has a copy, in full precision, with its adapters merged. size: (H, W). sides:
    names of the labels that it uses. Raises ``UserError`` for a network that cannot be traced, and without the packages
    that this needs.
    """
    plain = merge_adapters(copy.deepcopy(model).cpu().float().eval())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write_onnx(ByPosition(plain, sides), path, torch.zeros(2, 3, *size), sides)
        yield path


def open_network(path: Path, name: str, size: tuple[int, int], sides: tuple[str, ...]) -> RuntimeNetwork:
    """Opens a file of ``exported_network`` in a runtime. Raises ``UserError`` if that is missing or cannot run it."""
    try:
        runtime = RUNTIMES[name](path)
    except Unreadable as error:
        raise UserError(f"TEST.RUNTIME: the network does not run there: {error.reason}; set another") from None
    labels = {side: np.zeros(2, np.int64) for side in sides if side in runtime.inputs}
    width = runtime(np.zeros((2, 3, *size), np.float32), **labels).shape[1]
    return RuntimeNetwork(runtime, size, width, sides)


def in_runtime(model: RetrievalModel, name: str, size: tuple[int, int], sides: tuple[str, ...]) -> RuntimeNetwork:
    """Returns a network in another runtime, a word of ``RUNTIMES``. For the rest see ``exported_network``."""
    import_runtime(name)  # before the export, which takes seconds
    with exported_network(model, size, sides) as path:
        return open_network(path, name, size, sides)
