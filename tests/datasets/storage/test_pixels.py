"""One function decides what a pixel is: every reader shows the same picture for every kind of file."""

from __future__ import annotations

import base64
import io
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets import build_transforms
from datasets.batches import TestLoader
from datasets.images import ImageList
from datasets.records import Records
from datasets.storage.decoding import DECODERS, is_plain_jpeg, make_decoder
from datasets.storage.pillow_decoding import BadImage, decode, load_image
from datasets.storage.pixels import PixelRules, UnclearPixels, kinds_of, to_rgb
from datasets.storage.stores import ByteStore, PixelStore
from datasets.transforms.resizing import RESIZERS, to_pixels
from processor.extractor import pil_image
from tests.pictures import BACKGROUND, PICTURES, UNCLEAR, WIDTH, file_of, png
from tests.tiny import config
from tools.make_shards import Writer
from tools.pages.page import thumbnail

RULES = PixelRules(BACKGROUND)


def array(image) -> np.ndarray:
    return to_pixels(image).permute(1, 2, 0).numpy()


@pytest.fixture(params=PICTURES)
def picture(request, tmp_path):
    raw, pixels = PICTURES[request.param]
    path = tmp_path / "a.jpg"
    path.write_bytes(raw)
    return str(path), pixels


@pytest.mark.parametrize("decoder", sorted(DECODERS))
def test_every_reader_gives_the_same_pixels(picture, decoder, tmp_path):
    path, pixels = picture
    writer = Writer(tmp_path, 10**6)
    writer.add("a.jpg", Path(path).read_bytes(), b"{}")
    writer.close()
    records, packed = Records.of([path], [0]), Records.of([writer.paths(tmp_path)[0]], [0])
    decode = make_decoder(RULES, decoder)
    held = ByteStore([path], 10**6)
    lists = [ImageList(r, to_pixels, store, decode) for r in (records, packed) for store in (None, held)]
    lists.append(ImageList(records, to_pixels, PixelStore(lists[0].images(), 10**6), decode))
    for images in lists:
        np.testing.assert_array_equal(array(images.image(0)), pixels)
    np.testing.assert_array_equal(array(load_image(path, rules=RULES)), pixels)
    np.testing.assert_array_equal(array(pil_image(path, RULES)), pixels)
    with Image.open(path) as image:
        np.testing.assert_array_equal(array(pil_image(image, RULES)), pixels)


def test_a_crop_box_refers_to_the_turned_image(picture):
    path, pixels = picture
    np.testing.assert_array_equal(array(load_image(path, (1, 2, 9, 15), RULES)), pixels[2:15, 1:9])


@pytest.mark.parametrize("resize", ["auto", *RESIZERS])
def test_every_resize_sees_the_same_pixels(picture, resize, tmp_path):
    path, pixels = picture
    size = pixels.shape[0] // 2, pixels.shape[1] // 2
    changes = {"INPUT__BACKGROUND": list(BACKGROUND), "INPUT__RESIZE": resize, "INPUT__SIZE_TEST": list(size)}
    changes |= {"INPUT__SIZE_TRAIN": list(size), "INPUT__PROB": 0, "INPUT__RE_PROB": 0, "INPUT__PADDING": 0}
    cfg = config(tmp_path, tmp_path, **changes)
    for training in (False, True):
        transform = build_transforms(cfg, training)
        expected = transform(Image.fromarray(pixels))
        with Image.open(path) as image:
            assert transform(image).equal(expected)
        for decoder in DECODERS:
            rules = PixelRules.from_cfg(cfg)
            loader = TestLoader(Records.of([path], [0]), transform, 1, 0, decoder=make_decoder(rules, decoder))
            assert next(iter(loader)).images[0].equal(expected)


def test_pages_show_the_same_picture(picture):
    path, pixels = picture
    uri = thumbnail(path, None, RULES)
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as shown:
        expected = Image.open(io.BytesIO(file_of(Image.fromarray(pixels), "JPEG", quality=78)))
        np.testing.assert_array_equal(np.asarray(shown), np.asarray(expected))


@pytest.mark.parametrize("decoder", sorted(DECODERS))
@pytest.mark.parametrize("kind", UNCLEAR)
def test_values_without_a_certain_range_are_refused_with_the_way_out(kind, decoder, tmp_path):
    with pytest.raises(BadImage, match="whose range the file does not state: scale them to 0 to 255") as caught:
        make_decoder(RULES, decoder)(UNCLEAR[kind], "a.tif", None)
    assert "\n" not in str(caught.value)
    with Image.open(io.BytesIO(UNCLEAR[kind])) as image, pytest.raises(UnclearPixels):
        to_rgb(image)


