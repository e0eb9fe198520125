"""CPU time of a training step of networks with loops: with layers moved out of the loop, and with all of them in it.

Run: python benchmarks/network_loops.py [--frames 80] [--labels 40] [--seqs 8] [--repeat 5]

The networks are those of tests/tasks/returnn/networks, and a language model whose layers all stand in a loop.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from returnn_hydra.batch import Batch, TensorSpec
from returnn_hydra.network import NetworkModel
from returnn_hydra.tasks.returnn.network_dict import NetworkDict
from returnn_hydra.tasks.returnn.session import open_session

CONFIGS = Path(__file__).parent.parent / "tests/tasks/returnn/networks"
NAMES = ("attention_specaugment", "transformer_translation")
LM = {
    "output": {
        "class": "rec",
        "from": "data",
        "target": "classes",
        "unit": {
            "input": {"class": "linear", "from": "data:source", "n_out": 32, "activation": None, "with_bias": False},
            "lstm": {"class": "rec", "from": "input", "unit": "nativelstm2", "n_out": 64},
            "output": {"class": "softmax", "from": "lstm", "loss": "ce", "target": "classes"},
        },
    }
}


def make_batch(specs: Mapping[str, TensorSpec], lengths: Mapping[str, int], seqs: int) -> Batch:
    """Random streams of equal lengths."""
    tensors: dict[str, Any] = {}
    sizes: dict[str, torch.Tensor] = {}
    for key, spec in specs.items():
        frames = lengths[key]
        if spec.sparse:
            tensors[key] = torch.randint(1, spec.dim or 2, (seqs, frames), dtype=torch.int32)
        else:
            tensors[key] = torch.randn(seqs, frames, spec.dim or 1)
        sizes[key] = torch.full((seqs,), frames)
    return Batch(tensors, sizes, [str(number) for number in range(seqs)])


def step_time(network: Any, specs: Any, options: Any, batch: Batch, move_out: bool, repeat: int) -> float:
    model = NetworkModel(network, specs, options=options, optimize_move_layers_out=move_out)
    best = float("inf")
    for _ in range(repeat + 1):
        start = time.process_time()
        model(batch).objective().backward()
        best = min(best, time.process_time() - start)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=80)
    parser.add_argument("--labels", type=int, default=40)
    parser.add_argument("--seqs", type=int, default=8)
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    sparse = TensorSpec(dim=50, sparse=True)
    lm = {"data": sparse, "classes": TensorSpec(dim=50, sparse=True, same_length_as="data")}
    lengths = {"data": args.labels, "classes": args.labels}
    cases: dict[str, Any] = {"lm in a loop": (LM, lm, {}, make_batch(lm, lengths, args.seqs), contextlib.nullcontext)}
    for name in NAMES:
        session = open_session([CONFIGS / f"{name}.config"], values={"pretrain": None})
        recipe = NetworkDict(session)
        batch = make_batch(recipe.specs, {"data": args.frames, "classes": args.labels}, args.seqs)
        cases[name] = (session.values["network"], recipe.specs, session.values, batch, session.surroundings)
    for name, (network, specs, options, batch, surroundings) in cases.items():
        with surroundings():
            fast, slow = (step_time(network, specs, options, batch, out, args.repeat) for out in (True, False))
        print(f"{name:26s} moved out {fast:.4f} s, all in the loop {slow:.4f} s: {slow / fast:.1f} times")


if __name__ == "__main__":
    main()
