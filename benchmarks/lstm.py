#!/usr/bin/env python3
"""How much faster is nn/lstm.py than torch's LSTM over packed sequences? Forward and backward, in one run.

    python benchmarks/lstm.py [--threads 1] [--device cpu]

Prints CPU seconds (on a GPU: wall seconds) of the best of some repetitions, and the ratio, for BLSTMs of several sizes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from returnn_hydra.nn.lstm import LSTM

SHAPES = [  # sequences, longest length, features, hidden units, layers
    (20, 29, 12, 64, 1),
    (16, 200, 40, 128, 2),
    (20, 300, 80, 128, 3),
    (16, 200, 40, 512, 2),
]


def seconds(work: Callable[[], object], device: str, repetitions: int) -> float:
    """The best of some runs, after one to warm up."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    best = float("inf")
    for repetition in range(repetitions + 1):
        start = clock()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        if repetition > 0:
            best = min(best, clock() - start)
    return best


def compare(shape: tuple[int, ...], device: str, repetitions: int) -> tuple[float, float]:
    """Seconds of the padded and of the packed LSTM, forward and backward; lengths are uniform in [T/2, T]."""
    num_seqs, max_length, num_features, hidden, num_layers = shape
    torch.manual_seed(1)
    ours = LSTM(num_features, hidden, num_layers, bidirectional=True).to(device)
    packed = nn.LSTM(num_features, hidden, num_layers, bidirectional=True, batch_first=True).to(device)
    packed.load_state_dict(ours.state_dict())
    lengths = torch.randint(max_length // 2, max_length + 1, (num_seqs,))
    lengths[0] = max_length
    features = torch.randn(num_seqs, max_length, num_features, device=device)
    device_lengths = lengths.to(device)

    def run_ours() -> None:
        ours(features, device_lengths)[0].sum().backward()

    def run_packed() -> None:
        data = pack_padded_sequence(features, lengths, batch_first=True, enforce_sorted=False)
        pad_packed_sequence(packed(data)[0], batch_first=True)[0].sum().backward()

    return seconds(run_ours, device, repetitions), seconds(run_packed, device, repetitions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{'batch x frames x features, hidden x layers':45} {'padded':>9} {'packed':>9} {'ratio':>6}")
    for shape in SHAPES:
        ours, packed = compare(shape, arguments.device, arguments.repetitions)
        name = f"{shape[0]} x {shape[1]} x {shape[2]}, {shape[3]} x {shape[4]}"
        print(f"{name:45} {ours:8.4f}s {packed:8.4f}s {packed / ours:6.2f}")


if __name__ == "__main__":
    main()
