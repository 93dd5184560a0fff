"""Single frames of a video file, found by seeking: what a table of boxes in a video is read from.

The path of a frame is ``gate.mp4/000012.bmp``: the file, and the frame's number from 1 in the order in which frames are
shown. So a path alone is enough to read it, wherever lists of images go. PyAV is optional.
"""

from __future__ import annotations

import io
import os
import re
from functools import lru_cache
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any

import numpy as np

from utils.errors import UserError, reason_of

INSTALL = "pip install -r requirements-extra.txt"
IN_VIDEO = re.compile(r"(.+\.(?:mp4|m4v|mov|mkv|webm|avi))/(\d{6,12})\.bmp", re.IGNORECASE | re.DOTALL)
NEAR = 30
"""Frames ahead up to which decoding on is not slower than seeking."""


def pyav() -> ModuleType:
    """Returns PyAV. Raises ``UserError`` where it is not installed."""
    try:
        import av
    except ImportError:
        raise UserError(f"video files need PyAV, which is not installed: {INSTALL}") from None
    return av


def frame_path(video: Path, number: int) -> Path:
    """Returns the path of a frame. number: from 1."""
    return video / f"{number:06d}.bmp"


class FrameReader:
    """An open video file whose frames are read in any order; several threads may share it.

    Raises PyAV's errors and ``ValueError`` for a file that is not a video, or whose frames have no times.
    """

    def __init__(self, path: str):
        container = pyav().open(path)
        if not container.streams.video:
            raise ValueError("has no video in it")
        self.container, self.stream, self.lock = container, container.streams.video[0], Lock()
        self.stream.thread_type = "AUTO"
        times = [packet.pts for packet in container.demux(self.stream) if packet.size and not packet.is_discard]
        if not times or None in times:
            raise ValueError("its frames have no times to seek")
        self.times = np.sort(np.array(times))
        self.frames: Any = iter(())
        self.last, self.image = 0, b""  # 0: where the file is is not known

    def read(self, number: int) -> bytes:
        """Returns a frame as a BMP file. number: from 1. Raises ``ValueError`` for one that is not there."""
        with self.lock:
            if not 1 <= number <= len(self.times):
                raise ValueError(f"has {len(self.times):,} frames, no frame {number}")
            if number != self.last:
                self.image, self.last = self._decoded(number), number
            return self.image

    def _decoded(self, number: int) -> bytes:
        wanted = int(self.times[number - 1])
        if not self.last or not self.last < number <= self.last + NEAR:
            self.container.seek(wanted, stream=self.stream)
            self.frames = self.container.decode(self.stream)
        self.last = 0
        for frame in self.frames:
            if frame.pts is not None and frame.pts >= wanted:
                if frame.pts > wanted:
                    break
                buffer = io.BytesIO()
                frame.to_image().save(buffer, "BMP")
                return buffer.getvalue()
        raise ValueError(f"frame {number} cannot be decoded")


@lru_cache(maxsize=8)
def opened_video(path: str, process: int) -> FrameReader:
    """Returns a reader that stays open: to open a file is to read the times of all its frames.

    process: its number; a forked one must not use the file of the one that it was, which would move under both.
    """
    return FrameReader(path)


def read_frame(path: str, number: int) -> bytes:
    """Returns a frame of a video file as a BMP file. Raises ``OSError`` that names the file if it cannot be read."""
    av = pyav()
    try:
        return opened_video(path, os.getpid()).read(number)
    except FileNotFoundError:
        raise
    except (av.FFmpegError, OSError, ValueError) as error:
        raise OSError(None, reason_of(error), path) from None
