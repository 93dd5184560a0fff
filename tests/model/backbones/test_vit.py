"""The ViT against its definition in loops: patches, attention, side information, stochastic depth, the conv stem."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from model.backbones.vit import (
    DEIT_SMALL,
    TRANSREID_VIT_SMALL,
    VIT_TYPES,
    SideInformation,
    ViT,
    ViTSpec,
    grid_size,
)
from model.layers.pooling import gem, pool_tokens
from utils.errors import UserError

TINY = ViTSpec(16, 3, 2, mlp_ratio=2.0, patch=8)


def vit(spec: ViTSpec = TINY, size=(32, 16), stride=(8, 8), **options) -> ViT:
    torch.manual_seed(0)
    return ViT(spec, size, stride, **options)


def slow_attention(block, x, scale: float):
    """softmax(q k^T scale) v, one head and one query at a time; projection included. (B, N, D) -> (B, N, D)."""
    attn = block.attn
    q, k, v = attn.qkv(x).chunk(3, dim=2)
    out, width = torch.zeros_like(x), x.shape[2] // attn.num_heads
    for b in range(len(x)):
        for h in range(attn.num_heads):
            part = slice(h * width, (h + 1) * width)
            for i in range(x.shape[1]):
                weights = torch.stack([q[b, i, part] @ k[b, j, part] * scale for j in range(x.shape[1])])
                weights = weights.exp() / weights.exp().sum()
                out[b, i, part] = sum(w * v[b, j, part] for j, w in enumerate(weights))
    return attn.proj(out)


def slow_block(block, x, scale: float):
    x = x + slow_attention(block, F.layer_norm(x, x.shape[2:], block.norm1.weight, block.norm1.bias, 1e-6), scale)
    h = block.mlp.fc1(F.layer_norm(x, x.shape[2:], block.norm2.weight, block.norm2.bias, 1e-6))
    return x + block.mlp.fc2(0.5 * h * (1 + torch.erf(h / math.sqrt(2))))


@pytest.mark.parametrize(
    ("spec", "scale"),
    [
        (TINY, 8**-0.5),
        (ViTSpec(16, 2, 4, mlp_ratio=3.0, qkv_bias=False, attention_scale=16**-0.5, patch=8), 16**-0.5),
        (ViTSpec(16, 1, 1, attention_scale=0.9, patch=8), 0.9),
    ],
)
def test_a_block_is_pre_norm_attention_and_mlp_written_out(spec, scale):
    model = vit(spec).double().eval()
    torch.manual_seed(1)
    for parameter in model.parameters():  # biases are 0 and norms 1 at first
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 5, spec.width, dtype=torch.double)
    for block in model.blocks:
        torch.testing.assert_close(block(x), slow_block(block, x, scale))
    assert (model.blocks[0].attn.qkv.bias is not None) == spec.qkv_bias
    assert model.blocks[0].mlp.fc1.out_features == int(spec.width * spec.mlp_ratio)


@pytest.mark.parametrize("stride", [(8, 8), (6, 5), (3, 8)])
def test_tokens_are_patches_row_by_row_after_a_class_token(stride):
    model = vit(stride=stride).double().eval()
    torch.manual_seed(2)
    torch.nn.init.normal_(model.pos_embed)
    images, conv = torch.randn(2, 3, 32, 16, dtype=torch.double), model.patch_embed.proj
    found = model.tokens(images, blocks=0)
    wanted = [model.cls_token[0].expand(2, -1)]
    for y in range(0, 32 - 8 + 1, stride[0]):
        for x in range(0, 16 - 8 + 1, stride[1]):
            patch = images[:, :, y : y + 8, x : x + 8].flatten(1)
            wanted.append(patch @ conv.weight.flatten(1).t() + conv.bias)
    torch.testing.assert_close(found, torch.stack(wanted, 1) + model.pos_embed)
    assert found.shape[1] == 1 + math.prod(model.grid)


@pytest.mark.parametrize(
    ("size", "counts"),
    [((256, 128), (128, 162, 210, 242)), ((384, 128), (192, 243, 310, 374)), ((256, 256), (256, 324, 441, 484))],
)
def test_the_published_numbers_of_patches(size, counts):
    assert tuple(math.prod(grid_size(size, 16, (s, s))) for s in (16, 14, 12, 11)) == counts


def test_the_feature_is_the_normalised_class_token_and_with_gem_the_mean_of_cubes_besides():
    images = torch.randn(2, 3, 32, 16)
    model = vit().eval()
    tokens = model.norm(model.tokens(images)).detach()
    torch.testing.assert_close(model(images), tokens[:, 0])
    with_gem = vit(pooling="gem").eval()
    means = torch.zeros(2, 16)
    for b in range(2):
        for d in range(16):
            means[b, d] = sum(max(float(t), 1e-6) ** 3 for t in tokens[b, 1:, d]) / 8
    torch.testing.assert_close(with_gem(images), tokens[:, 0] + means ** (1 / 3))
    assert gem(torch.full((1, 4, 2), -3.0)).allclose(torch.tensor(1e-6))


# ---------------------------------------------------------------- side information


def slow_side(model: ViT, cams, views) -> torch.Tensor:
    """The vector added to each image's tokens, from the table of section 1.2 row by row."""
    cameras, sides = model.side.camera_num, model.side.view_num
    added = []
    for i in range(max(len(cams or []), len(views or []))):
        if cameras and sides:
            known = cams[i] < cameras and views[i] < sides
            row = cams[i] * sides + views[i]
        else:
            label = cams[i] if cameras else views[i]
            known, row = label < (cameras or sides), label
        added.append(model.sie_coe * model.sie_embed[row, 0] if known else torch.zeros(model.width))
    return torch.stack(added)


