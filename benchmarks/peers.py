#!/usr/bin/env python3
"""Trains the same model on the same HDF file with the same batches by us, by RETURNN and by Lightning, in turns.

    RETURNN_PYTHON=PATH python benchmarks/peers.py [--rounds 5] [--threads 1]

The Python of RETURNN_PYTHON (or --peer-python) has returnn and lightning, h5py, and the same torch. Every round starts
one process of each after the other. An epoch is counted from its beginning to its end with everything in it (reading,
training, saving the checkpoint), without the first epoch of each process. Printed are frames per CPU second and per
wall second, and ours / theirs, each the median over the rounds.

* ours: the command line, `python run.py`, with its default callbacks; the BLSTM is `models/blstm.py` (`nn/lstm.py`).
* RETURNN: its main program on a config with `get_model` and `train_step`, `torch_dataloader_opts={"num_workers": 0}`
  so that all of its CPU time is in one process (--returnn-workers 1 is its default); the BLSTM is torch's `nn.LSTM`
  over `pack_padded_sequence`, the loss is on the packed frames, as in RETURNN's demo for torch.
* Lightning: our model, our loader and our step in a LightningModule; checkpoints as by default, no logger.

All start from the same parameters: the losses of the epochs must be the same, and the batches are.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peer_models import Conv

from returnn_hydra.batch import TensorSpec
from returnn_hydra.data.generating import Task12AX
from returnn_hydra.data.hdf_writer import HDFWriter
from returnn_hydra.models.blstm import BLSTM

HERE = Path(__file__).parent
Streams = dict[str, np.ndarray]
"""Stream to the frames of a sequence."""


def speech_like(num_seqs: int) -> Iterator[Streams]:
    """Sequences of 50 to 550 frames of 40 numbers, which make the class."""
    rng = np.random.RandomState(1)
    projection = rng.randn(40, 100)
    for _ in range(num_seqs):
        features = rng.randn(rng.randint(50, 551), 40).astype("float32")
        yield {"data": features, "classes": (features @ projection).argmax(1).astype("int32")}


def task12ax(num_seqs: int) -> Iterator[Streams]:
    """RETURNN's Task12AXDataset: sequences of 10 to 99 frames."""
    dataset = Task12AX(num_seqs).at_epoch(1)
    streams = dataset.read(np.arange(num_seqs)).streams
    for index in range(num_seqs):
        yield {name: arrays[index] for name, arrays in streams.items()}


def write_corpus(path: Path, sequences: Iterator[Streams], sizes: dict[str, int]) -> None:
    """The HDF file that all read."""
    specs = {"data": TensorSpec(dim=sizes["input_dim"]), "classes": TensorSpec(dim=sizes["output_dim"], sparse=True)}
    with HDFWriter(str(path), specs) as writer:
        for index, sequence in enumerate(sequences):
            writer.write(f"seq-{index}", sequence)


MODELS: dict[str, dict[str, Any]] = {
    "BLSTM 2x128": {
        "model": "BLSTM",
        "peer_model": "PackedBLSTM",
        "model_arguments": {"input_dim": 40, "output_dim": 100, "hidden_dim": 128, "num_layers": 2},
        "max_seqs": 200,
        "corpus": speech_like,
        "num_seqs": 100,
        "num_epochs": 3,
        "words": ["model=blstm", "model.hidden_dim=128", "model.num_layers=2", "model.input_norm=false"]
        + ["model.input_noise=0"],
        "goal": {"returnn": 3.0, "lightning": 1.0},
    },
    "conv of RETURNN's demo": {
        "model": "Conv",
        "peer_model": "Conv",
        "model_arguments": {"input_dim": 9, "output_dim": 2},
        "max_seqs": 10,
        "corpus": task12ax,
        "num_seqs": 1000,
        "num_epochs": 10,
        "words": ["model=conv", "allow_targets=[peer_models.]"],
        "goal": {"returnn": 1.3, "lightning": 1.0},
    },
}


SHARED = ("model", "peer_model", "model_arguments", "max_seqs", "num_epochs")


