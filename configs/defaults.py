"""The key tree as data: each key's default, what it means, and which keys nothing reads.

The tree is the union of those of TransReID, TransReID-SSL, CLIP-ReID and SVLL-ReID, so that a YAML written for any of
them loads unchanged; keys of our own stand beside them. ``python -m configs`` prints this file with the readers.
"""

from __future__ import annotations

import builtins
import copy
from dataclasses import dataclass
from typing import Any

from yacs.config import CfgNode


@dataclass(frozen=True)
class Key:
    """Describes a key: its default, what it means and which values it takes.

    The type is the default's, unless the default cannot show it.

    type: the type of the value, or of each element of a list, where the default is None, 'auto' or ().
    is_list: a list of any length is accepted (otherwise the default's length is binding). A single value counts as a
    list of one, but stays a single value where the default is one.
    min, max: bounds of a number, or of each number of a list; no key takes nan or an infinity. hint: what to do about
    a number beyond them. choices: the only texts that are accepted. path: ``~`` and ``$VAR`` are replaced.
    """

    default: Any
    meaning: str
    type: builtins.type[Any] | None = None
    is_list: bool = False
    min: float | None = None
    max: float | None = None
    choices: tuple[str, ...] = ()
    hint: str = ""
    path: bool = False


MODEL = {
    "DEVICE": Key("auto", "where to compute: auto (what is there), cpu, cuda; cuda set by hand and absent is an error"),
    "DEVICE_ID": Key("0", "upstream's choice of visible GPUs"),
    "NAME": Key("resnet50", "architecture: transformer, ssdvit, resnet50, resnet50_ibn_a, ViT-B-16, RN50, timm:NAME, "
                "open_clip:NAME; resnet50 as in all four upstream trees. A bare CLIP name has QuickGELU, as OpenAI's"),
    "TRANSFORMER_TYPE": Key("None", "which transformer stands behind NAME 'transformer'; 'None' forces a choice"),
    "VIT_SMALL": Key("auto", "which network vit_small is: transreid (768 wide, 8 blocks), deit (384 wide, 12 blocks); "
                     "auto tells the two upstream meanings apart", choices=("auto", "transreid", "deit")),
    "SWIN": Key("auto", "which network the Swin types are: transreid_ssl, or solider (any image size, semantic "
                "layers); auto: solider for swin_tiny, where SEMANTIC_WEIGHT is set, and in a YAML file that names a "
                "Swin, as only SOLIDER publishes such files", choices=("auto", "transreid_ssl", "solider")),
    "SEMANTIC_WEIGHT": Key(1.0, "SOLIDER: 1 for semantics, 0 for appearance, below 0 for no such layers; upstream's "
                           "default, but its models are trained and tested with 0.2", max=1),
    "PART_TOKENS": Key("auto", "PASS: three part tokens beside a ViT's class token; auto: where MULTI_NECK or "
                       "FEAT_FUSION is set", type=bool),
    "MULTI_NECK": Key(True, "PASS: a neck for the class token and for each part token; False: one neck on the fused "
                      "feature"),
    "FEAT_FUSION": Key("cat", "PASS: class token and mean of the part tokens side by side (cat), or their mean (mean)",
                       choices=("cat", "mean")),
    "LAST_STRIDE": Key(1, "stride of a ResNet's last stage; 1 keeps a finer map, as every published setting does",
                       min=1, max=2),
    "PRETRAIN_CHOICE": Key("imagenet", "imagenet: load PRETRAIN_PATH into the backbone; self: into the whole model; "
                           "no: random weights"),
    "PRETRAIN_PATH": Key("", "file of the pre-trained weights, or timm:NAME, open_clip:TAG for what these libraries "
                         "give out; empty: fetched by the library that has them", path=True),
    "PRETRAIN_HW_RATIO": Key(1, "height over width of the grid the position embeddings were trained on: 1 for "
                             "ImageNet, 2 for pre-training at 256x128", min=1),
    "WEIGHT_KEY": Key("", "which weights of PRETRAIN_PATH and TEST.WEIGHT are meant, of a file that holds several, "
                      "such as state_dict_ema; empty: the trained ones, not their average"),
    "SIE_NEW_ROWS": Key(False, "fine-tuning from a file of other cameras or views: new rows of side information, which "
                        "start as the mean of the file's, as no row of another camera is one of these"),
    "NECK": Key("bnneck", "bnneck or no: batch norm before the classifier of a ResNet", choices=("bnneck", "no")),
    "IF_WITH_CENTER": Key("no", "upstream's announcement of the center loss"),
    "ID_LOSS_TYPE": Key("softmax", "classifier: softmax, arcface, cosface, amsoftmax, circle",
                        choices=("softmax", "arcface", "cosface", "amsoftmax", "circle")),
    "ID_LOSS_WEIGHT": Key(1.0, "weight of the identity loss"),
    "TRIPLET_LOSS_WEIGHT": Key(1.0, "weight of the triplet loss"),
    "I2T_LOSS_WEIGHT": Key(1.0, "weight of the image-to-text loss in stage 2 of the prompt method"),
    "METRIC_LOSS_TYPE": Key("triplet", "triplet, center or triplet_center; center loss is off as in published runs",
                            choices=("triplet", "center", "triplet_center")),
    "DIST_TRAIN": Key(False, "upstream's switch for several GPUs"),
    "NO_MARGIN": Key(False, "soft margin instead of SOLVER.MARGIN in the triplet loss"),
    "IF_LABELSMOOTH": Key("on", "on or off: label smoothing of 0.1 in the identity loss"),
    "COS_LAYER": Key(False, "upstream's cosine layer"),
    "DROPOUT_RATE": Key(0.0, "dropout between neck and classifier", min=0, max=1),
    "REDUCE_FEAT_DIM": Key(False, "a linear layer to FEAT_DIM before the neck"),
    "FEAT_DIM": Key(512, "feature width with REDUCE_FEAT_DIM", min=1),
    "DROP_PATH": Key(0.1, "stochastic depth of the last block, growing linearly from 0 in the first", min=0, max=1),
    "DROP_OUT": Key(0.0, "dropout in the transformer's embeddings and linear layers", min=0, max=1),
    "ATT_DROP_RATE": Key(0.0, "dropout on the attention weights", min=0, max=1),
    "STRIDE_SIZE": Key([16, 16], "stride of the patch embedding (down, across); below 16 patches overlap", min=1),
    "POOLING": Key("auto", "ResNet: of its last map, avg (the baseline's), max, or gem (generalised mean, its "
                   "exponent trained from 3 on). ViT: None (the class token), avg or max of the patches, avg_max "
                   "(PersonViT's), gem (class token and generalised mean). auto: avg for a ResNet, None for a ViT",
                   choices=("auto", "None", "avg", "max", "avg_max", "gem")),
    "GEM_POOLING": Key(False, "add the generalised mean of the patch tokens to the class token"),
    "STEM_CONV": Key(False, "convolutional stem with instance and batch norm (ICS) in place of the patch embedding"),
    "JPM": Key(False, "jigsaw patch module: four local branches beside the global one"),
    "SHIFT_NUM": Key(5, "JPM: patches are rotated by SHIFT_NUM - 1 places; 5 for people, 8 for vehicles"),
    "SHUFFLE_GROUP": Key(2, "JPM: groups of the patch shuffle"),
    "DEVIDE_LENGTH": Key(4, "JPM: a local branch sees one DEVIDE_LENGTH-th of the patches"),
    "RE_ARRANGE": Key(True, "JPM: shift and shuffle the patches before cutting them"),
    "SIE_COE": Key(3.0, "factor of the side information embedding"),
    "SIE_CAMERA": Key(False, "embed the camera"),
    "SIE_VIEW": Key(False, "embed the view (orientation of a vehicle)"),
    "USE_SSL": Key(False, "prompt method: vision self-supervision in stage 2; False, so that CLIP-ReID's YAMLs, which "
                   "do not know the key, mean what they meant"),
    "USE_SSL_STAGE1": Key(None, "prompt method: language self-supervision in stage 1; None: as USE_SSL", type=bool),
    "SSL_TYPE": Key("SIMCLR", "prompt method: head of the vision self-supervision, SIMCLR or SIMSIAM",
                    choices=("SIMCLR", "SIMSIAM")),
    "SSL_HIDDEN": Key(4096, "prompt method: hidden width of SimCLR's heads; published. Smaller saves memory", min=1),
    "PROMPT_NOUN": Key("", "prompt method: the prompt's noun; empty: by the dataset's kind (person, vehicle, ...)"),
    "TEMPORAL": Key("mean", "pooling over the frames of a clip, between backbone and neck (DATALOADER.FRAMES): mean, "
                    "as tests by TEST.TRACKLETS do, max, gem, attention (frames unlike the others count less)",
                    choices=("mean", "max", "gem", "attention")),
    "FC_HEAD": Key("feat", "torchreid family: layers behind the pooling: feat (linear, batch norm), fc (linear, batch "
                   "norm, ReLU; its model zoo's), none", choices=("feat", "fc", "none")),
    "FC_DIM": Key(2048, "torchreid family: width of the feature behind FC_HEAD; 2048 as published", min=1),
    "MAPS": Key("none", "torchreid's ResNets: stage maps for distillation, as teacher or as student gives them",
                choices=("none", "teacher", "student")),
    "MSVIT.HEAD": Key("parts", "MSViT: parts (two branches and part heads), bnneck (one feature and neck, as ResNets), "
                      "classifier (ImageNet pre-training)", choices=("parts", "bnneck", "classifier")),
    "MSVIT.WIDTHS": Key((), "MSViT: widths of the four stages; empty: those of msvit_s or msvit_l", type=int, min=1),
    "MSVIT.BLOCKS": Key((), "MSViT: convolution blocks of the four stages; empty: 3, 6, 15, 3", type=int, min=1),
    "MSVIT.NUM_PART": Key(2, "MSViT: parts of the second branch, with a head each", min=1),
    "MSVIT.SPARSE_RATIO": Key(0.3, "MSViT: share of a window's tokens that each token attends to; 1: all", min=0,
                              max=1),
    "MSVIT.SPLIT_SIZE": Key([8, 8], "MSViT: rows and columns of tokens in an attention window; 16 times them divides "
                            "the image", min=1),
    "MSVIT.SPARSE_POOL": Key(True, "MSViT: parts are interleaved rows of the map; False: stripes"),
    "MSVIT.BATCH_ERASING": Key(0.4, "MSViT: largest share of an image that erasing inside the network takes; 0: none",
                               min=0, max=1),
    "MSVIT.BATCH_ERASING_PROB": Key(0.5, "MSViT: probability of that erasing", min=0, max=1),
    "MSVIT.FREEZE": Key(["stem"], "MSViT: parts that are not trained, of stem, layer1, layer2, layer3; their batch "
                        "norm keeps counting", type=str, is_list=True,
                        choices=("stem", "layer1", "layer2", "layer3")),
    "MSVIT.ACT": Key("relu", "MSViT: relu as published for ReID, or gelu as in its pre-training",
                     choices=("relu", "gelu")),
    "LORA.RANK": Key(0, "rank of the adapters beside the backbone's linear layers, which alone learn in it; 0: none, "
                     "all of it learns", min=0),
    "LORA.ALPHA": Key(16.0, "adapters count ALPHA / RANK times", min=1e-3),
    "LORA.TARGETS": Key(["qkv", "proj"], "patterns of the ends of the layers' names; the attention's, as in the paper",
                        type=str, is_list=True),
    "LORA.SAVE": Key("all", "what checkpoints hold: all, or adapters (they, necks and heads; the frozen backbone comes "
                     "from PRETRAIN_PATH again)", choices=("all", "adapters")),
    "SYNC_BN": Key(False, "batch norm statistics over all processes"),
    "COMPILE": Key(False, "torch.compile the model; off, since the first step takes minutes"),
    "GRAD_CHECKPOINT": Key(False, "recompute activations in the backward pass: less memory, more time"),
}

