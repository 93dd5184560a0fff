"""Every key with odd values: it takes them as a value of its type, or refuses them in one line."""

from __future__ import annotations

import math

import pytest

from configs import dump, load_config
from configs.defaults import KEYS
from configs.loader import lookup
from configs.values import coerce
from utils.errors import LONGEST_WORD, UserError

ODD = (
    "", " ", "nan", "inf", "-inf", "1e999", 2**64, -(2**64), 10**400, -(10**400), -1, 0, 0.5, 2**31, True, None,
    [], {}, [[]], [None], ["a"], [0, 0], [1.5, "a"], "~nobody_of_that_name", "$NOT_SET_ANYWHERE",
    "${NOT_SET}/a", "\0", "a\0b", "\ud800", "\udc80", "a" * 5000,
)  # fmt: skip


def numbers(value):
    if isinstance(value, (list, tuple)):
        return [number for item in value for number in numbers(item)]
    return [value] if isinstance(value, (int, float)) else []


@pytest.mark.parametrize("key", KEYS)
def test_an_odd_value_is_taken_or_refused_in_one_line(key):
    taken = []
    for value in ODD:
        try:
            taken.append(coerce(key, value, "in the overrides"))
        except UserError as error:
            line = str(error)
            assert line.startswith(f"{key}: ") and line.isprintable() and len(line) < 3 * LONGEST_WORD, (value, line)
    assert all(math.isfinite(number) for value in taken for number in numbers(value))
    for value in taken[-2:]:
        try:
            cfg = load_config("", [key, value])
        except UserError as error:  # it excludes another key's default
            assert key in str(error)
        else:
            dump(cfg)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("SOLVER.SEED", 2**64, "must be at most 2147483647"),
        ("DATASETS.SEED", str(2**64), "must be at most 2147483647"),
        ("DATALOADER.CACHE_GB", "inf", "expected a number, not 'inf'"),
        ("DATALOADER.CACHE_GB", float("inf"), "inf must be a finite number"),
        ("TEST.MAX_MEMORY_GB", "1e999", "inf must be a finite number"),
        ("TEST.MAX_MEMORY_GB", float("nan"), "nan must be a finite number"),
        ("TEST.QUERY_EXPANSION", ["a", 2, 3], "a list of numbers"),
        ("INPUT.PIXEL_MEAN", [123.675, 116.28, 103.53], "divide one of pixels from 0 to 255 by 255"),
        ("INPUT.PIXEL_STD", [58.395, 57.12, 57.375], "divide one of pixels from 0 to 255 by 255"),
        ("INPUT.PIXEL_STD", [0, 0, 0], "at least 0.001"),
        ("INPUT.COLOR_JITTER", 1j, "a list of values"),
        ("DMMD.SIGMAS", "x", "a list of numbers"), ("DMMD.SIGMAS", [0, 1], "at least"),
        ("DMMD.LOSS_WEIGHTS", [-1, 1, 1], "at least 0"), ("CLUSTER.ITERS", 2**31 - 1, "at most 1000000"),
        ("SSD.ITERS", 10**7, "at most 1000000"), ("DINO.CROP_HEIGHT", 10**6, "at most 8192"),
        ("DINO.CROP_WIDTH", 10**6, "at most 8192"), ("DINO.LOCAL_CROPS_NUMBER", 10**5, "at most 1000"),
        ("DINO.WARMUP_TEACHER_TEMP", 0, "at least 0.0001"), ("DINO.TEACHER_TEMP", -1, "at least 0.0001"),
    ],
)
def test_a_refusal_says_what_is_wrong(key, value, words):
    with pytest.raises(UserError) as error:
        load_config("", [key, value])
    assert words in str(error.value)


# ---------------------------------------------------------------- paths

PATHS = [name for name, key in KEYS.items() if key.path]


def one(value):
    return value[0] if isinstance(value, tuple) else value


def test_every_key_that_names_a_file_or_a_folder_is_known_as_one():
    named = {
        name for name, key in KEYS.items() if name.endswith(("PATH", "DIR", "FILE", "WEIGHT", "WEIGHTS", "SHARDS"))
    }
    numbers = {name for name in named if "LOSS" in name or "TRIPLET" in name} | {
        "SSD.WEIGHT", "MODEL.DROP_PATH", "MODEL.SEMANTIC_WEIGHT",
    }  # fmt: skip
    assert named - numbers <= set(PATHS)


