"""What flows through the program: stream descriptions, batches, losses and outputs.

Legend: B sequences in the batch, T frames (longest sequence of the batch), F features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class TensorSpec:
    """One entry of `extern_data` or `model_outputs`: what a stream of every sequence looks like.

    `shape` is the shape of one sequence, without the batch axis; None marks an axis whose size differs between
    sequences. The first such axis is the time axis.

    Raises:
        ValueError: neither `dim`, `shape` nor `vocab` says how large the stream is, or they contradict each other.
    """

    dim: int | None = None
    """Number of features, or of classes if `sparse`."""
    shape: tuple[int | None, ...] | None = None
    """Default: (None,) if sparse, else (None, dim)."""
    sparse: bool = False
    """The values are class indices in [0, dim)."""
    dtype: str | None = None
    """Default: int32 if sparse, else float32. "string" for text."""
    available_for_inference: bool = True
    """False: the forward and search tasks do without this stream."""
    vocab: Any = None
    """Names of the classes (an object with `labels`); implies `sparse`, and `dim`."""
    same_length_as: str | None = None
    """Another stream with the same number of frames in every sequence; checked."""

    def __post_init__(self) -> None:
        sparse = self.sparse or self.vocab is not None
        dim = self.dim
        if self.vocab is not None:
            num_labels = len(self.vocab.labels)
            if dim is not None and dim != num_labels:
                raise ValueError(f"dim={dim} contradicts the vocabulary, which has {num_labels} labels")
            dim = num_labels
        shape = self.shape if self.shape is None else tuple(self.shape)
        if shape is None:
            if dim is None:
                raise ValueError("a stream needs `dim` (features or classes), `shape`, or `vocab`")
            shape = (None,) if sparse else (None, dim)
        if dim is None and not sparse and shape and shape[-1] is not None:
            dim = shape[-1]
        if not sparse and dim is not None and shape and shape[-1] not in (None, dim):
            raise ValueError(f"dim={dim} contradicts shape={shape}, whose last axis is the features")
        for name, value in {
            "sparse": sparse,
            "dim": dim,
            "shape": shape,
            "dtype": self.dtype or ("int32" if sparse else "float32"),
        }.items():
            object.__setattr__(self, name, value)

    @property
    def time_axis(self) -> int | None:
        """Index of the time axis in `shape`; None: one value per sequence."""
        assert self.shape is not None
        return self.shape.index(None) if None in self.shape else None

    @property
    def has_time(self) -> bool:
        return self.time_axis is not None


def num_labels(extern_data: Mapping[str, TensorSpec] | None, stream: str) -> int | None:
    """Labels of a stream of classes; what reads the data has looked that no label is beyond. None: not known."""
    spec = (extern_data or {}).get(stream)
    return spec.dim if spec is not None and spec.sparse else None


@dataclass(frozen=True)
class Batch:
    """Some sequences, padded with zeros to the longest of them."""

    tensors: Mapping[str, Any]
    """Stream name to (B, T, ...), or (B, ...) for streams without a time axis; text streams are numpy arrays of str.
    T is at least 1, also where all sequences are empty."""
    lengths: Mapping[str, Tensor]
    """Number of frames, (B,) int64, for every stream with a time axis."""
    seq_tags: list[str] = field(default_factory=list)
    epoch: int = 1
    """The epoch (counted from 1) this batch belongs to."""
    cpu_lengths: Mapping[str, Tensor] = field(default_factory=dict)
    """The lengths on the CPU, where `lengths` are on another device."""

    def lengths_on_cpu(self, lengths: Tensor) -> np.ndarray:
        """Numbers of frames (B,) without a wait for the device, if they are those of a stream: the very tensor."""
        for name, own in self.lengths.items():
            if own is lengths:
                return self.cpu_lengths.get(name, own).cpu().numpy()
        return lengths.cpu().numpy()

    def __getitem__(self, stream: str) -> Any:
        return self.tensors[stream]

    def __contains__(self, stream: str) -> bool:
        return stream in self.tensors

    @property
    def num_seqs(self) -> int:
        return len(self.seq_tags)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device`; returns at once when the memory is pinned."""
        values = (*self.tensors.values(), *self.lengths.values())
        if all(value.device == device for value in values if isinstance(value, Tensor)):
            return self

        def move(mapping: Mapping[str, Any]) -> dict[str, Any]:
            return {
                name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
                for name, value in mapping.items()
            }

        kept = {name: value for name, value in self.lengths.items() if value.device.type == "cpu"}
        lengths = move(self.lengths)
        return replace(self, tensors=move(self.tensors), lengths=lengths, cpu_lengths={**self.cpu_lengths, **kept})

    def select(self, start: int, stop: int) -> Batch:
        """Sequences start .. stop-1, with the padding that they need; one frame of it if none of them has any."""
        lengths = {name: value[start:stop] for name, value in self.lengths.items()}
        cpu_lengths = {name: value[start:stop] for name, value in self.cpu_lengths.items()}
        tensors = {}
        for name, tensor in self.tensors.items():
            part = tensor[start:stop]
            tensors[name] = part[:, : max(1, int(lengths[name].max()))] if name in lengths else part
        seq_tags = self.seq_tags[start:stop]
        return replace(self, tensors=tensors, lengths=lengths, cpu_lengths=cpu_lengths, seq_tags=seq_tags)

    def halves(self) -> list[Batch]:
        """The first and the second half of the sequences; one sequence stays whole."""
        if self.num_seqs < 2:
            return [self]
        middle = (self.num_seqs + 1) // 2
        return [self.select(0, middle), self.select(middle, self.num_seqs)]

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory (torch's DataLoader calls this)."""

        def pin(mapping: Mapping[str, Any]) -> dict[str, Any]:
            return {name: value.pin_memory() if isinstance(value, Tensor) else value for name, value in mapping.items()}

        return replace(self, tensors=pin(self.tensors), lengths=pin(self.lengths))


@dataclass(frozen=True)
class Loss:
    """A number to minimise or to watch, as a sum over `count` frames (or sequences, labels, ...).

    The reported score of an epoch is the sum of the sums over the sum of the counts.
    """

    sum: Tensor
    """Scalar; carries the gradient."""
    count: Tensor | int | float
    """What `sum` was summed over, padding not included."""
    scale: float = 1.0
    """Weight in the optimised total; the reported score does not have it."""
    as_error: bool = False
    """Only reported, never optimised."""

    @property
    def mean(self) -> Tensor:
        return self.sum / self.count


def sum_losses(losses: list[Loss]) -> Loss:
    """One loss over several parts of a batch."""
    total, count = losses[0].sum, losses[0].count
    for loss in losses[1:]:
        total, count = total + loss.sum, count + loss.count
    return replace(losses[0], sum=total, count=count)


@dataclass(frozen=True)
class Output:
    """A result of `forward_step` for every sequence of the batch."""

    tensor: Tensor
    """(B, T, ...) with `lengths`, else (B, ...)."""
    lengths: Tensor | None = None
    """Number of frames, (B,); the padding behind it is cut before a callback sees it."""

    def per_sequence(self) -> list[np.ndarray]:
        """One numpy array per sequence, without the padding; bfloat16 becomes float32."""
        tensor = self.tensor.detach()
        array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).cpu().numpy()
        if self.lengths is None:
            return list(array)
        return [row[:n] for row, n in zip(array, self.lengths.tolist(), strict=True)]


def sequence_mask(lengths: Tensor, max_length: int | None = None) -> Tensor:
    """True where a frame is real: (B,) frame counts -> (B, T) bool."""
    size = int(lengths.max()) if max_length is None else max_length
    return torch.arange(size, device=lengths.device) < lengths[:, None]
