"""The prompt method's steps against a plain implementation, and the memory of its kept features.

``python -m benchmarks.prompt [--model ViT-B-16] [--images 64] [--batch 16] [--size 256 128] [--seconds 60]``

Stage 1: seconds of a step with masked copies, against one prompt augmented after the other and all positions encoded
for every image and every copy, in float32. Stage 2: seconds of a step with vision self-supervision over those without;
it passes three images for one. Memory: growth of a process that keeps the features of as many images as MSMT17 has.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
from functools import partial
from types import SimpleNamespace

import torch
from torch import Tensor, nn

import loss
from benchmarks.train_step import median_times
from configs import load_config
from model import make_model
from model.layers.prompt_augment import draw
from processor.methods.prompt import TextSide, image_features, prompt_terms
from solver import make_optimizer
from utils.device import choose_precision, quick_attention

MSMT17_IMAGES, MSMT17_IDS = 32_621, 1_041


def settings(args, ssl: bool):
    words = [
        "PROCESSOR.NAME", "prompt", "MODEL.NAME", args.model, "MODEL.USE_SSL", ssl, "MODEL.USE_SSL_STAGE1", True,
        "INPUT.SIZE_TRAIN", args.size, "DATALOADER.SAMPLER", "softmax_triplet",
    ]  # fmt: skip
    return load_config(opts=words)


def augmented_one_by_one(prompts: Tensor, scale: float) -> Tensor:
    """The baseline's masked copy: a loop over the prompts."""
    return torch.stack([prompt * (torch.rand(prompt.shape, device=prompt.device) >= scale) for prompt in prompts])


class FirstStage:
    """Stage 1's step on given features. plain: the baseline."""

    def __init__(self, model: nn.Module, features: Tensor, labels: Tensor, dtype: torch.dtype, plain: bool):
        self.model, self.features, self.labels, self.dtype, self.plain = model, features, labels, dtype, plain
        self.net, self.generator = TextSide(model), torch.Generator(features.device)
        self.optimizer = torch.optim.Adam([model.prompt_learner.cls_ctx], lr=3.5e-4)
        self.last = len(model.text_encoder.positional_embedding) - 1

    def encode_all_positions(self, prompts: Tensor) -> Tensor:
        text = self.model.text_encoder
        x = text.transformer(prompts + text.positional_embedding, attn_mask=text.attn_mask)
        return text.ln_final(x)[:, self.model.prompt_learner.end] @ text.text_projection

    def plain_terms(self) -> Tensor:
        texts = self.encode_all_positions(self.model.prompts(self.labels))
        contrast = partial(loss.supervised_contrastive, anchor_labels=self.labels, contrast_labels=self.labels)
        prompts = self.model.prompts(self.labels.unique())
        copies = [self.encode_all_positions(augmented_one_by_one(prompts, 0.5)) for _ in range(2)]
        pair = loss.simclr(*(self.model.text_mlp(copy) for copy in copies))
        return contrast(self.features, texts) + contrast(texts, self.features) + pair

    def our_terms(self) -> Tensor:
        shape = (len(self.labels.unique()), self.last + 1, self.model.text_encoder.width)
        augmentations = tuple(draw("mask", shape, 0.5, self.generator) for _ in range(2))
        terms, _ = prompt_terms(self.net, self.features, self.labels, augmentations, self.model.text_mlp, 1.0)
        return sum(terms.values())

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        device = self.features.device
        with quick_attention(device, self.dtype):
            with torch.autocast(device.type, self.dtype, enabled=not self.plain and self.dtype != torch.float32):
                total = self.plain_terms() if self.plain else self.our_terms()
            total.backward()
        self.optimizer.step()


