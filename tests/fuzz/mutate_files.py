"""Damages files the ways that disks, editors and strangers do."""

from __future__ import annotations

import random

TOKENS = [
    b"", b"\0", b"\xff", b"\xff\xfe", b"\n", b"\r\n", b"\t", b",", b",,", b";", b'"', b"'", b"[", b"{", b"}", b"]",
    b":", b"-1", b"-1.0", b"1.0", b"nan", b"NaN", b"inf", b"-inf", b"1e999", b"null", b"None", b"N/A", b"true", b"010",
    b"0x10", b"99999999999999999999", b"18446744073709551616", b"../..", b"/etc/passwd", b"~nobody", b"$HOME",
    b"\xed\xa0\x80", b"\xf0\x9f\x98\x80", b"&a", b"*a", b"<<", b"!!python/object:os.system", b"_BASE_", b"a" * 5000,
    b"[" * 500, b"\x1b[31m",
]  # fmt: skip


def damaged(raw: bytes, draw: random.Random) -> bytes:
    """Returns the bytes after one to four changes."""
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        raw = draw.choice(WAYS)(raw, draw)
    return raw


def flip_bit(raw: bytes, draw: random.Random) -> bytes:
    if not raw:
        return raw
    changed = bytearray(raw)
    changed[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def cut(raw: bytes, draw: random.Random) -> bytes:
    return raw[: draw.randrange(len(raw) + 1)]


def drop_some(raw: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(raw) + 1)
    return raw[:start] + raw[start + draw.choice((1, 4, 64, 1000)) :]


def insert_token(raw: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(raw) + 1)
    return raw[:start] + draw.choice(TOKENS) + raw[start:]


def overwrite_token(raw: bytes, draw: random.Random) -> bytes:
    token, start = draw.choice(TOKENS), draw.randrange(len(raw) + 1)
    return raw[:start] + token + raw[start + len(token) :]


def replace_word(raw: bytes, draw: random.Random) -> bytes:
    """One field of a text, between separators, becomes a token."""
    edges = [0, *(i + 1 for i, byte in enumerate(raw[:100_000]) if byte in b',:\n "[]{}')]
    i = draw.randrange(len(edges))
    end = edges[i + 1] - 1 if i + 1 < len(edges) else len(raw)
    return raw[: edges[i]] + draw.choice(TOKENS) + raw[end:]


def repeat_some(raw: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(raw) + 1)
    piece = raw[start : start + draw.choice((1, 16, 200))]
    return raw[:start] + piece * draw.choice((2, 3, 50)) + raw[start + len(piece) :]


def swap_lines(raw: bytes, draw: random.Random) -> bytes:
    lines = raw.split(b"\n")
    i, j = draw.randrange(len(lines)), draw.randrange(len(lines))
    lines[i], lines[j] = lines[j], lines[i]
    return b"\n".join(lines)


def large_number(raw: bytes, draw: random.Random) -> bytes:
    """Four or eight bytes become a large or negative number, as a size or an offset would be."""
    start, width = draw.randrange(len(raw) + 1), draw.choice((4, 8))
    value = draw.choice((2**31 - 1, 2**31, 2**32 - 1, 2**20, 0))
    return raw[:start] + value.to_bytes(width, draw.choice(("little", "big"))) + raw[start + width :]


WAYS = (flip_bit, cut, drop_some, insert_token, overwrite_token, replace_word, repeat_some, swap_lines, large_number)
