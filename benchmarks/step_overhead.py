"""What the trainer costs beside a bare PyTorch loop: same batches (prepared), same model, same optimizer, in turns.

    python benchmarks/step_overhead.py [--rounds 5]

Prints the ratio of CPU seconds per epoch, trainer / bare loop (median over the rounds), for the default BLSTM, and for
a model whose step takes about 1 ms.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from returnn_hydra.batch import Batch
from returnn_hydra.data.batching import Batching
from returnn_hydra.data.embedded import japanese_vowels
from returnn_hydra.data.loader import Loader
from returnn_hydra.data.order import SeqOrder
from returnn_hydra.engine.run_store import RunStore
from returnn_hydra.engine.trainer import Trainer
from returnn_hydra.engine.updater import Updater, UpdateRules
from returnn_hydra.models.blstm import BLSTM
from returnn_hydra.optim.gradients import GradientRules
from returnn_hydra.optim.learning_rate_control import Constant
from returnn_hydra.steps.cross_entropy import CrossEntropy


class Prepared(Loader):
    """A loader whose batches are in memory already: only the loop is measured."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        if not hasattr(self, "prepared"):
            self.prepared = list(super().epoch(1))
        return iter(self.prepared[start:])

    def num_batches(self, epoch: int) -> int:
        return super().num_batches(1)


class Frames(nn.Module):
    """A feed-forward model over frames."""

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(12, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, 9))

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.layers(features), lengths


def bare_epoch(model: nn.Module, optimizer: torch.optim.Optimizer, step: CrossEntropy, batches: list[Batch]) -> None:
    """The same losses, clipping and update, and nothing else."""
    model.train()
    for batch in batches:
        optimizer.zero_grad()
        losses = step(model, batch)
        losses["ce"].mean.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def measure(make_model, rounds: int) -> tuple[float, float]:
    """(median ratio trainer / bare, milliseconds of a bare step)."""
    data = Prepared(japanese_vowels("train"), None, SeqOrder("random"), Batching(batch_size=1000, max_seqs=20))
    batches = list(data.epoch(1))
    step = CrossEntropy()
    model = make_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    ratios, bare_times = [], []
    for _ in range(rounds):
        trained = make_model()
        rules = UpdateRules(gradients=GradientRules(max_norm=1.0))
        updater = Updater(trained, torch.optim.Adam(trained.parameters(), lr=1e-4), rules, torch.device("cpu"))
        with tempfile.TemporaryDirectory() as folder, RunStore(Path(folder)) as store:
            trainer = Trainer(
                trained, step, updater, Constant(learning_rate=1e-4), data, {}, store, torch.device("cpu"), 1
            )
            store.restore(trainer)
            ours = bare = 0.0
            for epoch in range(1, 21):
                trainer.position.epoch, trainer.position.batch = epoch, 0
                started = time.process_time()
                trainer.train_epoch(epoch, 1e-4)
                middle = time.process_time()
                bare_epoch(model, optimizer, step, batches)
                ours, bare = ours + middle - started, bare + time.process_time() - middle
        ratios.append(ours / bare)
        bare_times.append(1000 * bare / 20 / len(batches))
    return statistics.median(ratios), statistics.median(bare_times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    models = {
        "BLSTM of the default experiment": lambda: BLSTM(12, 9, hidden_dim=128, input_norm=True, input_noise=1.0),
        "frame-wise MLP": lambda: Frames(128),
    }
    for name, make_model in models.items():
        ratio, milliseconds = measure(make_model, rounds)
        print(f"{name}: bare step {milliseconds:.2f} ms, trainer / bare loop = {ratio:.3f}")


if __name__ == "__main__":
    main()
