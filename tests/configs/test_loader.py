"""load_config: layers, types, auto keys, notes, and one clear line for every mistake."""

from __future__ import annotations

import pytest
import yaml

from configs import ConfigError, dump, get_cfg_defaults, load_config, load_config_with_notes, with_traits
from configs.conflicts import refuse_training_conflicts
from configs.defaults import INERT, KEYS
from configs.loader import SSL_KEYS, lookup
from configs.values import coerce
from utils.errors import UserError
from utils.methods import METHODS, method_of, owners_of, register_method


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "run.yml"):
        path = tmp_path / name
        path.write_text(text)
        return path
    return write


# ---------------------------------------------------------------- layers


def test_nothing_given_is_the_defaults_with_auto_resolved_and_frozen():
    cfg, defaults = load_config(), get_cfg_defaults()
    assert (cfg.PROCESSOR.NAME, cfg.MODEL.VIT_SMALL) == ("supervised", "transreid")
    assert (cfg.SOLVER.SCHEDULER, cfg.SOLVER.SCHEDULER_START) == ("cosine", 1)
    assert (cfg.MODEL.SWIN, cfg.MODEL.PART_TOKENS) == ("transreid_ssl", False)
    auto = {"PROCESSOR.NAME", "MODEL.VIT_SMALL", "MODEL.SWIN", "MODEL.PART_TOKENS", "SOLVER.SCHEDULER",
            "SOLVER.SCHEDULER_START"}
    assert {name for name in KEYS if lookup(cfg, name) != lookup(defaults, name)} == auto
    with pytest.raises(AttributeError):
        cfg.MODEL.JPM = True


def test_defaults_are_fresh_copies():
    get_cfg_defaults().INPUT.SIZE_TRAIN.append(3)
    assert get_cfg_defaults().INPUT.SIZE_TRAIN == [384, 128]


def test_overrides_beat_the_file_which_beats_its_base_which_beats_the_defaults(write):
    write("SOLVER: {BASE_LR: 1.0, MAX_EPOCHS: 1, IMS_PER_BATCH: 1}\nMODEL: {JPM: True}", "ground.yml")
    write("_BASE_: ground.yml\nSOLVER: {BASE_LR: 2.0, MAX_EPOCHS: 2}", "base.yml")
    path = write("_BASE_: base.yml\nSOLVER:\n  BASE_LR: 3.0")
    cfg = load_config(path, ["SOLVER.BASE_LR", 4.0])
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_EPOCHS, cfg.SOLVER.IMS_PER_BATCH) == (4.0, 2, 1)
    assert cfg.MODEL.JPM and cfg.SOLVER.MARGIN == 0.3


