"""The published settings of the four systems as tables, and a writer of YAML files in their style, quirks included."""

from __future__ import annotations

J, D = "jx_vit_base_p16_224-80ecf9dd", "deit_base_distilled_patch16_224-df68dfff"
ICS = "vit_small_ics_cfs_lup"


def _transreid() -> list[dict]:
    """TransReID's 43 rows. Columns: file, weights, size, stride, SIE, JPM's shift (0: none), RE_PROB, rate, batch."""
    small = [256, 128], 16, "", 0
    people = [
        ("vit_base", J, [256, 128], 16, "", 0, 0.5, 0.008, 64),
        ("vit_jpm", J, [256, 128], 16, "", 5, 0.5, 0.008, 64),
        ("vit_sie", J, [256, 128], 16, "cam", 0, 0.5, 0.008, 64),
        ("vit_transreid", J, [256, 128], 16, "cam", 5, 0.5, 0.008, 64),
        ("vit_transreid_384", J, [384, 128], 16, "cam", 5, 0.5, 0.008, 64),
        ("vit_transreid_stride", J, [256, 128], 12, "cam", 5, 0.5, 0.008, 64),
        ("vit_transreid_stride_384", J, [384, 128], 12, "cam", 5, 0.5, 0.008, 64),
        ("deit_transreid_stride", D, [256, 128], 12, "cam", 5, 0.8, 0.008, 64),
    ]
    rows = [("dukemtmc", "transformer_base", J, [256, 256], 16, "", 0, 0.5, 0.008, 64)]
    for dataset in ("dukemtmc", "market1501", "msmt17"):
        rows += [(dataset, *row) for row in people]
    rows[rows.index(("msmt17", *people[-1]))] = (
        "msmt17", "deit_transreid_stride", D, [256, 128], 12, "cam", 5, 0.8, 0.005, 64)
    rows += [
        ("msmt17", "vit_small", "vit_small_p16_224-15ec54c9", *small, 0.8, 0.005, 64),
        ("msmt17", "deit_small", "deit_small_distilled_patch16_224-649709d9", *small, 0.8, 0.005, 64),
        ("occ_duke", "vit_base", J, [256, 128], 16, "", 0, 0.5, 0.008, 64),
        ("occ_duke", "vit_jpm", J, [256, 128], 16, "", 5, 0.5, 0.008, 64),
        ("occ_duke", "vit_sie", J, [256, 128], 16, "cam", 0, 0.5, 0.008, 64),
        ("occ_duke", "vit_transreid", J, [256, 128], 16, "cam", 5, 0.5, 0.008, 64),
        ("occ_duke", "vit_transreid_stride", J, [256, 128], 11, "cam", 5, 0.5, 0.008, 64),
        ("occ_duke", "deit_transreid_stride", D, [256, 128], 11, "cam", 5, 0.8, 0.008, 64),
        ("veri", "vit_base", J, [256, 256], 16, "", 0, 0.5, 0.008, 64),
        ("veri", "vit_transreid", J, [256, 256], 16, "cam, view", 8, 0.5, 0.01, 64),
        ("veri", "vit_transreid_stride", J, [256, 256], 12, "cam, view", 8, 0.5, 0.01, 64),
        ("veri", "deit_transreid", D, [256, 256], 16, "cam, view", 8, 0.8, 0.01, 64),
        ("veri", "deit_transreid_stride", D, [256, 256], 12, "cam, view", 8, 0.8, 0.01, 64),
        ("vehicleid", "vit_base", J, [256, 256], 16, "", 0, 0.5, 0.04, 224),
        ("vehicleid", "vit_transreid", J, [256, 256], 16, "", 8, 0.5, 0.045, 224),
        ("vehicleid", "vit_transreid_stride", J, [256, 256], 12, "", 8, 0.5, 0.045, 256),
        ("vehicleid", "deit_transreid", D, [256, 256], 16, "", 8, 0.8, 0.03, 256),
        ("vehicleid", "deit_transreid_stride", D, [256, 256], 12, "", 8, 0.8, 0.03, 256),
    ]
    return [_transreid_row(*row) for row in rows]


