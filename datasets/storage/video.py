"""Frames of a video file or of a folder of images, in order and decoded once; and a video file from frames.

Video files need PyAV, which is optional.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from PIL import Image

from datasets.readers.scan import existing, image_files
from datasets.storage.pillow_decoding import load_image
from datasets.storage.video_frames import pyav
from utils.errors import UserError, reason_of


@dataclass(frozen=True)
class Frame:
    """A frame of a video. number: from 1. time: seconds from its beginning, None where that is not known."""

    number: int
    time: float | None
    image: Image.Image


def frame_files(folder: Path) -> dict[int, Path]:
    """Returns the images of a folder by their frames' numbers, ascending: the digits at the end of their names.

    Raises ``UserError`` for a folder without images, a name without a number and a number that stands twice.
    """
    files: dict[int, Path] = {}
    for name in image_files(folder):
        digits = re.search(r"(\d{1,12})\.[^.]+$", name)
        if not digits:
            raise UserError(f"{folder / name}: the name has no frame number at its end, such as 000001.jpg")
        number = int(digits[1])
        if number in files:
            raise UserError(f"{folder}: {files[number].name} and {name} are both frame {number}")
        files[number] = folder / name
    if not files:
        raise UserError(f"{folder}: no images of frames in it (found: {existing(folder)})")
    return dict(sorted(files.items()))


def frames_of(path: Path, fps: float | None = None, wanted: Container[int] | None = None) -> Iterator[Frame]:
    """Yields the frames of a folder of images or of a video file, in order.

    fps: frames per second, for times: of a folder, whose frames have none without it, and in place of those that a
    video file states. wanted: numbers of the frames that are yielded; None: all. Raises ``UserError`` that names the
    file and the frame for what cannot be decoded, and where a video's time runs backwards.
    """
    if path.is_dir():
        for number, file in frame_files(path).items():
            if wanted is None or number in wanted:
                yield Frame(number, None if fps is None else (number - 1) / fps, load_image(str(file)))
        return
    yield from decoded(path, fps, wanted)


def decoded(path: Path, fps: float | None, wanted: Container[int] | None) -> Iterator[Frame]:
    """Yields the frames of a video file; see ``frames_of``."""
    av, number, before = pyav(), 0, -1.0
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise UserError(f"{path}: has no video in it")
            stream: Any = container.streams.video[0]
            stream.thread_type = "AUTO"
            for number, frame in enumerate(container.decode(stream), 1):
                time = (number - 1) / fps if fps else frame.time
                if time is not None and time < before:
                    raise UserError(f"{path}: time runs backwards at frame {number} ({before:.3f} to {time:.3f} s)")
                before = before if time is None else time
                if wanted is None or number in wanted:
                    yield Frame(number, time, frame.to_image())
    except FileNotFoundError:
        raise UserError(f"{path}: no such video file or folder of frames") from None
    except (av.FFmpegError, OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        what = f"frame {number + 1} cannot be decoded" if number else "not a video that can be decoded"
        raise UserError(f"{path}: {what} ({reason_of(error)})") from None
    if not number:
        raise UserError(f"{path}: has no frame that can be decoded")


def write_video(path: Path, frames: Iterable[Image.Image], fps: int) -> None:
    """Writes an MP4 file (H.264) of frames of one size, which is even. Raises ``UserError`` if it cannot be written."""
    av = pyav()
    try:
        with av.open(str(path), "w") as container:
            stream: Any = None
            for image in frames:
                if stream is None:
                    stream = container.add_stream("libx264", rate=Fraction(fps), options={"crf": "18"})
                    stream.width, stream.height, stream.pix_fmt = *image.size, "yuv420p"
                for packet in stream.encode(av.VideoFrame.from_image(image)):
                    container.mux(packet)
            if stream is not None:
                for packet in stream.encode():
                    container.mux(packet)
    except (av.FFmpegError, OSError) as error:
        raise UserError(f"{path}: the video cannot be written ({reason_of(error)})") from None
