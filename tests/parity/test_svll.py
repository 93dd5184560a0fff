"""Reference cases of CLIP-ReID and SVLL-ReID: same numbers from the same weights, in both stages and the baseline."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import loss
from configs import load_config
from model import make_model
from model.layers.prompt_augment import draw, mask, mix, swap
from model.layers.prompt_learner import prompt_tokens
from processor.methods.prompt import TextSide, prompt_terms
from solver import make_optimizer, make_scheduler
from tests.parity import cases
from tests.parity.checks import close, counts, tensors
from tests.tiny import CLIP
from tests.tiny import words as words_of
from utils.checkpoint import load_pretrained, load_weights, position_grids, resize_positions

pytestmark = pytest.mark.parity

FIRST_PIXEL = (5, 3)  # of the pixels at which gradients are stored


def settings(case):
    return load_config(opts=case.params["config"])


def build(case) -> nn.Module:
    model = make_model(settings(case), *counts(case.params))
    report = load_weights(model, case.state_dict())
    assert not (report.missing or report.mismatched or report.unexpected), str(report)
    return model


def labels_of(given: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: given[k] for k in ("cam_label", "view_label") if k in given}


def check_gradient(case, gradient: Tensor, name: str) -> None:
    """Against what is stored: the log of the root mean square, and pixels or channels divided by it."""
    wanted, size = case.outputs(), gradient.square().mean().sqrt()
    close(case, size.log(), wanted[f"{name}_log_rms"], f"{name}_log_rms")
    if name not in wanted:
        return
    shape = wanted[name].shape
    if gradient.dim() == 4:
        steps = [have // kept for have, kept in zip(gradient.shape[2:], shape[2:], strict=True)]
        gradient = gradient[:, :, FIRST_PIXEL[0] :: steps[0], FIRST_PIXEL[1] :: steps[1]]
    else:
        gradient = gradient[..., :: gradient.shape[-1] // shape[-1]]
    close(case, gradient / size, wanted[name], name)


def check_eval(case) -> None:
    model, given = build(case).eval(), tensors(case)
    with torch.no_grad():
        found = {
            "feat": model(given["images"], **labels_of(given)),
            "feat_without_label": model(given["images"]),
        }
    for name, wanted in case.outputs().items():
        close(case, found[name], wanted, name)


def position_name(model: nn.Module) -> str:
    """Where an image tower has its position embedding: a ViT itself, a ResNet in its attention pool."""
    (name,) = position_grids(model, model.image_encoder)
    return name


def check_import(case) -> None:
    model, given, wanted = make_model(settings(case), *counts(case.params)).eval(), tensors(case), case.outputs()
    load_pretrained(model, case.state_dict())
    with torch.no_grad():
        close(case, model(given["images"]), wanted.pop("feat"), "feat")
    state, learner = model.state_dict(), model.prompt_learner
    assert learner.tokens[0, : learner.token_prefix.shape[1]].tolist() == case.params["token_prefix_ids"]
    (positions,) = (k for k in state if k.startswith("image_encoder.") and k.endswith("positional_embedding"))
    imported = {
        "token_prefix": state["prompt_learner.token_prefix"][0],
        "token_suffix_head": state["prompt_learner.token_suffix"][0],
        "pos_embed": state[positions],  # a ResNet has them in its attention pool
    }
    for name, value in wanted.items():
        rows = imported[name][: len(value)]
        close(case, rows[:, :: rows.shape[1] // value.shape[1]], value, name)


def check_train(case) -> None:
    model, given, wanted = build(case).train(), tensors(case), case.outputs()
    images = given["images"].requires_grad_()
    views = [given[k].requires_grad_() for k in ("view1", "view2") if k in given]
    out = model(images, label=given["labels"], **labels_of(given), **({"views": views} if views else {}))
    if "text_features" in given:
        out.i2t_logits = out.feats[2] @ given["text_features"].t()
    terms = loss.make_loss(settings(case), case.params["num_class"])(out, given["labels"])
    found = {f"score{i}": s for i, s in enumerate(out.scores)} | {f"feat{i}": f for i, f in enumerate(out.feats)}
    found |= {f"embed{i}": e for i, e in enumerate(out.heads, 1)} | {f"z{i}": z for i, z in enumerate(out.tokens, 1)}
    found |= {"loss": sum(terms.values())}
    if out.i2t_logits is not None:
        found["i2t_logits"] = out.i2t_logits
    norms = {"bottleneck": "bottleneck", "bottleneck_proj": "bottleneck_proj", "mlp_bn1": "image_mlp.bn1"}
    for name, path in norms.items():
        if f"{name}_running_mean" in wanted:
            mean = model.get_submodule(path).running_mean
            found[f"{name}_running_mean"] = mean[: len(wanted[f"{name}_running_mean"])]
    if views:
        found["ssl_loss"] = terms["ssl"] / settings(case).SOLVER.STAGE2.SSL_LOSS_WEIGHT
        check_gradient(case, torch.autograd.grad(found["ssl_loss"], views[0], retain_graph=True)[0], "view1_grad")
    check_gradient(case, torch.autograd.grad(found["loss"], images)[0], "image_grad")
    left = {name for name in wanted if not name.startswith(("image_grad", "view1_grad"))}
    assert set(found) == left, f"{case.name}: {sorted(set(found) ^ left)}"
    for name, value in found.items():
        close(case, value, wanted[name], name)


def check_text(case) -> None:
    model, given, wanted = build(case), tensors(case), case.outputs()
    with torch.no_grad():
        prompts = model.prompts(given["labels"])
        close(case, model.text_features(given["labels"]), wanted["text_features"], "text_features")
        close(case, model.encode_text(prompts), wanted["text_features"], "encode_text")
    head = wanted["prompts_head"]
    step = prompts.shape[2] // head.shape[2]
    close(case, prompts[:, : head.shape[1], ::step], head, "prompts_head")
    for noun in ("person", "vehicle"):
        np.testing.assert_array_equal(prompt_tokens(noun, prompts.shape[1])[0], wanted[f"tokens_{noun}"])
    np.testing.assert_array_equal(model.prompt_learner.tokens[0], wanted["tokens_used"])


def check_text_ssl(case) -> None:
    model, given, wanted, cfg = build(case).train(), tensors(case), case.outputs(), settings(case)
    distinct = given["labels"].unique()
    np.testing.assert_array_equal(distinct, wanted["unique_labels"])
    prompts = model.prompts(distinct)
    bits = [np.unpackbits(given[f"mask{i}_bits"].numpy(), count=prompts.numel()) for i in (1, 2)]
    masks = [torch.from_numpy(b).bool().view(prompts.shape) for b in bits]
    augmentations = tuple(lambda p, dropped=dropped: mask(p, dropped) for dropped in masks)
    close(case, model.text_features(given["labels"]), wanted["text_features"], "text_features")
    for i, augment in enumerate(augmentations, 1):
        texts = model.encode_text(augment(prompts))
        if i == 1:
            close(case, texts, wanted["masked_text_features1"], "masked_text_features1")
        close(case, model.text_mlp(texts), wanted[f"embed{i}"], f"embed{i}")
    weight = cfg.SOLVER.STAGE1.SSL_LOSS_WEIGHT
    terms, _ = prompt_terms(
        TextSide(model), given["image_features"], given["labels"], augmentations, model.text_mlp, weight
    )
    found = {"i2t_loss": terms["i2t"], "t2i_loss": terms["t2i"], "ssl_loss": terms["ssl"] / weight}
    for name, value in (found | {"loss": sum(terms.values())}).items():
        close(case, value, wanted[name], name)
    check_gradient(case, torch.autograd.grad(sum(terms.values()), model.prompt_learner.cls_ctx)[0], "ctx_grad")


def check_augmentations(case) -> None:
    given, wanted = tensors(case), case.outputs()
    prompts, mix_scale = given["prompts"], float(given["scales"][2])
    for i in (1, 2):
        found = {
            "mask": mask(prompts, given[f"mask{i}"]),
            "swap": swap(prompts, given[f"swap_chosen{i}"], given[f"swap_order{i}"]),
            "mix": mix(prompts, given[f"mix_partner{i}"], mix_scale),
        }
        for name, value in found.items():
            close(case, value, wanted.pop(f"{name}_view{i}"), f"{name}_view{i}")
    assert {name.rpartition("_")[2] for name in wanted} <= {"sequential"}  # upstream's own order: not ours, on purpose
    for name, statistics in case.params["statistics"].items():
        check_statistics(*name.split("_"), statistics)


def check_statistics(method: str, scale: str, wanted: dict) -> None:
    """Random draws against the rates that the published functions give, within their sampling error."""
    generator, shape = torch.Generator().manual_seed(0), (256, 77, 16)
    prompts = 1 + torch.rand(shape, generator=generator)
    first, second = (draw(method, shape, float(scale), generator)(prompts) for _ in range(2))
    if method == "mask":
        assert abs(float((first == 0).float().mean()) - wanted["fraction_zero"]) < 0.01
        assert abs(float(((first == 0) & (second == 0)).float().mean()) - wanted["fraction_zero_in_both"]) < 0.01
        return
    moved = (first != prompts).any(2)
    assert abs(float(moved.float().mean()) - wanted["fraction_positions_moved"]) < 0.01
    assert int(moved.sum(1).max()) <= wanted["positions_drawn"] == int(float(scale) * shape[1])


def check_positions(case) -> None:
    make_weight = cases.reader().make_weight
    for kind, grids in case.params["grids"].items():
        source = case.params["source"][kind]
        old = torch.from_numpy(make_weight(source["key"], source["shape"], "float32", source["seed"]))
        for grid in grids:
            found = resize_positions(old[None], tuple(grid))[0]
            name = f"{kind}_{grid[0]}x{grid[1]}"
            close(case, found[:, :: source["step"]], case.outputs()[name], name)


def losses_of(case) -> dict:
    """Name of a stored value -> function of the inputs."""
    weights = case.params["weights"]

    def composed(smooth: str, variant: str, text: bool):
        cfg = load_config(opts=[
            "MODEL.NAME", "ViT-B-16", "DATALOADER.SAMPLER", "softmax_triplet", "MODEL.IF_LABELSMOOTH", smooth,
            "MODEL.ID_LOSS_WEIGHT", weights["id"], "MODEL.TRIPLET_LOSS_WEIGHT", weights["triplet"],
            "MODEL.I2T_LOSS_WEIGHT", weights["i2t"], "SOLVER.STAGE2.SSL_LOSS_WEIGHT", weights["ssl"],
            "SOLVER.MARGIN", weights["margin"], "MODEL.NO_MARGIN", variant == "soft_margin",
            "MODEL.SSL_TYPE", "SIMSIAM" if variant == "simsiam" else "SIMCLR",
        ])  # fmt: skip
        heads = {"simclr": ("view1", "view2"), "simsiam": ("pred1", "pred2")}.get(variant, ())

        def total(t: dict[str, Tensor]) -> Tensor:
            out = SimpleNamespace(
                scores=[t["score0"], t["score1"]], feats=[t["feat0"], t["feat1"], t["feat2"]],
                i2t_logits=t["i2t_logits"] if text else None, heads=[t[name] for name in heads],
                tokens=[t["proj1"], t["proj2"]] if variant == "simsiam" else [],
            )  # fmt: skip
            return sum(loss.make_loss(cfg, case.params["num_class"])(out, t["labels"]).values())

        return total

    def rectangle(t: dict[str, Tensor]) -> Tensor:
        keep = torch.isin(t["labels"], t["contrast_labels"])
        return loss.supervised_contrastive(t["image"][keep], t["contrast"], t["labels"][keep], t["contrast_labels"])

    functions = {
        "supcon_i2t": lambda t: loss.supervised_contrastive(t["image"], t["text"], t["labels"], t["labels"]),
        "supcon_t2i": lambda t: loss.supervised_contrastive(t["text"], t["image"], t["labels"], t["labels"]),
        "supcon_rect": rectangle,
        "simclr": lambda t: loss.simclr(t["view1"], t["view2"]),
        "simsiam": lambda t: loss.simsiam(t["pred1"], t["pred2"], t["proj1"], t["proj2"]),
    }
    for smooth in ("on", "off"):
        functions[f"baseline.smooth_{smooth}"] = composed(smooth, "", text=False)
        for variant in ("", "soft_margin", "simclr", "simsiam"):
            name = ".".join(filter(None, ("stage2", f"smooth_{smooth}", variant)))
            functions[name] = composed(smooth, variant, text=True)
    return functions


def check_losses(case) -> None:
    given, wanted = tensors(case), case.outputs()
    for name, function in losses_of(case).items():
        leaves = {k: v.clone().requires_grad_() if v.is_floating_point() else v for k, v in given.items()}
        value = function(leaves)
        close(case, value, wanted.pop(name), name)
        value.backward()
        for key in [k for k in wanted if k.startswith(f"{name}.grad.")]:
            leaf = leaves[key.removeprefix(f"{name}.grad.")]
            gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            close(case, gradient, wanted.pop(key), key)
    assert not wanted, f"{case.name}: unchecked {sorted(wanted)}"


def rates(cfg, stage: int | None, epochs: int) -> tuple[list[float], list[list[float]]]:
    """Each group's rate before the first step and in each epoch, of a module with a prompt, a weight and a bias."""
    module = nn.Module()
    module.prompt_learner, module.layer = nn.Linear(1, 1, bias=False), nn.Linear(1, 1)
    if stage is None:
        del module.prompt_learner
    optimizer = make_optimizer(cfg, module, stage)
    scheduler = make_scheduler(cfg, optimizer, stage)
    before = [group["lr"] for group in optimizer.param_groups]
    found = []
    for epoch in range(1, epochs + 1):
        scheduler.step(epoch)
        found.append([group["lr"] for group in optimizer.param_groups])
    return before, found