_OF_PIXELS = "it is of pixels from 0 to 1; divide one of pixels from 0 to 255 by 255"

INPUT = {
    "SIZE_TRAIN": Key([384, 128], "height and width of training images", min=1, max=8192),
    "SIZE_TEST": Key([384, 128], "height and width of test images", min=1, max=8192),
    "PROB": Key(0.5, "probability of the horizontal flip", min=0, max=1),
    "RE_PROB": Key(0.5, "probability of random erasing", min=0, max=1),
    "RE_MAX_AREA": Key(1 / 3, "largest share of the image that random erasing takes; 1/3 as in timm's", min=0.02,
                       max=1),
    "RE_MODE": Key("pixel", "random erasing: pixel (noise) or const (cluster contrast's: one colour, more elongated)",
                   choices=("pixel", "const")),
    "PADDING": Key(10, "pixels added on each side before the random crop", min=0, max=1024),
    "ENLARGE_PROB": Key(0.0, "probability of enlarging to 9/8 and cropping, in place of PADDING; 0: never",
                        min=0, max=1),
    "PIPELINE": Key("reid", "augmentation: reid (resize, flip, pad and crop, erase), imagenet (random resized crop, "
                    "AUTO_AUGMENT, MIXUP, CUTMIX)", choices=("reid", "imagenet")),
    "AUTO_AUGMENT": Key("", "imagenet: timm's name of a RandAugment, such as rand-m9-mstd0.5-inc1; empty: none"),
    "MIXUP": Key(0.0, "imagenet: alpha of mixup; 0: off", min=0),
    "CUTMIX": Key(0.0, "imagenet: alpha of CutMix; 0: off", min=0),
    "PADDING_MODE": Key("constant", "what is added: constant (black) or symmetric (mirrored, edge pixels included)",
                        choices=("constant", "symmetric")),
    "RESIZE": Key("auto", "resizing: auto (Pillow's bicubic in training, bilinear in test), or for both cv2_bilinear "
                  "(OpenCV's, no antialiasing), pil_bilinear, pil_bicubic",
                  choices=("auto", "cv2_bilinear", "pil_bilinear", "pil_bicubic")),
    "RESIZE_MARGIN": Key(0, "pixels by which images are resized larger, both sides at once, and then cropped: anywhere "
                         "in training, in the centre in test", min=0, max=1024),
    "ROTATE": Key(0.0, "largest rotation of training images either way, in degrees", min=0, max=180),
    "ROTATE_VIEWS": Key((), "views that are rotated; empty: all", type=int, min=0),
    "ROTATION": Key(0.0, "largest rotation either way after crop and flip, in degrees, nearest pixel, black corners; "
                    "SSDViT's. ROTATE turns before the crop", min=0, max=180),
    "COLOR_JITTER": Key((), "always drawn: [least, greatest] factors of brightness, contrast and saturation, and the "
                        "hue's shift in turns; empty: none"),
    "AUTOAUGMENT": Key("", "learned policy, with torchvision: imagenet; SSDViT: on the second view alone; empty: none",
                       choices=("", "imagenet")),
    "OCCLUSION_MIN": Key(0.0, "least side of a white square on every image, as a share of the shorter side", min=0,
                         max=1),
    "OCCLUSION_MAX": Key(0.0, "greatest side of that square; 0: no square", min=0, max=1),
    "BACKGROUND": Key([124, 116, 104], "colour, RGB from 0 to 255, that transparent images are composed over; "
                      "ImageNet's mean, which normalises to about 0: nothing to see", min=0, max=255),
    "MAX_PIXELS": Key(89_478_485, "most pixels of an image file, as a few kilobytes may claim any number; Pillow's "
                      "limit, a quarter of a GB while an image is read", min=1),
    "PIXEL_MEAN": Key([0.485, 0.456, 0.406], "mean of the normalisation; ImageNet's", min=0, max=1, hint=_OF_PIXELS),
    "PIXEL_STD": Key([0.229, 0.224, 0.225], "standard deviation of the normalisation; ImageNet's", min=1e-3, max=1,
                     hint=_OF_PIXELS),
}