def _transreid_row(dataset, file, weights, size, stride, sie, shift, re_prob, rate, batch) -> dict:
    kind = file if file in ("vit_small", "deit_small") else "vit_base"
    row = _common(f"{dataset}_{file}", dataset, kind, weights, size, rate, batch) | {
        "MODEL.STRIDE_SIZE": [stride, stride],
        "MODEL.SIE_CAMERA": "cam" in sie,
        "MODEL.SIE_VIEW": "view" in sie,
        "MODEL.SIE_COE": 3.0,
        "MODEL.JPM": bool(shift),
        "MODEL.RE_ARRANGE": True,
        "INPUT.RE_PROB": re_prob,
        "SOLVER.WARMUP_EPOCHS": 5,
        "SOLVER.LARGE_FC_LR": False,
        "SOLVER.CHECKPOINT_PERIOD": 120,
        "SOLVER.EVAL_PERIOD": 120,
        "SOLVER.LOG_PERIOD": 50,
    }
    if shift:
        row["MODEL.SHIFT_NUM"] = shift
    if weights == D and dataset in ("veri", "vehicleid"):       # these leave the ImageNet defaults
        row["INPUT.PIXEL_MEAN"], row["INPUT.PIXEL_STD"] = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    return row


def _transreid_ssl() -> list[dict]:
    """TransReID-SSL's 11 rows: file, type, weights, size, stem, hw_ratio, rate, warm-up, batch, periods."""
    rows = [
        ("vit_base_baseline", "vit_base", J, [256, 128], False, 1, 0.008, 5, 64, 20, 50),
        ("vit_base_ics_384", "vit_base", "vit_base_ics_cfs_lup", [384, 128], True, 2, 0.0004, 20, 64, 120, 20),
        ("vit_small", "vit_small", "vit_small_cfs_lup", [256, 128], False, 2, 0.0004, 20, 64, 120, 20),
        ("vit_small_ics", "vit_small", ICS, [256, 128], True, 2, 0.0004, 20, 64, 120, 20),
        ("vit_small_ics_ddp", "deit_small", ICS, [256, 128], True, 2, 0.0032, 20, 256, 120, 20),
    ]
    debug = ("debug", "deit_small", "dino_checkpoint", [256, 128], True, 2, 0.0032, 20, 256, 120, 20)
    table = []
    for dataset in ("market1501", "msmt17"):
        for file, kind, weights, size, stem, ratio, rate, warmup, batch, evals, logs in [
                *rows, *([debug] if dataset == "market1501" else [])]:
            table.append(_common(f"{dataset}_{file}", dataset, kind, weights, size, rate, batch) | {
                "MODEL.STRIDE_SIZE": [16, 16], "MODEL.STEM_CONV": stem, "MODEL.PRETRAIN_HW_RATIO": ratio,
                "MODEL.JPM": False, "MODEL.SIE_CAMERA": False, "MODEL.SIE_VIEW": False, "INPUT.RE_PROB": 0.5,
                "SOLVER.WARMUP_EPOCHS": warmup, "SOLVER.CHECKPOINT_PERIOD": 120, "SOLVER.EVAL_PERIOD": evals,
                "SOLVER.LOG_PERIOD": logs})
    return table


def _solider() -> list[dict]:
    """SOLIDER-REID's 6 rows: one setting for three Swins. None has a semantic weight."""
    return [
        _common(f"{dataset}_{kind}", dataset, kind, f"solider_{kind}", [384, 128], 0.0008, 64)
        | SSL_ADDED | {"MODEL.TRANSFORMER_TYPE": f"{kind}_patch4_window7_224"}
        for dataset in ("market1501", "msmt17") for kind in ("swin_base", "swin_small", "swin_tiny")
    ]


def _personvit() -> list[dict]:
    """PersonViT's 15 rows: TransReID-SSL's 11, and plain ones for two more sets."""
    rows = [
        row | {"file": row["file"].replace("vit_base_baseline", "vit_base")} for row in _transreid_ssl()
    ]
    return rows + [
        _common(f"{dataset}_{kind}", dataset, kind, f"personvit_{kind}", [256, 128], rate, 64) | SSL_ADDED
        for dataset in ("dukemtmc", "occ_duke") for kind, rate in (("vit_base", 0.008), ("vit_small", 0.0004))
    ]


def _pass() -> list[dict]:
    """PASS's 4 rows; nothing in them says that the network has part tokens."""
    return [
        _common(f"{dataset}_{kind}", dataset, kind, f"pass_{kind}_full", [256, 128], 0.0004, 64) | SSL_ADDED
        for dataset in ("market1501", "msmt17") for kind in ("vit_base", "vit_small")
    ]


SSL_ADDED = {
    "MODEL.STRIDE_SIZE": [16, 16], "MODEL.PRETRAIN_HW_RATIO": 2, "MODEL.JPM": False, "MODEL.SIE_CAMERA": False,
    "MODEL.SIE_VIEW": False, "INPUT.RE_PROB": 0.5, "SOLVER.WARMUP_EPOCHS": 20, "SOLVER.CHECKPOINT_PERIOD": 120,
    "SOLVER.EVAL_PERIOD": 120, "SOLVER.LOG_PERIOD": 20,
}


