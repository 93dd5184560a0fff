"""The prompt method: both stages, exact resume over their boundary, skipping the first, processes, sentences."""

from __future__ import annotations

import csv
import logging

import numpy as np
import pytest
import torch

from configs import load_config
from datasets.loaders import make_dataloader
from model import make_model
from model.backbones.clip import build_clip, clip_config
from processor import run
from processor.methods.prompt import (
    FeatureBatches,
    LearnPrompts,
    TextSide,
    TuneEncoder,
    image_features,
    prompt_terms,
    text_features,
)
from tests.runs import Killed, assert_same_bytes
from tests.tiny import CLIP_RUN, options
from tools import search
from utils.errors import UserError


def config(root, folder, **changes):
    return load_config(opts=options(root, folder, **(CLIP_RUN | changes)))


def weights(folder, name: str = "ViT-micro-8_2.pth") -> dict[str, torch.Tensor]:
    return torch.load(folder / name, weights_only=True)


def terms_in(log: str) -> list[set[str]]:
    """Names of what each stage's log lines show."""
    lines = [line for line in log.splitlines() if " epoch 2/2 " in line]
    return [set(line.split(" step ")[1].split()[1:-4:2]) for line in lines]


# ---------------------------------------------------------------- runs


@pytest.mark.parametrize("kind", ["SIMCLR", "SIMSIAM"])
@pytest.mark.parametrize(("language", "vision"), [(False, False), (True, False), (False, True), (True, True)])
def test_each_switch_adds_its_term_to_its_stage(market, tmp_path, language, vision, kind):
    switches = {"MODEL__USE_SSL": vision, "MODEL__USE_SSL_STAGE1": language, "MODEL__SSL_TYPE": kind}
    metrics = run.train(config(market, tmp_path, **switches))
    first, second = terms_in((tmp_path / "log.txt").read_text())
    assert first == {"i2t", "t2i", "loss", "acc"} | ({"ssl"} if language else set())
    assert second == {"id", "triplet", "i2t", "loss", "acc"} | ({"ssl"} if vision else set())
    files = {p.name for p in tmp_path.glob("*.pth")}
    assert files == {"ViT-micro-8_stage1_2.pth", "ViT-micro-8_1.pth", "ViT-micro-8_2.pth"}
    assert [(entry["stage"], entry["epoch"]) for entry in metrics["history"]] == [("encoder", 1), ("encoder", 2)]
    before, after = weights(tmp_path, "ViT-micro-8_stage1_2.pth"), weights(tmp_path)
    moved = {key.partition(".")[0] for key in after if not torch.equal(before[key], after[key])}
    assert moved == {"image_encoder", "bottleneck", "bottleneck_proj", "classifier", "classifier_proj"} | (
        {"image_mlp"} if vision else set()
    )


def test_the_first_stage_moves_the_prompts_and_the_norms_of_its_head_alone(market, tmp_path):
    cfg = config(market, tmp_path, MODEL__USE_SSL_STAGE1=True)
    run.train(cfg)
    torch.manual_seed(cfg.SOLVER.SEED)
    fresh, after = weights_at_start(cfg), weights(tmp_path, "ViT-micro-8_stage1_2.pth")
    moved = {key for key in after if not torch.equal(fresh[key], after[key])}
    norms = {f"text_mlp.{bn}.{name}" for bn in ("bn1", "bn2")
             for name in ("running_mean", "running_var", "num_batches_tracked")}  # fmt: skip
    assert moved == {"prompt_learner.cls_ctx"} | norms
    assert int(after["text_mlp.bn1.num_batches_tracked"]) == 2 * 2 * 3  # copies, epochs, batches: one copy at a time


def weights_at_start(cfg) -> dict[str, torch.Tensor]:
    from utils.device import seed_everything

    seed_everything(cfg.SOLVER.SEED)
    data = make_dataloader(cfg)
    model = make_model(cfg, data.num_classes, data.num_cameras, data.num_views, data.kind)
    return {key: value.clone() for key, value in model.state_dict().items()}


def test_the_language_head_is_trained_when_asked_for(market, tmp_path):
    cfg = config(market, tmp_path, MODEL__USE_SSL_STAGE1=True, SOLVER__STAGE1__TRAIN_HEAD=True)
    run.train(cfg)
    fresh, after = weights_at_start(cfg), weights(tmp_path, "ViT-micro-8_stage1_2.pth")
    assert not torch.equal(fresh["text_mlp.layer1.weight"], after["text_mlp.layer1.weight"])


