"""MSViT's composition: the mean over all identity and triplet terms (``docs/msvit.md``)."""

from __future__ import annotations

from torch import Tensor

from loss.cross_entropy import cross_entropy
from loss.triplet import triplet
from loss.weighted_sum import weighted_sum
from utils.distributed import gather_rows


def mean_of_terms(
    scores: list[Tensor],
    feats: list[Tensor],
    labels: Tensor,
    *,
    id_weight: float = 1.0,
    triplet_weight: float = 1.0,
    epsilon: float = 0.0,
    margin: float | None = None,
    normalize: bool = True,
    gather: bool = False,
) -> dict[str, Tensor]:
    """Returns a cross-entropy per score and a triplet term per feature, weighted and over the sum of all weights.

    scores: (B, C) logits each. feats: (B, d) each. labels: (B,). The weights change the balance and not the size of the
    total; 0 omits a term. epsilon: label smoothing. margin: None for the soft margin. normalize:
    unit-length features. gather: mine the hardest pairs over the batches of all processes.
    """
    divisor = id_weight * len(scores) + triplet_weight * len(feats)
    entropies = [cross_entropy(s, labels, epsilon) for s in scores]
    terms = {"id": id_weight / divisor * weighted_sum(entropies, [1.0] * len(entropies))}
    if triplet_weight:
        if gather:
            feats, labels = [gather_rows(f) for f in feats], gather_rows(labels)
        triplets = [triplet(f, labels, margin, normalize) for f in feats]
        terms["triplet"] = triplet_weight / divisor * weighted_sum(triplets, [1.0] * len(triplets))
    return terms