DATASETS = {
    "NAMES": Key("market1501", "dataset to train on, or several", type=str, is_list=True),
    "TARGETS": Key((), "datasets to test on or adapt to, beside or instead of the test splits of NAMES", type=str),
    "ROOT_DIR": Key("../data", "folder that holds the datasets; upstream's default", path=True),
    "ROOT_TRAIN_DIR": Key("../data", "training root of a dataset class that upstream never released", path=True),
    "ROOT_VAL_DIR": Key("../data", "test root of a dataset class that upstream never released", path=True),
    "USE_ALL": Key(False, "train on train + query + gallery (domain generalisation)"),
    "VAL_SHARE": Key(0.0, "share of the training identities that is held out for validation", min=0, max=1),
    "TEST_SHARE": Key(0.5, "share of the identities for testing, where a folder comes without split folders", min=0,
                      max=1),
    "SEED": Key(0, "seed of every split that is drawn", min=0),
    "SYNTHETIC.IDS": Key(64, "built-in data: identities; the first half trains, the second tests", min=4),
    "SYNTHETIC.CAMERAS": Key(4, "built-in data: cameras", min=2),
    "SYNTHETIC.IMAGES": Key(4, "built-in data: images per identity and camera", min=2),
    "SYNTHETIC.FRAMES": Key(240, "synthetic_tracks: frames of each camera, at 5 a second; in 240 most of the "
                            "default 64 pedestrians cross several cameras, and they are drawn in a minute", min=30),
    "SYNTHETIC.SEED": Key(0, "built-in data: seed", min=0),
    "SYNTHETIC.CAMERA_GAP": Key(
        100, "built-in data: percent of the difference between cameras; at 0 all see one place in one light",
        min=0, max=100,
    ),
    "OPTIONS": Key((), "options for one dataset among several: ['cuhk03.classic', True, ...]"),
    "LIST_CACHE": Key(True, "keep the parsed lists of large sets for the next start, in .lineup beside the images"),
    "SHARDS": Key("", "read the datasets of the run from the tar shards in this folder, which "
                  "python -m tools.make_shards writes; empty: from their own folders", path=True),
    "VIEW_DIR": Key("", "VeRi: folder of keypoint_train.txt and keypoint_test.txt; empty: the dataset's own folder",
                    path=True),
    "FILE": Key("", "csv: the table; empty: dataset.csv or dataset.jsonl in ROOT_DIR", path=True),
    "IMAGE_DIR": Key("", "csv: folder that the paths are relative to; empty: the table's folder", path=True),
    "MAX_TABLE_GB": Key(0.5, "csv: size of the table at most, in GB (10^9 bytes); its rows take some twenty times as "
                        "much memory", min=0, max=1000),
    "CAMERA_PATTERN": Key("", "folder: regular expression with one group that finds the camera in a file name; "
                          "empty: _c(number), used if every file matches"),
    "LABELED": Key(None, "CUHK03: hand-drawn boxes; None: the dataset's default", type=bool),
    "CLASSIC": Key(None, "CUHK03: the classic protocol; None: the dataset's default", type=bool),
    "SPLIT_ID": Key(None, "CUHK03, PRID, iLIDS-VID: number of the split; None: 0", type=int, min=0),
    "TEST_SIZE": Key(None, "VehicleID: test identities, 800, 1600 or 2400; None: 800", type=int),
    "TRIAL": Key(None, "VehicleID: number of the gallery draw; None: 0", type=int, min=0),
    "USE_VAL": Key(None, "MSMT17: train on list_val too; None: yes", type=bool),
    "MISSING_VIEW": Key(None, "VeRi: drop or keep images without a view; None: by MODEL.SIE_VIEW", type=str,
                        choices=("keep", "drop")),
    "DIRECTION": Key(None, "University-1652: which platform searches which; None: drone to satellite", type=str),
    "MARKET1501_500K": Key(None, "Market-1501: 500,000 distractors join the gallery; None: no", type=bool),
    "FILTER_PATH": Key("", "list of the training images to keep, best first, one name a line or pickled, as "
                       "python -m tools.cfs writes it; empty: all (luperson: its own CFS_list, if any; 'no': all)",
                       path=True),
    "KEEP_NUM": Key(None, "images to keep of that list; None: all", type=int, min=1),
}

