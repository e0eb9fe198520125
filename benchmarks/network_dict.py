"""CPU time of a step of the documentation's BLSTM (3 layers, 2 directions, 500 units), as a network dict and by hand.

Run: python benchmarks/network_dict.py [--units 500] [--repeat 5]
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor, nn

from returnn_hydra.batch import Batch, TensorSpec, sequence_mask
from returnn_hydra.network import NetworkModel
from returnn_hydra.nn.lstm import LSTM

FEATURES, CLASSES = 40, 100


def network(units: int) -> dict[str, dict[str, object]]:
    """As in the documentation."""
    net: dict[str, dict[str, object]] = {}
    below: object = "data"
    for i in range(3):
        for name, direction in (("fw", 1), ("bw", -1)):
            net[f"{name}{i}"] = {
                "class": "rec", "unit": "nativelstm2", "n_out": units, "direction": direction, "from": below,
            }  # fmt: skip
        below = [f"fw{i}", f"bw{i}"]
    net["output"] = {"class": "softmax", "loss": "ce", "from": below}
    return net


class ByHand(nn.Module):
    """The same with nn/lstm.py."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.lstm = LSTM(FEATURES, units, 3, bidirectional=True)
        self.output = nn.Linear(2 * units, CLASSES)

    def forward(self, batch: Batch) -> Tensor:
        lengths = batch.lengths["data"]
        hidden, _ = self.lstm(batch["data"], lengths)
        mask = sequence_mask(lengths, batch["data"].shape[1])
        return nn.functional.cross_entropy(self.output(hidden)[mask], batch["classes"][mask].long(), reduction="sum")


def make_batch(num_seqs: int, frames: int) -> Batch:
    torch.manual_seed(1)
    lengths = torch.linspace(frames * 0.7, frames, num_seqs).long()
    data = torch.randn(num_seqs, frames, FEATURES)
    classes = torch.randint(0, CLASSES, (num_seqs, frames), dtype=torch.int32)
    return Batch({"data": data, "classes": classes}, {"data": lengths, "classes": lengths}, [""] * num_seqs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--units", type=int, default=500)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--seqs", type=int, default=40)
    parser.add_argument("--frames", type=int, default=125)
    args = parser.parse_args()
    batch = make_batch(args.seqs, args.frames)
    specs = {"data": TensorSpec(dim=FEATURES), "classes": TensorSpec(dim=CLASSES, sparse=True, same_length_as="data")}
    model = NetworkModel(network(args.units), specs)
    hand = ByHand(args.units)
    steps = {"dict": lambda: model(batch).objective().backward(), "hand": lambda: hand(batch).backward()}
    best = dict.fromkeys(steps, float("inf"))
    for step in steps.values():
        step()
    for _ in range(args.repeat):
        for name, step in steps.items():
            start = time.process_time()
            step()
            best[name] = min(best[name], time.process_time() - start)
    print(f"by hand {best['hand']:.3f} s, as a dict {best['dict']:.3f} s: {best['dict'] / best['hand']:.3f} times")


if __name__ == "__main__":
    main()
