"""The log of a run: one line where the disk refuses it."""

from __future__ import annotations

import logging

from utils.logger import close_logging, set_up_logging


def test_a_full_disk_ends_the_log_in_one_line_and_nothing_else(tmp_path, capfd):
    (tmp_path / "log.txt").symlink_to("/dev/full")
    log = set_up_logging(tmp_path)
    for number in range(3):
        log.info("line %d", number)
    close_logging()
    out = capfd.readouterr()
    assert out.out.splitlines() == ["line 0", "line 1", "line 2"]
    assert out.err.count("\n") == 1 and "log.txt: no more log, it cannot be written ([Errno 28] No space" in out.err
    assert not logging.getLogger("lineup").handlers


def test_the_log_is_appended_to(tmp_path):
    for number in range(2):
        set_up_logging(tmp_path).info("start %d", number)
        close_logging()
    assert [line.split(" ", 2)[2] for line in (tmp_path / "log.txt").read_text().splitlines()] == ["start 0", "start 1"]