def make_setting(folder: Path, name: str, arguments: argparse.Namespace) -> None:
    """`setting.json`, `initial.pt` and the corpus for all that train."""
    made = MODELS[name]
    sizes = {key: made["model_arguments"][key] for key in ("input_dim", "output_dim")}
    write_corpus(folder / "corpus.hdf", made["corpus"](made["num_seqs"]), sizes)
    torch.manual_seed(1)
    model = {"BLSTM": BLSTM, "Conv": Conv}[made["model"]](**made["model_arguments"])
    torch.save(model.state_dict(), folder / "initial.pt")
    setting = {
        **{key: made[key] for key in SHARED},
        "file": str(folder / "corpus.hdf"),
        "seq_ordering": "laplace:.100",
        "batch_size": 5000,
        "learning_rate": 0.001,
        "threads": arguments.threads,
        "returnn_workers": arguments.returnn_workers,
    }
    words = [
        f"--config-dir={folder / 'conf'}",
        "task=train",
        "datasets=hdf",
        "datasets.dev=null",
        f"datasets.train.source.files={setting['file']}",
    ]
    words += [f"datasets.train.seq_ordering={setting['seq_ordering']}", f"extern_data.data.dim={sizes['input_dim']}"]
    words += [f"extern_data.classes.dim={sizes['output_dim']}"]
    words += [f"{key}={setting[key]}" for key in ("batch_size", "max_seqs", "learning_rate", "num_epochs")]
    words += ["learning_rate_control=constant", f"num_threads={arguments.threads}", "device=cpu"]
    words += [f"init_from={folder / 'initial.pt'}"]
    (folder / "conf" / "model").mkdir(parents=True)
    conv = "_target_: peer_models.Conv\n" + "".join(f"{key}: {value}\n" for key, value in sizes.items())
    (folder / "conf" / "model" / "conv.yaml").write_text(conv)
    (folder / "setting.json").write_text(json.dumps({**setting, "words": words + made["words"]}))


def train(python: str, task: str, folder: Path, threads: int) -> list[dict[str, Any]]:
    """One training in a process of its own; what each epoch took."""
    for old in ("ours", "returnn", "lightning"):
        subprocess.run(["rm", "-rf", str(folder / old)], check=True)
    command = [python, str(HERE / "peer_training.py"), task, str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": f"{HERE.parent}:{HERE}"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{task} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def speed(epochs: list[dict[str, Any]], clock: str) -> float:
    """Frames per second of the median epoch, without the first."""
    return statistics.median(epoch["frames"] / epoch[clock] for epoch in epochs[1:])


def compare_losses(results: dict[str, list[dict[str, Any]]]) -> None:
    """The same batches and, to rounding, the same losses."""
    mine = results["ours"]
    for peer, theirs in results.items():
        same = [epoch["batches"] for epoch in mine] == [epoch["batches"] for epoch in theirs]
        pairs = list(zip(mine, theirs, strict=True))
        difference = max(abs(a["loss"] - b["loss"]) / abs(b["loss"]) for a, b in pairs)
        print(
            f"  {peer}: losses {', '.join(format(epoch['loss'], '.5f') for epoch in theirs)}; "
            f"batches {'the same' if same else 'DIFFER'}, largest relative difference of a loss {difference:.1e}"
        )
        if not same or difference > 1e-5:
            raise SystemExit("not the same training: the speeds can't be compared")


def compare(name: str, folder: Path, arguments: argparse.Namespace) -> None:
    """All rounds of one model."""
    make_setting(folder, name, arguments)
    pythons = {"ours": sys.executable, **dict.fromkeys(("returnn", "lightning"), arguments.peer_python)}
    rounds: list[dict[str, list[dict[str, Any]]]] = []
    for _ in range(arguments.rounds):
        rounds.append({task: train(python, task, folder, arguments.threads) for task, python in pythons.items()})
    print(f"{name}: {rounds[0]['ours'][0]['frames']} frames an epoch")
    compare_losses(rounds[0])
    for peer in ("returnn", "lightning"):
        for clock in ("cpu", "wall"):
            ours = statistics.median(speed(results["ours"], clock) for results in rounds)
            theirs = statistics.median(speed(results[peer], clock) for results in rounds)
            ratios = [speed(results["ours"], clock) / speed(results[peer], clock) for results in rounds]
            print(
                f"  ours / {peer} by {clock:4} time: {statistics.median(ratios):5.2f} "
                f"({min(ratios):.2f} to {max(ratios):.2f}); goal {MODELS[name]['goal'][peer]}; "
                f"{ours:.0f} and {theirs:.0f} frames per second"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default=os.environ.get("RETURNN_PYTHON"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--returnn-workers", type=int, default=0)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    arguments = parser.parse_args()
    if not arguments.peer_python:
        parser.error("set RETURNN_PYTHON or --peer-python to a Python that has returnn and lightning")
    with tempfile.TemporaryDirectory() as name:
        for number, model in enumerate(arguments.models):
            folder = Path(name) / f"model-{number}"
            folder.mkdir()
            compare(model, folder, arguments)


if __name__ == "__main__":
    main()
