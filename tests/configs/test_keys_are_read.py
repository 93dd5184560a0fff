"""Every key is read somewhere, or says why not: a key that silently does nothing is a defect."""

from __future__ import annotations

import pytest

from configs.defaults import INERT, KEYS
from configs.readers import find_readers, keys_read


@pytest.fixture(scope="module")
def readers() -> dict[str, list[str]]:
    return find_readers()


def test_every_key_is_read_or_accounted_for(readers):
    unread = [key for key in KEYS if key not in readers and key not in INERT]
    assert not unread, f"read by nothing, and not in INERT of configs/defaults.py: {unread}"


def test_no_key_that_is_read_stands_in_a_table_of_unread_ones(readers):
    wrong = {key: places for key, places in readers.items() if key in INERT}
    assert not wrong, f"in INERT of configs/defaults.py, and yet read: {wrong}"


@pytest.mark.parametrize(("source", "expected"), [
    ("x = cfg.SOLVER.BASE_LR", ["SOLVER.BASE_LR"]),
    ("f(cfg.OUTPUT_DIR, b=cfg.MODEL.JPM)", ["MODEL.JPM", "OUTPUT_DIR"]),
    ("s = cfg.SOLVER\ns.GAMMA", ["SOLVER.GAMMA"]),
    ("s, m = cfg.SOLVER, cfg.MODEL\nm.NAME\ns.MARGIN", ["MODEL.NAME", "SOLVER.MARGIN"]),
    ("n = cfg.SOLVER.STAGE1 if first else cfg.SOLVER.STAGE2\nn.GAMMA", ["SOLVER.STAGE2.GAMMA"]),
    ("def f(cfg):\n  n: object = cfg.DATASETS.SYNTHETIC\n  return n.IDS", ["DATASETS.SYNTHETIC.IDS"]),
    ("cfg.MODEL\ncfg.MODEL.NOPE\nother.MODEL.NAME\n'cfg.MODEL.JPM'", []),
    ("n = {1: cfg.SOLVER.STAGE1, 2: cfg.SOLVER.STAGE2}[stage]\nn.MOMENTUM",
     ["SOLVER.STAGE1.MOMENTUM", "SOLVER.STAGE2.MOMENTUM"]),
    ("a, b = f(cfg.MODEL)\nb.NAME\nc = f(cfg.MODEL)\nc.NAME", []),
    ("K = ('LABELED', 'NOPE')\nx = [cfg.DATASETS[k] for k in K]\ny = 'NAME'", ["DATASETS.LABELED"]),
    ("x = cfg.MODEL['NAME']", ["MODEL.NAME"]),
    ("name = cfg.MODEL.NAME\nname.JPM", ["MODEL.NAME"]),
])
def test_how_readers_are_found(source, expected):
    assert sorted({key for key, _ in keys_read(source)}) == expected


def test_readers_carry_file_and_line(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a.py").write_text("\nx = cfg.MODEL.JPM\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "b.py").write_text("cfg.MODEL.NAME")
    assert find_readers(tmp_path) == {"MODEL.JPM": ["model/a.py:2"]}