DATALOADER = {
    "NUM_WORKERS": Key(8, "processes that load images; no more start than there are cores for each training process",
                       min=0),
    "TIMEOUT": Key(120.0, "seconds to wait for a batch of these processes before the run ends with the cause; a batch "
                   "from slow storage takes some ten seconds, and what takes minutes mostly never comes; 0: no end",
                   min=0),
    "SAMPLER": Key("softmax", "how batches are drawn: softmax (shuffle), softmax_triplet (P identities x K images), "
                   "id, id_triplet, img_triplet, repeat_iter (MSViT's), two_platforms (University-1652), "
                   "multiple_gallery (cluster contrast), multiple_gallery_nocam (SSDViT's), tracklets (P identities x "
                   "K tracklets x FRAMES)"),
    "NUM_INSTANCE": Key(16, "images per identity in a batch (K)", min=1),
    "FRAMES": Key(1, "sampler tracklets: frames of a tracklet in a batch (T), pooled to one feature (MODEL.TEMPORAL); "
                  "1: images by themselves, as most sets are of images", min=1, max=1000),
    "REMOVE_TAIL": Key(0, "upstream's threshold for rare identities"),
    "CACHE_GB": Key(0.0, "memory for training images, in GB (10^9 bytes), shared by all workers; 0: none", min=0,
                    max=100_000),
    "CACHE": Key("files", "what that memory holds: files, or pixels, which need no decoding and five to ten times the "
                 "room", choices=("files", "pixels")),
    "DECODER": Key("pillow", "what decodes JPEG files of training: pillow, or torchvision: faster, but not bound to "
                   "give the same pixels", choices=("pillow", "torchvision")),
    "DRAFT": Key(False, "decode large JPEG files of training at half, quarter or eighth size; changes pixels"),
    "BAD_IMAGES": Key("raise", "what a damaged training image does: raise, so that none goes unnoticed, or skip: "
                      "another one of its identity stands in", choices=("raise", "skip")),
}

_OPTIMIZER = {  # what the single-stage solver and both stages of the prompt method have in common
    "OPTIMIZER_NAME": Key("Adam", "SGD, Adam, AdamW or any other optimizer of torch.optim"),
    "MAX_EPOCHS": Key(100, "epochs of training", min=1),
    "BASE_LR": Key(3e-4, "learning rate", min=0),
    "MOMENTUM": Key(0.9, "momentum of SGD", min=0),
    "WEIGHT_DECAY": Key(5e-4, "weight decay", min=0),
    "WEIGHT_DECAY_BIAS": Key(5e-4, "weight decay of biases", min=0),
    "IMS_PER_BATCH": Key(64, "images per batch, over all processes", min=1),
    "WARMUP_EPOCHS": Key(5, "epochs of warm-up", min=0),
    "WARMUP_FACTOR": Key(0.01, "multi-step: share of the rate at which the warm-up starts"),
    "WARMUP_ITERS": Key(500, "multi-step: length of the warm-up, counted in epochs whatever its name says", min=0),
    "WARMUP_METHOD": Key("linear", "multi-step: linear or constant"),
    "WARMUP_LR_INIT": Key(0.01, "cosine: rate at which the warm-up starts"),
    "LR_MIN": Key(1.6e-5, "cosine: floor of the rate"),
    "COSINE_MARGIN": Key(0.5, "margin of arcface, cosface, amsoftmax and circle"),
    "COSINE_SCALE": Key(30.0, "scale of arcface, cosface, amsoftmax and circle"),
    "CHECKPOINT_PERIOD": Key(10, "epochs between checkpoints; the last epoch is always saved", min=0),
    "LOG_PERIOD": Key(100, "iterations between log lines"),
    "EVAL_PERIOD": Key(10, "epochs between evaluations", min=0),
}

