"""Reference cases of MSViT: same numbers from the same weights (those of ranking and recall are in ``test_eval``)."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import loss
from configs import load_config
from datasets import build_transforms
from datasets.images import Batch
from model import make_model
from model.layers.sparse_attention import sparse_window_attention, to_windows
from processor.evaluate import Settings, extract_features
from solver import average_weights, make_average, make_optimizer, make_scheduler, reestimate_batch_norm
from tests.parity import cases
from tests.parity.checks import check_defaults, check_eval, check_train, close, module_of, tensors
from utils.checkpoint import load_pretrained
from utils.scoring.distances import unit_length

pytestmark = pytest.mark.parity


def check_pretrained(case) -> None:
    model = make_model(load_config(opts=case.params["config"]), case.params["num_class"])
    report = load_pretrained(model, case.state_dict())
    assert all(key.startswith(("class_list", "settings")) for key in report.missing), str(report)
    with torch.no_grad():
        close(case, model.eval()(tensors(case)["images"]), case.outputs()["feat"], "feat")


def check_attention(case) -> None:
    given, wanted = tensors(case), case.outputs()
    msvit = load_config(opts=case.params["config"]).MODEL.MSVIT
    split = tuple(msvit.SPLIT_SIZE)
    leaves = {name: given[name].requires_grad_() for name in ("q", "k", "v", "logit_scale")}
    out = sparse_window_attention(*leaves.values(), split, msvit.SPARSE_RATIO)
    close(case, out, wanted.pop("values"), "values")
    (out * given["cotangent"]).sum().backward()
    for name, leaf in leaves.items():
        close(case, leaf.grad, wanted.pop(f"grad.{name}"), f"gradient of {name}")
    close(case, sparse_window_attention(*leaves.values(), split, 1.0), wanted.pop("dense_values"), "dense values")
    height, width = out.shape[2:]
    places = torch.arange(height * width).view(1, 1, height, width)
    np.testing.assert_array_equal(to_windows(places, 1, split)[:, 0], wanted.pop("window_index"))
    assert not wanted, f"{case.name}: unchecked {sorted(wanted)}"


def check_loss(case) -> None:
    wanted, cfg = case.outputs(), load_config(opts=case.params["config"])
    leaves = {k: v.requires_grad_() if v.is_floating_point() else v for k, v in tensors(case).items()}
    scores, feats = ([leaves[k] for k in sorted(leaves) if k.startswith(word)] for word in ("score_", "feat_"))
    terms = loss.make_loss(cfg, case.params["num_class"])(SimpleNamespace(scores=scores, feats=feats), leaves["labels"])
    total = sum(terms.values())
    close(case, total, wanted.pop("total"), "total")
    total.backward()
    for key in [k for k in wanted if k.startswith("grad_")]:
        close(case, leaves[key.removeprefix("grad_")].grad, wanted.pop(key), key)
    ids = torch.stack([loss.cross_entropy(s, leaves["labels"]) for s in scores])
    triplets = torch.stack([loss.triplet(f, leaves["labels"], None, cfg.SOLVER.TRP_L2) for f in feats])
    close(case, ids, wanted.pop("cross_entropy"), "cross-entropy")
    close(case, triplets, wanted.pop("triplet"), "triplet")
    divisor = wanted.pop("divisor")
    close(case, cfg.MODEL.ID_LOSS_WEIGHT * ids.sum() / terms["id"], divisor, "divisor")
    assert not wanted, f"{case.name}: unchecked {sorted(wanted)}"


def check_schedule(case) -> None:
    wanted = case.outputs()
    for variant, spec in case.params["variants"].items():
        cfg, module = load_config(opts=spec["config"]), module_of(case.params)
        optimizer = make_optimizer(cfg, module)
        assert type(optimizer).__name__ == spec["optimizer"]["class"]
        check_defaults(optimizer, spec["optimizer"]["defaults"], variant)
        scheduler, average = make_scheduler(cfg, optimizer), make_average(cfg, module, cfg.SOLVER.MAX_EPOCHS)
        assert spec["total_epochs"] == cfg.SOLVER.MAX_EPOCHS + cfg.SOLVER.EMA.EXTRA_EPOCHS
        names = {id(p): n for n, p in module.named_parameters()}
        rates, averaged = wanted.pop(f"{variant}.lr"), []
        groups = {names[id(p)]: g for g in optimizer.param_groups for p in g["params"]}
        assert sorted(groups) == sorted(spec["parameters"])
        for epoch in range(1, spec["total_epochs"] + 1):
            scheduler.step(epoch)
            close(case, [groups[n]["lr"] for n in spec["parameters"]], rates[epoch - 1], f"{variant} epoch {epoch}")
            before = average.count if average else 0
            if average:
                average.after_epoch(epoch)
                averaged += [epoch] * (average.count - before)
        np.testing.assert_array_equal(averaged, wanted.pop(f"{variant}.averaged_epochs"))
        decays = [groups[n]["weight_decay"] for n in spec["parameters"]]
        close(case, decays, wanted.pop(f"{variant}.weight_decay"), f"{variant} decay")
    assert not wanted, f"{case.name}: unchecked {sorted(wanted)}"


LAYERS = {
    "conv2d": nn.Conv2d, "batch_norm2d": nn.BatchNorm2d, "batch_norm1d": nn.BatchNorm1d, "linear": nn.Linear,
    "relu": nn.ReLU, "flatten": nn.Flatten, "global_average_pool2d": lambda: nn.AdaptiveAvgPool2d(1),
}  # fmt: skip


def check_average(case) -> None:
    given, wanted, make_weight = tensors(case), case.outputs(), cases.reader().make_weight
    module = nn.Sequential(
        *(LAYERS[spec["kind"]](**{k: v for k, v in spec.items() if k != "kind"}) for spec in case.params["layers"])
    )
    states = [
        {key: torch.from_numpy(np.asarray(make_weight(key, shape, kind, seed))) for key, shape, kind in keys}
        for seed in case.params["weights_seeds"]
        for keys in [case.meta["state_dict"]]
    ]
    module.load_state_dict(average_weights(iter(states)))
    for name in [name for name in wanted if name.startswith("average.")]:
        close(case, module.state_dict()[name.removeprefix("average.")], wanted.pop(name), name)
    batches = [given[name] for name in sorted(given) if name.startswith("batch_")]
    if load_config(opts=case.params["config"]).SOLVER.EMA.BN_UPDATE:
        reestimate_batch_norm(module, batches)
    for name in [name for name in wanted if name.startswith("reestimated.")]:
        close(case, module.state_dict()[name.removeprefix("reestimated.")], wanted.pop(name), name)
    with torch.no_grad():
        close(case, module.eval()(given["probe"]), wanted.pop("probe_output"), "probe")
    assert not wanted, f"{case.name}: unchecked {sorted(wanted)}"


class Replay(nn.Module):
    """Gives stored features: image i is a row (i, -1), its mirror (-1, i)."""

    def __init__(self, straight: torch.Tensor, mirrored: torch.Tensor):
        super().__init__()
        self.straight, self.mirrored = straight, mirrored

    def forward(self, images, cam_label=None, view_label=None):
        left, right = images[:, 0, 0].unbind(1)
        return torch.where((right < 0)[:, None], self.straight[left.long()], self.mirrored[right.long()])


def check_flipped_features(case) -> None:
    given, settings = tensors(case), Settings.from_cfg(load_config(opts=case.params["config"]))
    count, none = len(given["feat"]), torch.zeros(len(given["feat"]), dtype=torch.long)
    images = torch.stack([torch.arange(count), torch.full((count,), -1)], dim=1).float().view(count, 1, 1, 2)
    loader = [Batch(images, none, none, none, torch.arange(count))]
    feats = extract_features(
        Replay(given["feat"], given["feat_flipped"]), loader, torch.device("cpu"), flip=settings.flip
    )
    close(case, unit_length(feats) if settings.normalize else feats, case.outputs()["feat"], "feat")


def check_transform(case) -> None:
    cfg = load_config(opts=case.params["config"])
    transform, plain = build_transforms(cfg, case.params["is_train"]), (cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD)
    wanted = case.outputs()
    for name, pixels in case.inputs().items():
        found = transform(Image.fromarray(pixels))
        expected = wanted.pop(name.replace("image", "tensor"))
        close(case, found, expected, name)
        if cfg.INPUT.RESIZE == "cv2_bilinear" and plain == ([0.0] * 3, [1.0] * 3):
            # the same grey levels, not near ones
            np.testing.assert_array_equal(np.rint(found.numpy() * 255), np.rint(expected * 255))
    assert not wanted, f"{case.name}: unchecked {sorted(wanted)}"


def kind_of(case):
    """The check for a case, from its mode and the names of its outputs."""
    outputs, mode = set(case.outputs()), case.params.get("mode")
    if mode == "pretrain_eval" and outputs == {"feat"}:
        return check_pretrained
    if mode == "eval" and outputs == {"feat"}:
        return check_eval
    if mode == "train" and all(k.startswith(("score_", "feat_")) for k in outputs):
        return check_train
    if mode == "schedule":
        return check_schedule
    if mode == "transform" and all(k.startswith("tensor_") for k in outputs):
        return check_transform
    if mode == "function" and "window_index" in outputs:
        return check_attention
    if mode == "function" and "divisor" in outputs:
        return check_loss
    if mode == "function" and "probe_output" in outputs:
        return check_average
    if mode == "function" and outputs == {"feat"} and "feat_flipped" in case.inputs():
        return check_flipped_features
    return None


ELSEWHERE = ("msvit_ap", "msvit_recall")  # tests/parity/test_eval.py


@pytest.mark.parametrize("name", [n for n in cases.names("msvit_") if not n.startswith(ELSEWHERE)])
def test_case(name):
    case = cases.load(name)
    check = kind_of(case)
    assert check, (
        f"{name}: no test handles this kind (mode {case.params.get('mode')}, outputs {sorted(case.outputs())[:6]})"
    )
    check(case)
