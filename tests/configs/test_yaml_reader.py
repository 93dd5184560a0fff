"""YAML that would be read otherwise than it looks is refused with its line."""

from __future__ import annotations

import time

import pytest

from configs.yaml_reader import YAMLMistake, parse_yaml


@pytest.mark.parametrize(
    "text, line, words",
    [
        ("A: 1\nB: 2\nA: 3\n", 3, "'A' is given twice, first in line 1"),
        ("A:\n  X: 1\n  X: 2\n", 3, "'X' is given twice, first in line 2"),
        ("MODEL: {NAME: a}\nSOLVER: {}\nMODEL: {JPM: true}\n", 3, "'MODEL' is given twice, first in line 1"),
        ("A: 010\n", 1, "write 10"),
        ("A: [1, 0777]\n", 1, "write 777"),
        ("A: 12:30\n", 1, "base 60"),
        ("A: 0\nB: [0x1F]\n", 2, "0x1F is read as a number of base 16"),
        ("A: -0xff\n", 1, "base 16"),
        ("A: 0b11\n", 1, "0b11 is read as a number of base 2"),
        ("[" * 60 + "]" * 60, 1, "levels deep"),
        ("a: &a [1, 2]\nb: &b [*a, *a, *b]\n", 2, ""),
    ],
)
def test_a_mistake_names_its_line(text, line, words):
    with pytest.raises(Exception) as raised:
        parse_yaml(text)
    assert not isinstance(raised.value, RecursionError)
    if isinstance(raised.value, YAMLMistake):
        assert raised.value.line == line and words in raised.value.what


def test_aliases_that_expand_are_counted_before_they_are_expanded():
    lines = ["a0: &a0 [" + ", ".join(["x"] * 9) + "]"]
    lines += [f"a{i}: &a{i} [" + ", ".join([f"*a{i - 1}"] * 9) + "]" for i in range(1, 12)]
    began = time.monotonic()
    with pytest.raises(YAMLMistake, match="aliases expand"):
        parse_yaml("\n".join(lines))
    assert time.monotonic() - began < 2


def test_very_deep_text_is_refused_without_a_recursion():
    with pytest.raises(YAMLMistake, match="levels deep"):
        parse_yaml("[" * 100_000)


@pytest.mark.parametrize(
    "text, value",
    [
        ("", None),
        ("A: '010'\nB: 0\nC: 0.5\nD: 10\nE: -3\nF: 1e-4\nG: '0x1F'\n",
         {"A": "010", "B": 0, "C": 0.5, "D": 10, "E": -3, "F": "1e-4", "G": "0x1F"}),
        ("base: &base {X: 1}\nA: {<<: *base, Y: 2}\n", {"base": {"X": 1}, "A": {"X": 1, "Y": 2}}),
        ("A: [256, 128]\nB: ('market1501')\nC:\n", {"A": [256, 128], "B": "('market1501')", "C": None}),
    ],
)  # fmt: skip
def test_sound_text_is_read_as_ever(text, value):
    assert parse_yaml(text) == value