class SecondStage:
    """Stage 2's step on random images, with or without two views of them."""

    def __init__(self, args, ssl: bool, device: torch.device, dtype: torch.dtype):
        cfg = settings(args, ssl)
        torch.manual_seed(0)
        self.model = make_model(cfg, 64).to(device).train()
        self.optimizer, self.terms = make_optimizer(cfg, self.model, 2), loss.make_loss(cfg, 64)
        self.images = torch.randn(args.batch, 3, *args.size, device=device)
        self.views = (self.images.flip(3), self.images.flip(2)) if ssl else ()
        self.labels = torch.arange(args.batch, device=device) // 4
        self.texts = torch.randn(64, self.model.text_encoder.embed_dim, device=device)
        self.device, self.dtype = device, dtype

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with quick_attention(self.device, self.dtype):
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                out = self.model(self.images, label=self.labels, views=self.views)
                out.i2t_logits = out.feats[2].float() @ self.texts.t()
                total = sum(self.terms(out, self.labels).values())
            total.backward()
        self.optimizer.step()


class Stub(nn.Module):
    """Stands in for an image tower, so that memory alone is measured."""

    def __init__(self, width: int, dtype: torch.dtype):
        super().__init__()
        self.anchor, self.width, self.dtype = nn.Parameter(torch.zeros(1)), width, dtype

    def embed(self, images: Tensor) -> Tensor:
        return images.new_ones(len(images), self.width, dtype=self.dtype)


class StubLoader:
    records = range(MSMT17_IMAGES)

    def __iter__(self):
        for rows in torch.arange(MSMT17_IMAGES).split(64):
            images = torch.zeros(len(rows), 3, 1, 1)
            yield SimpleNamespace(images=images, to=lambda device, images=images: SimpleNamespace(images=images))


def cache_memory(width: int, dtype: torch.dtype) -> tuple[float, float]:
    """Bytes kept, and the growth of the process's largest size while they were gathered."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    features = image_features(Stub(width, dtype), StubLoader())
    return features.nbytes, 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-16")
    parser.add_argument("--images", type=int, default=64, help="images in a batch of stage 1")
    parser.add_argument("--batch", type=int, default=16, help="images in a batch of stage 2")
    parser.add_argument("--size", type=int, nargs=2, default=[256, 128])
    parser.add_argument("--seconds", type=float, default=60.0, help="of measuring per stage")
    args = parser.parse_args()
    for width, dtype in ((512, torch.float16), (512, torch.float32), (1024, torch.float32)):
        with multiprocessing.get_context("fork").Pool(1) as process:  # each from the same size
            kept, grown = process.apply(cache_memory, (width, dtype))
        print(
            f"kept features of {MSMT17_IMAGES} images, {width} wide, {dtype}: {kept / 1e9:.3f} GB, process grew by "
            f"{grown / 1e9:.3f} GB"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = choose_precision("auto", device)
    print(f"{torch.get_num_threads()} threads on {device}, {dtype}, {args.model}, torch {torch.__version__}")
    torch.manual_seed(0)
    model = make_model(settings(args, False), MSMT17_IDS).to(device).train()
    model.requires_grad_(False)
    model.prompt_learner.cls_ctx.requires_grad_(True)
    features = torch.randn(args.images, model.text_encoder.embed_dim, device=device)
    labels = torch.randint(MSMT17_IDS, (args.images,), device=device)
    stages = {name: FirstStage(model, features, labels, dtype, name == "plain") for name in ("plain", "ours")}
    times = median_times(stages, device, args.seconds)
    print(
        f"stage 1, {args.images} images: plain {times['plain']:.3f} s, ours {times['ours']:.3f} s, "
        f"{times['plain'] / times['ours']:.2f} times faster"
    )
    del stages, model
    steps = {name: SecondStage(args, name == "ssl", device, dtype) for name in ("without", "ssl")}
    times = median_times(steps, device, args.seconds)
    print(
        f"stage 2, {args.batch} images: without self-supervision {times['without']:.3f} s, with {times['ssl']:.3f} s, "
        f"{times['ssl'] / times['without']:.2f} times"
    )


if __name__ == "__main__":
    main()
