"""Publishes a finished run as a model that others load: ``python -m tools.hub push RUN OWNER/NAME --license ID``.

Uploaded to the Hugging Face hub, into a private repository unless ``--public`` is given: the weights that the run's
last evaluation is of (``model.safetensors``, without classifiers), its settings without paths (``config.yml``), a
description (``model.json``), the calibration if there is one, and a model card (``README.md``) with data, method,
figures and their intervals. ``--folder DIR`` writes the same into a folder and needs no network.
``Extractor.load("hf://OWNER/NAME")``, or of the folder, gives the same features.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from processor.published import DESCRIPTION, LOGIN, PREFIX
from tools.publishing.files import write_published
from utils.commands import make_parser, run_command
from utils.errors import UserError, reason_of
from utils.files import copy_files

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]{1,40}")
"""The hub's spelling of licences."""


def refuse_options(repository: str, folder: Path | None, licence: str) -> None:
    """Raises ``UserError`` for options that cannot be met, before any work starts."""
    if not licence:
        raise UserError(
            "--license: name the licence that you give the weights out under, as the hub spells it (apache-2.0, "
            "cc-by-nc-4.0, other); the terms of the training data may decide it, so it is never guessed"
        )
    if not LICENCE.fullmatch(licence):
        raise UserError(f"--license: {licence!r} is not spelt as a licence of the hub, such as apache-2.0 or other")
    if bool(repository) == bool(folder):
        raise UserError("expected a repository, OWNER/NAME, or --folder DIR, and not both")
    if repository and not REPOSITORY.fullmatch(repository):
        raise UserError(f"{repository}: expected OWNER/NAME of letters, digits, '-', '_' and '.'")
    if folder and folder.exists() and not (folder.is_dir() and (not any(folder.iterdir()) or is_ours(folder))):
        raise UserError(f"--folder: {folder} holds something else; name a new folder, or one that tools.hub wrote")


def is_ours(folder: Path) -> bool:
    """Returns whether a folder was written by this command."""
    return (folder / DESCRIPTION).is_file() and (folder / "README.md").is_file()


def upload(folder: Path, repository: str, public: bool) -> str:
    """Uploads the files of a folder in one commit and returns the address that names it.

    Raises ``UserError`` without a token, without a network, and for a repository that may not be written to.
    """
    import huggingface_hub
    from huggingface_hub import errors

    if huggingface_hub.get_token() is None:
        raise UserError(f"no token of the hub: {LOGIN}; --folder DIR writes the same files without a network")
    api = huggingface_hub.HfApi()
    try:
        api.create_repo(repository, private=not public, exist_ok=True)
        files = [huggingface_hub.CommitOperationAdd(path.name, path) for path in sorted(folder.iterdir())]
        commit = api.create_commit(repository, files, commit_message="Model of tools.hub")
    except errors.OfflineModeIsEnabled:
        raise UserError("HF_HUB_OFFLINE is set: nothing can be pushed; --folder DIR writes the same files") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        hint = f": {LOGIN} with a token that may write" if status in (401, 403) else ""
        raise UserError(f"{repository}: the hub refuses ({status}){hint}; {reason_of(error)}") from None
    except Exception as error:  # noqa: BLE001 - of whichever HTTP library the hub's client stands on
        raise UserError(
            f"{repository}: the hub cannot be reached ({reason_of(error)}); --folder DIR writes the same files"
        ) from None
    return f"{PREFIX}{repository}@{commit.oid}"


def push(
    run: Path,
    repository: str = "",
    *,
    folder: Path | None = None,
    licence: str = "",
    public: bool = False,
    calibration: Path | None = None,
    exported: Path | None = None,
) -> str:
    """Publishes a run and returns how ``Extractor.load`` names it. See ``write_published`` for the arguments.

    Nothing is written or sent before all files are there. Raises ``UserError`` for a user's mistake.
    """
    refuse_options(repository, folder, licence)
    address = f"{PREFIX}{repository}" if folder is None else folder.resolve().name  # no path of this machine
    with tempfile.TemporaryDirectory() as name:
        written = Path(name)
        write_published(run, written, address, licence, calibration, exported)
        if folder is not None:
            copy_files(written, folder, last=DESCRIPTION)
            return str(folder)
        return upload(written, repository, public)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = make_parser(
        "python -m tools.hub", __doc__, "push runs/quickstart --folder published --license cc-by-4.0",
        "push runs/quickstart OWNER/NAME --license apache-2.0 --public",
    )  # fmt: skip
    parser.add_argument("action", choices=("push",), help="what to do")
    parser.add_argument("run", type=Path, help="OUTPUT_DIR of a finished training or test")
    parser.add_argument("repository", nargs="?", default="", metavar="OWNER/NAME", help="on the hub")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="write into a folder instead")
    parser.add_argument("--license", default="", metavar="ID", help="of the weights, as the hub spells it; required")
    parser.add_argument("--public", action="store_true", help="let everyone see a repository that is made now")
    parser.add_argument("--calibration", type=Path, metavar="FILE", help="of tools.calibrate (RUN/calibration.json)")
    parser.add_argument("--exported", type=Path, metavar="DIR", help="of tools.export, for its verdict (RUN/exported)")
    args = parser.parse_args(argv)
    address = push(
        args.run, args.repository, folder=args.folder, licence=args.license, public=args.public,
        calibration=args.calibration, exported=args.exported,
    )  # fmt: skip
    print(f'Extractor.load("{address}")')


if __name__ == "__main__":
    run_command(main)
