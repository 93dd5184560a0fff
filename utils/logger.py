"""Writes log lines to the terminal and to a file."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from pathlib import Path

from utils.distributed import is_main
from utils.errors import UserError, reason_of


class _AboveProgressBar(logging.StreamHandler):
    """Writes above a running progress bar instead of into it."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(self.format(record), file=self.stream)
        self.flush()


class _LogFile(logging.FileHandler):
    """Ends with one line when the disk refuses it: training goes on, and a save that fails says what to do."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        error = sys.exc_info()[1]
        logging.getLogger("lineup").removeHandler(self)
        self.close()
        reason = reason_of(error) if error else "unknown"
        print(f"warning: {self.baseFilename}: no more log, it cannot be written ({reason})", file=sys.stderr)

    def close(self) -> None:
        with suppress(OSError):  # the rest of a line that did not fit
            super().close()


def set_up_logging(folder: str | Path, name: str = "log.txt") -> logging.Logger:
    """Sets up the ``lineup`` logger: the first process logs to terminal and ``folder/name``, others log errors only."""
    log = logging.getLogger("lineup")
    log.propagate = False
    close_logging()
    log.setLevel(logging.INFO if is_main() else logging.ERROR)
    terminal = _AboveProgressBar(sys.stdout)
    terminal.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(terminal)
    if is_main():
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            file = _LogFile(Path(folder) / name)
        except OSError as error:
            raise UserError(
                f"OUTPUT_DIR: {folder} cannot be written ({error.strerror}); set OUTPUT_DIR elsewhere"
            ) from None
        file.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        log.addHandler(file)
    return log


def close_logging() -> None:
    """Closes the log file and removes all handlers."""
    log = logging.getLogger("lineup")
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
