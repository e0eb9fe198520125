"""A model as an ONNX file, and whether onnxruntime gets the same results out of it.

Legend: B sequences, T frames, F features, T' output frames, D output features.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from returnn_hydra.engine.errors import CONFIG, RunError
from returnn_hydra.extras import require

Pair = tuple[Tensor, Tensor]
"""Features (B, T, F) and lengths (B,)."""
INPUTS, OUTPUTS = ["features", "lengths"], ["outputs", "output_lengths"]
OPSET = 18
_FATAL_ONLY = 4
logger = logging.getLogger(__name__)


class ExportError(RunError):
    """No way of exporting gives a file that computes what the model does."""

    exit_code = CONFIG


class Encoder(nn.Module):
    """What of a model needs features only: its `encode`, or else all of it.

    Args:
        model: with `encode` (encoder-decoder, transducer), or a `forward`, that takes features and lengths.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.whole = not hasattr(model, "encode")

    def forward(self, features: Tensor, lengths: Tensor) -> Pair:
        """(B, T, F), (B,) -> (B, T', D), (B,)."""
        outputs, output_lengths = (self.model if self.whole else self.model.encode)(features, lengths)  # type: ignore[operator]
        return outputs, output_lengths


def export(encoder: nn.Module, num_features: int, file: Path, check: Callable[[Path], float]) -> tuple[str, float]:
    """Write an ONNX file with any number of sequences and frames: features (B, T, F) float32 and lengths (B,) int64 ->
    outputs (B, T', D) and output_lengths (B,).

    torch has two ways to do it, and each fails for some models (version 2.13: tracing writes down the sizes of relative
    positions, torch.export those of an LSTM). The first one whose file passes the check is taken.

    Args:
        check: the largest difference to the model; raises ExportError where the file can't be used.

    Returns:
        the name of the way, and the difference.

    Raises:
        ExportError: with what went wrong in each way.
    """
    require_packages()
    encoder = encoder.eval()
    generator = torch.Generator().manual_seed(1)
    example = (torch.randn(2, 37, num_features, generator=generator), torch.tensor([37, 29]))
    problems = []
    part = file.with_name(f"{file.name}.part{os.getpid()}")
    try:
        for way, write in {"tracing": _trace, "torch.export": _torch_export}.items():
            try:
                with _quiet(), torch.no_grad():
                    write(encoder, example, part)
                difference = check(part)
            except Exception as error:  # torch and onnxruntime raise errors of all classes
                problems.append(f"{way}: {_gist(error)}")
                logger.info("No ONNX file by %s", problems[-1])
                continue
            part.replace(file)
            return way, difference
    finally:
        part.unlink(missing_ok=True)
    raise ExportError(f"this model can't be exported to ONNX; {'; '.join(problems)}")


def _trace(encoder: nn.Module, example: Pair, file: Path) -> None:
    frames = {0: "batch", 1: "time"}
    axes = {"features": frames, "lengths": {0: "batch"}, "outputs": {0: "batch", 1: "output_time"}}
    axes["output_lengths"] = {0: "batch"}
    torch.onnx.export(
        encoder, example, str(file), dynamo=False, input_names=INPUTS, output_names=OUTPUTS, dynamic_axes=axes,
        opset_version=OPSET,
    )  # fmt: skip


def _torch_export(encoder: nn.Module, example: Pair, file: Path) -> None:
    any_size = torch.export.Dim.DYNAMIC
    torch.onnx.export(
        encoder, example, str(file), dynamo=True, input_names=INPUTS, output_names=OUTPUTS,
        dynamic_shapes=({0: any_size, 1: any_size}, {0: any_size}), opset_version=OPSET, external_data=False,
        verbose=False,
    )  # fmt: skip


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters print and warn of: the check says what is wrong."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _gist(error: Exception) -> str:
    """The first line that says something, of errors that fill pages."""
    text = str(error)
    text = text.partition("## Exception summary")[2] or text
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2])[:300]}"


def largest_difference(file: Path, encoder: nn.Module, batches: Iterable[Pair], tolerance: float) -> float:
    """Of the real output frames of all batches, between onnxruntime and torch.

    Raises:
        ExportError: it is larger than `tolerance` (or NaN), or the lengths or shapes differ.
    """
    session = open_session(file)
    worst = 0.0
    for features, lengths in batches:
        with torch.inference_mode():
            outputs, output_lengths = (tensor.numpy() for tensor in encoder(features, lengths))
        found, found_lengths = run_session(session, features.numpy(), lengths.numpy())
        size = f"a batch of {len(lengths)} sequences and {features.shape[1]} frames"
        if found.shape != outputs.shape or not np.array_equal(found_lengths, output_lengths):
            raise ExportError(
                f"{size}: onnxruntime gives outputs {found.shape} with lengths {found_lengths.tolist()}, "
                f"torch {outputs.shape} with {output_lengths.tolist()}"
            )
        for row, expected, length in zip(found, outputs, output_lengths.tolist(), strict=True):
            difference = float(np.abs(row[:length] - expected[:length]).max(initial=0.0))
            if not difference <= tolerance:
                raise ExportError(f"{size}: onnxruntime differs from torch by {difference:.3g}, allowed: {tolerance:g}")
            worst = max(worst, difference)
    return worst


def open_session(file: Path) -> Any:
    """The ONNX file in onnxruntime, on the CPU."""
    onnxruntime = require("onnxruntime", "export")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL_ONLY  # its errors come as exceptions as well
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def run_session(session: Any, features: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(B, T, F) float32, (B,) int64 -> (B, T', D), (B,)."""
    outputs, output_lengths = session.run(OUTPUTS, {"features": features, "lengths": lengths})
    return outputs, output_lengths


def require_packages() -> None:
    """
    Raises:
        MissingExtra: a package of the extra `export` is missing.
    """
    for name in ("onnx", "onnxruntime", "onnxscript"):
        require(name, "export", "task=export")