_FINE_TUNING = {  # what the single-stage solver shares with stage 2 only
    "LARGE_FC_LR": Key(False, "twice the rate for the classifiers"),
    "BIAS_LR_FACTOR": Key(1.0, "factor on the rate of biases", min=0),
    "CENTER_LR": Key(0.5, "rate of the centers' own SGD", min=0),
    "CENTER_LOSS_WEIGHT": Key(5e-4, "weight of the center loss"),
    "GAMMA": Key(0.1, "multi-step and step: factor of the rate at each step"),
    "STEPS": Key((40, 70), "multi-step: epochs at which the rate falls", type=int, is_list=True),
}

SOLVER = {
    **_OPTIMIZER,
    **_FINE_TUNING,
    "WARMUP_ITERS": Key(0, "multi-step: length of the warm-up in epochs; 0: not given, WARMUP_EPOCHS is. CLIP-ReID's "
                        "and SVLL-ReID's YAMLs set it, by which they are known", min=0),
    "WARMUP_METHOD": Key("linear", "linear: TransReID's cosine (multi-step for CLIP models); cosine: TransReID-SSL's, "
                         "one epoch later; constant: multi-step with a constant warm-up",
                         choices=("linear", "cosine", "constant")),
    "SEED": Key(1234, "seed of everything that is drawn in training; upstream's", min=0),
    "MARGIN": Key(0.3, "margin of the triplet loss"),
    "TRP_L2": Key(False, "unit-length features in the triplet loss; without effect with JPM, as upstream"),
    "SCHEDULER": Key("auto", "learning-rate schedule: cosine, multistep, step, msvit, cosine_per_step (ImageNet "
                     "training's); auto by the rules of docs/configuration.md",
                     choices=("auto", "cosine", "multistep", "step", "msvit", "cosine_per_step")),
    "SCHEDULER_START": Key("auto", "the schedule's t in the first epoch: -1, 0 or 1; auto by the schedule, and then "
                           "an integer", type=int),
    "STEP_SIZE": Key(50, "step: epochs between two falls of the rate", min=1),
    "COSINE_FLOOR": Key(1e-6, "cosine_per_step: the last rate", min=0),
    "DECAY_VECTORS": Key(True, "weight decay on norms and other one-dimensional parameters too; ImageNet training "
                         "spares them"),
    "EMA.MODE": Key("uniform", "average of weights: uniform over the last epochs, or exponential over all updates",
                    choices=("uniform", "exponential")),
    "EMA.RATIO": Key(1.0, "uniform: averaging starts at this share of MAX_EPOCHS; 1: no averaging"),
    "EMA.EXTRA_EPOCHS": Key(0, "epochs after MAX_EPOCHS, at the last rate", min=0),
    "EMA.DECAY": Key(0.9999, "exponential: share that an update keeps of the average", min=0, max=1),
    "EMA.BN_UPDATE": Key(True, "re-estimate batch norm's statistics for the averaged weights, one pass over the "
                         "training images"),
    "NESTEROV": Key(False, "Nesterov momentum in SGD"),
    "ADAM_BETAS": Key((0.9, 0.999), "decay of Adam's and AdamW's running means; torch's"),
    "LAYER_DECAY": Key(1.0, "each layer learns at this share of the rate of the layer behind it, which keeps more of "
                       "what pre-training gave the early ones; 1: all at one rate, as published", min=0.01, max=1),
    "FREEZE": Key((), "patterns of parameter names that are never trained, such as base.patch_embed.* and "
                  "base.blocks.[0-5].*; batch norms keep counting", type=str),
    "FREEZE_EPOCHS": Key(0, "first epochs that train the classifiers only", min=0),
    "PRECISION": Key("auto", "auto (fp16 with a scaler on a GPU, fp32 on a CPU), fp32, fp16, bf16",
                     choices=("auto", "fp32", "fp16", "bf16")),
    "CLIP_GRAD": Key(0.0, "largest norm of the gradient; 0: no clipping", min=0),
    "ACCUMULATION": Key(1, "batches whose gradients are summed before a step", min=1),
    "RESUME": Key("auto", "auto: continue an unfinished run in OUTPUT_DIR; never: start again; or a path", path=True),
    "SAVE_EVERY_MINUTES": Key(0.0, "save last inside an epoch too, at the first step after so many minutes, so that a "
                              "kill costs no more of an epoch of hours; 0: at the end of each epoch alone, since most "
                              "epochs take minutes and a save writes all weights and optimizer states", min=0),
    "EVAL_BEFORE": Key(False, "evaluate the untrained model first, to show what training gave"),
    "KEEP_BEST": Key("", "keep the best checkpoint by mAP or Rank-1; empty: only the regular ones",
                     choices=("", "mAP", "Rank-1")),
    "LOGGERS": Key(("tensorboard",), "where scalars of training go: any of tensorboard, csv, wandb and mlflow, or (); "
                   "the default stays on this machine, since nothing is sent anywhere that was not asked for",
                   type=str, is_list=True, choices=("tensorboard", "wandb", "mlflow", "csv")),
    "GATHER": Key(False, "collect the features of batch-coupled losses from all processes, with gradient"),
    **{f"STAGE1.{name}": key for name, key in _OPTIMIZER.items()},
    "STAGE1.SSL_LOSS_WEIGHT": Key(2.0, "weight of the language self-supervision"),
    "STAGE1.PROMPT_AUG_METHOD": Key("mask", "augmentation of the prompts: mask, swap or mix",
                                    choices=("mask", "swap", "mix")),
    "STAGE1.PROMPT_AUG_SCALE": Key(0.5, "strength of the prompts' augmentation: share that is masked, moved or mixed",
                                   min=0, max=1),
    "STAGE1.TRAIN_HEAD": Key(False, "train the head of the language self-supervision too; upstream leaves it random"),
    "STAGE1.WEIGHT": Key("", "checkpoint of stage 1 to start stage 2 from; stage 1 is skipped, PRETRAIN_PATH not read",
                         path=True),
    **{f"STAGE2.{name}": key for name, key in {**_OPTIMIZER, **_FINE_TUNING}.items()},
    "STAGE2.SSL_LOSS_WEIGHT": Key(0.8, "weight of the vision self-supervision"),
}

