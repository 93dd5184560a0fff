"""Entries of the person sets."""

from __future__ import annotations

from datasets.catalogue.spec import Counts, DatasetSpec
from datasets.readers.cuhk03 import read_cuhk03
from datasets.readers.folders import read_cuhk_sysu, read_market1501, read_msmt17, read_occluded_duke, read_p_duke
from datasets.readers.prid import read_prid
from datasets.readers.unlabelled import read_luperson

DUKE_NAME = r"^(?P<pid>\d+)_c(?P<cam>\d+)_"
MARKET_NAME = r"^(?P<pid>-?\d+)_c(?P<cam>\d+)"
WITHDRAWN = "withdrawn by its authors in 2019 for privacy reasons; no official copy exists and none is fetched"
ON_REQUEST = "on request to its authors, research only"
DUKE_FOLDERS = (
    "dukemtmcreid",
    "dukemtmcreid/DukeMTMC-reID",
    "DukeMTMC-reID",
    "dukemtmc/DukeMTMC-reID",
    "dukemtmc-reid/DukeMTMC-reID",
)
V1 = ("MSMT17_V1", "msmt17/MSMT17_V1", "msmt17v1/MSMT17_V1")
V2 = ("MSMT17_V2", "msmt17/MSMT17_V2", "msmt/MSMT17_V2")


def market1501_counts(market1501_500k: bool = False) -> Counts:
    counts = {"train": (751, 12936, 6), "query": (750, 3368, 6)}
    return counts | ({} if market1501_500k else {"gallery": (751, 15913, 6)})


def msmt17_counts(use_val: bool = True) -> Counts:
    train = (1041, 32621, 15) if use_val else (1041, 30248, 15)
    return {"train": train, "query": (3060, 11659, 15), "gallery": (3060, 82161, 15)}


def cuhk03_counts(labeled: bool = True, classic: bool = False) -> Counts:
    if classic:
        return {"train": (1367, None, 2), "query": (100, None, 2), "gallery": (100, None, 2)}
    train, gallery = (7368, 5328) if labeled else (7365, 5332)
    return {"train": (767, train, 2), "query": (700, 1400, 2), "gallery": (700, gallery, 2)}


def msmt17(name: str, folders: tuple[str, ...], cite: str, marker: str, aliases: tuple[str, ...] = ()) -> DatasetSpec:
    return DatasetSpec(
        name, folders, MARKET_NAME, cite, aliases, junk=(), read=read_msmt17, marker=marker, restarts=True,
        counts=msmt17_counts, availability=f"{ON_REQUEST}; V2 is what is given out now",
    )  # fmt: skip


PERSON = (
    DatasetSpec(
        "market1501",
        ("market1501", "Market-1501-v15.09.15", "market1501/Market-1501-v15.09.15"),
        MARKET_NAME,
        "Zheng et al., ICCV 2015",
        aliases=("market",),
        distractors=(0,),
        read=read_market1501,
        counts=market1501_counts,
    ),
    DatasetSpec(
        "dukemtmc",
        DUKE_FOLDERS,
        DUKE_NAME,
        "Ristani et al., ECCVW 2016; Zheng et al., ICCV 2017",
        aliases=("dukemtmcreid", "duke"),
        counts={"train": (702, 16522, 8), "query": (702, 2228, 8), "gallery": (1110, 17661, 8)},
        note=WITHDRAWN,
        availability="withdrawn in 2019; nothing to be had",
    ),
    DatasetSpec(
        "occ_duke",
        ("Occluded_Duke", "dukemtmcreid/Occluded_Duke"),
        DUKE_NAME,
        "Miao et al., ICCV 2019",
        aliases=("occluded_duke", "occluded_dukemtmc"),
        read=read_occluded_duke,
        marker="train.list",
        elsewhere=(*DUKE_FOLDERS, "dukemtmc", "dukemtmc-reid", "."),
        counts={"train": (702, 15618, 8), "query": (519, 2210, 8), "gallery": (1110, 17661, 8)},
        note=f"made from DukeMTMC-reID, {WITHDRAWN}",
        availability="lists public, images withdrawn in 2019",
    ),
    DatasetSpec(
        "p_dukemtmc",
        ("P-DukeMTMC-reid", "ICME2018_Occluded-Person-Reidentification_datasets/P-DukeMTMC-reid"),
        cite="Zhuo et al., ICME 2018",
        aliases=("p_dukemtmc_reid", "pduke"),
        read=read_p_duke,
        marker="train/occluded_body_images",
        counts={"train": (665, 12927, None), "query": (634, 2163, None), "gallery": (634, 9053, None)},
        note=f"made from DukeMTMC-reID, {WITHDRAWN}",
        availability="academic use only; its source is withdrawn",
    ),
    msmt17("msmt17", ("MSMT17", *V1, *V2), "Wei et al., CVPR 2018", "list_train.txt"),
    msmt17("msmt17v1", (*V1, "MSMT17"), "Wei et al., CVPR 2018", "train"),
    msmt17("msmt17v2", (*V2, "MSMT17"), "Wei et al., CVPR 2018, with masked faces", "mask_train_v2", ("msmt",)),
    DatasetSpec(
        "cuhk03",
        ("cuhk03",),
        cite="Li et al., CVPR 2014; new protocol: Zhong et al., CVPR 2017",
        read=read_cuhk03,
        marker=("cuhk03_release", "cuhk-03.mat", "images_labeled", "images_detected"),
        restarts=True,
        counts=cuhk03_counts,
        availability=ON_REQUEST,
    ),
    *(
        DatasetSpec(
            f"cuhk03_np_{kind}",
            tuple(f"{folder}/{kind}" for folder in ("cuhk03-np", "cuhknp", "cuhk03_np")),
            MARKET_NAME,
            "Li et al., CVPR 2014; Zhong et al., CVPR 2017",
            aliases=aliases,
            restarts=True,
            counts=cuhk03_counts(labeled=kind == "labeled"),
            availability=ON_REQUEST,
        )
        for kind, aliases in (("detected", ("npdetected", "cuhknp", "cuhk03np")), ("labeled", ("nplabeled",)))
    ),
    DatasetSpec(
        "cuhk_sysu",
        ("cuhk_sysu", "cuhksysu"),
        r"^p(?P<pid>\d+)_s\d+",
        "Xiao et al., CVPR 2017",
        read=read_cuhk_sysu,
        marker=("cropped_images", "croppped_images"),
        counts={"train": (11934, 34574, None)},
        availability=ON_REQUEST,
    ),
    DatasetSpec(
        "prid",
        ("prid2011/prid_2011", "prid_2011", "prid2011"),
        cite="Hirzer et al., SCIA 2011",
        aliases=("prid2011",),
        read=read_prid,
        marker=("single_shot", "slim_train"),
        counts={"query": (100, 100, 1), "gallery": (649, 649, 1)},
    ),
    DatasetSpec(
        "luperson",
        ("LUP",),
        cite="Fu et al., CVPR 2021; list: Luo et al., arXiv:2111.12084",
        aliases=("lup",),
        read=read_luperson,
        marker="images",
        availability="ask its authors",
    ),
    DatasetSpec(
        "mm",
        (),
        cite="Luo et al., arXiv:2111.12084",
        aliases=("market_msmt",),
        parts=(("msmt17", {"use_val": False}), ("market1501", {})),
        counts={"train": (1792, 43184, 21), "query": (750, 3368, 6), "gallery": (751, 15913, 6)},
        availability="Market-1501 and MSMT17",
    ),
)
