"""Miniatures of the published layouts, with the tuples that must come back."""

from __future__ import annotations

import io
import json
import pickle
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from utils.errors import UserError

BUFFER = io.BytesIO()
Image.new("RGB", (4, 8), (90, 120, 150)).save(BUFFER, "JPEG")


def write(folder: Path, names: list[str]) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(BUFFER.getvalue())


@dataclass
class Miniature:
    """A tree below the data root, and the splits that must come back: (path below the root, pid, camid, viewid)."""

    folder: str
    files: list[str]
    train: list[tuple]
    query: list[tuple]
    gallery: list[tuple]
    lists: dict[str, str] = field(default_factory=dict)
    more: Callable[[Path], None] | None = None

    def build(self, root: Path, folder: str | None = None) -> Path:
        place = root / (self.folder if folder is None else folder)
        write(place, self.files)
        for name, text in self.lists.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_text(text)
        if self.more:
            self.more(place)
        return place

    def expected(self, place: Path) -> dict[str, list[tuple]]:
        return {
            split: [(str(place / name), *ids) for name, *ids in getattr(self, split)]
            for split in ("train", "query", "gallery")
        }


MARKET = Miniature(
    "Market-1501-v15.09.15",
    [
        "bounding_box_train/0007_c3s3_077419_03.jpg",
        "bounding_box_train/0002_c1s1_000451_03.jpg",
        "bounding_box_train/0002_c6s1_000801_01.jpg",
        "bounding_box_train/0000_c1s1_000151_01.jpg",
        "bounding_box_train/-1_c1s1_000401_03.jpg",
        "query/0001_c1s1_001051_00.jpg",
        "query/0001_c2s1_000301_00.jpg",
        "bounding_box_test/0001_c3s1_000401_02.jpg",
        "bounding_box_test/0000_c6s3_000026_01.jpg",
        "bounding_box_test/-1_c1s1_000401_03.jpg",
        "gt_bbox/0001_c1s1_001051_00.jpg",
        "bounding_box_train/.hidden.jpg",
    ],
    [
        ("bounding_box_train/0002_c1s1_000451_03.jpg", 0, 0, 0),
        ("bounding_box_train/0002_c6s1_000801_01.jpg", 0, 2, 0),
        ("bounding_box_train/0007_c3s3_077419_03.jpg", 1, 1, 0),
    ],
    [("query/0001_c1s1_001051_00.jpg", 1, 0, 0), ("query/0001_c2s1_000301_00.jpg", 1, 3, 0)],
    [("bounding_box_test/0000_c6s3_000026_01.jpg", 0, 2, 0), ("bounding_box_test/0001_c3s1_000401_02.jpg", 1, 1, 0)],
    {"readme.txt": "", "bounding_box_train/Thumbs.db": "", "bounding_box_test/Thumbs.db": ""},
)
DUKE = Miniature(
    "DukeMTMC-reID",
    [
        "bounding_box_train/0010_c8_f0060000.jpg",
        "bounding_box_train/0001_c2_f0046182.jpg",
        "query/0005_c2_f0046985.jpg",
        "bounding_box_test/0003_c8_f0000001.jpg",
        "bounding_box_test/0005_c5_f0051321.jpg",
    ],
    [("bounding_box_train/0001_c2_f0046182.jpg", 0, 0, 0), ("bounding_box_train/0010_c8_f0060000.jpg", 1, 1, 0)],
    [("query/0005_c2_f0046985.jpg", 5, 0, 0)],
    [("bounding_box_test/0003_c8_f0000001.jpg", 3, 1, 0), ("bounding_box_test/0005_c5_f0051321.jpg", 5, 2, 0)],
)
OCCLUDED = Miniature(
    "dukemtmcreid/Occluded_Duke", DUKE.files, DUKE.train, DUKE.query, DUKE.gallery, {"train.list": "", "query.list": ""}
)
MSMT_TRAIN = ["0000/0000_000_01_0303morning_0015_0.jpg", "0001/0001_003_12_0302noon_0022_1.jpg"]
MSMT_VAL = ["0001/0001_001_02_0113afternoon_0999_0.jpg"]
MSMT_QUERY = ["0000/0000_016_15_0302noon_0222_0.jpg"]
MSMT_GALLERY = ["0000/0000_018_12_0302noon_0225_0.jpg", "0001/0001_000_01_0303morning_0019_0.jpg"]