def test_what_is_counted_of_each_kind():
    expected = {"turned": "turned", "deep": "16-bit", "transparent": ("RGBA", "LA ", "one ", "palette P", "palette G")}
    for kind, names in expected.items():
        for name, (raw, _) in PICTURES.items():
            with Image.open(io.BytesIO(raw)) as image:
                found = kinds_of(image)
            if name.startswith(names) and not name.startswith("turned 1 "):
                assert kind in found, name
            elif not name.startswith(("turned", "16-bit", "one deep")):
                assert kind not in found, name
    for raw in UNCLEAR.values():
        with Image.open(io.BytesIO(raw)) as image:
            assert kinds_of(image) == {"unclear"}


def test_a_damaged_second_frame_does_not_make_the_first_one_unreadable():
    frames = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (9, 9, 3), dtype=np.uint8)) for i in (0, 1)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    whole, read = file.getvalue(), 0
    with Image.open(io.BytesIO(whole)) as image:
        assert kinds_of(image) == {"animated"}
    for length in range(len(whole)):
        try:
            expected = decode(whole[:length], "a.gif")
        except BadImage:
            continue
        kinds: set[str] = set()
        assert decode(whole[:length], "a.gif", kinds=kinds).tobytes() == expected.tobytes()
        read += 1
    assert read > 10


def test_partial_transparency_is_blended():
    half = np.dstack([np.full((4, 4, 3), 200, np.uint8), np.full((4, 4), 128, np.uint8)])
    found = array(to_rgb(Image.fromarray(half), PixelRules((0, 100, 255))))[0, 0]
    np.testing.assert_allclose(found, [100, 150, 227], atol=1)


def test_lab_is_converted_not_taken_for_rgb():
    red = Image.frombytes("LAB", (4, 4), bytes((138, 81, 70)) * 16)  # sRGB's red: L 54.3, a 80.8, b 69.9
    np.testing.assert_allclose(array(to_rgb(red))[0, 0], [255, 0, 0], atol=6)


def test_hidden_colours_do_not_matter():
    alpha = np.zeros((8, 8), np.uint8)
    alpha[2:6] = 255
    one, other = (np.dstack([np.full((8, 8, 3), 60, np.uint8), alpha]) for _ in range(2))
    other[alpha == 0, :3] = 255
    assert np.array_equal(*(array(to_rgb(Image.fromarray(pixels))) for pixels in (one, other)))


def test_a_turned_image_is_not_turned_again():
    raw, pixels = PICTURES["turned 6 JPEG"]
    with Image.open(io.BytesIO(raw)) as image:
        once = to_rgb(image)
    assert np.array_equal(array(to_rgb(once)), pixels)
    assert np.array_equal(array(to_rgb(once.crop((0, 0, 5, 5)))), pixels[:5, :5])


def test_draft_decoding_counts_the_turned_sides():
    image = Image.new("RGB", (512, 256))
    exif = Image.Exif()
    exif[0x0112] = 6
    raw = file_of(image, "JPEG", exif=exif)
    assert make_decoder(RULES)(raw, "a", (128, 64)).size == (64, 128)
    assert make_decoder(RULES)(raw, "a", (64, 128)).size == (128, 256)


@pytest.mark.parametrize("decoder", sorted(DECODERS))
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_file_that_claims_too_many_pixels_is_refused_before_it_is_decoded(kind, decoder):
    if kind == "PNG":  # a few bytes, no pixel in them
        raw = png(np.zeros((1, 1), np.uint8), 8, 0, claimed=(65536, 65536))
    else:
        raw = file_of(Image.new("L", (200, 100)), "JPEG")
    rules = PixelRules(most=19_999)
    with pytest.raises(BadImage, match=r"INPUT\.MAX_PIXELS"):
        make_decoder(rules, decoder)(raw, "a.png", None)
    if kind == "JPEG":
        assert to_pixels(make_decoder(PixelRules(most=20_000), decoder)(raw, "a.png", None)).shape == (3, 100, 200)


def test_what_is_no_file_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    paths = [str(tmp_path / "pipe.jpg"), str(tmp_path / "folder.jpg"), "/dev/zero", "a\0b.jpg", "a\ud800.jpg"]
    found = []

    def read() -> None:
        for path in paths:
            try:
                load_image(path)
            except BadImage as error:
                found.append(str(error))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(20)
    assert len(found) == len(paths)
    assert "not a regular file" in found[0] and "directory" in found[1] and "not a regular file" in found[2]
    assert all(line.isprintable() for line in found)


def test_programs_are_not_started_by_an_image(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n9 9 scale\n")
    with pytest.raises(BadImage, match="no known format"):
        load_image(str(tmp_path / "a.jpg"))


def test_plain_files_stay_with_the_fast_decoder():
    for name, plain in (("JPEG", True), ("grey JPEG", True), ("progressive JPEG", True), ("turned 6 JPEG", False),
                        ("CMYK JPEG", False), ("turned by XMP", False), ("PNG", False)):  # fmt: skip
        assert is_plain_jpeg(PICTURES[name][0], 10**6) == plain, name
    camera = Image.Exif()
    camera[0x010F] = "a camera"
    assert is_plain_jpeg(file_of(Image.new("RGB", (WIDTH, 9)), "JPEG", exif=camera), 10**6)
