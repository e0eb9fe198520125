"""Losses over a sample of the classes, for large vocabularies.

Legend: N frames, D input features, V classes, S sampled classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def class_probabilities(sampler: str, num_classes: int) -> Tensor:
    """Of every class to be drawn: `uniform`, or `log_uniform` (Zipf's law, classes sorted by frequency)."""
    if sampler == "uniform":
        return torch.full((num_classes,), 1.0 / num_classes, dtype=torch.float64)
    classes = torch.arange(num_classes, dtype=torch.float64)
    return torch.log1p(1.0 / (classes + 1.0)) / math.log(num_classes + 1)


def draw_distinct(probabilities: Tensor, count: int) -> tuple[Tensor, int]:
    """Draw with replacement until there are `count` different classes: these, and the number of draws."""
    drawn = torch.empty(0, dtype=torch.long)
    while True:
        drawn = torch.cat([drawn, torch.multinomial(probabilities, 2 * count, replacement=True)])
        is_new = torch.ones(len(drawn), dtype=torch.bool)
        order = torch.argsort(drawn, stable=True)
        is_new[order[1:]] = drawn[order[1:]] != drawn[order[:-1]]
        places = torch.nonzero(is_new)[:, 0]
        if len(places) >= count:
            last = int(places[count - 1])
            return drawn[places[:count]], last + 1


def sampled_loss(
    inputs: Tensor,
    labels: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    num_sampled: int,
    sampler: str,
    nce: bool,
    remove_accidental_hits: bool,
    log_norm_term: float,
) -> Tensor:
    """Sampled softmax (Jean et al. 2015) or noise-contrastive estimation (Gutmann and Hyvarinen 2010): (N,).

    Args:
        inputs: (N, D).
        labels: (N,).
        weight: (V, D).
        bias: (V,).
        num_sampled: S, the same classes for all frames.
        sampler: `log_uniform` or `uniform`.
        nce: binary decisions between the label and the sample, instead of a softmax over both.
        remove_accidental_hits: a sampled class that is the label does not count.
        log_norm_term: subtracted from the logits of `nce`.
    """
    probabilities = class_probabilities(sampler, len(weight))
    sample, draws = draw_distinct(probabilities, num_sampled)
    expected = -torch.expm1(draws * torch.log1p(-probabilities))  # how often each class is in such a sample
    log_expected = expected.log().to(inputs)
    sample = sample.to(inputs.device)
    true_logits = (inputs * weight[labels]).sum(-1) + bias[labels] - log_expected[labels]
    sample_logits = inputs @ weight[sample].t() + bias[sample] - log_expected[sample]  # (N, S)
    if remove_accidental_hits:
        sample_logits = sample_logits.masked_fill(labels[:, None] == sample, -torch.inf)
    if not nce:
        return torch.logsumexp(torch.cat([true_logits[:, None], sample_logits], 1), 1) - true_logits
    true_logits, sample_logits = true_logits - log_norm_term, sample_logits - log_norm_term
    return F.softplus(-true_logits) + F.softplus(sample_logits).sum(1)