def msmt17(folder: str, train: str, test: str) -> Miniature:
    lists = {
        "list_train.txt": f"{MSMT_TRAIN[1]} 1\n{MSMT_TRAIN[0]} 0\n",
        "list_val.txt": f"{MSMT_VAL[0]} 1\n",
        "list_query.txt": f"{MSMT_QUERY[0]} 0\n",
        "list_gallery.txt": f"{MSMT_GALLERY[0]} 0\n{MSMT_GALLERY[1]} 1\n",
    }
    return Miniature(
        folder,
        [f"{train}/{n}" for n in MSMT_TRAIN + MSMT_VAL] + [f"{test}/{n}" for n in MSMT_QUERY + MSMT_GALLERY],
        [
            (f"{train}/{MSMT_TRAIN[0]}", 0, 0, 0),
            (f"{train}/{MSMT_VAL[0]}", 1, 1, 0),
            (f"{train}/{MSMT_TRAIN[1]}", 1, 2, 0),
        ],
        [(f"{test}/{MSMT_QUERY[0]}", 0, 3, 0)],
        [(f"{test}/{MSMT_GALLERY[0]}", 0, 2, 0), (f"{test}/{MSMT_GALLERY[1]}", 1, 0, 0)],
        lists,
    )  # fmt: skip


MSMT_FLAT = Miniature(
    "msmt17/MSMT17_V1",
    [
        "bounding_box_train/0000_c12_0001.jpg",
        "bounding_box_train/0001_c1_0002.jpg",
        "query/0000_c2_0003.jpg",
        "bounding_box_test/0000_c15_0004.jpg",
    ],
    [("bounding_box_train/0000_c12_0001.jpg", 0, 1, 0), ("bounding_box_train/0001_c1_0002.jpg", 1, 0, 0)],
    [("query/0000_c2_0003.jpg", 0, 2, 0)],
    [("bounding_box_test/0000_c15_0004.jpg", 0, 3, 0)],
)


def keypoints(name: str, orientation: int) -> str:
    """A line of VeRi's key-point lists: path, twenty pairs of coordinates, orientation."""
    return " ".join([f"/home/someone/VeRi/image_train/{name}", *["-1"] * 40, str(orientation)]) + "\n"


VERI = Miniature(
    "VeRi",
    [
        "image_train/0001_c001_00016450_0.jpg",
        "image_train/0001_c020_00016480_0.jpg",
        "image_train/0004_c011_00035000_0.jpg",
        "image_query/0002_c002_00030600_0.jpg",
        "image_test/0002_c001_00030605_1.jpg",
        "image_test/0005_c020_00078050_0.jpg",
    ],
    [
        ("image_train/0001_c001_00016450_0.jpg", 0, 0, 1),
        ("image_train/0001_c020_00016480_0.jpg", 0, 2, 2),
        ("image_train/0004_c011_00035000_0.jpg", 1, 1, 0),
    ],
    [("image_query/0002_c002_00030600_0.jpg", 2, 3, 2)],
    [("image_test/0002_c001_00030605_1.jpg", 2, 0, 3), ("image_test/0005_c020_00078050_0.jpg", 5, 2, 0)],
    {
        "keypoint_train.txt": keypoints("0001_c001_00016450_0.jpg", 4) + keypoints("0001_c020_00016480_0.jpg", 7),
        "keypoint_test.txt": keypoints("0002_c002_00030600_0.jpg", 7)
        + keypoints("0002_c001_00030605_1.jpg", 5)
        + keypoints("0001_c001_00016450_0.jpg", 0),  # the training list comes first
        "name_train.txt": "",
    },
)
VEHICLES = {3: ["0000031", "0000032", "0000033"], 9: ["0000091", "0000092"], 40: ["0000401"]}


