"""Properties that hold for any data: samplers, numbering, joining, packed paths, tables."""

from __future__ import annotations

import csv
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets import make_dataset
from datasets.dataset import number_splits
from datasets.identifiers import canonical
from datasets.joining import hold_out, join_training, label_as_trained
from datasets.paths import Paths, chain
from datasets.records import RawRow, RawSplits, Records, join, number, settle
from datasets.samplers import PLACED_RULES, RULES, EpochSampler

few = settings(max_examples=30, deadline=None, derandomize=True)
names = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=12)
labels = st.lists(st.integers(0, 6), min_size=8, max_size=60).map(np.array)


# ---------------------------------------------------------------- samplers


def batches_of(name: str, pids: np.ndarray, batch: int, k: int, seed: int) -> list[np.ndarray]:
    """One pass of a rule; rules on places get a satellite and drone images of every identity, cameras or tracklets."""
    rng = np.random.default_rng(seed)
    if name in RULES:
        return RULES[name](pids, batch, k, rng)
    rule, column = PLACED_RULES[name]
    first = np.isin(np.arange(len(pids)), np.unique(pids, return_index=True)[1])
    rows = np.arange(len(pids))
    places = {"viewids": np.where(first, 0, 1), "camids": rows % 3, "seqs": 2 * pids + rows % 2}[column]
    return rule(pids, batch, k, rng, places)


def test_there_are_rules_to_walk():
    assert len(RULES) >= 7 and len(PLACED_RULES) >= 2
    assert {column for _, column in PLACED_RULES.values()} == {"viewids", "camids", "seqs"}


@pytest.mark.parametrize("name", [*RULES, *PLACED_RULES])
@few
@given(pids=labels, k=st.integers(2, 4), p=st.integers(1, 3), seed=st.integers(0, 99))
def test_every_rule_gives_whole_batches_of_rows_of_the_list(name, pids, k, p, seed):
    if name == "two_platforms":  # which needs two images of every identity
        pids = np.concatenate([pids, pids])
    batches = batches_of(name, pids, p * k, k, seed)
    assert all(len(batch) == p * k for batch in batches)
    rows = np.concatenate(batches) if batches else np.empty(0, int)
    assert ((rows >= 0) & (rows < len(pids))).all()
    again = batches_of(name, pids, p * k, k, seed)
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))


@pytest.mark.parametrize("name", ["softmax_triplet", "id_triplet", "repeat_iter", "two_platforms"])
@few
@given(pids=labels, k=st.integers(2, 4), seed=st.integers(0, 99))
def test_rules_of_p_x_k_images_give_groups_of_one_identity(name, pids, k, seed):
    pids = np.concatenate([pids, pids])
    for batch in batches_of(name, pids, 2 * k, k, seed):
        for group in batch.reshape(-1, k):
            assert len(set(pids[group].tolist())) == 1


@few
@given(pids=labels, world=st.integers(1, 3), steps=st.integers(1, 5), epoch=st.integers(1, 4))
def test_an_epoch_of_fixed_length_has_that_length_on_every_rank_and_ranks_share_no_batch(pids, world, steps, epoch):
    ranks = [
        EpochSampler(RULES["softmax"], pids, 4 * world, 2, seed=1, rank=rank, world=world, steps=steps)
        for rank in range(world)
    ]
    for sampler in ranks:
        sampler.set_epoch(epoch)
    assert {len(sampler) for sampler in ranks} == {steps}
    seeds = [seed for sampler in ranks for batch in sampler for _, seed in batch]
    assert len(set(seeds)) == len(seeds)


@few
@given(pids=labels, left_out=st.integers(0, 6))
def test_a_relabelled_sampler_leaves_out_what_has_no_label(pids, left_out):
    sampler = EpochSampler(RULES["softmax"], pids, 2, 1, seed=0)
    sampler.relabel(np.where(pids == left_out, -1, pids))
    sampler.set_epoch(2)
    assert left_out not in {int(pids[row]) for batch in sampler for row, _ in batch}


# ---------------------------------------------------------------- numbering and joining


@few
@given(first=st.sets(st.integers(-50, 50)), others=st.lists(st.integers(-50, 50)))
def test_numbers_are_dense_in_ascending_order_and_known_ones_stay(first, others):
    known = number(first)
    assert [known[value] for value in sorted(first)] == list(range(len(first)))
    numbers = number(others, known)
    assert sorted(numbers.values()) == list(range(len(set(others) | first)))
    assert all(numbers[value] == known[value] for value in first)


@few
@given(ids=st.lists(st.one_of(st.integers(0, 10**6), st.integers(0, 99).map(lambda i: f"{i:04d}"), names), min_size=1))
def test_settled_ids_are_all_numbers_or_all_text(ids):
    rows = [RawRow("a.jpg", value) for value in ids]
    settle(rows, "pid")
    kinds = {type(row.pid) for row in rows}
    assert kinds in ({int}, {str})
    if all(isinstance(value, int) for value in ids):
        assert [row.pid for row in rows] == ids


raw_rows = st.lists(
    st.builds(RawRow, path=names.map("data/{}.jpg".format), pid=st.integers(0, 5), cam=st.sampled_from("abc")),
    min_size=1,
    max_size=20,
)


