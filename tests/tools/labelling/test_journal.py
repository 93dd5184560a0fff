"""The journal: what was confirmed survives a kill at any byte; damage, other lists and second processes are refused."""

from __future__ import annotations

import gc
import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tools.labelling.journal import Decision, Journal, active, collector_paused
from utils.errors import UserError

NAMES = [f"{i}.jpg" for i in range(6)]

PAIR = st.lists(st.integers(0, 5), min_size=2, max_size=2, unique=True)
CONTENT = st.fixed_dictionaries(
    {},
    optional={
        "same": st.lists(st.lists(st.integers(0, 5), min_size=2, max_size=6, unique=True), min_size=1, max_size=2),
        "differ": st.lists(PAIR, min_size=1, max_size=3),
        "name": st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["anna", "bob\n", "ü", "7"])).map(list),
                         min_size=1, max_size=2),
    },
).filter(bool)  # fmt: skip


def opened(folder, names=NAMES) -> Journal:
    return Journal.open(folder / "journal.jsonl", names)


@given(st.lists(CONTENT, min_size=1, max_size=6), st.data())
@settings(max_examples=12, deadline=None)
def test_a_kill_at_any_byte_loses_nothing_that_was_confirmed(tmp_path_factory, contents, data):
    folder = tmp_path_factory.mktemp("journal")
    journal = opened(folder)
    ends = [journal.path.stat().st_size]
    for content in contents:
        journal.append(content)
        ends.append(journal.path.stat().st_size)
    decisions = list(journal.decisions)
    journal.close()
    raw = journal.path.read_bytes()
    cut = data.draw(st.integers(ends[0], len(raw)))
    journal.path.write_bytes(raw[:cut])
    confirmed = sum(end <= cut for end in ends[1:])
    again = opened(folder)
    assert again.decisions == decisions[:confirmed]
    again.append({"differ": [[0, 1]]})
    again.close()
    last = opened(folder)
    assert len(last.decisions) == confirmed + 1 and last.decisions[-1].differ == ((0, 1),)
    last.close()


TWO_DECISIONS = b'{"n":2,"same":[[1,2]]},{"n":3,"same":[[2,3]]}'


@pytest.mark.parametrize("line", [TWO_DECISIONS, b'{"n":2,"same":[[1,2]]},', b"[]", b""])
def test_a_line_holds_one_decision(line, tmp_path):
    journal = opened(tmp_path)
    for i in range(3):
        journal.append({"same": [[i, i + 1]]})
    journal.close()
    lines = journal.path.read_bytes().splitlines()
    journal.path.write_bytes(b"\n".join([*lines[:2], line, *lines[3:]]) + b"\n")
    with pytest.raises(UserError, match="line 3: damaged"):
        opened(tmp_path)


def test_a_damaged_last_line_is_dropped_with_a_line_and_a_damaged_one_before_is_refused(tmp_path, caplog):
    journal = opened(tmp_path)
    for i in range(3):
        journal.append({"same": [[i, i + 1]]})
    journal.close()
    with open(journal.path, "ab") as handle:
        handle.write(b'{"n":4,"sa\0\0\0\n')
    again = opened(tmp_path)
    assert len(again.decisions) == 3
    assert "the last line was never finished and is dropped; 3 decisions are kept" in caplog.text
    again.close()
    lines = journal.path.read_bytes().splitlines()
    assert len(lines) == 4  # the header and three decisions
    lines[2] = b'{"n":2,"same":[[1,'
    journal.path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(UserError, match=r"line 3: damaged; restore the file, or remove this line and all after it"):
        opened(tmp_path)


def test_a_journal_of_another_list_is_refused_with_the_difference(tmp_path):
    opened(tmp_path).close()
    words = r"another list of images \(2 missing here, such as 4.jpg; 1 new, such as x.jpg\)"
    with pytest.raises(UserError, match=words):
        opened(tmp_path, [*NAMES[:4], "x.jpg"])
    with pytest.raises(UserError, match="6 images in another order"):
        opened(tmp_path, NAMES[::-1])


def test_a_second_process_is_refused(tmp_path):
    journal = opened(tmp_path)

    with pytest.raises(UserError, match="another tools.label is at work on it"):
        opened(tmp_path)
    journal.close()
    opened(tmp_path).close()


def test_a_write_that_fails_leaves_the_journal_as_it_was(tmp_path, monkeypatch):
    journal = opened(tmp_path)
    journal.append({"same": [[0, 1]]})
    before = journal.path.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match="could not be written .No space left on device."):
        journal.append({"same": [[2, 3]]})
    monkeypatch.undo()
    assert journal.path.read_bytes() == before and len(journal.decisions) == 1
    assert journal.append({"same": [[2, 3]]}).number == 2
    journal.close()


def test_a_file_that_somebody_else_wrote_into_is_not_written_over(tmp_path):
    journal = opened(tmp_path)
    with open(journal.path, "ab") as handle:
        handle.write(b"x")
    with pytest.raises(UserError, match="another program has written into it"):
        journal.append({"same": [[0, 1]]})
    journal.close()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "must say one of"),
        ({"same": [[1]]}, "at least 2 images"),
        ({"same": [[1, 1]]}, "twice"),
        ({"same": [[1, 6]]}, "0 to 5, got 6"),
        ({"same": [[1, True]]}, "got True"),
        ({"differ": [[1, 2, 3]]}, "a pair"),
        ({"differ": "12"}, "must be a list"),
        ({"name": [[1, "nan"]]}, "cannot be a name"),
        ({"name": [[1, "-1"]]}, "cannot be a name"),
        ({"undo": 1}, "earlier decision"),
        ({"path": "/etc"}, "unknown entry 'path'"),
        ({"nobody": [-1]}, "0 to 5"),
        ({"view": "x" * 99, "nobody": [1]}, "at most 20 letters"),
    ],
)
def test_what_is_no_decision_is_refused(tmp_path, content, message):
    journal = opened(tmp_path)
    size = journal.path.stat().st_size
    with pytest.raises(UserError, match=message):
        journal.append(content)
    assert journal.path.stat().st_size == size
    journal.close()


@pytest.mark.parametrize("first", [b"[]", b'{"format":"else"}', b"\xff\xfe", b'{"format":"lineup labels","version":9}'])
def test_other_files_are_refused(tmp_path, first):
    (tmp_path / "journal.jsonl").write_bytes(first + b"\n" + json.dumps({"n": 1, "nobody": [1]}).encode() + b"\n")
    with pytest.raises(UserError, match="no journal of tools.label|version 9; this reads 1"):
        opened(tmp_path)


@given(st.lists(st.integers(0, 8), max_size=12))
def test_an_undo_takes_back_and_may_be_taken_back(undos):
    decisions = [
        Decision(n, nobody=() if undo else (n,), undo=min(undo, n - 1)) if undo and n > 1 else Decision(n, nobody=(n,))
        for n, undo in enumerate(undos, 1)
    ]

    def counts(number: int) -> bool:  # slow and plain: unless a later undo of it counts
        return not any(d.undo == number and counts(d.number) for d in decisions)

    assert active(decisions) == [d for d in decisions if d.nobody and counts(d.number)]


def test_the_garbage_collector_works_again_after_a_pause_that_failed():
    with pytest.raises(KeyError), collector_paused():
        assert not gc.isenabled()
        raise KeyError
    assert gc.isenabled()
