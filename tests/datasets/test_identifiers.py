"""One function decides what an id is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets.identifiers import MISSING, canonical
from utils.errors import UserError


@pytest.mark.parametrize("text", ["-1", "-1.0", "-1.00", " -1 ", "\u22121", "-1\u200b"])
def test_nobody_however_it_is_written(text):
    assert canonical(text) == "-1"


@pytest.mark.parametrize("text", [
    *sorted(MISSING), "NAN", "None ", "\u00a0nan", "NaT", "none", "Null", "\ufeffN/A",
])  # fmt: skip
def test_a_missing_value_is_no_id(text):
    assert canonical(text) == ""


@pytest.mark.parametrize("text", [
    "01", "1.50", "1.5", "door west", "1.0a", "v1.0", "-01", "1.", "nanny", "NAME", "1e3", "007.0",
])  # fmt: skip
def test_other_texts_stay_as_they_are(text):
    assert canonical(text) == text


@given(st.integers(), st.integers(1, 6))
def test_whole_numbers_have_one_spelling(number, zeros):
    text = str(number)
    if len(text) < 150:
        assert canonical(text) == canonical(f"{text}.{'0' * zeros}") == text


@given(st.text(max_size=30))
def test_an_id_is_stable(text):
    try:
        once = canonical(text)
    except UserError:
        return
    assert canonical(once) == once == once.strip()


def test_accents_have_one_spelling():
    assert canonical("Zoe\u0308") == canonical("Zo\u00eb")


@pytest.mark.parametrize("text", ["a\nb", "a\x00b", "\ud800", "x" * 201])
def test_what_no_list_can_hold_is_refused(text):
    with pytest.raises(UserError):
        canonical(text)