@pytest.mark.parametrize("key", PATHS)
def test_home_and_variables_are_replaced_in_every_path(key, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("DATA", "/mnt/data")
    for text, path in (
        ("~/x", "/home/somebody/x"), ("~", "/home/somebody"), ("$DATA/x", "/mnt/data/x"), ("${DATA}x", "/mnt/datax"),
        ("a/~/b", "a/~/b"), ("a$", "a$"), ("$DATA/$DATA", "/mnt/data//mnt/data"), ("/plain", "/plain"),
    ):  # fmt: skip
        cfg = load_config("", [key, text])
        assert one(lookup(cfg, key)) == path
        assert one(lookup(load_config("", [key, path]), key)) == path


@pytest.mark.parametrize("key", PATHS)
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a\0b", "NUL"), ("a\ud800", "surrogate"), ("~nobody_of_that_name/x", "no user 'nobody_of_that_name'"),
        ("$NOT_SET_ANYWHERE/x", "$NOT_SET_ANYWHERE is not set"), ("${EMPTY}/x", "$EMPTY is empty"),
    ],
)  # fmt: skip
def test_a_path_that_cannot_be_is_refused(key, text, words, monkeypatch):
    monkeypatch.setenv("EMPTY", "")
    with pytest.raises(UserError) as error:
        load_config("", [key, text])
    assert str(error.value).startswith(f"{key}: ") and words in str(error.value)


def test_home_and_variables_are_replaced_in_the_names_of_configurations(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HERE", str(tmp_path))
    (tmp_path / "base.yml").write_text("MODEL: {JPM: True}")
    for base in ("~/base.yml", "$HERE/base.yml", "base.yml"):
        (tmp_path / "run.yml").write_text(f"_BASE_: {base}")
        assert load_config("~/run.yml").MODEL.JPM and load_config("$HERE/run.yml").MODEL.JPM
    for file, words in (("a\0.yml", "NUL"), ("~nobody_of_that_name/a.yml", "no user"), ("$NOT_SET/a.yml", "not set")):
        with pytest.raises(UserError, match=words):
            load_config(file)


# ---------------------------------------------------------------- files that are not ours

SECRETS = ("hunter2", "root:x:0", "c2VjcmV0", "10.0.0.1", "alice", "4111")
FOREIGN = {
    "passwd": "root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n",
    "shadow": "root:$6$hunter2:19000:0:99999:7:::\n",
    "one line": "hunter2",
    "key": "-----BEGIN OPENSSH PRIVATE KEY-----\nc2VjcmV0c2VjcmV0\nc2VjcmV0=\n-----END OPENSSH PRIVATE KEY-----\n",
    "csv": "path,pid,camid,split\nalice.jpg,4111,1,train\n",
    "log": "2024-01-01 12:00:00 login alice from 10.0.0.1\n2024-01-01 12:00:01: password hunter2\n",
    "env": "PASSWORD=hunter2\nUSER=alice\n",
    "mapping": "password: hunter2\nuser: alice\n",
    "nested": "db:\n  password: hunter2\n  hosts: [10.0.0.1]\n",
    "list": "- hunter2\n- alice\n",
    "json": '{"password": "hunter2", "card": 4111}',
    "twice": "hunter2: 1\nhunter2: 2\n",
    "octal": "card: 04111\n",
    "alias": "a: *hunter2\n",
    "tag": "a: !hunter2 x\n",
    "anchor": "a: &hunter2 1\nb: &hunter2 2\nc: [*hunter2\n",
    "date": "a: 2024-99-99\nb: hunter2\n",
    "quotes": "a: 'hunter2\n",
    "tabs": "a:\n\thunter2: 1\n",
    "beside ours": "alice bob: 1\nMODEL:\n  JPM: True\n",
    "beside ours, long": f"MODEL:\n  {'hunter2' * 20}: 1\n",
    "beside ours, key": "MODEL: {JPM: True}\n? [hunter2]\n: 1\n",
}


@pytest.mark.parametrize("text", FOREIGN.values(), ids=list(FOREIGN))
def test_nothing_of_a_foreign_file_is_repeated(text, tmp_path):
    path = tmp_path / "secret.yml"
    path.write_text(text)
    (tmp_path / "ours.yml").write_text("_BASE_: secret.yml\nMODEL: {JPM: True}")
    for file in (path, tmp_path / "ours.yml"):
        with pytest.raises(UserError) as error:
            load_config(file)
        line = str(error.value)
        assert line.startswith(str(path)) or "secret.yml" in line
        assert not [word for word in SECRETS if word in line.replace(str(tmp_path), "")], line


def test_an_unknown_key_beside_known_ones_is_named_and_its_value_is_not(tmp_path):
    (tmp_path / "a.yml").write_text("tMODEL: {NAME: hunter2}\nSOLVER: {SEED: 1}\n")
    with pytest.raises(UserError, match="^tMODEL: unknown section or key, did you mean 'MODEL'") as error:
        load_config(tmp_path / "a.yml")
    assert "hunter2" not in str(error.value)


def test_an_endless_file_is_refused_before_it_takes_memory():
    with pytest.raises(UserError, match="this is not a configuration"):
        load_config("/dev/zero")