CAMS, VIEWS = [0, 2, 1, 2, 0, 5, 1], [1, 0, 3, 3, 0, 0, 9]


@pytest.mark.parametrize(("camera_num", "view_num", "rows"), [(3, 4, 12), (3, 1, 3), (3, 0, 3), (1, 4, 4), (0, 4, 4)])
def test_side_information_adds_the_labels_row_to_every_token_and_nothing_for_unseen_labels(camera_num, view_num, rows):
    model = vit(camera_num=camera_num, view_num=view_num, sie_coe=1.5).eval()
    assert model.sie_embed.shape == (rows, 1, 16)
    images = torch.randn(len(CAMS), 3, 32, 16)
    plain = model.tokens(images, blocks=0)
    found = model.tokens(images, torch.tensor(CAMS), torch.tensor(VIEWS), blocks=0)
    torch.testing.assert_close(
        found - plain, slow_side(model, CAMS, VIEWS)[:, None].expand_as(plain), atol=1e-6, rtol=0
    )
    unseen = [
        i
        for i, (c, v) in enumerate(zip(CAMS, VIEWS, strict=True))
        if (camera_num > 1 and c > 2) or (view_num > 1 and v > 3)
    ]
    assert unseen and all(torch.equal(found[i], plain[i]) for i in unseen)


def test_labels_that_are_none_add_nothing():
    images, labels = torch.randn(2, 3, 32, 16), torch.tensor([1, 0])
    model = vit(camera_num=2, view_num=2).eval()
    plain = vit().eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if k != "sie_embed"})
    torch.testing.assert_close(model(images), plain(images))
    torch.testing.assert_close(model(images, cam_label=labels), plain(images))  # a row needs both
    assert not torch.allclose(model(images, labels, labels), plain(images))
    camera = vit(camera_num=2).eval()
    assert torch.equal(camera(images, labels, None), camera(images, labels, labels))


@pytest.mark.parametrize("counts", [(0, 0), (1, 1), (1, 0), (0, 1)])
def test_a_count_below_two_means_no_side_information(counts):
    model = vit(camera_num=counts[0], view_num=counts[1]).eval()
    assert not hasattr(model, "sie_embed")
    assert SideInformation(*counts).rows == 0
    images, labels = torch.randn(2, 3, 32, 16), torch.tensor([0, 7])
    assert torch.equal(model(images, labels, labels), model(images))


# ---------------------------------------------------------------- depth, stem, sizes


def test_drop_path_grows_linearly_from_0_in_the_first_block():
    for depth in (1, 2, 5):
        model = vit(ViTSpec(16, depth, 2, patch=8), drop_path=0.4)
        rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.blocks]
        assert rates == pytest.approx([0.4 * i / max(depth - 1, 1) for i in range(depth)])
        assert rates == [getattr(block.drop_path2, "drop_prob", 0.0) for block in model.blocks]


def test_drop_path_drops_whole_samples_and_divides_the_kept_by_their_share():
    drop = vit(ViTSpec(16, 2, 2, patch=8), drop_path=0.25).train().blocks[1].drop_path1
    torch.manual_seed(3)
    out = drop(torch.ones(4000, 3, 2)).flatten(1)
    assert out.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert (out == out[:, :1]).all() and abs((out[:, 0] == 0).double().mean() - 0.25) < 0.03


