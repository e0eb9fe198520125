"""task=inspect: what the configured data look like: sequences, lengths, batches, padding; as text and as a picture."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from returnn_hydra.batch import TensorSpec
from returnn_hydra.data.loader import Loader
from returnn_hydra.data.stream_loader import StreamLoader
from returnn_hydra.engine.log import RESULTS
from returnn_hydra.extras import require
from returnn_hydra.tasks.context import Context
from returnn_hydra.tasks.data import check_data

logger = logging.getLogger(__name__)
NUM_SHOWN = 3
MOST_VALUES = 8
BAR = 40
MOST_BATCHES = 200
"""Of a stream, whose lengths only reading tells, so many are read."""


def run(context: Context) -> None:
    """Every configured data set in its first epoch; the picture is inspect.png in the run's folder (extra: plot)."""
    context.require_one_process()
    lengths: dict[str, np.ndarray] = {}
    for name, conf in context.dataset_confs().items():
        loader = context.loader(name, conf)
        found, what = read_lengths(loader)
        statistics = loader.statistics(1)  # of a stream: of what was read last
        for line in describe(name, loader, found, what, statistics):
            logger.log(RESULTS, line)
        if len(found):
            lengths[f"{name}: {len(found)} sequences\n{summary(statistics, what)}"] = found
        if context.values["check_data"]:
            logger.log(RESULTS, "%s: %d sequences checked, all are what they should be", name, check_data(loader))
    if lengths:
        file = context.folder.path / "inspect.png"
        draw(lengths, file)
        logger.log(RESULTS, "Lengths of the sequences: %s", file)


def read_lengths(loader: Loader | StreamLoader) -> tuple[np.ndarray, str]:
    """Frames of the sequences, (n,), and which these are, in words: of a stream only the first ones are read."""
    main = next(
        (name for name in ("data", *loader.specs) if name in loader.specs and loader.specs[name].has_time), None
    )
    if isinstance(loader, Loader):
        known = None if main is None else loader.dataset.at_epoch(1).seq_lengths(main)
        return np.asarray([] if known is None else known), "epoch 1"
    batches = loader.epoch(1)
    lengths: list[int] = []
    for batch in itertools.islice(batches, MOST_BATCHES):
        lengths += batch.lengths[main].tolist() if main else []
    complete = next(batches, None) is None
    batches.close()  # type: ignore[attr-defined]
    return np.asarray(lengths), "epoch 1" if complete else "the beginning of epoch 1"


def describe(
    name: str, loader: Loader | StreamLoader, lengths: np.ndarray, what: str, statistics: Mapping[str, Any]
) -> list[str]:
    """The data set's first batch, its lengths and its batches, as lines of text.

    Args:
        what: the part of the data that this is about, in words.
        statistics: of that part, as the loader tells them.
    """
    lines = [f"{name}: {_size(loader)}"]
    batch = next(iter(loader.epoch(1)), None)
    if batch is None:
        return [*lines, "  no batch", *(f"  {warning}" for warning in statistics["warnings"])]
    for index, seq_tag in enumerate(batch.seq_tags[:NUM_SHOWN]):
        lines.append(f"  {seq_tag}")
        for stream in batch.tensors:
            part = np.asarray(batch[stream][index])
            if stream in batch.lengths:
                part = part[: int(batch.lengths[stream][index])]
            lines.append(f"    {stream} {first_values(part, loader.specs[stream])}")
    if len(lengths):
        lines += histogram(lengths)
    return [*lines, f"  {summary(statistics, what)}", *(f"  {warning}" for warning in statistics["warnings"])]


def first_values(array: np.ndarray, spec: TensorSpec) -> str:
    """Shape, type and first values of a sequence's stream; labels with a vocabulary as text."""
    values = array.ravel()[:MOST_VALUES]
    shown = " ".join(f"{value:.3g}" if values.dtype.kind == "f" else str(value) for value in values)
    more = " ..." if array.size > MOST_VALUES else ""
    text = f" = {spec.vocab.decode(array.ravel().tolist())!r}" if spec.vocab is not None else ""
    return f"{array.shape} {'text' if array.dtype.kind == 'U' else array.dtype}: {shown}{more}{text}"


def summary(statistics: Mapping[str, Any], what: str) -> str:
    """Batches, sequences, frames and padding in a line."""
    batches = f"{statistics['num_batches']} batch{'es' if statistics['num_batches'] != 1 else ''}"
    frames = f"{statistics['num_frames']} frames, {100 * statistics['padding_fraction']:.1f}% padding"
    return f"{what}: {batches}, {statistics['num_seqs']} sequences, {frames}"


def _size(loader: Loader | StreamLoader) -> str:
    if isinstance(loader, StreamLoader):
        return f"{type(loader.dataset).__name__}, a stream of unknown length"
    return f"{type(loader.dataset).__name__}, {len(loader.dataset)} sequences"


def bin_edges(lengths: np.ndarray, most_bins: int) -> np.ndarray:
    """Bins of the same whole number of frames each: bin i has the lengths edges[i] .. edges[i+1]-1."""
    low, high = int(lengths.min()), int(lengths.max())
    width = -(-(high + 1 - low) // most_bins)
    return np.arange(low, high + 1 + width, width)


def histogram(lengths: np.ndarray, most_bins: int = 8) -> list[str]:
    """Lengths as a bar chart of text."""
    edges = bin_edges(lengths, most_bins)
    counts = np.histogram(lengths, edges)[0]
    widths = np.round(BAR * counts / counts.max()).astype(int)
    lines = [f"  lengths: {lengths.min()} to {lengths.max()}, mean {lengths.mean():.1f}"]
    for count, low, high, width in zip(counts, edges[:-1], edges[1:] - 1, widths, strict=True):
        lines.append(f"    {low:8} .. {high:8} {'#' * width}{' ' * (BAR - width)} {count}")
    return lines


def draw(lengths: dict[str, np.ndarray], file: Path) -> None:
    """One histogram per data set, as a picture.

    Args:
        lengths: by title.

    Raises:
        MissingExtra: matplotlib is missing.
    """
    require("matplotlib", "plot", "task=inspect").use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(lengths), 1, figsize=(7, 2.2 * len(lengths)), sharex=True, squeeze=False)
    plots: Any = axes[:, 0]
    for axis, (title, values) in zip(plots, lengths.items(), strict=True):
        axis.hist(values, bins=bin_edges(values, 60) - 0.5, color="#4477aa")  # a bar stands above its lengths
        axis.axvline(values.mean(), color="#cc6677", linestyle="--", label=f"mean {values.mean():.1f}")
        axis.legend(frameon=False)
        axis.set_title(title, fontsize=10, loc="left")
        axis.set_ylabel("sequences")
    plots[-1].set_xlabel("frames of a sequence")
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
