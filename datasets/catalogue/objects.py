"""Entries of the vehicle sets and of those of the retrieval protocol."""

from __future__ import annotations

from functools import partial

from datasets.catalogue.person import ON_REQUEST
from datasets.catalogue.spec import Counts, DatasetSpec
from datasets.readers.folders import read_vehicleid, read_veri
from datasets.readers.retrieval import read_cars, read_cub, read_inshop, read_sop, read_university


def veri_counts(missing_view: str = "keep") -> Counts:
    """Returns VeRi's published counts."""
    train, query, gallery = (37715, 1677, 11578) if missing_view == "drop" else (37778, 1678, 11579)
    return {"train": (576, train, 20), "query": (200, query, 19), "gallery": (200, gallery, 19)}


def vehicleid_counts(test_size: int = 800) -> Counts:
    """Returns VehicleID's published counts; those of the test are known for three sizes."""
    queries = {800: 5693, 1600: 11777, 2400: 17377}
    counts = {"train": (13164, 113346, None)}
    if test_size in queries:
        counts |= {"query": (None, queries[test_size], None), "gallery": (test_size, test_size, None)}
    return counts


def university_counts(direction: str = "drone_satellite") -> Counts:
    """Returns University-1652's published counts of a direction."""
    queries = {"drone": (701, 37855, None), "satellite": (701, 701, None), "street": (701, 2579, None)}
    galleries = {"drone": (951, 51355, None), "satellite": (951, 951, None), "street": (793, 2921, None)}
    words = sorted((word for word in queries if word in direction.lower()), key=direction.lower().index)
    return {"train": (701, 50218, None), "query": queries[words[0]], "gallery": galleries[words[-1]]}


def one_test_list(train: tuple[int, int], test: tuple[int, int]) -> Counts:
    """Returns counts where the test images are query and gallery at once. train, test: identities and images."""
    return {"train": (*train, None), "query": (*test, None), "gallery": (*test, None)}


VEHICLES = (
    DatasetSpec(
        "veri",
        ("VeRi", "veri", "veri/VeRi", "veri/VeRi_with_plate"),
        r"^(?P<pid>\d+)_c(?P<cam>\d+)",
        "Liu et al., ECCV 2016",
        aliases=("veri776",),
        splits=("image_train", "image_query", "image_test"),
        junk=(),
        kind="vehicle",
        read=read_veri,
        marker="image_train",
        counts=veri_counts,
        availability=ON_REQUEST,
    ),
    *(
        DatasetSpec(
            name,
            ("VehicleID_V1.0", "vehicleid", "vehicleid/VehicleID_V1.0"),
            cite="Liu et al., CVPR 2016",
            aliases=aliases,
            kind="vehicle",
            protocol="vehicleid",
            read=partial(read_vehicleid, test_size=test_size),
            marker="train_test_split",
            counts=partial(vehicleid_counts, test_size=test_size),
            availability=ON_REQUEST,
        )
        for name, aliases, test_size in (
            ("vehicleid", (), 800),
            ("vehicleid_small", ("SmallVehicleID",), 800),
            ("vehicleid_medium", ("MediumVehicleID",), 1600),
            ("vehicleid_large", ("LargeVehicleID",), 2400),
        )
    ),
)

RETRIEVAL = (
    DatasetSpec(
        "car196",
        ("CARS", "Cars_196", "car196"),
        cite="Krause et al., 3dRR 2013",
        aliases=("cars196", "cars", "cars_196"),
        kind="car",
        protocol="retrieval",
        read=read_cars,
        marker=("cars_annos.mat", "devkit", "train.txt", "cars_train_annos.mat"),
        counts=one_test_list((98, 8054), (98, 8131)),
    ),
    DatasetSpec(
        "cub200",
        ("CUB_200_2011", "CUB_200_2011/CUB_200_2011"),
        cite="Wah et al., 2011",
        aliases=("cub", "cub_200_2011", "cub200_2011"),
        kind="bird",
        protocol="retrieval",
        read=read_cub,
        marker="images.txt",
        counts=one_test_list((100, 5864), (100, 5924)),
    ),
    DatasetSpec(
        "sop",
        ("Stanford_Online_Products",),
        cite="Oh Song et al., CVPR 2016",
        aliases=("stanford_online_products",),
        kind="product",
        protocol="retrieval",
        ks=(1, 10, 100, 1000),
        also=(),
        read=read_sop,
        marker="Ebay_train.txt",
        counts=one_test_list((11318, 59551), (11316, 60502)),
    ),
    DatasetSpec(
        "inshop",
        ("In-shop", "InShop", "DeepFashion_InShop"),
        cite="Liu et al., CVPR 2016",
        aliases=("deepfashion", "in_shop"),
        kind="garment",
        protocol="retrieval",
        ks=(1, 10, 20, 30),
        also=(),
        read=read_inshop,
        marker=("list_eval_partition.txt", "Eval", "Anno", "test_query.txt"),
        counts={"train": (3997, 25882, None), "query": (3985, 14218, None), "gallery": (3985, 12612, None)},
        availability=ON_REQUEST,
    ),
    DatasetSpec(
        "university1652",
        ("University-Release", "university1652/University-Release"),
        cite="Zheng et al., ACM MM 2020",
        aliases=("university",),
        kind="building",
        protocol="retrieval",
        ks=(1, 5, 10, "1%"),
        also=("mAP",),
        read=read_university,
        marker="train/satellite",
        counts=university_counts,
        availability=ON_REQUEST,
    ),
)