def test_base_is_relative_to_the_file_not_to_the_working_directory(write, tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    write("MODEL: {JPM: True}", "base.yml")
    path = write("_BASE_: ../base.yml", "sub/run.yml")
    monkeypatch.chdir(tmp_path / "sub")
    assert load_config(path).MODEL.JPM


@pytest.mark.parametrize("text", ["", "# nothing\n", "MODEL:\nDATASETS:\n#  NAMES: ('veri')\nSOLVER:\n  STAGE1:\n",
                                  "MODEL:\n  STRIDE_SIZE:\nTEST:\n  WEIGHT:\n"])
def test_what_is_left_empty_is_the_default(write, text):
    assert load_config(write(text)) == load_config()


def test_the_tree_is_the_union_with_the_agreed_defaults():
    cfg = get_cfg_defaults()
    assert (cfg.MODEL.DEVICE, cfg.MODEL.USE_SSL, cfg.MODEL.USE_SSL_STAGE1) == ("auto", False, None)
    assert (cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.STAGE1.WARMUP_ITERS, cfg.SOLVER.STAGE2.WARMUP_ITERS) == (0, 500, 500)
    assert (cfg.SOLVER.WARMUP_METHOD, cfg.SOLVER.STAGE1.SSL_LOSS_WEIGHT) == ("linear", 2.0)
    assert cfg.SOLVER.STAGE2.SSL_LOSS_WEIGHT == 0.8
    assert "SSL_LOSS_WEIGHT" not in cfg.SOLVER and "STEPS" not in cfg.SOLVER.STAGE1
    assert KEYS.keys() >= SSL_KEYS
    assert INERT.keys() <= KEYS.keys()
    assert len(KEYS) > 200
    assert all(key.meaning for key in KEYS.values())


# ---------------------------------------------------------------- types


@pytest.mark.parametrize(("key", "value", "expected"), [
    ("DATASETS.NAMES", "('market1501')", "market1501"),
    ("DATASETS.NAMES", "('market1501', 'veri')", ("market1501", "veri")),
    ("DATASETS.NAMES", ["market1501", "veri"], ("market1501", "veri")),
    ("DATASETS.TARGETS", "msmt17", ("msmt17",)),
    ("MODEL.DEVICE_ID", 0, "0"),
    ("MODEL.DEVICE_ID", "0,1", "0,1"),
    ("MODEL.DEVICE_ID", "('0,1')", "0,1"),
    ("MODEL.TRANSFORMER_TYPE", "None", "None"),
    ("SOLVER.BASE_LR", "1e-4", 1e-4),
    ("SOLVER.WEIGHT_DECAY", 0, 0.0),
    ("SOLVER.BIAS_LR_FACTOR", 2, 2.0),
    ("SOLVER.BIAS_LR_FACTOR", 1.5, 1.5),
    ("SOLVER.MAX_EPOCHS", "20.0", 20),
    ("SOLVER.STEPS", [30, 50], (30, 50)),
    ("SOLVER.STEPS", "(30, 50, 70)", (30, 50, 70)),
    ("SOLVER.STEPS", 30, (30,)),
    ("SOLVER.STEPS", "()", ()),
    ("INPUT.SIZE_TRAIN", (256, 128), [256, 128]),
    ("INPUT.PIXEL_MEAN", "[0, 0, 0]", [0.0, 0.0, 0.0]),
    ("TEST.RERANK", "[50, 15, 0.3]", (50, 15, 0.3)),
    ("MODEL.JPM", "True", True),
    ("MODEL.JPM", "false", False),
    ("MODEL.IF_LABELSMOOTH", False, "off"),
    ("TEST.FEAT_NORM", True, "yes"),
    ("MODEL.PRETRAIN_CHOICE", False, "no"),
    ("MODEL.USE_SSL_STAGE1", "None", None),
    ("MODEL.USE_SSL_STAGE1", "True", True),
    ("DATASETS.TEST_SIZE", "1600", 1600),
    ("DATASETS.OPTIONS", "['cuhk03.classic', True]", ("cuhk03.classic", True)),
    ("SOLVER.SCHEDULER_START", "-1", -1),
    ("OUTPUT_DIR", 2024, "2024"),
    ("OUTPUT_DIR", "007", "007"),
    ("DATASETS.CAMERA_PATTERN", r"_c(\d+)_", r"_c(\d+)_"),
])
def test_values_are_taken_leniently(key, value, expected):
    got = lookup(load_config("", [key, value]), key)
    assert got == expected and type(got) is type(expected)


@pytest.mark.parametrize(("key", "value", "expected"), [
    ("MODEL.JPM", "maybe", "True or False"),
    ("MODEL.JPM", "'yes'", "True or False"),
    ("MODEL.JPM", 2, "True or False"),
    ("SOLVER.BASE_LR", "fast", "a number"),
    ("SOLVER.BASE_LR", True, "a number"),
    ("SOLVER.MAX_EPOCHS", 1.5, "an integer"),
    ("SOLVER.MAX_EPOCHS", "nan", "an integer"),
    ("INPUT.SIZE_TRAIN", [256], "a list such as [384, 128]"),
    ("INPUT.SIZE_TRAIN", 256, "a list such as [384, 128]"),
    ("INPUT.SIZE_TRAIN", ["tall", 128], "a list such as [384, 128]"),
    ("SOLVER.STEPS", "soon", "a list of integers"),
    ("DATASETS.NAMES", {"a": 1}, "text or a list of names"),
    ("OUTPUT_DIR", [1], "text"),
    ("SOLVER.SCHEDULER_START", "late", "an integer or 'auto'"),
    ("DATASETS.TEST_SIZE", "small", "an integer or None"),
])
def test_a_wrong_type_names_key_value_and_what_is_expected(key, value, expected, write):
    section, leaf = key.rsplit(".", 1) if "." in key else ("", key)
    path = write(yaml.safe_dump({section: {leaf: value}} if section else {leaf: value}))
    for file, opts, where in ((path, [], "run.yml"), ("", [key, value], "in the overrides")):
        with pytest.raises(ConfigError) as error:
            load_config(file, opts)
        message = str(error.value)
        assert message.startswith(f"{key}: expected {expected}, not {value!r}")
        assert where in message and "\n" not in message


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(("text", "message"), [
    ("MODEL:\n  JMP: True", r"^MODEL\.JMP: unknown key, did you mean 'MODEL\.JPM'\?.*run\.yml"),
    ("MODEL:\n  NUM_INSTANCE: 4", r"did you mean 'DATALOADER\.NUM_INSTANCE'\?"),
    ("BASE_LR: 4", r"^BASE_LR: unknown .*did you mean 'SOLVER\.BASE_LR'\?"),
    ("SOLVER:\n  STAGE3:\n    X: 1", r"^SOLVER\.STAGE3: unknown key, did you mean 'SOLVER\.STAGE\d'\?"),
    ("MODEL: 3", r"^MODEL: is a section"),
    ("MODEL:\n  JPM: {A: 1}", r"^MODEL\.JPM: expected True or False"),
    ("- MODEL", r"run\.yml: expected sections"),
    ("MODEL:\n  JPM: [1\n", r"run\.yml, line \d+: not valid YAML"),
    ("MODEL:\n\tJPM: True\n", r"run\.yml, line 2: not valid YAML"),
    ("MODEL:\n  NAME: !!python/object:os.system x", r"run\.yml, line 2: not valid YAML"),
    ("OUTPUT_DIR: 2024-13-45", r"run\.yml: not valid YAML"),
    ("_BASE_: nowhere.yml", r"nowhere\.yml: no such configuration file \(_BASE_ of .*run\.yml\)"),
    ("_BASE_: [a.yml]", r"_BASE_ must be one file name"),
    ("_BASE_: run.yml", r"_BASE_ goes round in a circle: .*run\.yml -> .*run\.yml"),
])
def test_a_mistake_in_a_file_is_one_line(write, text, message):
    with pytest.raises(ConfigError, match=message) as error:
        load_config(write(text))
    assert "\n" not in str(error.value)


def test_defaults_are_within_their_own_bounds():
    for name, key in KEYS.items():
        assert coerce(name, key.default, "") == key.default, name


def test_a_circle_of_bases_is_shown_whole(write):
    write("_BASE_: c.yml", "b.yml")
    write("_BASE_: a.yml", "c.yml")
    with pytest.raises(ConfigError, match=r"a\.yml -> .*b\.yml -> .*c\.yml -> .*a\.yml"):
        load_config(write("_BASE_: b.yml", "a.yml"))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yml: no such configuration file$"):
        load_config(tmp_path / "none.yml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_config(tmp_path)
    (tmp_path / "image.yml").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(ConfigError, match=r"image\.yml.*not a text file"):
        load_config(tmp_path / "image.yml")


@pytest.mark.parametrize(("opts", "message"), [
    (["MODEL.JPM"], r"^MODEL\.JPM: a key without a value"),
    (["MODEL.JPM=True"], r"with a space between them: MODEL\.JPM True$"),
    (["MODEL.JPM", "True", "SOLVER.BASE_LR=1"], r"SOLVER\.BASE_LR 1$"),
    (["MODEL.JMP", True], r"did you mean 'MODEL\.JPM'\? \(in the overrides"),
    (["MODEL", 1], r"^MODEL: is a section"),
    ([True, "MODEL.JPM"], r"^True: expected a key"),
    (["SOLVER.MAX_EPOCHS", 0], r"^SOLVER\.MAX_EPOCHS: 0 must be at least 1 \(in the overrides\)"),
    (["MODEL.STRIDE_SIZE", [16, 0]], r"^MODEL\.STRIDE_SIZE: 0 must be at least 1"),
    (["SOLVER.BASE_LR", "-1e-3"], r"^SOLVER\.BASE_LR: -0\.001 must be at least 0"),
    (["MODEL.DROP_PATH", 1.5], r"^MODEL\.DROP_PATH: 1\.5 must be at most 1"),
    (["TEST.METRIC", "manhattan"], r"^TEST\.METRIC: unknown 'manhattan'\. Known: euclidean, cosine \(in the over"),
    (["SOLVER.WARMUP_METHOD", "linaer"], r"unknown 'linaer', did you mean 'linear'\? Known: linear, cosine, constant"),
])
def test_a_mistake_in_the_overrides_is_one_line(opts, message):
    with pytest.raises(ConfigError, match=message):
        load_config("", opts)


# ---------------------------------------------------------------- what auto stands for


@pytest.mark.parametrize("key", sorted(SSL_KEYS))
def test_a_key_that_only_ssl_has_makes_vit_small_the_deit(key):
    default = KEYS[key].default              # set to its default is set, too
    assert load_config("", [key, default]).MODEL.VIT_SMALL == "deit"


@pytest.mark.parametrize(("opts", "expected"), [
    ([], ("cosine", 1)),
    (["SOLVER.WARMUP_METHOD", "linear"], ("cosine", 1)),
    (["SOLVER.WARMUP_METHOD", "cosine"], ("cosine", 0)),
    (["SOLVER.WARMUP_METHOD", "constant"], ("multistep", 0)),
    (["SOLVER.WARMUP_ITERS", 10], ("multistep", 1)),
    (["SOLVER.WARMUP_ITERS", 0], ("cosine", 1)),
    (["MODEL.NAME", "ViT-B-16"], ("multistep", 1)),
    (["MODEL.NAME", "RN50"], ("multistep", 1)),
    (["MODEL.NAME", "open_clip:ViT-L-14"], ("multistep", 1)),
    (["MODEL.NAME", "resnet50"], ("cosine", 1)),
    (["SOLVER.SCHEDULER", "multistep"], ("multistep", 0)),
    (["SOLVER.SCHEDULER", "multistep", "SOLVER.WARMUP_ITERS", 10], ("multistep", 1)),
    (["SOLVER.SCHEDULER", "cosine", "SOLVER.WARMUP_METHOD", "cosine"], ("cosine", 0)),
    (["SOLVER.SCHEDULER", "step"], ("step", 0)),
    (["SOLVER.SCHEDULER", "msvit"], ("msvit", 1)),
    (["SOLVER.SCHEDULER_START", -1], ("cosine", -1)),
])
def test_schedule(opts, expected):
    solver = load_config("", opts).SOLVER
    resolved = (solver.SCHEDULER, solver.SCHEDULER_START)
    assert resolved == expected


def test_vit_small():
    assert load_config("", ["SOLVER.WARMUP_METHOD", "cosine"]).MODEL.VIT_SMALL == "deit"
    forced = ["MODEL.VIT_SMALL", "transreid", "SOLVER.WARMUP_METHOD", "cosine"]
    assert load_config("", forced).MODEL.VIT_SMALL == "transreid"


def test_a_stage_1_key_asks_for_the_prompt_method_even_at_its_default():
    assert load_config("", ["SOLVER.STAGE1.MAX_EPOCHS", 100]).PROCESSOR.NAME == "prompt"
    assert load_config("", ["SOLVER.STAGE2.MAX_EPOCHS", 60]).PROCESSOR.NAME == "supervised"
    forced = ["PROCESSOR.NAME", "supervised", "SOLVER.STAGE1.MAX_EPOCHS", 1]
    assert load_config("", forced).PROCESSOR.NAME == "supervised"


# ---------------------------------------------------------------- dumping


@pytest.mark.parametrize("opts", [
    [],
    ["MODEL.NAME", "ViT-B-16"],
    ["SOLVER.STAGE1.MAX_EPOCHS", 1],
    ["SOLVER.WARMUP_METHOD", "constant", "MODEL.DROPOUT_RATE", 0.5],
    ["DATASETS.NAMES", "('a', 'b')", "DATASETS.TARGETS", "c", "DATASETS.OPTIONS", "['a.b', [1, (2,)]]"],
    ["MODEL.DEVICE_ID", "'1'", "TEST.EVAL", True, "SOLVER.BASE_LR", 5e-6, "OUTPUT_DIR", "runs/ü: #1"],
    ["DATASETS.LABELED", False, "DATASETS.SPLIT_ID", 3, "DATASETS.CAMERA_PATTERN", r"_c(\d+)"],
])
def test_a_dumped_configuration_loads_to_the_same_run(opts, write):
    cfg = load_config("", opts)
    text = dump(cfg)
    again = load_config(write(text))
    assert {k: lookup(again, k) for k in KEYS if "OPTIONS" not in k} == {
        k: lookup(cfg, k) for k in KEYS if "OPTIONS" not in k}
    assert dump(again) == text
    assert load_config(write(cfg.dump())).PROCESSOR == cfg.PROCESSOR       # yacs's own dump, too


# ---------------------------------------------------------------- notes


def notes(*opts):
    return load_config_with_notes("", opts)[1]


@pytest.mark.parametrize("key", sorted(INERT))
def test_setting_a_key_that_nothing_reads_is_said_in_one_line(key):
    default = KEYS[key].default
    assert notes(key, default) == [f"{key} is set and does nothing here: {INERT[key]}"]


def test_notes_on_what_is_honoured_though_upstream_ignored_it():
    assert notes() == notes("TEST.FEAT_NORM", "yes") == []
    assert "TEST.FEAT_NORM 'no'" in notes("TEST.FEAT_NORM", "no")[0]
    assert "TEST.RE_RANKING" in notes("TEST.RE_RANKING", True)[0]
    assert notes("SOLVER.TRP_L2", True) == []
    assert "SOLVER.TRP_L2 has no effect" in notes("SOLVER.TRP_L2", True, "MODEL.JPM", True)[0]


def test_a_key_of_one_method_says_so_under_another():
    assert notes("MODEL.USE_SSL", True, "PROCESSOR.NAME", "prompt") == notes("MODEL.USE_SSL", False) == []
    line = "MODEL.USE_SSL is set and does nothing here: it belongs to PROCESSOR.NAME 'prompt'"
    assert notes("MODEL.USE_SSL", True) == [line]
    assert "SOLVER.STAGE2.GAMMA" in notes("SOLVER.STAGE2.GAMMA", 0.3)[0]
    owned = [name for method in METHODS.values() for name in method.keys]
    assert len(owned) > 10 and all(any(key.startswith(name) for key in KEYS) for name in owned)


def test_a_key_that_a_network_reads_in_any_method_is_not_said_to_do_nothing():
    words = ("MODEL.NAME", "torchreid_resnet18", "MODEL.MAPS", "student", "KD.TEACHER.NAME", "torchreid_resnet34")
    assert notes(*words) == []
    assert "KD.STYLE is set and does nothing" in notes("KD.STYLE", "all")[0]


def test_a_key_that_two_methods_read_names_both():
    eps = ("CLUSTER.EPS", 0.5)
    assert notes(*eps, "PROCESSOR.NAME", "cluster") == notes(*eps, "PROCESSOR.NAME", "dmmd") == []
    assert notes(*eps)[0].endswith("it belongs to PROCESSOR.NAME 'cluster' and 'dmmd'")
    assert owners_of("MODEL.NAME") == []


# ---------------------------------------------------------------- methods from outside


def test_a_method_that_is_registered_after_loading_has_default_traits_until_then(monkeypatch):
    words = ["PROCESSOR.NAME", "mine", "CLUSTER.EPS", 0.5, "SOLVER.STAGE1.MAX_EPOCHS", 3]
    cfg, lines = load_config_with_notes("", words)
    assert (cfg.PROCESSOR.NAME, cfg.MODEL.VIT_SMALL, lines) == ("mine", "auto", [])
    with pytest.raises(UserError, match="unknown 'mine'"):
        with_traits(cfg)
    monkeypatch.setattr("utils.methods.METHODS", dict(METHODS))
    register_method("mine", keys=("CLUSTER.",), vit_small="deit")(lambda cfg, data, model: [])
    assert with_traits(cfg).MODEL.VIT_SMALL == "deit" and cfg.MODEL.VIT_SMALL == "auto"
    forced = load_config("", [*words, "MODEL.VIT_SMALL", "transreid"])
    assert with_traits(forced) is forced
    with pytest.raises(TypeError):
        register_method("mine", labelled=True)(lambda cfg, data, model: [])
    for trait, value in (("views", "two"), ("batch_key", "IMS_PER_BATCH"), ("vit_small", "small")):
        with pytest.raises(UserError, match=f"{trait} '{value}' is unknown. Known: "):
            register_method("mine", **{trait: value})


# ---------------------------------------------------------------- settings that exclude each other


@pytest.mark.parametrize(("opts", "first", "second"), [
    (["DATALOADER.DRAFT", True, "DATALOADER.DECODER", "torchvision"], "DATALOADER.DRAFT True",
     "DATALOADER.DECODER 'torchvision'"),
    (["INPUT.OCCLUSION_MIN", 0.5, "INPUT.OCCLUSION_MAX", 0.3], "INPUT.OCCLUSION_MIN 0.5", "INPUT.OCCLUSION_MAX 0.3"),
    (["INPUT.MIXUP", 0.4, "DATALOADER.SAMPLER", "id"], "INPUT.MIXUP 0.4", "DATALOADER.SAMPLER 'id'"),
    (["INPUT.CUTMIX", 0.4, "SOLVER.IMS_PER_BATCH", 5], "INPUT.CUTMIX 0.4", "SOLVER.IMS_PER_BATCH 5"),
])
def test_settings_that_exclude_each_other_are_refused_when_loaded(opts, first, second):
    with pytest.raises(UserError) as error:
        load_config("", opts)
    assert str(error.value).startswith(f"{first} and {second} cannot go together: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("opts", "first", "second"), [
    (["PROCESSOR.NAME", "dino", "DATALOADER.SAMPLER", "id"], "DATALOADER.SAMPLER 'id'", "PROCESSOR.NAME 'dino'"),
    (["PROCESSOR.NAME", "self_distill"], "DATALOADER.SAMPLER 'softmax'", "PROCESSOR.NAME 'self_distill'"),
    (["PROCESSOR.NAME", "self_distill", "DATALOADER.SAMPLER", "multiple_gallery_nocam", "INPUT.PIPELINE", "imagenet"],
     "INPUT.PIPELINE 'imagenet'", "PROCESSOR.NAME 'self_distill'"),
    (["PROCESSOR.NAME", "cluster", "DATALOADER.BAD_IMAGES", "skip"], "DATALOADER.BAD_IMAGES 'skip'",
     "PROCESSOR.NAME 'cluster'"),
])
def test_settings_that_a_method_cannot_train_with_are_refused_before_training(opts, first, second):
    cfg = load_config("", opts)
    with pytest.raises(UserError) as error:
        refuse_training_conflicts(cfg, method_of(cfg))
    assert str(error.value).startswith(f"{first} and {second} cannot go together: ")
    plain = load_config()
    refuse_training_conflicts(plain, method_of(plain))