@pytest.mark.parametrize("changes", [
    {"MODEL__NAME": "RN-micro", "MODEL__STRIDE_SIZE": [16, 16], "MODEL__USE_SSL": True},
    {"MODEL__JPM": True, "MODEL__SHIFT_NUM": 2, "MODEL__STRIDE_SIZE": [6, 6], "MODEL__SIE_CAMERA": True},
    {"SOLVER__PRECISION": "bf16", "MODEL__USE_SSL": True, "MODEL__GRAD_CHECKPOINT": True},
    {"SOLVER__STAGE1__PROMPT_AUG_METHOD": "swap", "MODEL__USE_SSL_STAGE1": True, "DATALOADER__SAMPLER": "softmax"},
    {"SOLVER__STAGE1__PROMPT_AUG_METHOD": "mix", "MODEL__USE_SSL_STAGE1": True, "SOLVER__STAGE2__LARGE_FC_LR": True},
    {"SOLVER__STAGE1__IMS_PER_BATCH": 5, "MODEL__USE_SSL_STAGE1": True},  # a last batch of one image
], ids=["resnet", "jpm", "bf16", "swap, no pairs", "mix, large rate", "one image"])  # fmt: skip
def test_other_settings_run_to_their_end(market, tmp_path, changes):
    metrics = run.train(config(market, tmp_path, **changes))
    assert 0 < metrics["results"]["market1501"]["mAP"] <= 1


@pytest.mark.parametrize("name", ["ViT-micro-8", "RN-micro"])
def test_the_single_stage_baseline_runs_and_its_features_come_back_by_testing(market, tmp_path, name):
    stride = [8, 8] if name.startswith("ViT") else [16, 16]
    changes = {"PROCESSOR__NAME": "supervised", "MODEL__NAME": name, "MODEL__STRIDE_SIZE": stride}
    trained = run.train(config(market, tmp_path / "a", **changes))
    weight = str(tmp_path / "a" / f"{name}_2.pth")
    tested = run.test(config(market, tmp_path / "b", TEST__WEIGHT=weight, **changes))
    assert tested["results"] == trained["results"]


def test_a_stage_2_file_tests_alike_with_another_number_of_identities(market, tmp_path):
    trained = run.train(config(market, tmp_path / "a"))
    weight = tmp_path / "a" / "ViT-micro-8_2.pth"
    state = torch.load(weight, weights_only=True)
    for key in ("prompt_learner.cls_ctx", "classifier.weight", "classifier_proj.weight"):
        state[key] = torch.zeros(9, *state[key].shape[1:])
    torch.save({f"module.{k}": v for k, v in state.items()}, weight)
    tested = run.test(config(market, tmp_path / "b", TEST__WEIGHT=str(weight)))
    assert tested["results"] == trained["results"]
    assert "prompt_learner.cls_ctx (9, 4, 32) for (4, 4, 32)" in (tmp_path / "b" / "test_log.txt").read_text()