def _common(name, dataset, kind, weights, size, rate, batch) -> dict:
    """What both systems' rows share. ``file`` and ``weights`` are no keys; the rest is."""
    return {
        "file": name, "weights": weights, "MODEL.TRANSFORMER_TYPE": f"{kind}_patch16_224_TransReID",
        "DATASETS.NAMES": dataset, "INPUT.SIZE_TRAIN": size, "INPUT.SIZE_TEST": size,
        "SOLVER.BASE_LR": rate, "SOLVER.IMS_PER_BATCH": batch,
        "MODEL.NAME": "transformer", "MODEL.PRETRAIN_CHOICE": "imagenet", "MODEL.IF_LABELSMOOTH": "off",
        "MODEL.METRIC_LOSS_TYPE": "triplet", "MODEL.NO_MARGIN": True,
        "INPUT.PROB": 0.5, "INPUT.PADDING": 10, "INPUT.PIXEL_MEAN": [0.5] * 3, "INPUT.PIXEL_STD": [0.5] * 3,
        "DATALOADER.SAMPLER": "softmax_triplet", "DATALOADER.NUM_INSTANCE": 4, "DATALOADER.NUM_WORKERS": 8,
        "SOLVER.OPTIMIZER_NAME": "SGD", "SOLVER.MAX_EPOCHS": 120, "SOLVER.BIAS_LR_FACTOR": 2,
        "SOLVER.WEIGHT_DECAY": 1e-4, "SOLVER.WEIGHT_DECAY_BIAS": 1e-4,
        "TEST.IMS_PER_BATCH": 256, "TEST.NECK_FEAT": "before", "TEST.FEAT_NORM": "yes", "TEST.RE_RANKING": False,
        "TEST.WEIGHT": "",
    }


