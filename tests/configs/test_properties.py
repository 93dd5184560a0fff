"""Properties of every configuration: what is written loads to the same run, and values keep their keys' types."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from configs import ConfigError, dump, load_config
from configs.defaults import INERT, KEYS, Key
from configs.loader import lookup
from configs.values import coerce
from utils.errors import UserError

few = settings(max_examples=40, deadline=None, derandomize=True)
text = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=10)


def scalars(kind: type, key: Key) -> st.SearchStrategy:
    """Values of a type within a key's bounds and choices."""
    if key.choices:
        return st.sampled_from(key.choices)
    if kind is bool:
        return st.booleans()
    low, high = key.min if key.min is not None else -1000, key.max if key.max is not None else 1000
    if kind is int:
        return st.integers(int(-(-low // 1)), int(high))
    if kind is float:
        return st.floats(low, high, allow_nan=False)
    return text


def values(key: Key) -> st.SearchStrategy:
    """Values that a key takes."""
    if isinstance(key.default, (list, tuple)):
        if key.is_list or not key.default:
            return st.lists(scalars(key.type or str, key), max_size=4)
        return st.tuples(*(scalars(type(item), key) for item in key.default)).map(list)
    return scalars(key.type or type(key.default), key)


settable = [name for name, key in KEYS.items() if name not in INERT and (key.type or key.default is not None)]
overrides = st.lists(st.sampled_from(settable), max_size=6, unique=True).flatmap(
    lambda chosen: st.fixed_dictionaries({name: values(KEYS[name]) for name in chosen})
)


def loaded(changes: dict[str, Any]):
    """The configuration, or None where the draw broke a rule that a key alone does not show."""
    try:
        return load_config("", [word for item in changes.items() for word in item])
    except UserError:
        return None


def test_most_keys_are_drawn():
    assert len(settable) > 200


@few
@given(changes=overrides)
def test_a_dumped_configuration_loads_to_the_same_run(changes):
    cfg = loaded(changes)
    if cfg is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.yml"
        path.write_text(dump(cfg), encoding="utf-8")
        again = load_config(path)
    different = {name for name in KEYS if lookup(again, name) != lookup(cfg, name)}
    assert different == set()


@few
@given(name=st.sampled_from(settable), data=st.data())
def test_a_value_keeps_the_type_of_its_key_and_a_second_reading_changes_nothing(name, data):
    key = KEYS[name]
    value = data.draw(values(key))
    try:
        typed = coerce(name, value, "here")
    except ConfigError:
        assert isinstance(value, (str, list))  # a text that spells a number or a list
        return
    assert coerce(name, typed, "here") == typed
    if isinstance(key.default, (list, tuple)) or key.type is None and not isinstance(typed, tuple):
        assert isinstance(typed, type(key.default))


@few
@given(name=st.sampled_from(settable), factor=st.floats(0.01, 1000))
def test_a_number_out_of_bounds_is_refused_with_its_key(name, factor):
    key = KEYS[name]
    kind = key.type or type(key.default)
    if kind not in (int, float) or isinstance(key.default, (list, tuple)):
        return
    for bound, sign in ((key.min, -1), (key.max, 1)):
        if bound is not None:
            wrong = kind(bound + sign * max(1, round(factor)))
            try:
                coerce(name, wrong, "here")
            except ConfigError as error:
                assert str(error).startswith(f"{name}: {wrong}")
            else:
                raise AssertionError(f"{name} takes {wrong}")
