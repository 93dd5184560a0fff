"""Entries of the video sets, whose images are tracklets (``TEST.TRACKLETS``)."""

from __future__ import annotations

from datasets.catalogue.person import ON_REQUEST, WITHDRAWN
from datasets.catalogue.spec import DatasetSpec
from datasets.readers.video import read_duke_video, read_ilids_vid, read_lsvid, read_mars, read_prid_video

VIDEO = (
    DatasetSpec(
        "mars",
        ("mars", "MARS"),
        cite="Zheng et al., ECCV 2016",
        distractors=(0,),
        read=read_mars,
        marker="bbox_train",
        counts={"train": (625, 509914, 6)},
    ),
    DatasetSpec(
        "ilids_vid",
        ("i-LIDS-VID", "ilids-vid/i-LIDS-VID"),
        cite="Wang et al., ECCV 2014",
        read=read_ilids_vid,
        marker="sequences",
        counts={"train": (150, None, 2), "query": (150, None, 1), "gallery": (150, None, 1)},
    ),
    DatasetSpec(
        "prid_video",
        ("prid2011/prid_2011", "prid_2011", "prid2011"),
        cite="Hirzer et al., SCIA 2011; sequences: Wang et al., ECCV 2014",
        aliases=("prid2011_video",),
        read=read_prid_video,
        marker="multi_shot",
        counts={"train": (89, None, 2), "query": (89, None, 1), "gallery": (89, None, 1)},
    ),
    DatasetSpec(
        "duke_video",
        ("DukeMTMC-VideoReID", "dukemtmc-vidreid/DukeMTMC-VideoReID"),
        r"^(?P<pid>\d+)_?C(?P<cam>\d+)_?F(?P<frame>\d+)",
        "Ristani et al., ECCVW 2016; Wu et al., CVPR 2018",
        aliases=("dukemtmc_videoreid", "dukemtmc_vidreid"),
        read=read_duke_video,
        marker="gallery",
        counts={"train": (702, None, 8), "query": (702, None, 8), "gallery": (1110, None, 8)},
        note=f"made from DukeMTMC, {WITHDRAWN}",
        availability="withdrawn in 2019; nothing to be had",
    ),
    DatasetSpec(
        "lsvid",
        ("LS-VID", "LSVID"),
        cite="Li et al., ICCV 2019",
        read=read_lsvid,
        marker="list_sequence",
        counts={"train": (842, None, 15)},
        availability=ON_REQUEST,
    ),
)