@few
@given(train=raw_rows, query=raw_rows, gallery=raw_rows)
def test_numbered_lists_are_dense_and_lead_back_to_the_original_ids(train, query, gallery):
    expected = {"train": list(train), "query": list(query), "gallery": list(gallery)}
    splits = number_splits(RawSplits(train, query, gallery), Path("data"))
    for name, rows in expected.items():
        records = splits[name]
        assert records.original_camids().tolist() == [row.cam for row in rows]
        assert records.original_pids().tolist() == [row.pid for row in rows]
        assert list(records.paths) == [row.path for row in rows]
    for column in (splits["train"].pids, splits["train"].camids):
        assert sorted(set(column.tolist())) == list(range(len(set(column.tolist()))))


def dense(values: list[int]) -> np.ndarray:
    return np.unique(values, return_inverse=True)[1]


lists = st.lists(
    st.integers(1, 12).flatmap(
        lambda n: st.tuples(*[st.lists(st.integers(0, 4), min_size=n, max_size=n).map(dense)] * 2).map(
            lambda columns: Records.of([f"{i}.jpg" for i in range(n)], *columns)
        )
    ),
    min_size=1, max_size=4,
)  # fmt: skip


@few
@given(lists=lists)
def test_joined_lists_share_no_identity_and_no_camera_and_tests_find_their_rows(lists):
    joined = join_training(lists)
    assert len(joined) == sum(map(len, lists)) and list(joined.paths) == [p for r in lists for p in r.paths]
    for column in (joined.pids, joined.camids):
        assert sorted(set(column.tolist())) == list(range(len(set(column.tolist()))))
        owners = {(int(value), int(domain)) for value, domain in zip(column, joined.domain, strict=True)}
        assert len(owners) == len(set(column.tolist()))
    sources = {str(i): records for i, records in enumerate(lists)}
    for i, records in enumerate(lists):
        labelled = label_as_trained(records, str(i), sources)
        assert labelled.cam_labels.tolist() == joined.cam_labels[joined.domain == i].tolist()
        assert labelled.camids.tolist() == records.camids.tolist()
    unknown = label_as_trained(lists[0], "another", sources)
    assert not set(unknown.cam_labels.tolist()) & set(joined.cam_labels.tolist())


@few
@given(lists=lists, rows=st.lists(st.integers(0, 3)))
def test_taking_rows_of_a_joined_list_is_joining_what_was_taken(lists, rows):
    joined = join(lists)
    rows = [row for row in rows if row < len(joined)]
    taken = joined.take(rows)
    assert list(taken) == [joined[row] for row in rows]
    assert list(joined[1:]) == list(joined)[1:]


@few
@given(pids=labels, share=st.floats(0.05, 0.9), seed=st.integers(0, 9))
def test_held_out_identities_are_in_no_training_list(pids, share, seed):
    records = Records.of([f"{i}.jpg" for i in range(len(pids))], dense(pids.tolist()), np.arange(len(pids)) % 3)
    train, query, gallery = hold_out(records, share, seed)
    assert not set(train.paths) & (set(query.paths) | set(gallery.paths))
    assert len(train) + len(query) + len(gallery) == len(records)
    back = [int(i) for i in train.original_pids()]
    assert back == [int(records.pids[int(path[:-4])]) for path in train.paths]


# ---------------------------------------------------------------- packed paths


@few
@given(paths=st.lists(names), root=names, rows=st.lists(st.integers(0, 5)))
def test_packed_paths_are_the_list_they_were_made_of(paths, root, rows):
    packed = Paths.of(paths, root)
    assert list(packed) == paths and packed == paths and [packed[i] for i in range(len(paths))] == paths
    assert list(packed[1:]) == paths[1:] and Paths.of(packed) is packed
    rows = [row for row in rows if row < len(paths)]
    assert list(packed.take(rows)) == [paths[row] for row in rows]
    assert list(chain([packed, packed.take(rows), Paths.of(["x"])])) == [*paths, *(paths[row] for row in rows), "x"]


# ---------------------------------------------------------------- tables

words = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1, max_size=8)
words = words.map(canonical).filter(lambda word: word and word != "-1")
table_rows = st.lists(
    st.tuples(words, words, words, st.sampled_from(["train", "query", "gallery", "ignore"])), min_size=1, max_size=15
)


@few
@given(rows=table_rows)
def test_a_table_reads_back_as_it_was_written(rows):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "dataset.csv"
        with open(path, "w", newline="", encoding="utf-8") as handle:
            csv.writer(handle).writerows([("path", "pid", "camid", "split"), *rows, ("z", "1", "1", "train")])
        dataset = make_dataset("csv", path)
    expected = [*rows, ("z", "1", "1", "train")]
    numeric = all(re_number(cam) for _, _, cam, split in expected if split != "ignore")
    for split in ("query", "gallery"):
        records = dataset.split(split)
        own = [row for row in expected if row[3] == split]
        assert list(records.paths) == [str(Path(folder) / row[0]) for row in own]
        assert records.original_camids().tolist() == [int(row[2]) if numeric else row[2] for row in own]
    assert len(dataset.train) == sum(row[3] == "train" for row in expected)


def re_number(word: str) -> bool:
    return word.removeprefix("-").isascii() and word.removeprefix("-").isdigit() and len(word) <= 18
