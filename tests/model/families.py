"""One tiny network of every family, as settings."""

from __future__ import annotations

from tests.tiny import CLIP, MSVIT

MODELS = {
    "vit": {},
    "jpm": {"MODEL__JPM": True, "MODEL__SIE_CAMERA": True, "MODEL__DEVIDE_LENGTH": 2, "MODEL__SHIFT_NUM": 2},
    "clip vit": CLIP,
    "clip vit jpm": CLIP | {"MODEL__JPM": True, "MODEL__DEVIDE_LENGTH": 2, "MODEL__SHIFT_NUM": 2},
    "timm vit": {"MODEL__NAME": "timm:vit_tiny_patch16_224", "INPUT__SIZE_TRAIN": [32, 32]},
    "resnet": {"MODEL__NAME": "resnet10", "INPUT__SIZE_TRAIN": [64, 32]},
    "torchreid resnet": {"MODEL__NAME": "torchreid_resnet18", "INPUT__SIZE_TRAIN": [64, 32], "MODEL__FC_DIM": 16},
    "osnet": {"MODEL__NAME": "torchreid_osnet_x0_25", "INPUT__SIZE_TRAIN": [64, 32], "MODEL__FC_DIM": 16},
    "mobilenet": {"MODEL__NAME": "torchreid_mobilenetv2_x1_4", "INPUT__SIZE_TRAIN": [64, 64], "MODEL__FC_DIM": 16},
    "msvit": MSVIT,
    "clip rn": CLIP | {"MODEL__NAME": "RN-micro", "MODEL__STRIDE_SIZE": [16, 16]},
    "timm convnext": {"MODEL__NAME": "timm:convnext_atto", "INPUT__SIZE_TRAIN": [64, 64]},
    "timm swin": {"MODEL__NAME": "timm:swin_tiny_patch4_window7_224", "INPUT__SIZE_TRAIN": [64, 32]},
}  # fmt: skip

OF_METHODS = {
    "cluster encoder": {"PROCESSOR__NAME": "cluster"},
    "cluster encoder osnet": {
        "PROCESSOR__NAME": "cluster", "MODEL__NAME": "torchreid_osnet_x0_25", "MODEL__POOLING": "gem",
        "INPUT__SIZE_TRAIN": [64, 32],
    },
    "cluster encoder clip": CLIP | {"PROCESSOR__NAME": "cluster"},
    "ssdvit": {
        "PROCESSOR__NAME": "self_distill", "MODEL__NAME": "ssdvit", "DATALOADER__SAMPLER": "multiple_gallery_nocam",
    },
    "multi crop": {
        "PROCESSOR__NAME": "dino", "DATALOADER__SAMPLER": "softmax", "DINO__OUT_DIM": 12, "DINO__CROP_HEIGHT": 16,
        "DINO__CROP_WIDTH": 8,
    },
    "clip baseline": CLIP | {"PROCESSOR__NAME": "supervised", "MODEL__SIE_CAMERA": True},
    "clip with heads": CLIP | {"MODEL__USE_SSL": True},
    "solider": {
        "MODEL__TRANSFORMER_TYPE": "swin_micro_patch4", "MODEL__SWIN": "solider", "MODEL__SEMANTIC_WEIGHT": 0.2,
        "INPUT__SIZE_TRAIN": [64, 32],
    },
    "pass": {"MODEL__MULTI_NECK": True},
    "pass, one neck": {"MODEL__MULTI_NECK": False, "MODEL__FEAT_FUSION": "mean"},
    "personvit": {"MODEL__POOLING": "avg_max"},
    "swin": {"MODEL__TRANSFORMER_TYPE": "swin_micro_patch4", "INPUT__SIZE_TRAIN": [64, 32]},
    "msvit classifier": MSVIT | {"MODEL__MSVIT__HEAD": "classifier"},
    "msvit backbone": MSVIT | {"MODEL__MSVIT__HEAD": "bnneck"},
    "head per target": {
        "PROCESSOR__NAME": "mtda_kd", "DATASETS__TARGETS": ("market1501", "dukemtmc"), "KD__MULTI_HEAD": True,
        "MODEL__NAME": "torchreid_resnet18", "MODEL__MAPS": "student", "INPUT__SIZE_TRAIN": [64, 32],
        "MODEL__FC_DIM": 16,
    },
}  # fmt: skip
"""The networks that only some methods or settings have, on a tiny backbone."""
