"""task=inspect: what the configured data look like: sequences, lengths, batches, padding; as text and as a picture."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from returnn_hydra.data.loader import Loader
from returnn_hydra.data.stream_loader import StreamLoader
from returnn_hydra.engine.log import RESULTS
from returnn_hydra.tasks.context import Context
from returnn_hydra.tasks.data import check_data

logger = logging.getLogger(__name__)
NUM_SHOWN = 3
BAR = 40


def run(context: Context) -> None:
    """Every configured data set in its first epoch; the picture is inspect.png in the run's folder (extra: plot)."""
    context.require_one_process()
    lengths: dict[str, np.ndarray] = {}
    for name, conf in context.dataset_confs().items():
        loader = context.loader(name, conf)
        for line in describe(name, loader):
            logger.log(RESULTS, line)
        if isinstance(loader, Loader) and (known := loader.dataset.at_epoch(1).order_lengths()) is not None:
            lengths[name] = np.asarray(known)
        if context.values["check_data"]:
            logger.log(RESULTS, "%s: %d sequences checked, all are what they should be", name, check_data(loader))
    if lengths:
        file = context.folder.path / "inspect.png"
        draw(lengths, file)
        logger.log(RESULTS, "Lengths of the sequences: %s", file)


def describe(name: str, loader: Loader | StreamLoader) -> list[str]:
    """The data set's first batch, its lengths and its batches, as lines of text."""
    lines = [f"{name}: {_size(loader)}"]
    batch = next(iter(loader.epoch(1)), None)
    if batch is None:
        return [*lines, "  no batch"]
    for index, seq_tag in enumerate(batch.seq_tags[:NUM_SHOWN]):
        lines.append(f"  {seq_tag}")
        for stream in batch.tensors:
            part = batch.select(index, index + 1)[stream][0]
            values = np.asarray(part).ravel()[:8]
            shown = " ".join(f"{value:.3g}" if values.dtype.kind == "f" else str(value) for value in values)
            lines.append(f"    {stream} {tuple(np.shape(part))} {getattr(part, 'dtype', 'text')}: {shown} ...")
    if isinstance(loader, Loader):
        known = loader.dataset.at_epoch(1).order_lengths()
        if known is not None and len(known):
            lines += histogram(np.asarray(known))
        statistics = loader.statistics(1)
        lines.append(
            f"  epoch 1: {statistics['num_batches']} batches, {statistics['num_seqs']} sequences, "
            f"{statistics['num_frames']} frames, {100 * statistics['padding_fraction']:.1f}% padding"
        )
        lines += [f"  {warning}" for warning in statistics["warnings"]]
    return lines


def _size(loader: Loader | StreamLoader) -> str:
    if isinstance(loader, StreamLoader):
        return f"{type(loader.dataset).__name__}, a stream of unknown length"
    return f"{type(loader.dataset).__name__}, {len(loader.dataset)} sequences"


def histogram(lengths: np.ndarray, num_bins: int = 8) -> list[str]:
    """Lengths as a bar chart of text."""
    counts, edges = np.histogram(lengths, bins=num_bins)
    widths = np.round(BAR * counts / counts.max()).astype(int)
    lines = [f"  lengths: {lengths.min():g} to {lengths.max():g}, mean {lengths.mean():.1f}"]
    for count, low, high, width in zip(counts, edges[:-1], edges[1:], widths, strict=True):
        lines.append(f"    {low:8.0f} .. {high:8.0f} {'#' * width}{' ' * (BAR - width)} {count}")
    return lines


def draw(lengths: dict[str, np.ndarray], file: Path) -> None:
    """One histogram per data set, as a picture.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError("task=inspect draws with the extra: pip install 'returnn-hydra[plot]'") from error
    figure, axes = pyplot.subplots(len(lengths), 1, figsize=(7, 2.2 * len(lengths)), sharex=True, squeeze=False)
    plots: Any = axes[:, 0]
    for axis, (name, values) in zip(plots, lengths.items(), strict=True):
        axis.hist(values, bins=40, color="#4477aa")
        axis.set_title(f"{name}: {len(values)} sequences, mean {values.mean():.1f} frames", fontsize=10, loc="left")
        axis.set_ylabel("sequences")
    plots[-1].set_xlabel("frames")
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