def vehicleid(test_size: int) -> Miniature:
    """With the draw of seed 0 written out by its rule: one of each vehicle's images, in list order."""
    test = [(name, pid) for pid, names in VEHICLES.items() for name in names]
    rng = random.Random(0)
    drawn = [rng.choice(names) for names in VEHICLES.values()]
    return Miniature(
        "VehicleID_V1.0",
        [f"image/{name}.jpg" for name, _ in test] + ["image/0000005.jpg", "image/0000006.jpg"],
        [("image/0000005.jpg", 1, 0, 0), ("image/0000006.jpg", 0, 0, 0)],
        [(f"image/{name}.jpg", pid, 0, 0) for name, pid in test if name not in drawn],
        [(f"image/{name}.jpg", pid, 1, 0) for name, pid in test if name in drawn],
        {
            "train_test_split/train_list.txt": "0000006 10\n0000005 12\n",
            f"train_test_split/test_list_{test_size}.txt": "".join(f"{name} {pid}\n" for name, pid in test),
            "attribute/color_attr.txt": "",
        },
    )


P_DUKE = Miniature(
    "P-DukeMTMC-reid",
    [
        "train/occluded_body_images/0007/a.jpg",
        "train/whole_body_images/0007/b.jpg",
        "train/whole_body_images/0009/c.jpg",  # not among the occluded
        "test/occluded_body_images/0012/d.jpg",
        "test/whole_body_images/0012/e.jpg",
    ],
    [
        ("train/occluded_body_images/0007/a.jpg", 0, 0, 0),
        ("train/whole_body_images/0007/b.jpg", 0, 1, 0),
        ("train/whole_body_images/0009/c.jpg", 1, 1, 0),
    ],
    [("test/occluded_body_images/0012/d.jpg", 12, 0, 0)],
    [("test/whole_body_images/0012/e.jpg", 12, 1, 0)],
)


def new_protocol(kind: str) -> Callable[[Path], None]:
    """MATLAB's file of the new protocol, with indices and labels from 1."""
    config = {
        "filelist": np.array([[name] for name in CUHK03_FILES], object),
        "labels": np.array([[3], [3], [4], [900], [900], [901]]),
        "train_idx": np.array([[3], [1], [2]]),
        "query_idx": np.array([[4]]),
        "gallery_idx": np.array([[6], [5]]),
    }
    return lambda place: savemat(place / f"cuhk03_new_protocol_config_{kind}.mat", config)


CUHK03_FILES = ["1_001_1_01.png", "1_001_2_06.png", "1_002_1_02.png", "3_040_1_01.png", "3_040_2_07.png",
                "5_002_2_10.png"]  # fmt: skip
CUHK03 = Miniature(
    "cuhk03",
    [f"images_labeled/{name}" for name in CUHK03_FILES],
    [
        ("images_labeled/1_001_1_01.png", 0, 0, 0),
        ("images_labeled/1_001_2_06.png", 0, 1, 0),
        ("images_labeled/1_002_1_02.png", 1, 0, 0),
    ],
    [("images_labeled/3_040_1_01.png", 900, 0, 0)],
    [("images_labeled/5_002_2_10.png", 901, 1, 0), ("images_labeled/3_040_2_07.png", 900, 1, 0)],
    more=new_protocol("labeled"),
)


def cuhk03_np(kind: str) -> Miniature:
    return Miniature(
        f"cuhk03-np/{kind}",
        [
            "bounding_box_train/0003_c1_21.png",
            "bounding_box_train/0010_c2_68.png",
            "query/0001_c1_1.png",
            "bounding_box_test/0001_c2_6.png",
        ],
        [("bounding_box_train/0003_c1_21.png", 0, 0, 0), ("bounding_box_train/0010_c2_68.png", 1, 1, 0)],
        [("query/0001_c1_1.png", 1, 0, 0)],
        [("bounding_box_test/0001_c2_6.png", 1, 1, 0)],
    )


SYSU = Miniature(
    "cuhk_sysu",
    ["cropped_images/p9_s16929_1.jpg", "cropped_images/p11422_s16929_1.jpg", "cropped_images/p9_s1_2.jpg"],
    [
        ("cropped_images/p11422_s16929_1.jpg", 1, 0, 0),
        ("cropped_images/p9_s16929_1.jpg", 0, 0, 0),
        ("cropped_images/p9_s1_2.jpg", 0, 0, 0),
    ],
    [],
    [],
)