TEST = {
    "IMS_PER_BATCH": Key(128, "images per batch", min=1),
    "WEIGHT": Key("", "checkpoint to test, or a model.onnx or model.xml of tools.export", path=True),
    "RUNTIME": Key("torch", "what computes features in tests, extraction and search: torch, as it trained the network; "
                   "onnxruntime and openvino, to judge what will run elsewhere. An exported file runs in its own "
                   "runtime if this is torch", choices=("torch", "onnxruntime", "openvino")),
    "CALIBRATION": Key("", "file of tools.calibrate by which an extractor decides; '' for features alone",
                       path=True),
    "NECK_FEAT": Key("after", "retrieval feature before or after the neck", choices=("before", "after")),
    "FEAT_NORM": Key("yes", "yes or no: scale features to unit length; upstream normalises either way"),
    "RE_RANKING": Key(False, "k-reciprocal re-ranking; upstream never does it"),
    "RERANK": Key((20, 6, 0.3), "k1, k2 and lambda of the re-ranking; the paper's"),
    "QUERY_EXPANSION": Key((), "average query expansion: (times, k, alpha); (): none", type=float, min=0),
    "NFC": Key(False, "neighbour feature centralisation: each feature takes in those of its mutual nearest neighbours; "
               "off, as a query is then no longer scored by itself"),
    "NFC_K": Key((2, 2), "length of its lists (k1, k2): an image takes in those of its k1 nearest that have it among "
                 "their k2 nearest; the paper's", min=1),
    "NFC_OF": Key("both", "lists that it changes, each by its own images alone: both, query or gallery; gallery suits "
                  "queries that arrive one by one", choices=("both", "query", "gallery")),
    "IPG": Key(False, "Pose2ID's features of generated images"),
    "DIST_MAT": Key("dist_mat.npy", "upstream's file for the distance matrix", path=True),
    "EVAL": Key(False, "upstream's switch for evaluation"),
    "REPORT": Key(False, "write report.html: figures with intervals, curves, ranked galleries, pictures; off, as it "
                  "reads some images again"),
    "OPEN_SET": Key(False, "take some of the queries' identities out of the gallery and report how often the others "
                    "are found while these are not: in the world the person may not be there"),
    "OPEN_SHARE": Key(0.5, "share of the queries' identities that OPEN_SET takes out, drawn by DATASETS.SEED; a half "
                      "gives both rates as many queries as can be", min=0.01, max=0.99),
    "ROC": Key(False, "report verification rates (TAR at FAR) too"),
    "MAX_MEMORY_GB": Key(0.0, "memory for distances in evaluation, in GB (10^9 bytes); 0: a quarter of what is free "
                         "when it starts", min=0, max=100_000),
    "MAX_RANK": Key(50, "length of the CMC curve", min=1),
    "PROTOCOL": Key("", "market1501, cuhk03, vehicleid or retrieval; empty: the dataset's",
                    choices=("", "market1501", "cuhk03", "vehicleid", "retrieval")),
    "AP": Key("rectangle", "area under the precision curve: rectangle, or trapezoid as in MSViT",
              choices=("rectangle", "trapezoid")),
    "METRIC": Key("euclidean", "distance: euclidean or cosine", choices=("euclidean", "cosine")),
    "FLIP": Key(False, "add the feature of the mirrored image"),
    "CAMERA_NORM": Key("off", "take out what cameras do to scores, by the training images of the tested set, without "
                       "labels: off, as neither gains everywhere; mean (subtract each camera's mean feature); pair "
                       "(distances in deviations from the mean of their two cameras)", choices=("off", "mean", "pair")),
    "TRACKLETS": Key("off", "what is searched: images (off, as most sets are of images) or tracklets (the column seq), "
                     "by the mean of their images' features (mean) or one weighted by the images' quality (quality), "
                     "which costs time and is for people that are hidden or out of focus",
                     choices=("off", "mean", "quality")),
    "RECALL_KS": Key((), "retrieval: the K of Recall@K, below 1 a share of the gallery; empty: the dataset's, mostly "
                     "1, 2, 4, 8", type=float),
    "NMI": Key(None, "retrieval: cluster the test images and report the mutual information; None: yes, but for sets of "
               "thousands of classes", type=bool),
    "REPEATS": Key(10, "draws of the gallery in the cuhk03 and vehicleid protocols", min=1),
}

DMMD = {
    "WARMUP_EPOCHS": Key(25, "epochs with source terms only; D-MMD's join after them, as published", min=0),
    "ONLY": Key(False, "D-MMD's three terms alone, without the source's identity and triplet terms"),
    "BLEND": Key(False, "several targets as one training set; without it there is one target"),
    "LOSS_WEIGHTS": Key((1.0, 1.0, 1.0), "weights of within, between and overall; the paper's", min=0),
    "SIGMAS": Key((1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 35.0, 100.0, 1e3, 1e4,
                   1e5, 1e6), "widths of the Gaussian kernels, as published", is_list=True, type=float, min=1e-12),
    "GROUPS": Key("tracklet", "which target images count as one identity: tracklet (one identity under one camera), "
                  "pseudo (clusters of the features), identity (true labels, as released: an upper bound)",
                  choices=("tracklet", "pseudo", "identity")),
    "SOURCE_WEIGHT": Key("", "checkpoint of the source training to start from", path=True),
}

