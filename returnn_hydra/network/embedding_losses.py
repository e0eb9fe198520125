"""Losses that compare embeddings with each other.

Legend: N frames of all sequences, T frames of one, F features, E dimensions of an embedding, S sources.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from returnn_hydra.network.losses import LossInput, LossValue, register_loss
from returnn_hydra.network.named_tensor import NamedTensor


def _frames(data: LossInput, tensor: NamedTensor) -> list[Tensor]:
    """Per sequence the real frames: (T, F), or (1, F) without a time axis."""
    batch, feature = tensor.batch_axis, tensor.feature
    last = feature if feature is not None else next((a for a in reversed(tensor.axes) if not a.is_dynamic), None)
    if batch is None or last is None or last is batch:
        raise data.call.error(f"the loss needs sequences of vectors, not axes {list(tensor.axes)}")
    time = data.call.finder.time(tensor)
    if time is None or time is last:
        return list(tensor.expanded([batch, last])[:, None])
    rows = tensor.expanded([batch, time, last])
    counts = [time.size] * batch.size if time.lengths is None else time.lengths.tolist()
    return [row[:count] for row, count in zip(rows, counts, strict=True)]


@register_loss("triplet_loss")
def triplet_loss(data: LossInput, *, margin: float, multi_view_training: bool = False) -> LossValue:
    """Cosine distances between all pairs: d for equal labels, max(margin - d, 0) for different ones, each half.

    The output has the embeddings of anchor, same and different word beside each other, the target (.., 3) their labels;
    with two views, first all of one, then all of the other.
    """
    parts = 6 if multi_view_training else 3
    if data.output.dim is None or data.output.dim % parts:
        raise data.call.error(f"loss 'triplet_loss' needs a multiple of {parts} features, not {data.output.dim}")
    views = torch.cat(_frames(data, data.output)).chunk(parts, -1)  # (N, E) each
    labels = torch.cat(_frames(data, data.reference))  # (N, 3)
    if labels.shape[-1] != 3:
        raise data.call.error(f"loss 'triplet_loss' needs three labels per frame, not {labels.shape[-1]}")
    groups = [views] if parts == 3 else [(views[0], views[4], views[5]), (views[1], views[4], views[2])]
    total = torch.stack([_pairs(torch.cat(group), labels.t().reshape(-1), margin) for group in groups]).sum()
    batch = data.output.batch_axis
    assert batch is not None
    return LossValue(total, count=len(groups) * 9.0 * batch.size)


def _pairs(embeddings: Tensor, labels: Tensor, margin: float) -> Tensor:
    unit = F.normalize(embeddings, dim=1, eps=1e-15**0.5)
    distances = 1.0 - unit @ unit.t()
    # RETURNN's test for equal labels: a^2 = a b, so that 0 is equal to everything
    same = labels.square()[None] == labels[:, None] * labels[None]
    return 0.5 * torch.where(same, distances, (margin - distances).clamp(min=0)).sum()


@register_loss("deep_clustering")
def deep_clustering(data: LossInput, *, embedding_dimension: int, nr_of_sources: int) -> LossValue:
    """|V V^T - Y Y^T|^2 of every sequence, V embeddings and Y sources of its bins (Hershey et al., 2016, eq. 1)."""
    total = torch.zeros((), device=data.output.raw.device)
    for output, target in zip(_frames(data, data.output), _frames(data, data.reference), strict=True):
        v = output.reshape(-1, embedding_dimension)
        y = target.to(output.dtype).reshape(-1, nr_of_sources)
        if len(v) != len(y):
            raise data.call.error(f"{len(v)} embeddings of {embedding_dimension}, but {len(y)} bins in the target")
        total = total + (v.t() @ v).square().sum() - 2 * (v.t() @ y).square().sum() + (y.t() @ y).square().sum()
    return LossValue(total)