def prid() -> Miniature:
    """All 200 persons of both views, and two that view B alone has; the split is given by the file."""
    files = [f"single_shot/cam_{view}/person_{i:04d}.png" for view in "ab" for i in range(1, 201)]
    others = [f"single_shot/cam_b/person_{i:04d}.png" for i in (201, 749)]
    train, test = list(range(1, 201, 2)), list(range(2, 201, 2))
    return Miniature(
        "prid2011/prid_2011",
        [*files, *others, "single_shot/cam_a/person_0300.png"],
        [(f"single_shot/cam_{'ab'[cam]}/person_{pid:04d}.png", pid // 2, cam, 0) for cam in (0, 1) for pid in train],
        [(f"single_shot/cam_a/person_{pid:04d}.png", pid, 0, 0) for pid in test],
        [(f"single_shot/cam_b/person_{pid:04d}.png", pid, 1, 0) for pid in [*test, 201, 749]],
        {"splits_single_shot.json": json.dumps([{"train": train, "test": test}, {"train": test, "test": train}])},
    )


LUPERSON = Miniature(
    "LUP",
    ["images/b.jpg", "images/a/2.jpg", "images/a-1.jpg", "images/a/1.jpg", "images/c.jpg"],
    [(f"images/{name}", 0, 0, 0) for name in ("a-1.jpg", "a/2.jpg", "b.jpg", "c.jpg")],
    [],
    [],
    more=lambda place: (place / "CFS_list.pkl").write_bytes(pickle.dumps(["c.jpg", "a/2.jpg", "b.jpg", "a-1.jpg"])),
)


def tables(**matrices) -> Callable[[Path], None]:
    """MATLAB files by path, with two underscores for a slash, each with one variable: (name, values)."""

    def more(place: Path) -> None:
        for path, (name, values) in matrices.items():
            file = place / f"{path.replace('__', '/')}.mat"
            file.parent.mkdir(parents=True, exist_ok=True)
            savemat(file, {name: np.array(values, float)})

    return more


MARS_TRAIN = ["0001C1T0001F001.jpg", "0001C1T0001F002.jpg", "0001C5T0003F001.jpg", "0003C2T0001F001.jpg"]
MARS_TEST = [
    "00-1C1T0001F001.jpg", "0000C2T0001F001.jpg", "0002C1T0001F001.jpg", "0002C1T0001F002.jpg", "0002C2T0001F001.jpg",
]  # fmt: skip
MARS = Miniature(
    "MARS",
    [f"bbox_{split}/{n[:4]}/{n}" for split, names in (("train", MARS_TRAIN), ("test", MARS_TEST)) for n in names],
    [
        ("bbox_train/0001/0001C1T0001F001.jpg", 0, 0, 0),
        ("bbox_train/0001/0001C1T0001F002.jpg", 0, 0, 0),
        ("bbox_train/0001/0001C5T0003F001.jpg", 0, 2, 0),
        ("bbox_train/0003/0003C2T0001F001.jpg", 1, 1, 0),
    ],
    [("bbox_test/0002/0002C2T0001F001.jpg", 2, 1, 0)],
    [
        ("bbox_test/0000/0000C2T0001F001.jpg", 0, 1, 0),
        ("bbox_test/0002/0002C1T0001F001.jpg", 2, 0, 0),
        ("bbox_test/0002/0002C1T0001F002.jpg", 2, 0, 0),
        ("bbox_test/0002/0002C2T0001F001.jpg", 2, 1, 0),
    ],
    {"info/train_name.txt": "\n".join(MARS_TRAIN) + "\n", "info/test_name.txt": "\n".join(MARS_TEST) + "\n"},
    tables(
        info__tracks_train_info=("track_train_info", [[1, 2, 1, 1], [3, 3, 1, 5], [4, 4, 3, 2]]),
        info__tracks_test_info=("track_test_info", [[1, 1, -1, 1], [2, 2, 0, 2], [3, 4, 2, 1], [5, 5, 2, 2]]),
        info__query_IDX=("query_IDX", [[4]]),
    ),
)
ILIDS = Miniature(
    "i-LIDS-VID",
    [
        f"sequences/cam{cam}/person{pid:03d}/cam{cam}_person{pid:03d}_{frame:05d}.png"
        for cam in (1, 2) for pid in (1, 4, 7, 9) for frame in (317, 318)
    ],
    [
        (f"sequences/cam{cam}/person{pid:03d}/cam{cam}_person{pid:03d}_{frame:05d}.png", i, cam - 1, 0)
        for cam in (1, 2) for i, pid in enumerate((1, 9)) for frame in (317, 318)
    ],
    *(
        [
            (f"sequences/cam{cam}/person{pid:03d}/cam{cam}_person{pid:03d}_{frame:05d}.png", pid, cam - 1, 0)
            for pid in (4, 7) for frame in (317, 318)
        ]
        for cam in (1, 2)
    ),
    more=lambda place: tables(splits=("ls_set", [[3, 2, 1, 4], [1, 2, 3, 4]]))(place)
    or (place / "train-test people splits").mkdir()
    or (place / "splits.mat").rename(place / "train-test people splits" / "train_test_splits_ilidsvid.mat"),
)  # fmt: skip
PRID_VIDEO = Miniature(
    "prid_2011",
    [f"multi_shot/cam_{view}/person_{pid:04d}/{f:04d}.png" for view in "ab" for pid in (1, 3, 300) for f in (1, 2)],
    [(f"multi_shot/cam_{view}/person_0003/{f:04d}.png", 0, cam, 0) for cam, view in enumerate("ab") for f in (1, 2)],
    [(f"multi_shot/cam_a/person_0001/{frame:04d}.png", 1, 0, 0) for frame in (1, 2)],
    [(f"multi_shot/cam_b/person_0001/{frame:04d}.png", 1, 1, 0) for frame in (1, 2)],
    {"splits_prid2011.json": json.dumps([{"train": ["person_0003"], "test": ["person_0001"]}])},
)
DUKE_VIDEO = Miniature(
    "DukeMTMC-VideoReID",
    [
        "train/0001/0000/0001_C6_F0001_X30823.jpg", "train/0001/0000/0001_C6_F0009_X30831.jpg",
        "train/0005/0003/0005C2F0099X30823.jpg", "query/0007/0000/0007_C1_F0001_X1.jpg",
        "gallery/0007/0001/0007_C2_F0001_X1.jpg", "gallery/0009/0000/0009_C8_F0001_X1.jpg",
    ],
    [
        ("train/0001/0000/0001_C6_F0001_X30823.jpg", 0, 1, 0), ("train/0001/0000/0001_C6_F0009_X30831.jpg", 0, 1, 0),
        ("train/0005/0003/0005C2F0099X30823.jpg", 1, 0, 0),
    ],
    [("query/0007/0000/0007_C1_F0001_X1.jpg", 7, 2, 0)],
    [("gallery/0007/0001/0007_C2_F0001_X1.jpg", 7, 0, 0), ("gallery/0009/0000/0009_C8_F0001_X1.jpg", 9, 3, 0)],
)  # fmt: skip


def lsvid() -> Miniature:
    """Two tracklets train; the second and third of the test lists are one person under two cameras."""

    def names(split: str, pid: int, track: int, cam: int) -> list[str]:
        return [f"tracklet_{split}/{pid:04d}/{pid:04d}_{track:03d}_{cam:02d}_0302noon_00{i}.jpg" for i in (12, 15)]

    train = [("train", 0, 0, 3), ("train", 4, 1, 15)]
    test = [("test", 8, 0, 3), ("test", 2, 0, 1), ("test", 2, 1, 15)]
    lists = {
        f"list_sequence/list_seq_{split}.txt": "".join(f"{names(*t)[0][: -len('0012.jpg')]} {t[1]}\n" for t in tracks)
        for split, tracks in (("train", train), ("test", test))
    }

    def more(place: Path) -> None:
        h5py = pytest.importorskip("h5py")
        (place / "test" / "data").mkdir(parents=True)
        path = place / "test" / "data" / "info_test.mat"
        with h5py.File(path, "w", userblock_size=512) as archive:
            archive["query"] = np.array([[2.0]])
        with open(path, "r+b") as handle:
            handle.write(b"MATLAB 7.3 MAT-file")

    def rows(tracks, pids, cams):
        return [(name, pids[t[1]], cams[t[3]], 0) for t in tracks for name in names(*t)]

    cams, pids = {3: 0, 15: 1, 1: 2}, {8: 8, 2: 2}
    return Miniature(
        "LS-VID", [name for t in (*train, *test) for name in names(*t)], rows(train, {0: 0, 4: 1}, cams),
        rows(test[1:2], pids, cams), rows(test, pids, cams), lists, more,
    )  # fmt: skip


def joint() -> Miniature:
    """MSMT17 without its validation list, then Market-1501 behind it."""
    first, second = msmt17("MSMT17", "train", "test"), MARKET
    lists = {f"MSMT17/{k}": v for k, v in first.lists.items()} | {f"{second.folder}/{k}": "" for k in second.lists}

    def below(rows, pids=0):
        return [(f"{second.folder}/{name}", pid + pids, 2 + cam, view) for name, pid, cam, view in rows]

    train = [(f"MSMT17/{name}", pid, {0: 0, 2: 1}[cam], 0) for name, pid, cam, _ in (first.train[0], first.train[2])]
    return Miniature(
        "",
        [f"MSMT17/{name}" for name in first.files] + [f"{second.folder}/{name}" for name in second.files],
        train + below(second.train, 2),
        below(second.query),
        below(second.gallery),
        lists,
    )


def annotations(path: Path, **columns) -> None:
    """A MATLAB struct array ``annotations``."""
    rows = np.zeros((1, len(next(iter(columns.values())))), [(name, object) for name in columns])
    for name, values in columns.items():
        for i, value in enumerate(values):
            rows[0, i][name] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"annotations": rows})


