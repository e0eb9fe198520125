"""Runs a forward step over a data set and hands every sequence's outputs to a callback, in corpus order."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from torch import nn

from returnn_hydra.batch import Batch, Output, TensorSpec
from returnn_hydra.data.dataset import DataError
from returnn_hydra.engine.bad_batch import describe_batch, naming
from returnn_hydra.engine.callback import ForwardCallback
from returnn_hydra.engine.errors import OutOfMemoryError, is_out_of_memory

ForwardStep = Callable[[nn.Module, Batch], Mapping[str, Output]]
logger = logging.getLogger(__name__)


def forward(
    model: nn.Module,
    forward_step: ForwardStep,
    batches: Iterable[tuple[np.ndarray, Batch]],
    callback: ForwardCallback,
    device: torch.device,
    model_outputs: Mapping[str, TensorSpec],
) -> int:
    """Forward every sequence once; returns their number.

    Args:
        batches: (corpus positions of the sequences, batch); the positions are 0 .. N-1, in any order.
        model_outputs: what the outputs must look like; empty: not checked.

    Raises:
        DataError: an output is missing, unexpected, or not what `model_outputs` says.
    """
    model.eval()
    callback.init(model)
    waiting: dict[int, tuple[str, dict[str, np.ndarray]]] = {}
    done = 0
    with torch.inference_mode():
        for positions, batch in batches:
            sequences = forward_batch(model, forward_step, batch, device)
            for position, seq_tag, outputs in zip(positions.tolist(), batch.seq_tags, sequences, strict=True):
                check_outputs(seq_tag, outputs, model_outputs)
                waiting[position] = (seq_tag, outputs)
            while done in waiting:
                callback.process_seq(*waiting.pop(done))
                done += 1
    if waiting:
        raise AssertionError(f"sequence {done} never came, {len(waiting)} wait for it")
    callback.finish()
    return done


def forward_batch(
    model: nn.Module, forward_step: ForwardStep, batch: Batch, device: torch.device
) -> list[dict[str, np.ndarray]]:
    """The outputs of each sequence; a batch that does not fit into memory is halved and done again.

    Raises:
        OutOfMemoryError: it is one sequence.
    """
    try:
        with naming(batch):
            outputs = forward_step(model, batch.to(device))
        arrays = {name: output.per_sequence() for name, output in outputs.items()}
        return [{name: rows[index] for name, rows in arrays.items()} for index in range(batch.num_seqs)]
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        if batch.num_seqs == 1:
            raise OutOfMemoryError(f"out of memory with one sequence: {describe_batch(batch)}") from error
    # out of the except block: its traceback holds on to the memory
    logger.warning("out of memory with %s: going on with halves", describe_batch(batch))
    return [sequence for part in batch.halves() for sequence in forward_batch(model, forward_step, part, device)]


def check_outputs(seq_tag: str, outputs: Mapping[str, np.ndarray], expected: Mapping[str, TensorSpec]) -> None:
    """Compare one sequence's outputs with `model_outputs`.

    Raises:
        DataError: naming the sequence, the output, what it is and what was expected.
    """
    if not expected:
        return
    if set(outputs) != set(expected):
        raise DataError(f"{seq_tag}: forward_step gives {sorted(outputs)}, model_outputs expects {sorted(expected)}")
    for name, spec in expected.items():
        found = outputs[name]
        assert spec.shape is not None and spec.dtype is not None
        fits = found.ndim == len(spec.shape) and all(
            size in (None, length) for size, length in zip(spec.shape, found.shape, strict=True)
        )
        if not fits:
            raise DataError(f"{seq_tag}: output '{name}' has shape {found.shape}, model_outputs expects {spec.shape}")
        if spec.dtype != "string" and found.dtype.kind != np.dtype(spec.dtype).kind:
            raise DataError(f"{seq_tag}: output '{name}' is {found.dtype}, model_outputs expects {spec.dtype}")
        if spec.sparse and spec.dim is not None and found.size and not 0 <= found.min() <= found.max() < spec.dim:
            raise DataError(
                f"{seq_tag}: output '{name}' has labels {found.min()}..{found.max()}, expected 0..{spec.dim - 1}"
            )