def test_stage_1_learns_prompts_whose_texts_tell_identities_apart(market, tmp_path, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    cfg = config(market, tmp_path, SOLVER__STAGE1__MAX_EPOCHS=60, SOLVER__STAGE1__BASE_LR=0.05)
    data = make_dataloader(cfg)
    labels = torch.as_tensor(data.plain.records.pids)
    centers = 2 * torch.randn(4, 32, generator=generator)
    features = centers[labels] + torch.randn(len(labels), 32, generator=generator)
    monkeypatch.setattr("processor.methods.prompt.image_features", lambda model, loader: features)
    run.train(cfg)
    log = (tmp_path / "log.txt").read_text().splitlines()
    losses = [float(line.split(" loss ")[1].split()[0]) for line in log if "prompts epoch" in line]
    assert losses[-1] < 0.6 * losses[0]
    model = make_model(cfg, data.num_classes)
    model.load_state_dict(weights(tmp_path, "ViT-micro-8_stage1_60.pth"))
    right = (features @ text_features(model).t()).argmax(1) == labels
    assert right.float().mean() >= 0.9  # chance: 0.25


# ---------------------------------------------------------------- resume and skipping


def kill_at(monkeypatch, stage: type, step: int) -> None:
    count, real = iter(range(1, 10**6)), stage.losses

    def losses(self, batch):
        if next(count) == step:
            raise Killed
        return real(self, batch)

    monkeypatch.setattr(stage, "losses", losses)


@pytest.mark.slow
def test_a_run_killed_in_either_stage_ends_with_the_same_bytes(market, tmp_path, monkeypatch):
    changes = {"MODEL__USE_SSL": True, "MODEL__SIE_CAMERA": True}
    run.train(config(market, tmp_path / "whole", **changes))
    kept = weights(tmp_path / "whole")
    places = {
        "first epoch": (LearnPrompts, 2),
        "later": (LearnPrompts, 5),
        "boundary": (TuneEncoder, 1),
        "second": (TuneEncoder, 6),
    }
    for name, (stage, step) in places.items():
        folder = tmp_path / name
        with monkeypatch.context() as patch:
            kill_at(patch, stage, step)
            with pytest.raises(Killed):
                run.train(config(market, folder, **changes))
        torch.manual_seed(step), np.random.seed(step)  # what another process would start from
        run.train(config(market, folder, **changes))
        assert_same_bytes(kept, weights(folder))


def test_stage_2_starts_from_a_stage_1_checkpoint_and_ends_where_the_whole_run_ends(market, tmp_path, caplog):
    caplog.set_level(logging.INFO, "lineup")
    run.train(config(market, tmp_path / "whole"))
    caplog.clear()
    weight = str(tmp_path / "whole" / "ViT-micro-8_stage1_2.pth")
    run.train(config(market, tmp_path / "second", SOLVER__STAGE1__WEIGHT=weight))
    assert "stage prompts" not in caplog.text and "features kept" not in caplog.text
    assert_same_bytes(weights(tmp_path / "whole"), weights(tmp_path / "second"))


# ---------------------------------------------------------------- pieces


@pytest.fixture
def parts(market, tmp_path):
    """(cfg, data, model) of a run about to start."""
    cfg = config(market, tmp_path, MODEL__USE_SSL=True)
    data = make_dataloader(cfg)
    torch.manual_seed(0)
    return cfg, data, make_model(cfg, data.num_classes, data.num_cameras, data.num_views, data.kind)


def test_features_are_taken_once_in_evaluation_mode_without_side_information(parts, monkeypatch):
    cfg, data, model = parts
    calls = []
    hook = model.image_encoder.register_forward_hook(lambda m, given, out: calls.append((m.training, given)))
    stage = LearnPrompts.from_cfg(cfg, data, model.train())
    stage.begin()
    stage.net = stage.stepped()
    count = -(-len(data.plain.records) // cfg.TEST.IMS_PER_BATCH)
    assert len(calls) == count and not any(training or len(given) > 1 and given[1] != 0.0 for training, given in calls)
    for epoch in (1, 2):
        for batch in stage.batches(epoch):
            stage.losses(batch)
    assert len(calls) == count and not stage.features.requires_grad and model.training
    hook.remove()
    with torch.no_grad():
        wanted = torch.cat([model.eval().embed(batch.images) for batch in data.plain])
    torch.testing.assert_close(stage.features, wanted)


def test_an_epoch_shows_every_image_once_in_a_new_order_and_keeps_the_rest():
    features, labels = torch.arange(10.0)[:, None], torch.arange(10)
    for size, sizes in ((4, [4, 4, 2]), (5, [5, 5]), (16, [10])):
        epochs = [list(FeatureBatches(features, labels, size, 0, epoch)) for epoch in (1, 2)]
        for batches in epochs:
            assert [len(b.labels) for b in batches] == sizes == [len(b) for b in batches]
            assert sorted(torch.cat([b.labels for b in batches]).tolist()) == list(range(10))
            assert all(torch.equal(b.features[:, 0].long(), b.labels) for b in batches)
        assert not torch.equal(*(torch.cat([b.labels for b in batches]) for batches in epochs))
        again = FeatureBatches(features, labels, size, 0, 2)
        assert all(torch.equal(a.labels, b.labels) for a, b in zip(again, epochs[1], strict=True))


def test_an_identitys_prompt_is_encoded_once_and_the_terms_are_those_of_all_images(parts):
    import loss

    _, _, model = parts
    labels = torch.tensor([3, 0, 3, 1, 0, 3])
    features = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    rows = []
    hook = model.text_encoder.register_forward_hook(lambda m, given, out: rows.append(len(out)))
    terms, accuracy = prompt_terms(TextSide(model), features, labels)
    assert rows == [3]
    hook.remove()
    texts = model.text_features(labels)
    torch.testing.assert_close(terms["i2t"], loss.supervised_contrastive(features, texts, labels, labels))
    torch.testing.assert_close(terms["t2i"], loss.supervised_contrastive(texts, features, labels, labels))
    nearest = (features @ texts.t()).argmax(1)
    assert float(accuracy) == pytest.approx(float((labels[nearest] == labels).float().mean()))


def test_a_process_without_a_share_takes_part_all_the_same(parts):
    _, _, model = parts
    none = TextSide(model)(torch.tensor([2]), (), slice(1, 1))  # one prompt, the second of two processes
    none.sum().backward()
    assert none.shape == (0, 32) and model.prompt_learner.cls_ctx.grad.eq(0).all()


def test_a_batch_of_one_identity_has_no_language_term(parts):
    cfg, data, model = parts
    stage = LearnPrompts.from_cfg(cfg, data, model.train())
    stage.begin()
    stage.net = stage.stepped()
    batch = next(iter(stage.batches(1)))
    assert "ssl" in stage.losses(batch)
    batch.labels[:] = 2
    assert set(stage.losses(batch)) == {"i2t", "t2i"}


def test_text_features_of_all_identities_do_not_depend_on_their_batches(parts, monkeypatch):
    _, _, model = parts
    whole = text_features(model)
    monkeypatch.setattr("processor.methods.prompt.TEXTS_AT_ONCE", 3)
    torch.testing.assert_close(text_features(model), whole)
    assert whole.shape == (4, 32) and not whole.requires_grad


def test_text_logits_are_float32_in_half_precision(parts):
    cfg, data, model = parts
    stage = TuneEncoder.from_cfg(cfg, data, model.train())
    with torch.autocast("cpu", torch.bfloat16):
        stage.begin()
        stage.net = model
        out = stage.outputs(next(iter(stage.batches(1))))
    assert stage.texts.dtype == torch.bfloat16 and out.i2t_logits.dtype == torch.float32
    torch.testing.assert_close(out.i2t_logits, out.feats[2].float() @ stage.texts.float().t())


def test_views_are_made_only_when_used_and_from_the_same_training_image(market, tmp_path):
    plain, with_views = (
        next(iter(make_dataloader(config(market, tmp_path, MODEL__USE_SSL=used, INPUT__RE_PROB=1.0)).train.epoch(1)))
        for used in (False, True)
    )
    assert plain.views == () and [v.shape for v in with_views.views] == [plain.images.shape] * 2
    assert torch.equal(plain.images, with_views.images)
    assert not torch.equal(*with_views.views)
    moved = with_views.to(torch.device("cpu"))
    assert all(torch.equal(a, b) for a, b in zip(moved.views, with_views.views, strict=True))


def test_one_decoding_serves_the_image_and_its_views(market, tmp_path, monkeypatch):
    from datasets.images import ImageList

    real, decoded = ImageList.image, []
    monkeypatch.setattr(ImageList, "image", lambda self, row: decoded.append(row) or real(self, row))
    batch = next(iter(make_dataloader(config(market, tmp_path, MODEL__USE_SSL=True)).train.epoch(1)))
    assert len(decoded) == len(batch)


def test_views_erase_about_a_third(market, tmp_path):
    cfg = config(market, tmp_path, MODEL__USE_SSL=True, INPUT__RE_PROB=1.0)
    transform = make_dataloader(cfg).train.loader.dataset.transform
    first, *views = transform.transforms
    assert {view.erase.area for view in views} == {(0.33, 1 / 3)} and first.erase.area == (0.02, 1 / 3)
    shares = [h * w / (256 * 128) for h, w in (views[0].erase.rectangle(256, 128)[2:] for _ in range(50))]
    assert min(shares) > 0.31 and max(shares) < 0.35


def test_skipping_damaged_images_is_refused(market, tmp_path):
    with pytest.raises(UserError, match="DATALOADER.BAD_IMAGES 'skip' and PROCESSOR.NAME 'prompt' cannot go together"):
        run.train(config(market, tmp_path, DATALOADER__BAD_IMAGES="skip"))


def test_batches_that_cannot_be_made_are_named_by_stage_2s_key(market, tmp_path):
    with pytest.raises(UserError, match="SOLVER.STAGE2.IMS_PER_BATCH: 3 images per process is not a multiple"):
        run.train(config(market, tmp_path, SOLVER__STAGE2__IMS_PER_BATCH=3))


# ---------------------------------------------------------------- several processes


@pytest.mark.slow
def test_two_processes_have_the_losses_and_gradients_of_one(together):
    one, two = (torch.load(together / f"prompt_{n}.pt", weights_only=True) for n in (1, 2))
    assert set(one["prompts"]["terms"]) == {"i2t", "t2i", "ssl", "loss"}
    assert set(one["encoder"]["terms"]) == {"id", "triplet", "i2t", "ssl", "loss"}
    assert set(one["prompts"]["grads"]) == {"prompt_learner.cls_ctx"} and len(one["encoder"]["grads"]) > 40
    for stage in ("prompts", "encoder"):
        for kind in ("terms", "grads"):
            compare(one[stage][kind], two[stage][kind], f"{stage} {kind}")
        assert max(float(g.abs().max()) for g in one[stage]["grads"].values()) > 1e-3
    compare(one["buffers"], two["buffers"], "buffers")


def compare(one: dict, two: dict, what: str) -> None:
    assert one.keys() == two.keys()
    for name, wanted in one.items():
        torch.testing.assert_close(two[name], wanted, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{what} {n}: {m}")


# ---------------------------------------------------------------- sentences


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory):
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("clip") / "clip.pt"
    torch.save(build_clip("ViT-micro-8", clip_config("ViT-micro-8"), with_text=True).state_dict(), path)
    return path


def test_a_sentence_ranks_the_gallery(market, tmp_path, clip_file):
    changes = {"MODEL__PRETRAIN_CHOICE": "imagenet", "MODEL__PRETRAIN_PATH": str(clip_file), "MODEL__SIE_CAMERA": True}
    run.train(config(market, tmp_path, **changes))
    weight = str(tmp_path / "ViT-micro-8_2.pth")
    settings = CLIP_RUN | changes | {"TEST__WEIGHT": weight}
    words = options(market, tmp_path, **settings)

    def ranked(sentence: str, *more) -> list[dict[str, str]]:
        search.main([str(w) for w in ("--text", sentence, "--out", tmp_path / "found.csv", *more, "--k", 8, *words)])
        return list(csv.DictReader((tmp_path / "found.csv").open()))

    red, empty = ranked("a person in red", "--page", tmp_path / "page.html"), ranked("an empty street")
    assert len(red) == len(empty) == 8 and all("bounding_box_test" in row["path"] for row in red)
    assert [row["rank"] for row in red] == [str(rank) for rank in range(1, 9)]
    assert [row["distance"] for row in red] == sorted((row["distance"] for row in red), key=float)
    assert [row["distance"] for row in red] != [row["distance"] for row in empty]
    assert red[0].keys() == {"query", "rank", "distance", "row", "path", "pid", "camid", "dataset"}
    assert "a person in red" in (tmp_path / "page.html").read_text()
    check_nearest(config(market, tmp_path, **(changes | {"TEST__WEIGHT": weight})), clip_file, red[0])


def check_nearest(cfg, clip_file, nearest: dict[str, str]) -> None:
    """Compares the nearest image with open_clip's own text encoding."""
    import open_clip

    data = make_dataloader(cfg, training=False)
    model = make_model(cfg, data.num_classes, data.num_cameras, data.num_views)
    model.load_state_dict(torch.load(cfg.TEST.WEIGHT, weights_only=True))
    clip = build_clip("ViT-micro-8", clip_config("ViT-micro-8"), with_text=True).eval()
    clip.load_state_dict(torch.load(clip_file, weights_only=True))
    with torch.no_grad():
        text = clip.encode_text(open_clip.tokenize(["a person in red"]))
        feats = image_features(model, data.tests[0].loader, side=True)[len(data.tests[0].query) :]
    cosines = torch.cosine_similarity(feats, text)
    assert float(cosines.max()) == pytest.approx(1 - float(nearest["distance"]), abs=1e-5)
    assert data.tests[0].gallery.paths[int(cosines.argmax())] == nearest["path"]


def test_what_a_sentence_cannot_search_is_refused(market, tmp_path, clip_file):
    run.train(config(market, tmp_path))
    good = {"TEST__WEIGHT": str(tmp_path / "ViT-micro-8_2.pth"), "MODEL__PRETRAIN_PATH": str(clip_file)}
    torch.save({"token_embedding.weight": torch.zeros(49408, 16)}, tmp_path / "narrow.pt")
    torch.save({"visual.proj": torch.zeros(3)}, tmp_path / "mute.pt")
    wrong = {
        "'supervised' trains no model that a sentence can search": {"PROCESSOR__NAME": "supervised"},
        "TEST.WEIGHT is empty": {"TEST__WEIGHT": ""},
        "holds no token embedding": {"MODEL__PRETRAIN_PATH": str(tmp_path / "mute.pt")},
        "is not that of the model's text tower": {"MODEL__PRETRAIN_PATH": str(tmp_path / "narrow.pt")},
        "no such file": {"MODEL__PRETRAIN_PATH": "absent.pt"},
    }
    for line, changes in wrong.items():
        with pytest.raises(UserError, match=line):
            search.main(
                ["--text", "a car", "--k", "1", *map(str, options(market, tmp_path, **(CLIP_RUN | good | changes)))]
            )
