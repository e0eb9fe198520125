"""The mean of the parameters of several epochs of a run, as a model file that `init_from` and RETURNN load.

    python scripts/average_checkpoints.py outputs/my_run 8 9 10 --out outputs/my_run/average.pt

Integer buffers (counters) are taken from the last epoch. The mean is computed in double precision.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from returnn_hydra.engine.checkpoint import CheckpointStore
from returnn_hydra.engine.errors import RunError, exit_code_of, last_line
from returnn_hydra.engine.files import FileSystem
from returnn_hydra.engine.tensor_file import write_tensors


def average(folder: Path, epochs: list[int]) -> dict[str, torch.Tensor]:
    """The mean state dict of these epochs of a run.

    Raises:
        NoCheckpointError: an epoch is not there.
        DamagedStateError: a checkpoint is damaged.
    """
    store = CheckpointStore(folder / "checkpoints")
    total: dict[str, torch.Tensor] = {}
    for epoch in epochs:
        for name, value in store.load(epoch).model.items():
            if value.is_floating_point():
                total[name] = total.get(name, 0.0) + value.double()
            else:
                total[name] = value
    last = store.load(epochs[-1]).model
    return {
        name: (value / len(epochs)).to(last[name].dtype) if last[name].is_floating_point() else value
        for name, value in total.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the run")
    parser.add_argument("epochs", type=int, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    try:
        model = average(arguments.folder, arguments.epochs)
        content = {"model": model, "epoch": arguments.epochs[-1], "averaged_epochs": arguments.epochs}
        write_tensors(FileSystem(), arguments.out, content)
    except RunError as error:
        print(last_line(error), file=sys.stderr)
        return exit_code_of(error)
    print(f"Mean of epochs {', '.join(map(str, arguments.epochs))}: {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
