"""From files to pixels: decoders, draft mode, images held in memory, and how damaged files are told."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import build_transforms, make_dataloader
from datasets.images import ImageList
from datasets.records import Records
from datasets.storage.decoding import DECODERS
from datasets.storage.pillow_decoding import BadImage, decode, load_image
from datasets.storage.stores import ByteStore, PixelStore
from datasets.transforms.pipelines import to_pixels
from tests.tiny import config, write_market
from utils.errors import UserError


def test_images_from_memory_are_those_of_the_files_within_the_budget(tmp_path):
    place = write_market(tmp_path) / "market1501" / "bounding_box_train"
    paths = [str(path) for path in sorted(place.iterdir())]
    sizes = [os.path.getsize(path) for path in paths]
    store = ByteStore(paths, sum(sizes[:3]) + 10)
    assert len(store) == 3 and len(store.block) == sum(sizes[:3])
    images = ImageList(Records.of(paths, None), np.asarray, store)
    plain = ImageList(Records.of(paths, None), np.asarray)
    assert all(np.array_equal(images[i][0], plain[i][0]) for i in range(5))
    os.unlink(paths[0])
    os.unlink(paths[4])
    assert np.array_equal(images[0][0], np.asarray(decode(store.get(0), "x")))
    assert images[4][0] is None and "is missing" in images[4][2][0]
    whole = ByteStore(paths, 10**9)
    assert len(whole) == len(paths)
    assert "is missing" in ImageList(Records.of(paths, None), np.asarray, whole)[4][2][0]


def test_draft_decoding_is_smaller_and_never_below_the_size_asked_for(tmp_path):
    path = str(tmp_path / "a.jpg")
    Image.new("RGB", (256, 512), (10, 200, 30)).save(path)
    raw = Path(path).read_bytes()
    assert decode(raw, path).size == (256, 512)
    assert decode(raw, path, (128, 64)).size == (64, 128) and decode(raw, path, (129, 64)).size == (128, 256)
    boxed = Records.of([path], None, boxes=np.array([[0, 0, 200, 400]]))
    assert ImageList(boxed, np.asarray, at_least=(16, 8))[0][0].shape == (400, 200, 3)


def photo(path: Path, size=(64, 128), mode="RGB", **more) -> str:
    pixels = np.random.default_rng(0).integers(0, 255, (size[1] // 8, size[0] // 8, 3), np.uint8)
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).convert(mode).save(path, **more)
    return str(path)


@pytest.mark.parametrize("decoder", sorted(DECODERS))
@pytest.mark.parametrize(("name", "more"), [
    ("a.jpg", {"quality": 85}), ("g.jpg", {"mode": "L"}), ("c.jpg", {"mode": "CMYK"}), ("p.jpg", {"progressive": True}),
    ("a.png", {}), ("t.tif", {}), ("jpeg.png", {"format": "JPEG"}),
])  # fmt: skip
def test_decoders_give_one_image_as_pixels_or_for_pillow_whole_or_cropped(name, more, decoder, tmp_path):
    path = photo(tmp_path / name, **more)
    wanted = np.asarray(load_image(path))
    assert wanted.shape == (128, 64, 3)
    for box in (None, (3, 10, 40, 70)):
        records = Records.of([path], None, boxes=None if box is None else np.array([box]))
        left, top, right, bottom = box or (0, 0, 64, 128)
        for store in (None, ByteStore([path], 10**6)):
            images = ImageList(records, to_pixels, store, DECODERS[decoder])
            pixels = images[0][0].permute(1, 2, 0).numpy()
            off = np.abs(pixels.astype(int) - wanted[top:bottom, left:right])
            assert pixels.shape == (bottom - top, right - left, 3) and off.max() <= 2
            held = PixelStore(images.images(), 10**6)
            again = ImageList(records, to_pixels, held, DECODERS[decoder])
            os.rename(path, f"{path}.away")
            assert np.array_equal(again[0][0].permute(1, 2, 0).numpy(), pixels)
            os.rename(f"{path}.away", path)


def test_pixels_reach_a_transform_that_takes_them_and_are_not_written_to(tmp_path):
    path = photo(tmp_path / "a.jpg")
    records, seen = Records.of([path], None), []
    plain = ImageList(records, lambda image: seen.append(image) or to_pixels(image), None, DECODERS["torchvision"])
    plain[0]
    assert isinstance(seen[0], Image.Image)
    store = PixelStore(ImageList(records, None).images(), 10**6)
    before = bytes(store.block)
    for size in ((128, 64), (32, 16)):
        cfg = config(tmp_path, tmp_path, INPUT__SIZE_TRAIN=size, INPUT__RE_PROB=1)
        transform = build_transforms(cfg, is_train=True)
        images = [ImageList(records, transform, held) for held in (None, store)]
        for seed in range(6):
            one, two = (i[0, seed][0] for i in images)
            assert torch.equal(one, two) and torch.equal(images[1].__getitems__([(0, seed)]).images[0], one)
    assert bytes(store.block) == before


def test_pixels_in_memory_stay_within_the_budget_and_bad_images_are_told_in_their_turn(tmp_path):
    paths = [photo(tmp_path / f"{i}.jpg", size=(8, 16)) for i in range(5)]
    Path(paths[1]).write_bytes(b"<html>")
    images = ImageList(Records.of(paths, None), to_pixels)
    images.store = PixelStore(images.images(), 3 * 8 * 16 * 3)
    assert len(images.store) == 4 and len(images.store.block) == 3 * 8 * 16 * 3  # the second takes no room
    os.unlink(paths[0])
    os.unlink(paths[4])
    assert images[0][0].shape == (3, 16, 8)
    assert "(no known format)" in images[1][2][0] and "is missing" in images[4][2][0]


@pytest.mark.parametrize(("content", "words"), [
    (b"", "empty file"), (b"<html>", "no known format"), (b"\xff\xd8\xff", "cannot be read"), ("half", "runcated"),
])  # fmt: skip
@pytest.mark.parametrize("decoder", sorted(DECODERS))
def test_damaged_files_are_told_alike_by_both_decoders(content, words, decoder, tmp_path):
    path = photo(tmp_path / "a.jpg")
    raw = Path(path).read_bytes()
    raw = raw[: len(raw) // 2] if content == "half" else content
    with pytest.raises(BadImage, match=f"{path}: the image cannot be read.*") as caught:
        DECODERS[decoder](raw, path)
    text = str(caught.value)
    assert words in text and "\n" not in text and "object at" not in text


def test_draft_and_torchvisions_decoder_cannot_go_together(market, tmp_path):
    both = {"DATALOADER__DRAFT": True, "DATALOADER__DECODER": "torchvision"}
    with pytest.raises(UserError, match="DATALOADER.DRAFT True and DATALOADER.DECODER .torchvision. cannot go"):
        make_dataloader(config(market, tmp_path, **both))
