"""Signals are handled after OpenVINO's plugin has been dropped by another thread than the one that loaded it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from tests.runs import exit_code_of
from utils.signal_stack import Stack, kept_signal_stack, signal_stack


def signal_after_a_drop(path: Path) -> None:
    """Opens a file in OpenVINO, drops it in another thread and sends this process a signal."""
    from processor.runtimes import OpenVino

    before, received = signal_stack(), []
    signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    held = [OpenVino(path)]
    assert held[0](np.ones((2, 3), np.float32)).tolist() == [[6.0], [6.0]]
    thread = threading.Thread(target=held.clear)
    thread.start(), thread.join()
    after = signal_stack()
    assert (after.start, after.size) == (before.start, before.size)
    os.kill(os.getpid(), signal.SIGTERM)
    assert received == [signal.SIGTERM]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="alternate stacks are kept on Linux only")
def test_a_signal_after_openvino_was_dropped_elsewhere_is_handled(tmp_path):
    openvino = pytest.importorskip("openvino", reason="requirements-dev.txt has it")
    from openvino import opset13 as ops

    images = ops.parameter([-1, 3], np.float32, name="images")
    summed = ops.matmul(images, ops.constant(np.full((3, 1), 2, np.float32)), False, False)
    openvino.save_model(openvino.Model([summed], [images], "sum"), tmp_path / "model.xml", compress_to_fp16=False)
    assert exit_code_of(signal_after_a_drop, tmp_path / "model.xml") == 0


@pytest.mark.skipif(sys.platform != "linux", reason="alternate stacks are kept on Linux only")
def test_the_stack_of_before_comes_back_after_an_error():
    import ctypes

    room = ctypes.create_string_buffer(2**16)
    before = signal_stack()
    with pytest.raises(ZeroDivisionError), kept_signal_stack():
        other = Stack(ctypes.addressof(room), 0, len(room))
        assert ctypes.CDLL(None).sigaltstack(ctypes.byref(other), None) == 0
        assert signal_stack().start == ctypes.addressof(room)
        raise ZeroDivisionError
    assert (signal_stack().start, signal_stack().size) == (before.start, before.size)
