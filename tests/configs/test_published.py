"""Every published YAML of the four systems loads unchanged and means what it meant; every shipped YAML is its row."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs import ConfigError, dump, load_config, load_config_with_notes
from configs.defaults import INERT, KEYS
from configs.loader import lookup
from model import make_model
from tests.configs.published import (
    CLIP,
    PASS,
    PERSONVIT,
    SOLIDER,
    TRANSREID,
    TRANSREID_SSL,
    keys,
    upstream_yaml,
)

SHIPPED = Path(__file__).resolve().parents[2] / "configs"
BEST = ("market1501", "dukemtmc", "msmt17", "occ_duke", "veri", "vehicleid")


def ids(row: dict) -> str:
    return row["file"]


def check(cfg, row: dict, **expected) -> None:
    """Each key of the row, and what the auto keys must stand for."""
    wrong = {key: (lookup(cfg, key), value) for key, value in keys(row).items() if lookup(cfg, key) != value}
    assert not wrong
    auto = {"processor": cfg.PROCESSOR.NAME, "vit_small": cfg.MODEL.VIT_SMALL, "schedule": cfg.SOLVER.SCHEDULER,
            "start": cfg.SOLVER.SCHEDULER_START}
    assert auto == expected


def check_weights(cfg, row: dict) -> None:
    assert Path(cfg.MODEL.PRETRAIN_PATH).stem == row["weights"]


#: Published files that a library gives out under a name of its own: what the shipped YAMLs say instead of a path.
FETCHED = {
    "jx_vit_base_p16_224-80ecf9dd": "",
    "deit_base_distilled_patch16_224-df68dfff": "timm:deit_base_distilled_patch16_224.fb_in1k",
    "deit_small_distilled_patch16_224-649709d9": "timm:deit_small_distilled_patch16_224.fb_in1k",
}


def check_shipped_weights(cfg, row: dict) -> None:
    assert FETCHED.get(row["weights"], f"./weights/{row['weights']}.pth") == cfg.MODEL.PRETRAIN_PATH


def write(folder: Path, row: dict, **extra) -> Path:
    path = folder / f"{row['file']}.yml"
    settings = {"MODEL.DEVICE_ID": "0", **keys(row), "TEST.EVAL": True, "OUTPUT_DIR": "../logs", **extra}
    path.write_text(upstream_yaml(settings))
    return path


def test_tables_are_complete():
    assert (len(TRANSREID), len(TRANSREID_SSL), len(CLIP)) == (43, 11, 15)
    assert len({row["file"] for row in TRANSREID}) == 43
    assert (len(SOLIDER), len(PERSONVIT), len(PASS)) == (6, 15, 4)


@pytest.mark.parametrize("row", TRANSREID, ids=ids)
def test_transreid_file_means_what_it_meant(row, tmp_path):
    warmup = {} if row["file"] == "msmt17_deit_small" else {"SOLVER.WARMUP_METHOD": "linear"}
    path = write(tmp_path, row, **warmup, **{"MODEL.PRETRAIN_PATH": f"/home/author/{row['weights']}.pth",
                                             "DATASETS.ROOT_DIR": "../../data"})
    assert "WEIGHT_DECAY: 1e-4" in path.read_text() and "DEVICE_ID: ('0')" in path.read_text()
    assert "NAMES: ('market1501')" in path.read_text() or row["DATASETS.NAMES"] != "market1501"
    cfg = load_config(path)
    check(cfg, row, processor="supervised", vit_small="transreid", schedule="cosine", start=1)
    check_weights(cfg, row)


@pytest.mark.parametrize("row", TRANSREID_SSL, ids=ids)
def test_transreid_ssl_file_means_what_it_meant(row, tmp_path):
    cfg = load_config(write(tmp_path, row, **{"SOLVER.WARMUP_METHOD": "cosine"}))
    check(cfg, row, processor="supervised", vit_small="deit", schedule="cosine", start=0)


@pytest.mark.parametrize("row", CLIP, ids=ids)
def test_clip_family_file_means_what_it_meant(row, tmp_path):
    path = write(tmp_path, row)
    assert "\nDATASETS: \n#" in path.read_text() or "DATASETS.NAMES" in row       # the section that is left empty
    processor = "prompt" if "SOLVER.STAGE1.MAX_EPOCHS" in row else "supervised"
    check(load_config(path), row, processor=processor, vit_small="transreid", schedule="multistep", start=1)


@pytest.mark.parametrize("row", SOLIDER, ids=ids)
def test_solider_file_means_solider_s_swin(row, tmp_path):
    cfg, notes = load_config_with_notes(write(tmp_path, row, **{"SOLVER.WARMUP_METHOD": "cosine"}))
    check(cfg, row, processor="supervised", vit_small="deit", schedule="cosine", start=0)
    assert (cfg.MODEL.SWIN, cfg.MODEL.SEMANTIC_WEIGHT) == ("solider", 1.0)
    assert any("MODEL.SEMANTIC_WEIGHT is not set" in line and "0.2" in line for line in notes)


@pytest.mark.parametrize("row", PERSONVIT, ids=ids)
def test_personvit_file_means_what_it_meant(row, tmp_path):
    path = write(tmp_path, row, **{"SOLVER.WARMUP_METHOD": "cosine", "MODEL.POOLING": "None"})
    cfg = load_config(path)
    check(cfg, row, processor="supervised", vit_small="deit", schedule="cosine", start=0)
    assert cfg.MODEL.POOLING == "None"


@pytest.mark.parametrize("row", PASS, ids=ids)
def test_pass_file_is_a_plain_vit_until_a_key_of_pass_is_set(row, tmp_path):
    path = write(tmp_path, row, **{"SOLVER.WARMUP_METHOD": "cosine"})
    cfg = load_config(path)
    check(cfg, row, processor="supervised", vit_small="deit", schedule="cosine", start=0)
    assert cfg.MODEL.PART_TOKENS is False
    for words in (["MODEL.PART_TOKENS", "True"], ["MODEL.MULTI_NECK", "True"], ["MODEL.FEAT_FUSION", "cat"]):
        ours = load_config(path, words)
        assert ours.MODEL.PART_TOKENS is True
        (tmp_path / "resolved.yml").write_text(dump(ours))
        assert load_config(tmp_path / "resolved.yml") == ours


def test_a_pose2id_file_says_that_it_has_no_generator(tmp_path):
    row = TRANSREID[0]
    path = write(tmp_path, row, **{"TEST.NFC": True, "TEST.IPG": True, "SOLVER.WARMUP_METHOD": "linear"})
    cfg, notes = load_config_with_notes(path)
    assert cfg.TEST.NFC and cfg.TEST.NFC_K == (2, 2)
    assert any(line.startswith("TEST.IPG is set and does nothing here") for line in notes)


SWIN = ["MODEL.NAME", "transformer", "MODEL.TRANSFORMER_TYPE", "swin_base_patch4_window7_224"]


@pytest.mark.parametrize(
    ("words", "swin"),
    [
        (SWIN, "transreid_ssl"),
        ([*SWIN, "MODEL.SEMANTIC_WEIGHT", "0.2"], "solider"),
        ([*SWIN, "MODEL.SEMANTIC_WEIGHT", "-1"], "solider"),
        ([*SWIN, "MODEL.SWIN", "transreid_ssl", "MODEL.SEMANTIC_WEIGHT", "0.2"], "transreid_ssl"),
        ([*SWIN[:2], "MODEL.TRANSFORMER_TYPE", "swin_tiny_patch4_window7_224"], "solider"),
    ],
)
def test_which_swin_is_meant_survives_a_resolved_file(words, swin, tmp_path):
    cfg = load_config(opts=words)
    assert swin == cfg.MODEL.SWIN
    (tmp_path / "resolved.yml").write_text(dump(cfg))
    assert load_config(tmp_path / "resolved.yml") == cfg


PUBLISHED_RUNS = {  # the rate of the authors' scripts, over that of their files
    **{f"solider/{row['file']}": (row, {"SOLVER.BASE_LR": 0.0008 if "tiny" in row["file"] else 0.0002})
       for row in SOLIDER},
    **{f"personvit/{row['file']}": (row, {"SOLVER.BASE_LR": 0.0004, "SOLVER.WARMUP_EPOCHS": 20,
                                          "MODEL.PRETRAIN_HW_RATIO": 2})
       for row in PERSONVIT if row["file"].endswith(("_vit_small", "_vit_base"))},
    **{f"pass/{row['file']}": (row, {}) for row in PASS},
}


@pytest.mark.parametrize("file", PUBLISHED_RUNS)
def test_shipped_file_of_a_stronger_backbone_is_its_row(file):
    row, changes = PUBLISHED_RUNS[file]
    cfg, notes = load_config_with_notes(SHIPPED / f"{file}.yml")
    read = {k: v for k, v in row.items() if not k.endswith((".EVAL_PERIOD", ".LOG_PERIOD"))} | changes
    check(cfg, read, processor="supervised", vit_small="deit", schedule="cosine", start=0)
    assert (notes, cfg.DATASETS.ROOT_DIR, cfg.MODEL.PART_TOKENS) == ([], "./data", file.startswith("pass/"))
    if file.startswith("solider/"):
        assert (cfg.MODEL.SWIN, cfg.MODEL.SEMANTIC_WEIGHT) == ("solider", 0.2)
    if file.startswith("pass/"):
        size = ["INPUT.SIZE_TRAIN", [384, 128], "INPUT.SIZE_TEST", [384, 128]]
        assert load_config(SHIPPED / f"{file}_384.yml") == load_config(SHIPPED / f"{file}.yml", size)


def test_the_file_with_the_misspelt_section_is_refused_with_the_hint(tmp_path):
    path = tmp_path / "vit_transreid_384.yml"
    path.write_text("tMODEL:\n  PRETRAIN_CHOICE: 'imagenet'\n")
    with pytest.raises(ConfigError, match=r"tMODEL: unknown section.*did you mean 'MODEL'\?.*vit_transreid_384\.yml"):
        load_config(path)


@pytest.mark.parametrize("row", TRANSREID, ids=ids)
def test_shipped_transreid_file_is_its_row(row):
    cfg, notes = load_config_with_notes(SHIPPED / "transreid" / f"{row['file']}.yml")
    check(cfg, row, processor="supervised", vit_small="transreid", schedule="cosine", start=1)
    check_shipped_weights(cfg, row)
    assert (cfg.DATASETS.ROOT_DIR, cfg.TEST.RERANK, notes) == ("./data", (50, 15, 0.3), [])


@pytest.mark.parametrize("row", TRANSREID_SSL, ids=ids)
def test_shipped_transreid_ssl_file_is_its_row(row):
    cfg, notes = load_config_with_notes(SHIPPED / "transreid_ssl" / f"{row['file']}.yml")
    check(cfg, row, processor="supervised", vit_small="deit", schedule="cosine", start=0)
    check_shipped_weights(cfg, row)
    assert (cfg.DATASETS.ROOT_DIR, cfg.TEST.RERANK, notes) == ("./data", (20, 6, 0.3), [])


def shipped_clip(row: dict) -> Path:
    """The shipped file of a row of CLIP-ReID's and SVLL-ReID's table."""
    return SHIPPED / ("svll" if "svll" in row["file"] else "clip_reid") / f"{row['file'].lower()}.yml"


@pytest.mark.parametrize("row", CLIP, ids=ids)
def test_shipped_clip_file_is_its_row(row):
    cfg, notes = load_config_with_notes(shipped_clip(row))
    read = {key: value for key, value in row.items() if key not in INERT}
    processor = "prompt" if "SOLVER.STAGE1.MAX_EPOCHS" in row else "supervised"
    check(cfg, read, processor=processor, vit_small="transreid", schedule="multistep", start=1)
    assert (cfg.DATASETS.ROOT_DIR, cfg.MODEL.PRETRAIN_PATH, cfg.MODEL.PRETRAIN_CHOICE) == ("./data", "", "imagenet")
    assert ("svll" in row["file"]) == cfg.MODEL.USE_SSL and notes == []
    assert cfg.DATASETS.NAMES.lower().startswith(row["file"].lower().partition("_")[0].replace("person", ""))


@pytest.mark.parametrize("data", ["person", "veri", "vehicleid"])
def test_svlls_copy_of_the_baseline_differs_in_its_erasing_alone(data):
    theirs, ours = (load_config(SHIPPED / folder / f"{data}_vit_base.yml") for folder in ("clip_reid", "svll"))
    assert (theirs.INPUT.RE_MAX_AREA, ours.INPUT.RE_MAX_AREA) == (1 / 3, 0.25)
    assert load_config(SHIPPED / "svll" / f"{data}_vit_base.yml", ["INPUT.RE_MAX_AREA", 1 / 3]) == theirs


@pytest.mark.parametrize("dataset", BEST)
def test_the_file_named_after_a_dataset_is_its_best_row(dataset):
    folder = SHIPPED / "transreid"
    assert load_config(folder / f"{dataset}.yml") == load_config(folder / f"{dataset}_vit_transreid_stride.yml")


PEOPLE = {"INPUT.SIZE_TRAIN": [384, 128], "MODEL.MSVIT.SPLIT_SIZE": [8, 8], "MODEL.MSVIT.BATCH_ERASING": 0.4,
          "DATALOADER.NUM_INSTANCE": 4, "SOLVER.BASE_LR": 0.05, "SOLVER.MAX_EPOCHS": 75, "INPUT.RESIZE_MARGIN": 0}
OBJECTS = {"INPUT.SIZE_TRAIN": [224, 224], "MODEL.MSVIT.SPLIT_SIZE": [7, 7], "MODEL.MSVIT.BATCH_ERASING": 0.1,
           "DATALOADER.NUM_INSTANCE": 6, "SOLVER.BASE_LR": 0.05, "SOLVER.MAX_EPOCHS": 45, "INPUT.RESIZE_MARGIN": 32}
MSVIT = {  # the rows of the published table, with what their commands say
    "occ_duke": PEOPLE, "p_dukemtmc": PEOPLE, "market1501": PEOPLE, "dukemtmc": PEOPLE, "cuhk03_np_detected": PEOPLE,
    "cuhk03_np_labeled": PEOPLE, "msmt17": PEOPLE | {"SOLVER.MAX_EPOCHS": 45}, "car196": OBJECTS,
    "cub200": OBJECTS | {"SOLVER.BASE_LR": 0.001},
}
MSVIT_COMMON = {
    "MODEL.LAST_STRIDE": 1, "MODEL.MSVIT.NUM_PART": 2, "MODEL.MSVIT.SPARSE_RATIO": 0.3,
    "MODEL.MSVIT.SPARSE_POOL": True, "MODEL.MSVIT.FREEZE": ["stem"], "MODEL.MSVIT.ACT": "relu",
    "MODEL.IF_LABELSMOOTH": "off", "MODEL.NO_MARGIN": True, "MODEL.TRIPLET_LOSS_WEIGHT": 1.0,
    "MODEL.ID_LOSS_WEIGHT": 1.0, "SOLVER.TRP_L2": True, "INPUT.RESIZE": "cv2_bilinear", "INPUT.PADDING": 8,
    "INPUT.PADDING_MODE": "symmetric", "INPUT.PROB": 0.5, "INPUT.RE_PROB": 0.0, "INPUT.PIXEL_MEAN": [0.0] * 3,
    "INPUT.PIXEL_STD": [1.0] * 3, "DATALOADER.SAMPLER": "repeat_iter", "DATALOADER.NUM_WORKERS": 4,
    "SOLVER.IMS_PER_BATCH": 24, "SOLVER.OPTIMIZER_NAME": "SGD", "SOLVER.MOMENTUM": 0.9, "SOLVER.NESTEROV": True,
    "SOLVER.WEIGHT_DECAY": 5e-4, "SOLVER.WEIGHT_DECAY_BIAS": 5e-4, "SOLVER.BIAS_LR_FACTOR": 1.0,
    "SOLVER.WARMUP_FACTOR": 0.01, "SOLVER.WARMUP_EPOCHS": 5, "SOLVER.EMA.MODE": "uniform", "SOLVER.EMA.RATIO": 0.8,
    "SOLVER.EMA.EXTRA_EPOCHS": 25, "SOLVER.EMA.BN_UPDATE": True, "SOLVER.SEED": 613, "TEST.IMS_PER_BATCH": 32,
    "TEST.FLIP": True, "TEST.FEAT_NORM": "yes", "TEST.METRIC": "cosine", "TEST.AP": "trapezoid",
    "TEST.NECK_FEAT": "after",
}
UNPUBLISHED = ("veri", "vehicleid", "sop", "inshop", "university1652")
MSVIT_FILES = [f"{name}_{size}" for name in (*MSVIT, *UNPUBLISHED, "imagenet") for size in "sl"]
MSVIT_FILES += ["eth80", "synthetic_occluded"]  # small ones of ours


@pytest.mark.parametrize("size", ["s", "l"])
@pytest.mark.parametrize("name", MSVIT)
def test_shipped_msvit_file_is_its_row(name, size):
    cfg, notes = load_config_with_notes(SHIPPED / "msvit" / f"{name}_{size}.yml")
    row = MSVIT_COMMON | MSVIT[name] | {"INPUT.SIZE_TEST": MSVIT[name]["INPUT.SIZE_TRAIN"], "DATASETS.NAMES": name}
    row |= {"MODEL.NAME": f"msvit_{size}", "MODEL.PRETRAIN_PATH": f"./weights/msvit_{size}.pth",
            "MODEL.DROP_PATH": 0.1 if size == "s" else 0.15}
    check(cfg, row, processor="supervised", vit_small="deit", schedule="msvit", start=1)
    assert notes == []


@pytest.mark.parametrize("name", [*MSVIT, *UNPUBLISHED])
def test_the_large_file_changes_the_size_the_drop_path_and_the_weights_alone(name):
    small, large = (load_config(SHIPPED / "msvit" / f"{name}_{size}.yml") for size in "sl")
    changed = {key for key in KEYS if lookup(small, key) != lookup(large, key)}
    assert changed == {"MODEL.NAME", "MODEL.DROP_PATH", "MODEL.PRETRAIN_PATH"}


def test_shipped_msvit_files_can_be_built():
    for path in (SHIPPED / "msvit").glob("*_s.yml"):
        assert make_model(load_config(path), 4, 1, 1).width == 512


@pytest.mark.parametrize(("size", "drop_path", "mixup", "cutmix"), [("s", 0.05, 0.2, 0.3), ("l", 0.1, 0.4, 0.5)])
def test_shipped_imagenet_file_is_the_published_recipe(size, drop_path, mixup, cutmix):
    cfg = load_config(SHIPPED / "msvit" / f"imagenet_{size}.yml")
    row = {"MODEL.NAME": f"msvit_{size}", "MODEL.MSVIT.HEAD": "classifier", "MODEL.MSVIT.ACT": "gelu",
           "MODEL.MSVIT.SPARSE_RATIO": 1.0, "MODEL.MSVIT.SPLIT_SIZE": [7, 7], "MODEL.DROP_PATH": drop_path,
           "INPUT.MIXUP": mixup, "INPUT.CUTMIX": cutmix, "INPUT.AUTO_AUGMENT": "rand-m9-mstd0.5-inc1",
           "INPUT.RE_PROB": 0.25, "MODEL.IF_LABELSMOOTH": "on", "SOLVER.OPTIMIZER_NAME": "AdamW",
           "SOLVER.BASE_LR": 2e-3, "SOLVER.WEIGHT_DECAY": 0.05, "SOLVER.WEIGHT_DECAY_BIAS": 0.05,
           "SOLVER.DECAY_VECTORS": False, "SOLVER.CLIP_GRAD": 5.0, "SOLVER.IMS_PER_BATCH": 1024,
           "SOLVER.MAX_EPOCHS": 300, "SOLVER.WARMUP_EPOCHS": 20, "SOLVER.COSINE_FLOOR": 1e-6,
           "SOLVER.EMA.MODE": "exponential", "SOLVER.EMA.DECAY": 0.9999, "DATASETS.NAMES": "folder",
           "INPUT.SIZE_TRAIN": [224, 224], "INPUT.PIXEL_MEAN": [0.485, 0.456, 0.406]}
    check(cfg, row, processor="supervised", vit_small="transreid", schedule="cosine_per_step", start=0)


def test_shipped_baseline():
    cfg = load_config(SHIPPED / "baseline" / "market1501_resnet50.yml")
    settings = {"MODEL.NAME": "resnet50", "MODEL.PRETRAIN_PATH": "", "MODEL.IF_LABELSMOOTH": "on",
                "MODEL.NO_MARGIN": False, "MODEL.LAST_STRIDE": 1, "INPUT.SIZE_TRAIN": [256, 128],
                "INPUT.SIZE_TEST": [256, 128], "INPUT.PIXEL_MEAN": [0.485, 0.456, 0.406],
                "DATALOADER.SAMPLER": "softmax_triplet", "DATALOADER.NUM_INSTANCE": 4, "SOLVER.IMS_PER_BATCH": 64,
                "SOLVER.OPTIMIZER_NAME": "Adam", "SOLVER.BASE_LR": 3.5e-4, "SOLVER.MAX_EPOCHS": 120,
                "SOLVER.STEPS": (40, 70), "SOLVER.WARMUP_EPOCHS": 10, "SOLVER.MARGIN": 0.3}
    check(cfg, settings, processor="supervised", vit_small="transreid", schedule="multistep", start=0)


#: Each step of multi-target adaptation: (method, network, source, targets).
THREE = ("market1501", "dukemtmc", "cuhk03")
MTDA = (
    {f"source_{name}": ("supervised", "resnet50", name, ()) for name in (*THREE, "msmt17")}
    | {f"source_msmt17_{net}": ("supervised", net, "msmt17", ()) for net in ("osnet_x0_25", "resnet18")}
    | {f"dmmd_msmt17_{name}{end}": ("dmmd", "resnet50", "msmt17", (name,))
       for name in THREE for end in ("", "_released")}
    | {"dmmd_msmt17_blended": ("dmmd", "resnet50", "msmt17", THREE)}
    | {f"kd_msmt17_{net}": ("mtda_kd", net.removesuffix("_released"), "msmt17", THREE)
       for net in ("osnet_x0_25", "osnet_x0_25_released", "resnet18")}
)  # fmt: skip


@pytest.mark.parametrize("name", MTDA)
def test_shipped_adaptation_is_the_published_setting(name):
    method, net, source, targets = MTDA[name]
    cfg = load_config(SHIPPED / "mtda" / f"{name}.yml")
    kd, released = method == "mtda_kd", name.endswith("_released")
    row = {"MODEL.NAME": f"torchreid_{net}", "MODEL.FC_HEAD": "feat",
           "MODEL.FC_DIM": 512 if net == "resnet18" else 2048,
           "DATASETS.NAMES": source, "DATASETS.TARGETS": targets, "INPUT.SIZE_TRAIN": [256, 128], "INPUT.RE_PROB": 0.0,
           "INPUT.ENLARGE_PROB": 0.5, "DATALOADER.NUM_INSTANCE": 4, "SOLVER.IMS_PER_BATCH": 32, "SOLVER.GAMMA": 0.1,
           "SOLVER.WEIGHT_DECAY": 5e-4, "SOLVER.WEIGHT_DECAY_BIAS": 5e-4, "SOLVER.BIAS_LR_FACTOR": 1.0,
           "SOLVER.OPTIMIZER_NAME": "SGD" if kd else "Adam", "SOLVER.BASE_LR": 0.01 if kd else 3e-4,
           "SOLVER.STEP_SIZE": 5 if kd else 50, "SOLVER.EVAL_PERIOD": 5 if kd else 10,
           "SOLVER.MAX_EPOCHS": {"supervised": 100, "dmmd": 200, "mtda_kd": 50}[method], "DMMD.WARMUP_EPOCHS": 25,
           "DMMD.GROUPS": "identity" if released else "tracklet", "DMMD.BLEND": name.endswith("blended"),
           "DATASETS.CLASSIC": True if "cuhk03" in (source, *targets) else None, "INPUT.RESIZE": "pil_bilinear",
           "KD.SWEEPS": "per_teacher" if kd and released else "once",
           "KD.TEACHER.MODE": "train" if kd and released else "eval"}
    if not kd:
        row["SOLVER.ADAM_BETAS"] = (0.9, 0.99)
    check(cfg, row, processor=method, vit_small="transreid", schedule="step", start=0)


#: The networks of torchreid's model zoo whose published files have no layer behind the pooling, and those that have.
BARE = ("torchreid_resnet50", "torchreid_mobilenetv2_x1_0", "torchreid_mobilenetv2_x1_4")
ZOO = (
    *BARE, "torchreid_resnet50_fc512", "torchreid_osnet_ibn_x1_0",
    *(f"torchreid_osnet_{kind}x{width}" for kind in ("", "ain_") for width in ("1_0", "0_75", "0_5", "0_25")),
)  # fmt: skip


@pytest.mark.parametrize("name", ZOO)
def test_shipped_networks_of_the_zoo_take_its_files(name):
    cfg = load_config(SHIPPED / "torchreid" / f"{name.removeprefix('torchreid_')}.yml")
    head = ("none", 512) if name in BARE else ("fc", 512)
    assert (name, *head) == (cfg.MODEL.NAME, cfg.MODEL.FC_HEAD, cfg.MODEL.FC_DIM)
    assert (cfg.INPUT.SIZE_TEST, cfg.INPUT.RESIZE) == ([256, 128], "pil_bilinear")
    assert cfg.INPUT.PIXEL_MEAN == [0.485, 0.456, 0.406] and cfg.TEST.FEAT_NORM == "yes"


#: The published pre-training runs: (network, with the ICS stem, images of the list that are kept).
DINO = {
    "vit_small_imagenet": ("vit_small", False, None), "vit_small_lup": ("vit_small", False, None),
    "vit_small_cfs_lup": ("vit_small", False, 2_508_146), "vit_small_ics_lup": ("vit_small", True, None),
    "vit_small_ics_cfs_lup": ("vit_small", True, 2_508_146), "vit_base_ics_cfs_lup": ("vit_base", True, 2_508_146),
}  # fmt: skip


@pytest.mark.parametrize("name", DINO)
def test_shipped_pre_training_is_the_published_setting(name):
    kind, stem, keep = DINO[name]
    people = name != "vit_small_imagenet"
    cfg, notes = load_config_with_notes(SHIPPED / "dino" / f"{name}.yml")
    size, crop = ([256, 128], (128, 64)) if people else ([224, 224], (96, 96))
    row = {"MODEL.NAME": "transformer", "MODEL.TRANSFORMER_TYPE": f"{kind}_patch16_224_TransReID",
           "MODEL.STEM_CONV": stem, "MODEL.STRIDE_SIZE": [16, 16], "MODEL.DROP_PATH": 0.1, "MODEL.DROP_OUT": 0.0,
           "INPUT.SIZE_TRAIN": size, "DINO.CROP_HEIGHT": crop[0], "DINO.CROP_WIDTH": crop[1],
           "INPUT.PIXEL_MEAN": [0.485, 0.456, 0.406], "INPUT.PIXEL_STD": [0.229, 0.224, 0.225],
           "DINO.LOCAL_CROPS_NUMBER": 8, "DINO.GLOBAL_CROPS_SCALE": (0.4, 1.0), "DINO.LOCAL_CROPS_SCALE": (0.05, 0.4),
           "DINO.OUT_DIM": 65536, "DINO.HIDDEN_DIM": 2048, "DINO.NORM_LAST_LAYER": True, "DINO.USE_BN_IN_HEAD": False,
           "DINO.MOMENTUM_TEACHER": 0.996, "DINO.WARMUP_TEACHER_TEMP": 0.04, "DINO.TEACHER_TEMP": 0.04,
           "DINO.WARMUP_TEACHER_TEMP_EPOCHS": 0, "DINO.WEIGHT_DECAY_END": 0.4, "DINO.CLIP_GRAD": 3.0,
           "DINO.FREEZE_LAST_LAYER": 1, "DINO.MIN_LR": 1e-6, "SOLVER.OPTIMIZER_NAME": "AdamW",
           "SOLVER.BASE_LR": 5e-4, "SOLVER.WEIGHT_DECAY": 0.04, "SOLVER.IMS_PER_BATCH": 512, "SOLVER.MAX_EPOCHS": 100,
           "SOLVER.WARMUP_EPOCHS": 10, "SOLVER.CHECKPOINT_PERIOD": 5, "SOLVER.SEED": 0, "SOLVER.PRECISION": "auto",
           "DATALOADER.SAMPLER": "softmax", "DATALOADER.NUM_WORKERS": 16, "MODEL.PRETRAIN_CHOICE": "no",
           "DATASETS.NAMES": "luperson" if people else "images", "DATASETS.KEEP_NUM": keep}
    check(cfg, row, processor="dino", vit_small="deit", schedule="cosine", start=1)
    assert notes == []


CLUSTER_FILES = {
    f"{kind}_{data}_vit_small{stem}": (kind.startswith("uda"), data, bool(stem))
    for data, kinds in (("market1501", ("usl", "uda_msmt17")), ("msmt17", ("usl", "uda_market1501")))
    for kind in kinds for stem in ("", "_ics")
}  # fmt: skip


@pytest.mark.parametrize("name", CLUSTER_FILES)
def test_shipped_cluster_contrast_is_the_published_setting(name):
    adapts, data, ics = CLUSTER_FILES[name]
    cfg = load_config(SHIPPED / "cluster" / f"{name}.yml")
    stem = "vit_small_ics" if ics else "vit_small"
    source = {"market1501": "msmt17", "msmt17": "market1501"}[data]
    row = {"DATASETS.NAMES": data, "MODEL.STEM_CONV": ics, "MODEL.PRETRAIN_HW_RATIO": 2, "MODEL.DROP_PATH": 0.3,
           "MODEL.PRETRAIN_PATH":
               f"./runs/{source}_{stem}/transformer_120.pth" if adapts else f"./weights/{stem}_cfs_lup.pth",
           "INPUT.SIZE_TRAIN": [256, 128], "INPUT.PIXEL_MEAN": [0.5] * 3, "INPUT.RE_MODE": "const",
           "INPUT.RE_MAX_AREA": 0.4, "INPUT.RE_PROB": 0.5, "INPUT.PROB": 0.5, "INPUT.PADDING": 10,
           "DATALOADER.SAMPLER": "multiple_gallery", "DATALOADER.NUM_INSTANCE": 8, "SOLVER.IMS_PER_BATCH": 256,
           "SOLVER.OPTIMIZER_NAME": "SGD", "SOLVER.BASE_LR": 3.5e-4, "SOLVER.BIAS_LR_FACTOR": 1.0,
           "SOLVER.WEIGHT_DECAY": 5e-4, "SOLVER.WEIGHT_DECAY_BIAS": 5e-4, "SOLVER.STEP_SIZE": 20,
           "SOLVER.GAMMA": 0.1, "SOLVER.MAX_EPOCHS": 50, "SOLVER.MOMENTUM": 0.9,
           "SOLVER.EVAL_PERIOD": 50 if data == "msmt17" and not adapts else 10, "CLUSTER.ITERS": 200,
           "CLUSTER.EPS": 0.7 if data == "msmt17" else 0.6, "CLUSTER.USE_HARD": True, "CLUSTER.K1": 30,
           "CLUSTER.K2": 6, "CLUSTER.MOMENTUM": 0.2, "CLUSTER.TEMP": 0.05, "CLUSTER.MIN_SAMPLES": 4}
    check(cfg, row, processor="cluster", vit_small="deit", schedule="step", start=0)
    if adapts:  # from what our own supervised settings leave
        assert (SHIPPED / "transreid_ssl" / f"{source}_{stem}.yml").exists()


#: SSDViT's published combinations: file -> (sources, target, epochs).
SSDVIT = {
    "market1501_to_msmt17": (("market1501",), "msmt17v1", 40),
    "msmt17_to_market1501": (("msmt17v1",), "market1501", 40),
    "to_cuhk03": (("market1501", "msmt17v1", "cuhk_sysu"), "cuhk03", 60),
    "to_msmt17": (("market1501", "cuhk_sysu", "cuhk03"), "msmt17v1", 60),
    "to_market1501": (("msmt17v1", "cuhk_sysu", "cuhk03"), "market1501", 60),
}


@pytest.mark.parametrize("name", SSDVIT)
def test_shipped_ssdvit_file_is_the_published_setting(name):
    sources, target, epochs = SSDVIT[name]
    cfg, notes = load_config_with_notes(SHIPPED / "ssdvit" / f"{name}.yml")
    row = {"DATASETS.NAMES": sources, "DATASETS.TARGETS": (target,), "SOLVER.MAX_EPOCHS": epochs,
           "DATASETS.USE_ALL": True, "MODEL.NAME": "ssdvit", "MODEL.STEM_CONV": True, "MODEL.DROP_PATH": 0.1,
           "MODEL.TRANSFORMER_TYPE": "vit_base_patch16_224_TransReID", "MODEL.PRETRAIN_HW_RATIO": 2,
           "MODEL.PRETRAIN_PATH": "./weights/vit_base_ics_cfs_lup.pth", "INPUT.SIZE_TRAIN": [256, 128],
           "INPUT.SIZE_TEST": [256, 128], "INPUT.RESIZE": "pil_bicubic", "INPUT.PADDING": 10, "INPUT.PROB": 0.5,
           "INPUT.RE_PROB": 0.0, "INPUT.ROTATION": 5, "INPUT.AUTOAUGMENT": "imagenet", "INPUT.OCCLUSION_MIN": 0.0,
           "INPUT.COLOR_JITTER": ([0.5, 2], [0.5, 2], [0.5, 2], [-0.1, 0.1]), "INPUT.OCCLUSION_MAX": 0.8,
           "INPUT.PIXEL_MEAN": [0.485, 0.456, 0.406], "INPUT.PIXEL_STD": [0.229, 0.224, 0.225],
           "DATALOADER.SAMPLER": "multiple_gallery_nocam", "DATALOADER.NUM_INSTANCE": 8, "SOLVER.IMS_PER_BATCH": 128,
           "SOLVER.OPTIMIZER_NAME": "SGD", "SOLVER.MOMENTUM": 0.0, "SOLVER.BASE_LR": 0.008, "SOLVER.CLIP_GRAD": 0.0,
           "SOLVER.WEIGHT_DECAY": 1e-4, "SOLVER.WEIGHT_DECAY_BIAS": 1e-4, "SOLVER.BIAS_LR_FACTOR": 1.0,
           "SOLVER.WARMUP_METHOD": "cosine", "SOLVER.WARMUP_EPOCHS": 5, "SOLVER.MARGIN": 0.3, "SOLVER.EVAL_PERIOD": 1,
           "SOLVER.SEED": 1, "SOLVER.PRECISION": "fp32", "TEST.IMS_PER_BATCH": 256, "TEST.NECK_FEAT": "after",
           "SSD.MODE": "released", "SSD.ITERS": 400, "SSD.TEMPERATURE": 3.0, "SSD.WEIGHT": 0.7, "SSD.ALPHA": 0.8,
           "SSD.RANDOM_BLOCK": -1, "SSD.PAIRED_VIEWS": False, "SSD.TRIPLET_WEIGHTS": (0.8, 0.2),
           "SSD.LOSS_WEIGHTS": (1.0,) * 4, "SSD.MEMORY_TEMPERATURE": 0.05, "SSD.MEMORY_MOMENTUM": 0.2}
    check(cfg, row, processor="self_distill", vit_small="deit", schedule="cosine", start=-1)
    assert notes == []


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*/*.yml")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_shipped_file_is_short_and_complete(path):
    cfg = load_config(path)
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    assert path.stem.startswith("_") or path.parent.name == "baseline" or len(lines) <= 12
    assert "auto" not in (cfg.PROCESSOR.NAME, cfg.MODEL.VIT_SMALL, cfg.SOLVER.SCHEDULER, cfg.SOLVER.SCHEDULER_START)


@pytest.mark.parametrize("folder", sorted({path.parent.name for path in SHIPPED.glob("*/*.yml")}))
def test_a_shipped_configuration_survives_dumping(folder, tmp_path):
    """The first file of each method of a folder: what one run writes, another reads."""
    by_method = {cfg.PROCESSOR.NAME: cfg for cfg in map(load_config, sorted((SHIPPED / folder).glob("*.yml"))[::-1])}
    for cfg in by_method.values():
        (tmp_path / "resolved.yml").write_text(dump(cfg))
        assert load_config_with_notes(tmp_path / "resolved.yml") == (cfg, [])


def test_every_shipped_file_is_checked_here():
    rows = {f"transreid/{row['file']}" for row in TRANSREID} | {f"transreid/{name}" for name in BEST}
    rows |= {"transreid/eth80"}  # ours: data that published settings know nothing of
    rows |= {f"transreid_ssl/{row['file']}" for row in TRANSREID_SSL}
    rows |= {shipped_clip(row).relative_to(SHIPPED).with_suffix("").as_posix() for row in CLIP}
    rows |= {f"svll/{data}_vit_base" for data in ("person", "veri", "vehicleid")}
    rows |= {"clip_reid/eth80", "clip_reid/synthetic", "clip_reid/synthetic_base", "svll/eth80", "svll/synthetic"}
    rows |= {f"msvit/{name}" for name in MSVIT_FILES} | {f"mtda/{name}" for name in MTDA}
    rows |= {f"dino/{name}" for name in (*DINO, "synthetic")}
    rows |= {f"cluster/{name}" for name in CLUSTER_FILES} | {"cluster/market1501_resnet50"}
    rows |= {f"transreid_ssl/synthetic_{name}" for name in ("ics", "source")}
    rows |= {"cluster/usl_synthetic", "cluster/uda_synthetic_synthetic_c"}  # small ones of ours
    rows |= {f"ssdvit/{name}" for name in SSDVIT}
    rows |= {f"torchreid/{name.removeprefix('torchreid_')}" for name in ZOO}
    rows |= {f"ssdvit/synthetic{end}" for end in ("", "_single", "_start", "_supervised")}  # small ones of ours
    rows |= {*PUBLISHED_RUNS, *(f"pass/{row['file']}_384" for row in PASS)}
    folders = ("transreid", "transreid_ssl", "clip_reid", "svll", "msvit", "mtda", "dino", "cluster", "ssdvit",
               "torchreid", "solider", "personvit", "pass")
    found = {f"{path.parent.name}/{path.stem}" for folder in folders
             for path in (SHIPPED / folder).glob("*.yml") if not path.stem.startswith("_")}
    assert found == rows