DINO = {
    "OUT_DIM": Key(65536, "prototypes: width of the head's output", min=1),
    "NORM_LAST_LAYER": Key(True, "prototypes keep length 1; False learns lengths, which may lower the stability"),
    "USE_BN_IN_HEAD": Key(False, "batch norm before each activation of the head"),
    "HIDDEN_DIM": Key(2048, "hidden width of the head, published; smaller saves time with a small backbone", min=1),
    "CROP_HEIGHT": Key(96, "height of the local crops; 128 as published for LUPerson", min=1, max=8192),
    "CROP_WIDTH": Key(96, "width of the local crops; 64 as published for LUPerson", min=1, max=8192),
    "LOCAL_CROPS_NUMBER": Key(8, "local crops beside the two global ones", min=0, max=1000),
    "GLOBAL_CROPS_SCALE": Key((0.4, 1.0), "share of the image that a global crop takes", min=0, max=1),
    "LOCAL_CROPS_SCALE": Key((0.05, 0.4), "share of the image that a local crop takes", min=0, max=1),
    "MOMENTUM_TEACHER": Key(0.996, "share that an update keeps of the teacher; rises to 1", min=0, max=1),
    "WARMUP_TEACHER_TEMP": Key(0.04, "temperature of the teacher's softmax in the first epoch", min=1e-4),
    "TEACHER_TEMP": Key(0.04, "temperature of the teacher's softmax after its warm-up; above 0.07 is unstable",
                        min=1e-4),
    "WARMUP_TEACHER_TEMP_EPOCHS": Key(0, "epochs from WARMUP_TEACHER_TEMP to TEACHER_TEMP", min=0),
    "WEIGHT_DECAY_END": Key(0.4, "SOLVER.WEIGHT_DECAY rises to it by a cosine", min=0),
    "CLIP_GRAD": Key(3.0, "largest norm of each parameter's gradient, one by one; 0: no clipping", min=0),
    "FREEZE_LAST_LAYER": Key(1, "first epochs in which the prototypes stay as they are", min=0),
    "MIN_LR": Key(1e-6, "the last learning rate, not scaled by the batch", min=0),
    "PATCH_SIZE": Key(16, "upstream's choice of the patch"),
}

CLUSTER = {
    "EPS": Key(0.6, "largest Jaccard distance of neighbours in DBSCAN; 0.7 for MSMT17 as published", min=0.01,
               max=1),
    "MIN_SAMPLES": Key(4, "neighbours, the image itself counted, that make the core of a cluster", min=1),
    "K1": Key(30, "nearest images that the Jaccard distance starts from, the image itself counted", min=1),
    "ITERS": Key(400, "steps of an epoch, by as many passes over the clusters as it takes; the published ViTs have 200",
                 min=1, max=10**6),
    "USE_HARD": Key(False, "move a cluster's row by its farthest image in the batch alone; off: by every image"),
    "MOMENTUM": Key(0.2, "share of a memory row that stays at each update, as published", min=0, max=1),
    "TEMP": Key(0.05, "temperature of the contrast with the memory, as published", min=1e-6),
    "K2": Key(6, "images that an encoding is averaged over; 1: none", min=1),
}

KD = {
    "TEACHER.NAME": Key("torchreid_resnet50", "architecture of the teachers; as MODEL.NAME"),
    "TEACHER.WEIGHTS": Key((), "a checkpoint per target, in the order of DATASETS.TARGETS", type=str, is_list=True,
                           path=True),
    "TEACHER.MODE": Key("eval", "eval: teachers stay as they are; train: batch statistics, and they drift, as released",
                        choices=("eval", "train")),
    "STUDENT_WEIGHT": Key("", "checkpoint of the source training that the student starts from", path=True),
    "STYLE": Key("only_outputs", "what is distilled: only_outputs (dissimilarities), only_feats (stage maps), all",
                 choices=("only_outputs", "only_feats", "all")),
    "ALTERNATION": Key("batch", "batch: an update per target for every batch; full: one target after the other",
                       choices=("batch", "full")),
    "ORDER": Key("random", "order of the targets: fixed, random, shift (nearest domain first)",
                 choices=("fixed", "random", "shift")),
    "SWEEPS": Key("once", "once, or per_teacher: an epoch goes through the data once per teacher, as released",
                  choices=("once", "per_teacher")),
    "WEIGHT_TARGET": Key(1.0, "weight of the distillation on target images", min=0),
    "WEIGHT_SOURCE": Key(0.0, "weight of the distillation on source images", min=0),
    "WEIGHT_DA": Key(0.0, "weight of the student's own D-MMD and source terms, over 100", min=0),
    "MARGINS": Key("teacher", "margins of the stage maps: teacher (from its own batch norms) or checkpoint (as stored "
                   "in its file, as released)", choices=("teacher", "checkpoint")),
    "LOG_EUCLID": Key(False, "compare matrix logarithms of the similarities; off, as in every published run"),
    "MULTI_HEAD": Key(False, "a head of its own for each target"),
}

DISTILL = {
    "TEACHERS": Key((), "YAML of each teacher, such as a run's config.yml: any method, network and size of images. "
                    "Several are an ensemble", type=str, is_list=True, path=True),
    "CHECKPOINTS": Key((), "checkpoint of each teacher, in the order of TEACHERS", type=str, is_list=True, path=True),
    "WEIGHT_LABELS": Key(1.0, "weight of the identity and metric terms on labelled images; 0: the teachers alone",
                         min=0),
    "WEIGHT_DISTANCES": Key(2.0, "weight of the relative distances within a batch; 20 and more took accuracy in trials "
                            "beside labels and class shares", min=0),
    "WEIGHT_DISSIMILARITIES": Key(0.0, "weight of the cosine dissimilarities within a batch, the term of mtda_kd; off, "
                                  "as it compares the same features as the distances", min=0),
    "WEIGHT_LOGITS": Key(0.0, "weight of the teachers' class shares on labelled images; off, as they must have the "
                         "student's training classes", min=0),
    "TEMPERATURE": Key(4.0, "temperature of the class shares; the lower, the less the wrong classes count", min=1e-3),
}

