"""The pages that speak of keys, YAML files and weights speak of those that exist, and of all of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from configs import load_config
from configs.defaults import INERT, KEYS, SECTIONS
from tests.configs.published import CLIP, TRANSREID, TRANSREID_SSL

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SECTION_NAMES = sorted({key.partition(".")[0] for key in KEYS if "." in key})
KEY = re.compile(rf"\b(?:{'|'.join(SECTION_NAMES)})\.[A-Z][A-Z0-9_.]*[A-Z0-9]")
WRONG_ON_PURPOSE = {"MODEL.JMP"}


def unknown_keys(text: str) -> set[str]:
    """Words of a page that look like keys and are none. ``DATASETS.SYNTHETIC.{IDS, CAMERAS}`` names a section."""
    return set(KEY.findall(text)) - KEYS.keys() - SECTIONS - WRONG_ON_PURPOSE


def test_a_misspelt_key_on_a_page_is_found():
    assert len(SECTION_NAMES) >= 12 and {"CLUSTER", "DMMD", "KD", "DINO", "SSD"} <= set(SECTION_NAMES)
    for key in ("MODEL.NMAE", "CLUSTER.EPSS", "DMMD.WARMUP", "KD.TEACHER.WEIGHT", "DINO.OUT", "SOLVER.STAGE3.GAMMA"):
        assert unknown_keys(f"set `{key}` to 1") == {key}
    assert unknown_keys("`SOLVER.STAGE1` and `KD.TEACHER.NAME`, TEST.WEIGHT") == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_keys_and_files_that_a_page_names_exist(page):
    text = page.read_text()
    assert unknown_keys(text) == set()
    folders = "|".join(sorted(path.parent.name for path in (ROOT / "configs").glob("*/_base.yml")))
    assert "transreid" in folders and "cluster" in folders
    files = re.findall(rf"configs/(?:{folders}|baseline)/[a-z][\w*]*\.yml", text)
    assert [file for file in files if not list(ROOT.glob(file))] == []
    for link in re.findall(r"\]\((?!http)([\w.]+)", text):
        assert (page.parent / link).exists(), link


def test_the_pages_are_walked():
    assert len(PAGES) >= 15


def test_every_key_of_the_systems_is_on_the_page_for_those_who_come_from_them():
    rows = [line for line in (ROOT / "docs/migrate.md").read_text().splitlines() if line.startswith("| `")]
    fates = {key: row.rsplit("|", 2)[1].strip() for row in rows for key in KEY.findall(row.split(" | ")[0])}
    upstream = {key for row in (*TRANSREID, *TRANSREID_SSL, *CLIP) for key in row if "." in key}
    assert upstream <= fates.keys()
    told_inert = {key for key, fate in fates.items() if fate.startswith("inert")}
    assert told_inert == {key for key in fates if key in INERT}


def test_every_pre_trained_file_that_a_shipped_yaml_reads_is_listed():
    paths = {load_config(path).MODEL.PRETRAIN_PATH for path in (ROOT / "configs").glob("*/*.yml")} - {""}
    paths = {path for path in paths if not path.startswith("./runs/")}  # another shipped YAML's own result
    read = {path if path.startswith("timm:") else Path(path).name for path in paths}
    page = (ROOT / "docs/weights.md").read_text()
    assert {name for name in read if f"`{name}`" in page} == read
