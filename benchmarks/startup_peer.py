"""One start of benchmarks/startup.py: `python benchmarks/startup_peer.py ours|returnn FOLDER [WORKERS]`.

Ends right after the first update of the parameters, and prints the CPU seconds of the process until then and the wall
seconds since the time that STARTED says, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any


def end_after(owner: type, method: str) -> None:
    """Let the process end when this method returns for the first time."""
    original = getattr(owner, method)

    def last(self: Any, *arguments: Any, **named: Any) -> None:
        original(self, *arguments, **named)
        print(json.dumps({"cpu": time.process_time(), "wall": time.time() - float(os.environ["STARTED"])}), flush=True)
        os._exit(0)

    setattr(owner, method, last)


def ours(folder: str) -> None:
    """The default experiment."""
    from returnn_hydra import cli
    from returnn_hydra.engine.updater import Updater

    end_after(Updater, "update")
    sys.argv = ["run.py", "task=train", f"outputs={folder}/ours"]
    cli.main()


def returnn(folder: str, workers: int) -> None:
    """The same data from an HDF file, the same layers over packed sequences, the same limits of a batch."""
    import torch
    from peer_models import PackedBLSTM
    from returnn import __main__ as rnn
    from returnn import frontend as rf
    from returnn.torch.updater import Updater

    def train_step(*, model: torch.nn.Module, extern_data: Any, **_: Any) -> None:
        data, targets = extern_data["data"], extern_data["classes"]
        lengths = data.dims[1].dyn_size_ext.raw_tensor
        logits, _ = model(data.raw_tensor, lengths)
        means = torch.stack([frames[:length].mean(0) for frames, length in zip(logits, lengths, strict=True)])
        loss = torch.nn.functional.cross_entropy(means, targets.raw_tensor[:, 0].long(), reduction="none")
        rf.get_run_ctx().mark_as_loss(name="ce", loss=loss)

    end_after(Updater, "step")
    os.chdir(folder)
    data = {"class": "HDFDataset", "cache_byte_size": 0}
    rnn.init(
        config_updates={
            "backend": "torch",
            "device": "cpu",
            "train": {**data, "files": [f"{folder}/train.hdf"], "seq_ordering": "random"},
            "dev": {**data, "files": [f"{folder}/dev.hdf"], "seq_ordering": "sorted"},
            "extern_data": {"data": {"dim": 12}, "classes": {"dim": 9, "sparse": True}},
            "batch_size": 1000,
            "max_seqs": 20,
            "torch_dataloader_opts": {"num_workers": workers},
            "get_model": lambda **_: PackedBLSTM(12, 9, 128, 1),
            "train_step": train_step,
            "optimizer": {"class": "adam"},
            "learning_rate": 0.01,
            "model": f"{folder}/returnn/model",
            "num_epochs": 120,
            "log_verbosity": 3,
        }
    )
    rnn.execute_main_task()


if __name__ == "__main__":
    if sys.argv[1] == "ours":
        ours(sys.argv[2])
    else:
        returnn(sys.argv[2], int(sys.argv[3]))