def check_schedules(case) -> None:
    wanted, params = case.outputs(), case.params
    plain, bias = params["group_lrs_stage2"]
    first = rates(load_config(opts=params["config"]), 1, len(wanted["lr_stage1"]))
    close(case, first[0], wanted["lr_stage1_before"], "stage 1, before")
    close(case, first[1], wanted["lr_stage1"], "stage 1")
    both = (params["config"], "SOLVER.STAGE2", 2), (params["config_baseline"], "SOLVER", None)
    for suffix, method in (("", ()), ("_constant", ("constant",))):
        for config, section, stage in both:
            changed = [f"{section}.BIAS_LR_FACTOR", bias / plain]
            changed += [word for value in method for word in (f"{section}.WARMUP_METHOD", value)]
            cfg = load_config(opts=[*config, *changed])
            before, found = rates(cfg, stage, len(wanted[f"lr_stage2{suffix}"]))
            close(case, before, wanted[f"lr_stage2_before{suffix}"], f"{section}{suffix}, before")
            close(case, found, wanted[f"lr_stage2{suffix}"], f"{section}{suffix}")


def check_groups(case) -> None:
    for key, wanted in case.outputs().items():
        _, name, *stage = key.split("_")
        cfg = load_config(opts=case.params["config"][name])
        model = make_model(cfg, *counts(case.params))
        optimizer = make_optimizer(cfg, model, int(stage[0].removeprefix("stage")) if stage else None)
        rows: dict[tuple[float, float], list[float]] = {}
        for group in optimizer.param_groups:
            row = rows.setdefault((group["lr"], group["weight_decay"]), [0, 0])
            row[0] += len(group["params"])
            row[1] += sum(p.numel() for p in group["params"])
        close(case, np.array(sorted([*k, *v] for k, v in rows.items())), wanted, key)