CAR_FILES, CAR_CLASSES = ["car_ims/000001.jpg", "car_ims/000002.jpg", "car_ims/008145.jpg"], [98, 7, 99]
CARS = Miniature(
    "CARS",
    CAR_FILES,
    [("car_ims/000001.jpg", 1, 0, 0), ("car_ims/000002.jpg", 0, 0, 0)],
    [("car_ims/008145.jpg", 99, 0, 0)],
    [("car_ims/008145.jpg", 99, 1, 0)],
    more=lambda place: annotations(
        place / "cars_annos.mat", relative_im_path=CAR_FILES, bbox_x1=[1, 2, 3], test=[0, 1, 1],
        **{"class": CAR_CLASSES},
    ),
)  # fmt: skip
CUB = Miniature(
    "CUB_200_2011",
    ["images/001.Albatross/a_0046_18.jpg", "images/100.Pelican/b.jpg", "images/101.Pelican/c.jpg"],
    [("images/001.Albatross/a_0046_18.jpg", 0, 0, 0), ("images/100.Pelican/b.jpg", 1, 0, 0)],
    [("images/101.Pelican/c.jpg", 101, 0, 0)],
    [("images/101.Pelican/c.jpg", 101, 1, 0)],
    {
        "images.txt": "1 001.Albatross/a_0046_18.jpg\n2 100.Pelican/b.jpg\n3 101.Pelican/c.jpg\n",
        "image_class_labels.txt": "1 1\n2 100\n3 101\n",
        "train_test_split.txt": "1 0\n2 1\n3 1\n",
    },
)
SOP = Miniature(
    "Stanford_Online_Products",
    ["bicycle_final/111085122871_0.JPG", "bicycle_final/111085122871_1.JPG", "chair_final/2_0.JPG"],
    [("bicycle_final/111085122871_0.JPG", 0, 0, 0), ("bicycle_final/111085122871_1.JPG", 0, 0, 0)],
    [("chair_final/2_0.JPG", 11319, 0, 0)],
    [("chair_final/2_0.JPG", 11319, 1, 0)],
    {
        "Ebay_train.txt": "image_id class_id super_class_id path\n2 1 1 bicycle_final/111085122871_1.JPG\n"
        "1 1 1 bicycle_final/111085122871_0.JPG\n",
        "Ebay_test.txt": "image_id class_id super_class_id path\n59552 11319 2 chair_final/2_0.JPG\n",
    },
)
INSHOP_FILES = [f"img/WOMEN/Dresses/id_0000000{i}/0{i}_1_front.jpg" for i in (1, 2, 3, 4)]
INSHOP = Miniature(
    "In-shop",
    INSHOP_FILES,
    [(INSHOP_FILES[0], 0, 0, 0), (INSHOP_FILES[1], 1, 0, 0)],
    [(INSHOP_FILES[3], 1, 0, 0)],
    [(INSHOP_FILES[3], 1, 1, 0), (INSHOP_FILES[2], 0, 1, 0)],
    {
        "list_eval_partition.txt": "5\nimage_name item_id evaluation_status\n"
        f"{INSHOP_FILES[1]}   id_00000002 train\n{INSHOP_FILES[0]}   id_00000001 train\n"
        f"{INSHOP_FILES[3]}   id_00000009 query\n{INSHOP_FILES[3]}   id_00000009 gallery\n"
        f"{INSHOP_FILES[2]}   id_00000003 gallery\n"
    },
)
UNIVERSITY = Miniature(
    "University-Release",
    [
        "train/satellite/0839/0839.jpg",
        "train/drone/0839/image-01.jpeg",
        "train/drone/0842/image-01.jpeg",
        "train/street/0842/1.jpg",
        "train/google/0842/1.jpg",
        "test/query_drone/0001/image-01.jpeg",
        "test/gallery_satellite/0001/0001.jpg",
        "test/query_satellite/0001/0001.jpg",
        "test/gallery_drone/0001/image-01.jpeg",
        "test/gallery_drone/0002/image-01.jpeg",
    ],
    [
        ("train/drone/0839/image-01.jpeg", 0, 0, 1),
        ("train/drone/0842/image-01.jpeg", 1, 0, 1),
        ("train/satellite/0839/0839.jpg", 0, 0, 0),
        ("train/street/0842/1.jpg", 1, 0, 2),
    ],
    [("test/query_drone/0001/image-01.jpeg", 1, 0, 1)],
    [("test/gallery_satellite/0001/0001.jpg", 1, 1, 0)],
)


