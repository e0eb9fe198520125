"""Batches as named tensors, and made-up batches to build a network with.

Legend: B sequences, T frames.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from returnn_hydra.batch import Batch, TensorSpec
from returnn_hydra.network.axis import BATCH, Axis, feature_axis, static_axis
from returnn_hydra.network.errors import NetworkError
from returnn_hydra.network.named_tensor import NamedTensor


def named_streams(
    batch: Batch, specs: Mapping[str, TensorSpec], device: torch.device
) -> tuple[Axis, dict[str, NamedTensor]]:
    """The batch axis, and every numeric stream of the batch that `specs` describes."""
    present = [key for key in specs if key in batch]
    if not present:
        raise NetworkError(f"the batch has none of the streams {sorted(specs)}, but {sorted(batch.tensors)}")
    batch_axis = Axis("batch", len(batch[present[0]]), BATCH)
    times: dict[str, Axis] = {}
    found = {}
    for key in present:
        if isinstance(batch[key], torch.Tensor):
            found[key] = _named_stream(key, batch, specs, batch_axis, times, device)
    return batch_axis, found


def _named_stream(
    key: str,
    batch: Batch,
    specs: Mapping[str, TensorSpec],
    batch_axis: Axis,
    times: dict[str, Axis],
    device: torch.device,
) -> NamedTensor:
    spec = specs[key]
    raw = batch[key].to(device)
    if raw.is_floating_point():
        raw = raw.to(torch.get_default_dtype())
    shape = spec.shape or ()
    if raw.dim() != len(shape) + 1 or any(
        size is not None and size != actual for size, actual in zip(shape, raw.shape[1:], strict=True)
    ):
        raise NetworkError(f"stream {key!r} has shape {tuple(raw.shape)}, but extern_data says {('B', *shape)}")
    axes: list[Axis] = [batch_axis]
    for position, size in enumerate(shape):
        actual = raw.shape[position + 1]
        if position == spec.time_axis and key in batch.lengths:
            axes.append(_time_axis(key, batch, spec, batch_axis, times, actual))
        elif size is not None and position == len(shape) - 1 and not spec.sparse:
            axes.append(feature_axis(f"feature:{key}", actual))
        else:
            axes.append(static_axis(f"spatial{position}:{key}", actual))
    feature = axes[-1] if not spec.sparse and axes[-1].kind == "feature" else None
    return NamedTensor(
        raw, tuple(axes), feature=feature, sparse_dim=spec.dim if spec.sparse else None, vocab=spec.vocab
    )


def _time_axis(key: str, batch: Batch, spec: TensorSpec, batch_axis: Axis, times: dict[str, Axis], size: int) -> Axis:
    """Streams that are declared to have the same lengths share their axis."""
    owner = spec.same_length_as or key
    if owner not in times:
        lengths = batch.lengths[key].cpu().long()
        times[owner] = Axis(f"time:var:extern_data:{owner}", size, lengths=lengths, over=(batch_axis,))
    return times[owner]


def batch_of_examples(specs: Mapping[str, TensorSpec], length: int, rng: np.random.RandomState) -> Batch:
    """Two made-up sequences of `length` and `length - 1` frames in every stream."""
    tensors, lengths = {}, {}
    for key, spec in specs.items():
        if spec.dtype == "string":
            continue
        shape = [2, *[length if size is None else size for size in spec.shape or ()]]
        if spec.sparse or (spec.dtype or "").startswith(("int", "uint")):
            values = rng.randint(0, max(spec.dim or 2, 1), shape).astype("int32")
            tensors[key] = torch.from_numpy(values)
        elif spec.dtype == "bool":
            tensors[key] = torch.from_numpy(rng.uniform(size=shape) > 0.5)
        else:
            tensors[key] = torch.from_numpy(rng.uniform(-1, 1, shape).astype("float32"))
        if spec.has_time:
            lengths[key] = torch.tensor([length, length - 1])
    return Batch(tensors, lengths, ["seq-0", "seq-1"])