def _clip() -> list[dict]:
    """CLIP-ReID's and SVLL-ReID's 15 rows."""
    vit, rn = (64, 60, 5e-6, 0.1, 1e-4, (30, 50)), (64, 120, 3.5e-4, 0.01, 5e-4, (40, 70))
    fast, half = (64, 60, 5e-5, 0.1, 1e-4, (30, 50)), (32, 60, 5e-6, 0.1, 1e-4, (30, 50))
    rows = [  # file, name, smoothing, identity weight, stage 1 (batch, epochs), stage 2 or single, the rest
        ("person_vit_base", "ViT-B-16", "on", 1.0, None, vit, {}),
        ("veri_vit_base", "ViT-B-16", "on", 1.0, None, vit, {}),
        ("VehicleID_vit_base", "ViT-B-16", "off", 1.0, None, fast, {}),
        ("person_cnn_base", "RN50", "on", 1.0, None, rn, {}),
        ("veri_cnn_base", "RN50", "on", 1.0, None, rn, {}),
        ("VehicleID_cnn_base", "RN50", "off", 1.0, None, rn, {}),
        ("person_vit_clipreid", "ViT-B-16", "on", 0.25, (64, 120), vit, {}),
        ("veri_vit_prom", "ViT-B-16", "on", 0.25, (64, 60), vit, {}),
        ("VehicleID_vit_clipreid", "ViT-B-16", "on", 0.25, (256, 60), fast, {}),
        ("person_cnn_clipreid", "RN50", "on", 1.0, (64, 60), rn, {}),
        ("veri_cnn_prom", "RN50", "on", 1.0, (64, 60), rn, {}),
        ("VehicleID_cnn_clipreid", "RN50", "off", 1.0, (256, 60), rn, {}),
        ("person_vit_svllreid", "ViT-B-16", "on", 0.25, (256, 120), vit, {
            "DATASETS.NAMES": "occ_duke", "MODEL.USE_SSL": True, "MODEL.SIE_CAMERA": True, "MODEL.SIE_COE": 1.0,
            "MODEL.STRIDE_SIZE": [12, 12], "SOLVER.STAGE1.SSL_LOSS_WEIGHT": 0.8}),
        ("veri_vit_svllreid", "ViT-B-16", "on", 0.25, (64, 60), half, {
            "DATASETS.NAMES": "veri", "MODEL.USE_SSL": True, "MODEL.USE_SSL_STAGE1": True, "MODEL.SIE_CAMERA": True,
            "MODEL.SIE_VIEW": True, "MODEL.SIE_COE": 1.0, "MODEL.STRIDE_SIZE": [12, 12],
            "SOLVER.STAGE1.SSL_LOSS_WEIGHT": 2.0, "SOLVER.STAGE2.CHECKPOINT_PERIOD": 600}),
        ("VehicleID_vit_svllreid", "ViT-B-16", "on", 0.25, (64, 60), (32, *fast[1:]), {
            "DATASETS.NAMES": "VehicleID", "MODEL.USE_SSL": True, "MODEL.SIE_CAMERA": True, "MODEL.SIE_VIEW": True,
            "MODEL.SIE_COE": 1.0, "MODEL.STRIDE_SIZE": [12, 12], "SOLVER.STAGE1.SSL_LOSS_WEIGHT": 0.8,
            "SOLVER.STAGE2.CHECKPOINT_PERIOD": 600}),
    ]
    table = []
    for file, name, smooth, weight, stage1, (batch, epochs, rate, factor, decay, steps), rest in rows:
        size = [256, 128] if file.startswith("person") else [256, 256]
        row = {"file": file, "MODEL.NAME": name, "MODEL.IF_LABELSMOOTH": smooth, "MODEL.ID_LOSS_WEIGHT": weight,
               "MODEL.STRIDE_SIZE": [16, 16], "INPUT.SIZE_TRAIN": size, "INPUT.SIZE_TEST": size,
               "DATALOADER.SAMPLER": "softmax_triplet", "DATALOADER.NUM_INSTANCE": 4, "SOLVER.SEED": 1234,
               "SOLVER.MARGIN": 0.3, "TEST.IMS_PER_BATCH": 64, "TEST.NECK_FEAT": "before"}
        if name != "RN50":
            row |= {"INPUT.PIXEL_MEAN": [0.5] * 3, "INPUT.PIXEL_STD": [0.5] * 3}
        if stage1:
            row |= {f"SOLVER.STAGE1.{key}": value for key, value in {
                "IMS_PER_BATCH": stage1[0], "MAX_EPOCHS": stage1[1], "BASE_LR": 3.5e-4, "WARMUP_LR_INIT": 1e-5,
                "LR_MIN": 1e-6, "WEIGHT_DECAY": 1e-4, "WEIGHT_DECAY_BIAS": 1e-4, "WARMUP_EPOCHS": 5}.items()}
        solver = "SOLVER.STAGE2" if stage1 else "SOLVER"
        row |= {f"{solver}.{key}": value for key, value in {
            "IMS_PER_BATCH": batch, "OPTIMIZER_NAME": "Adam", "MAX_EPOCHS": epochs, "BASE_LR": rate,
            "BIAS_LR_FACTOR": 2, "WEIGHT_DECAY": decay, "WEIGHT_DECAY_BIAS": decay, "GAMMA": 0.1, "STEPS": steps,
            "WARMUP_FACTOR": factor, "WARMUP_ITERS": 10, "WARMUP_METHOD": "linear", "CHECKPOINT_PERIOD": epochs,
            "LOG_PERIOD": 50, "EVAL_PERIOD": epochs}.items()}
        table.append(row | rest)
    return table


TRANSREID, TRANSREID_SSL, CLIP = _transreid(), _transreid_ssl(), _clip()
SOLIDER, PERSONVIT, PASS = _solider(), _personvit(), _pass()


def keys(row: dict) -> dict:
    """The row's keys and values, without what is none."""
    return {key: value for key, value in row.items() if key.isupper() or "." in key}


def upstream_yaml(settings: dict) -> str:
    """Dotted keys as a YAML text in the authors' style: ``NAMES: ('market1501')``, ``1e-4``, commented-out sections."""
    tree: dict = {}
    for key, value in settings.items():
        *sections, leaf = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = value
    if "DATASETS" not in tree:
        tree["DATASETS"] = "\n#   NAMES: ('market1501')\n#   ROOT_DIR: ('../data')"
    return "\n".join(_lines(tree, ""))


def _lines(tree: dict, indent: str):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield f"{indent}{key}:"
            yield from _lines(value, indent + "  ")
        else:
            yield f"{indent}{key}: {value if key == 'DATASETS' else _text(value)}"


def _text(value) -> str:
    if isinstance(value, str):
        return f"('{value}')" if value in ("market1501", "veri", "VehicleID", "0", "../../data") else f"'{value}'"
    if isinstance(value, float) and 0 < value < 1e-3:
        mantissa, exponent = f"{value:e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"     # 1e-4, without a point: a text for PyYAML
    return str(list(value)) if isinstance(value, tuple) else str(value)