SSD = {
    "MODE": Key("released", "self distillation: released (over feature entries, as published), logits (over "
                "identities), off (class memory and triplets alone)", choices=("released", "logits", "off")),
    "ITERS": Key(400, "steps per epoch; published", min=1, max=10**6),
    "PAIRED_VIEWS": Key(False, "both views of the same images; False: of two batches drawn apart, as published"),
    "RANDOM_BLOCK": Key(-1, "block that the random-block branch reads, from 0; -1 draws one in every pass", min=-1),
    "TEMPERATURE": Key(3.0, "temperature of the distillation; published", min=1e-3),
    "WEIGHT": Key(0.7, "weight of the distillation beside its temperature's square; published", min=0),
    "ALPHA": Key(0.8, "share of the network's own answer in the soft target in the last epoch, growing linearly to it",
                 min=0, max=1),
    "TRIPLET_WEIGHTS": Key((0.8, 0.2), "triplet terms of the last block and of the random one", min=0),
    "LOSS_WEIGHTS": Key((1.0, 1.0, 1.0, 1.0), "class memory, triplets, distillation of the random block, of the second "
                        "view; a row of the ablation sets some to 0", min=0),
    "MEMORY_TEMPERATURE": Key(0.05, "temperature of the class memory's softmax", min=1e-3),
    "MEMORY_MOMENTUM": Key(0.2, "share of a memory's row that an update keeps", min=0, max=1),
}

_SECTIONS = {"MODEL": MODEL, "INPUT": INPUT, "DATASETS": DATASETS, "DATALOADER": DATALOADER, "SOLVER": SOLVER,
             "TEST": TEST, "DINO": DINO, "CLUSTER": CLUSTER, "DMMD": DMMD, "KD": KD, "DISTILL": DISTILL,
             "SSD": SSD}

KEYS: dict[str, Key] = {
    "PROCESSOR.NAME": Key("auto", "method: supervised, prompt, dino, cluster, self_distill, distill, dmmd, "
                          "mtda_kd; auto: prompt when a SOLVER.STAGE1 key is set, else supervised"),
    **{f"{section}.{name}": key for section, keys in _SECTIONS.items() for name, key in keys.items()},
    "EXTRA_MODULES": Key((), "your own Python modules, imported first: they may register models, data and methods",
                         type=str, path=True),
    "OUTPUT_DIR": Key("", "folder of checkpoints, logs and results; empty: runs/ and the YAML's name", path=True),
}

#: The dotted names of all sections, such as SOLVER and SOLVER.STAGE1.
SECTIONS = {name.rsplit(".", depth)[0] for name in KEYS for depth in range(1, name.count(".") + 1)}

_STAGE1_UNREAD = "upstream's stage 1 has it and reads it nowhere"
_STAGE2_UNREAD = "upstream's stage 2 has it and reads it nowhere: its schedule is multi-step, its losses have no center"

#: Keys that published YAMLs set and nothing reads, with the reason. Setting one gives one line in the log.
INERT: dict[str, str] = {
    "MODEL.DEVICE_ID": "the environment decides which GPUs are visible (CUDA_VISIBLE_DEVICES)",
    "MODEL.DIST_TRAIN": "torchrun decides: started under it, training uses all its processes",
    "MODEL.IF_WITH_CENTER": "METRIC_LOSS_TYPE decides about the center loss",
    "MODEL.COS_LAYER": "upstream crashes with it; use ID_LOSS_TYPE 'cosface' or 'arcface'",
    "DATALOADER.REMOVE_TAIL": "no upstream code reads it",
    "DATASETS.ROOT_TRAIN_DIR": "it belongs to a dataset class that was never released; use DATASETS.ROOT_DIR",
    "DATASETS.ROOT_VAL_DIR": "it belongs to a dataset class that was never released; use DATASETS.ROOT_DIR",
    "DINO.PATCH_SIZE": "the patch is part of the name in MODEL.TRANSFORMER_TYPE",
    "TEST.DIST_MAT": "no upstream code reads it; the distance matrix is never held whole",
    "TEST.IPG": "no image generator is part of this toolbox; TEST.NFC, the other half of Pose2ID, is",
    "TEST.EVAL": "no upstream code reads it; test.py always evaluates",
    "SOLVER.WARMUP_LR_INIT": "the single-stage tree has it and reads it nowhere; the warm-up starts at 0.01 * BASE_LR",
    "SOLVER.LR_MIN": "the single-stage tree has it and reads it nowhere; the floor is 0.002 * BASE_LR",
    **{f"SOLVER.STAGE1.{name}": _STAGE1_UNREAD for name in (
        "WEIGHT_DECAY_BIAS", "WARMUP_FACTOR", "WARMUP_ITERS", "WARMUP_METHOD", "COSINE_MARGIN", "COSINE_SCALE",
        "EVAL_PERIOD")},
    **{f"SOLVER.STAGE2.{name}": _STAGE2_UNREAD for name in (
        "WARMUP_EPOCHS", "WARMUP_LR_INIT", "LR_MIN", "CENTER_LR", "CENTER_LOSS_WEIGHT", "COSINE_MARGIN",
        "COSINE_SCALE")},
}

def get_cfg_defaults() -> CfgNode:
    """Returns a fresh copy of the default tree."""
    root = CfgNode()
    for name, key in KEYS.items():
        *sections, leaf = name.split(".")
        node = root
        for section in sections:
            if section not in node:
                node[section] = CfgNode()  # one made of a dictionary copies all below it, at every level
            node = node[section]
        node[leaf] = copy.deepcopy(key.default)
    return root
