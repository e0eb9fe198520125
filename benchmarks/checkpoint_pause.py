"""How long a save stops the training: against copying the tensors, and against a plain `torch.save` with fsync.

    python benchmarks/checkpoint_pause.py --megabytes 200

Interleaved repetitions; medians of wall time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from returnn_hydra.engine.checkpoint import CheckpointStore
from returnn_hydra.engine.manifest import Progress
from returnn_hydra.engine.saver import BackgroundSaver


def seconds(function: Callable[[], Any]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def save_plainly(model: dict[str, torch.Tensor], path: Path) -> None:
    with path.open("wb") as file:
        torch.save({"model": model}, file)
        file.flush()
        os.fsync(file.fileno())


def measure(megabytes: int, repetitions: int, folder: Path) -> dict[str, float]:
    """Median seconds by what was done."""
    model = {f"layer{index}": torch.randn(megabytes * 1_000_000 // 40, 1) for index in range(10)}
    copies = {name: torch.empty_like(tensor) for name, tensor in model.items()}
    store = CheckpointStore(folder, "benchmark")
    times: dict[str, list[float]] = {
        "copy": [],
        "pause of the training": [],
        "until it is safe": [],
        "plain torch.save": [],
    }
    with BackgroundSaver(store) as saver:
        for step in range(repetitions + 1):
            progress = Progress(1, step, step, 0.1)
            copy = seconds(lambda: [copies[name].copy_(tensor) for name, tensor in model.items()])
            pause = seconds(lambda progress=progress: saver.save_latest(progress, model, None))
            rest = seconds(saver.wait)
            plain = seconds(lambda: save_plainly(model, folder / "plain.pt"))
            if step:  # the first one allocates
                for name, value in zip(times, (copy, pause, pause + rest, plain), strict=True):
                    times[name].append(value)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--repetitions", type=int, default=7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        medians = measure(arguments.megabytes, arguments.repetitions, Path(folder))
    for name, value in medians.items():
        print(f"{name:>24}: {value * 1000:8.1f} ms   {value / medians['copy']:6.2f} x copy")


if __name__ == "__main__":
    main()
