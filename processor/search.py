"""Top-k lists of queries in a gallery: ``python -m processor.search --query q.npy --gallery g.npy --out topk.npz``.

Features are .npy files of shape (images, width). The gallery is memory-mapped, so it may be larger than the memory.
The result holds ``indices`` (queries, k), rows of the gallery file, nearest first, and ``distances`` (queries, k).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from utils.blocks import free_memory
from utils.checkpoint import write_atomically
from utils.commands import make_parser
from utils.errors import UserError
from utils.search import METRICS, search


def read(path: Path) -> np.ndarray:
    """The memory-mapped array of a .npy file; ``UserError`` when it is none."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path}: not a readable .npy file of numbers, as numpy.save writes them ({reason})") from None


def main(argv: list[str] | None = None) -> None:
    """The command."""
    example = "--query q.npy --gallery g.npy --k 100 --out topk.npz"
    parser = make_parser("python -m processor.search", __doc__, example)
    parser.add_argument("--query", type=Path, required=True, help=".npy file, (queries, width)")
    parser.add_argument("--gallery", type=Path, required=True, help=".npy file, (images, width)")
    parser.add_argument("--out", type=Path, required=True, help=".npz file to write")
    parser.add_argument("--k", type=int, default=100, help="length of the lists (100)")
    parser.add_argument("--metric", choices=METRICS, default="euclidean", help="euclidean is squared")
    parser.add_argument("--raw", action="store_true", help="take features as they are, not scaled to unit length")
    parser.add_argument("--memory", type=float, default=0, metavar="GB", help="working memory (a quarter of the free)")
    args = parser.parse_args(argv)
    if args.memory < 0:
        raise UserError(f"--memory: {args.memory} is negative")
    if args.out.suffix != ".npz":
        raise UserError(f"--out: {args.out} does not end in .npz")
    query, gallery = read(args.query), read(args.gallery)
    if not isinstance(query, np.ndarray) or not isinstance(gallery, np.ndarray):
        raise UserError("--query and --gallery must be .npy files, an .npz holds several arrays")
    memory = int(args.memory * 1e9) or free_memory() // 4
    indices, distances = search(query, gallery, args.k, args.metric, not args.raw, memory)
    write_atomically(args.out, lambda handle: np.savez(handle, indices=indices, distances=distances))
    print(f"{args.out}: the {indices.shape[1]} nearest of {len(gallery)} images for {len(query)} queries")


if __name__ == "__main__":
    from processor.command import guarded

    guarded(main)