def kind_of(case):
    """The check for a case, from its mode and the names of its outputs."""
    outputs, mode = set(case.outputs()), case.params.get("mode")
    if mode == "eval" and outputs <= {"feat", "feat_without_label"}:
        return check_eval
    first = {
        "token_prefix": check_import, "score0": check_train, "tokens_used": check_text, "ctx_grad": check_text_ssl,
        "mask_view1": check_augmentations, "supcon_i2t": check_losses, "lr_stage1": check_schedules,
    }  # fmt: skip
    for name, check in first.items():
        if name in outputs:
            return check
    if "grids" in case.params:
        return check_positions
    return check_groups if all(name.startswith("groups_") for name in outputs) else None


@pytest.mark.parametrize(
    ("name", "position"), [("ViT-micro-8", "positional_embedding"), ("RN-micro", "attnpool.positional_embedding")]
)
def test_the_position_embedding_is_found_in_every_kind_of_tower(name, position):
    stride = [8, 8] if name.startswith("ViT") else [16, 16]
    words = CLIP | {"MODEL__NAME": name, "MODEL__STRIDE_SIZE": stride}
    assert position_name(make_model(load_config(opts=words_of(words)), 3)) == position


def test_the_reference_cases_are_there():
    if not cases.names("svll_"):
        assert not cases.REQUIRED, f"no reference cases in {cases.GOLDEN}"
        pytest.skip(f"no reference cases in {cases.GOLDEN}; set LINEUP_GOLDEN to their folder")


@pytest.mark.parametrize("name", cases.names("svll_"))
def test_case(name):
    case = cases.load(name)
    check = kind_of(case)
    assert check, (
        f"{name}: no test handles this kind (mode {case.params.get('mode')}, outputs {sorted(case.outputs())[:6]})"
    )
    check(case)