def test_the_conv_stem_has_stride_16_and_its_layers_are_the_published_ones():
    model = vit(ViTSpec(16, 1, 2), size=(64, 32), stride=(16, 16), conv_stem=True).eval()
    torch.manual_seed(4)
    images, stem = torch.randn(2, 3, 64, 32), model.patch_embed
    x = F.conv2d(images, stem.conv[0].weight, stride=2, padding=3)
    for i, norm in ((3, stem.conv[1]), (6, stem.conv[4])):
        first = F.instance_norm(x[:, :32], weight=norm.IN.weight, bias=norm.IN.bias)
        second = (x[:, 32:] - norm.BN.running_mean.view(1, -1, 1, 1)) / (1 + 1e-5) ** 0.5
        x = F.conv2d(torch.cat([first, second], 1).relu(), stem.conv[i].weight, padding=1)
    x = F.conv2d((x / (1 + 1e-5) ** 0.5).relu(), stem.proj.weight, stem.proj.bias, stride=8)
    torch.testing.assert_close(
        stem(images), torch.stack([x[:, :, y, c] for y in range(4) for c in range(2)], 1), atol=1e-5, rtol=1e-4
    )
    assert [stem.conv[i].bias for i in (0, 3, 6)] == [None] * 3


@pytest.mark.parametrize("stride", [(12, 12), (16, 12), (8, 8)])
def test_the_conv_stem_refuses_another_stride(stride):
    with pytest.raises(UserError, match="MODEL.STRIDE_SIZE"):
        vit(ViTSpec(16, 1, 2), size=(64, 32), stride=stride, conv_stem=True)


def test_an_image_of_another_size_or_smaller_than_a_patch_is_refused_in_one_line():
    with pytest.raises(UserError, match=r"\(32, 24\) give 12 patches.*\(8 patches\)") as caught:
        vit()(torch.randn(1, 3, 32, 24))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="smaller than one patch"):
        vit(size=(32, 7))
    assert vit()(torch.randn(1, 3, 16, 32)).shape == (1, 16)  # as many patches: allowed


def test_gradient_checkpointing_gives_the_same_gradients():
    grads = []
    for checkpointed in (False, True):
        model = vit(grad_checkpoint=checkpointed, camera_num=3, drop_path=0.5).train()
        torch.manual_seed(5)
        model(torch.randn(4, 3, 32, 16), torch.tensor([0, 1, 2, 9])).square().sum().backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, msg=name)


@pytest.mark.parametrize("name", sorted(VIT_TYPES))
def test_every_type_has_the_published_shape(name):
    with torch.device("meta"):
        model = ViT(VIT_TYPES[name], (256, 128))
    spec = VIT_TYPES[name]
    assert len(model.blocks) == spec.depth and model.width == spec.width
    assert model(torch.empty(2, 3, 256, 128, device="meta")).shape == (2, spec.width)


def test_parameter_counts_are_the_published_ones_with_the_unused_imagenet_classifier():
    for spec, published in (
        (VIT_TYPES["vit_base_patch16_224_TransReID"], 86.5),
        (DEIT_SMALL, 22.0),
        (TRANSREID_VIT_SMALL, 48.7),
    ):
        with torch.device("meta"):
            model = ViT(spec, (256, 128))
        unused = spec.width * 1000 + 1000
        neck_and_classifier = spec.width * (11 + 2)
        millions = (sum(p.numel() for p in model.parameters()) + unused + neck_and_classifier) / 1e6
        assert abs(millions - published) < 0.1


@pytest.mark.parametrize(("published", "std"), [("transreid", math.sqrt(2 / (64 * 16))), ("deit", None)])
def test_initial_weights_follow_the_published_rules(published, std):
    model = vit(ViTSpec(64, 2, 2, patch=8), camera_num=50, published_init=published)
    for table in (model.pos_embed, model.sie_embed, model.blocks[0].attn.qkv.weight, model.blocks[1].mlp.fc2.weight):
        assert abs(table.std() - 0.02) < 0.002 and table.abs().max() <= 2
    assert all(not b.any() for n, b in model.named_parameters() if n.endswith("bias") and "blocks" in n)
    assert (model.norm.weight == 1).all() and (model.norm.bias == 0).all()
    if std:
        assert abs(model.patch_embed.proj.weight.std() / math.sqrt(2 / (64 * 64)) - 1) < 0.05
    else:  # PyTorch's default: uniform up to the root of 1 / (3 * 8 * 8)
        assert 0.95 < model.patch_embed.proj.weight.abs().max() * math.sqrt(3 * 64) <= 1


@pytest.mark.parametrize("pooling", ["None", "avg", "max", "avg_max"])
def test_a_pooling_of_tokens_is_that_of_its_definition(pooling):
    tokens = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(0))
    patches = tokens[:, 1:]
    expected = {
        "None": tokens[:, 0],
        "avg": sum(patches.unbind(1)) / 8,
        "max": torch.stack([p.max(0).values for p in patches]),
        "avg_max": torch.stack([(p[:4].max(0).values + p[4:].max(0).values) / 2 for p in patches]),
    }
    torch.testing.assert_close(pool_tokens(tokens, pooling), expected[pooling])


def test_a_pooling_that_does_not_fit_the_patches_is_refused():
    with pytest.raises(UserError, match="MODEL.POOLING 'avg_max': .* groups of 4.* have 9"):
        vit(size=(24, 24), pooling="avg_max")