MINIATURES = {
    "market1501": MARKET,
    "dukemtmc": DUKE,
    "occ_duke": OCCLUDED,
    "msmt17": msmt17("MSMT17", "train", "test"),
    "msmt17v1": msmt17("msmt17v1/MSMT17_V1", "train", "test"),
    "msmt17v2": msmt17("msmt/MSMT17_V2", "mask_train_v2", "mask_test_v2"),
    "veri": VERI,
    "vehicleid": vehicleid(800),
    "vehicleid_small": vehicleid(800),
    "vehicleid_medium": vehicleid(1600),
    "vehicleid_large": vehicleid(2400),
    "p_dukemtmc": P_DUKE,
    "cuhk03": CUHK03,
    "cuhk03_np_detected": cuhk03_np("detected"),
    "cuhk03_np_labeled": cuhk03_np("labeled"),
    "cuhk_sysu": SYSU,
    "prid": prid(),
    "luperson": LUPERSON,
    "mars": MARS,
    "ilids_vid": ILIDS,
    "prid_video": PRID_VIDEO,
    "duke_video": DUKE_VIDEO,
    "lsvid": lsvid(),
    "mm": joint(),
    "car196": CARS,
    "cub200": CUB,
    "sop": SOP,
    "inshop": INSHOP,
    "university1652": UNIVERSITY,
}


def lists(dataset) -> dict[str, list[tuple]]:
    return {split: list(getattr(dataset, split)) for split in ("train", "query", "gallery")}


def message(function, *args, **options) -> str:
    """The one line with which a call is refused."""
    with pytest.raises(UserError) as caught:
        function(*args, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text
