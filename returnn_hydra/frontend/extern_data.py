"""The input streams of a step as frontend tensors: templates from the config's `extern_data`, filled from a `Batch`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from returnn_hydra.batch import Batch
from returnn_hydra.frontend.dim import Dim, batch_dim
from returnn_hydra.frontend.tensor import Tensor, dtype_name
from returnn_hydra.frontend.tensor_dict import TensorDict

SEQ_TAG = "seq_tag"


class ExternDataError(ValueError):
    """A stream is missing, or not what `extern_data` says."""


def make_templates(extern_data: Mapping[str, Any], what: str = "extern_data") -> TensorDict:
    """Tensors without values, from RETURNN's `extern_data` or `model_outputs` options.

    Raises:
        TypeError, ValueError, AssertionError: an entry is wrong; the message begins with its name.
    """
    result = TensorDict()
    for name, options in extern_data.items():
        if not isinstance(options, Tensor | Mapping):
            raise TypeError(f"{what}['{name}']: expected a dict of options, found {options!r}")
        result[name] = options if isinstance(options, Tensor) else Tensor(**{"name": name, **options})
    return result


def fill_from_batch(
    templates: TensorDict, batch: Batch, *, inference: bool = False, float_dtype: str | None = None
) -> TensorDict:
    """The batch's streams as tensors with the templates' dims; lengths go into the dims, on the CPU.

    Streams that are not declared are ignored. `seq_tag` is added.

    Args:
        inference: streams with available_for_inference=False are left out.
        float_dtype: floats are converted to this.

    Raises:
        ExternDataError: a stream is missing, has another shape, or dims that are the same have different lengths.
    """
    wanted = {
        name: template
        for name, template in templates.items()
        if name != SEQ_TAG and (template.available_for_inference or not inference)
    }
    missing = sorted(name for name in wanted if name not in batch)
    if missing:
        raise ExternDataError(
            f"extern_data declares {missing}, but the data has only {sorted(batch.tensors)};"
            " available_for_inference=False makes a stream optional in forward"
        )
    for dim in templates.all_dims():
        dim.reset_raw()
    _set_batch_size(batch, wanted)
    result = TensorDict()
    known: dict[Dim, tuple[str, torch.Tensor]] = {}
    for name, template in wanted.items():
        result[name] = _filled(name, template, batch, known, float_dtype)
    tags = np.array(batch.seq_tags, dtype=object).astype(str)
    result[SEQ_TAG] = Tensor(SEQ_TAG, dims=[batch_dim], dtype="string", raw_tensor=tags)
    return result


def _set_batch_size(batch: Batch, wanted: Mapping[str, Tensor]) -> None:
    size = len(batch[next(iter(wanted))]) if wanted else batch.num_seqs
    raw = torch.tensor(size, dtype=torch.int32)
    batch_dim.dyn_size_ext = Tensor("batch", dims=[], dtype="int32", raw_tensor=raw)


def _filled(
    name: str, template: Tensor, batch: Batch, known: dict[Dim, tuple[str, torch.Tensor]], float_dtype: str | None
) -> Tensor:
    raw = batch[name]
    axis = template.batch_dim_axis
    if axis is None:
        raise ExternDataError(f"stream '{name}': {template} has no batch axis")
    # The data comes with the batch first.
    others = [d for d in template.dims if not d.is_batch_dim()]
    time = next((d for d in others if d.dimension is None), None)
    if time is not None and time is template.feature_dim:
        time = None
    if time is not None:
        others = [time, *(d for d in others if d is not time)]
    if raw.ndim != len(template.dims):
        raise ExternDataError(f"stream '{name}': data of shape {tuple(raw.shape)} for {template}")
    for number, dim in enumerate(others, 1):
        if dim.dimension is not None and dim.dimension != raw.shape[number]:
            raise ExternDataError(
                f"stream '{name}': axis {number} of the data has size {raw.shape[number]}, {dim} has {dim.dimension}"
            )
    if time is not None:
        if name not in batch.lengths:
            raise ExternDataError(f"stream '{name}': extern_data has the time axis {time}, the data has no lengths")
        _set_lengths(name, time, batch.lengths[name], known)
        if not known[time][1].any():  # a batch has at least one frame, padding included; a dim none
            raw = raw[:, :0]
    for number, dim in enumerate(others, 1):
        if not dim.is_dim_known():
            size = torch.tensor(raw.shape[number], dtype=torch.int32)
            dim.dyn_size_ext = Tensor(dim.name, dims=[], dtype="int32", raw_tensor=size)
    if isinstance(raw, torch.Tensor) and float_dtype is not None and raw.is_floating_point():
        raw = raw.to(getattr(torch, float_dtype))
    out = template.copy_template(dtype=dtype_name(raw))
    order = [template.get_batch_dim_tag(), *others]
    stored = [order.index(d) for d in template.dims]
    if stored != list(range(len(stored))):
        raw = raw.permute(stored) if isinstance(raw, torch.Tensor) else raw.transpose(stored)
    out.raw_tensor = raw
    return out


def _set_lengths(name: str, dim: Dim, lengths: torch.Tensor, known: dict[Dim, tuple[str, torch.Tensor]]) -> None:
    raw = lengths.to(torch.int32).cpu()
    if dim in known:
        other, expected = known[dim]
        if not torch.equal(raw, expected):
            raise ExternDataError(
                f"streams '{other}' and '{name}' share {dim}, but their lengths differ:"
                f" {expected.tolist()}, {raw.tolist()}"
            )
        return
    known[dim] = (name, raw)
    dim.dyn_size_ext = Tensor(dim.name, dims=[batch_dim], dtype="int32", raw_tensor=raw)


def raw_dict(batch: Batch) -> dict[str, Any]:
    """MiniReturnn's form: raw tensors by name, lengths as "<name>:size1" (int32, on the device of the data)."""
    result: dict[str, Any] = dict(batch.tensors)
    for name, lengths in batch.lengths.items():
        device = getattr(batch.tensors[name], "device", "cpu")
        result[f"{name}:size1"] = lengths.to(device, torch.int32)
    result[SEQ_TAG] = list(batch.seq_tags)
    return result
