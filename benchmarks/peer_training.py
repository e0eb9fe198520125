"""One training of benchmarks/peers.py, in a process of its own:

    python benchmarks/peer_training.py ours|returnn|lightning FOLDER

`FOLDER/setting.json` says what to train; `returnn` and `lightning` run with the Python of an environment that has them.
Prints one line of JSON: per epoch the frames, the CPU and wall seconds of the whole epoch (data, training, saving), the
mean loss per frame, and the tags of the sequences in each batch as a digest.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import peer_models
import torch


class Clock:
    """CPU and wall seconds from one call of `lap` to the next."""

    def __init__(self) -> None:
        self.start = (time.process_time(), time.perf_counter())

    def lap(self) -> dict[str, float]:
        now = (time.process_time(), time.perf_counter())
        laps = {"cpu": now[0] - self.start[0], "wall": now[1] - self.start[1]}
        self.start = now
        return laps


class Seen:
    """The batches of an epoch: which sequences, and how many frames."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self.frames, self.digest = 0, hashlib.sha256()

    def add(self, lengths: torch.Tensor, seq_tags: Iterable[str]) -> None:
        self.frames += int(lengths.sum())
        self.digest.update(repr(list(seq_tags)).encode())

    def report(self) -> dict[str, Any]:
        facts = {"frames": self.frames, "batches": self.digest.hexdigest()[:16]}
        self.forget()
        return facts


def ours(folder: Path, setting: dict[str, Any]) -> list[dict[str, Any]]:
    """`python run.py ...` with a clock around each epoch."""
    from returnn_hydra import cli
    from returnn_hydra.engine.trainer import Trainer
    from returnn_hydra.steps.cross_entropy import CrossEntropy

    epochs, seen = [], Seen()
    run_epoch, step = Trainer.run_epoch, CrossEntropy.__call__

    def timed_epoch(trainer: Trainer) -> None:
        clock = Clock()
        run_epoch(trainer)
        trainer.store.wait()
        loss = trainer.records[-1].means()["train/ce"]
        epochs.append({**clock.lap(), "loss": loss, **seen.report()})

    def counted_step(self: CrossEntropy, model: torch.nn.Module, batch: Any) -> Any:
        seen.add(batch.lengths["data"], batch.seq_tags)
        return step(self, model, batch)

    Trainer.run_epoch, CrossEntropy.__call__ = timed_epoch, counted_step  # type: ignore[method-assign]
    sys.argv = ["run.py", *setting["words"], f"outputs={folder}", "name=ours"]
    cli.main()
    return epochs


def returnn(folder: Path, setting: dict[str, Any]) -> list[dict[str, Any]]:
    """RETURNN's torch engine on a config as its users write it; see `train_step` for the loss."""
    import returnn.frontend as rf
    from returnn import __main__ as rnn
    from returnn.torch.engine import Engine

    epochs, seen = [], Seen()
    train_epoch = Engine.train_epoch

    def timed_epoch(engine: Engine) -> None:
        clock = Clock()
        train_epoch(engine)
        loss = engine.learning_rate_control.epoch_data[engine.epoch].error["train_loss_ce"]
        epochs.append({**clock.lap(), "loss": float(loss), **seen.report()})

    def get_model(**_: Any) -> torch.nn.Module:
        model = getattr(peer_models, setting["peer_model"])(**setting["model_arguments"])
        model.load_state_dict(torch.load(folder / "initial.pt"))
        return model

    def train_step(*, model: torch.nn.Module, extern_data: Any, **_: Any) -> None:
        data, targets = extern_data["data"], extern_data["classes"]
        lengths = data.dims[1].dyn_size_ext.raw_tensor
        seen.add(lengths, extern_data["seq_tag"].raw_tensor.tolist())
        logits, _ = model(data.raw_tensor, lengths)
        pack = {"lengths": lengths, "batch_first": True, "enforce_sorted": False}
        packed = torch.nn.utils.rnn.pack_padded_sequence(logits, **pack).data
        packed_targets = torch.nn.utils.rnn.pack_padded_sequence(targets.raw_tensor, **pack).data.long()
        loss = torch.nn.functional.cross_entropy(packed, packed_targets, reduction="none")
        rf.get_run_ctx().mark_as_loss(name="ce", loss=loss, use_normalized_loss=True)
        errors = packed.argmax(-1).not_equal(packed_targets)
        rf.get_run_ctx().mark_as_loss(name="error", loss=errors, as_error=True)

    Engine.train_epoch = timed_epoch
    os.chdir(folder)
    config = {
        "backend": "torch",
        "device": "cpu",
        "train": {
            "class": "HDFDataset",
            "files": [setting["file"]],
            "seq_ordering": setting["seq_ordering"],
            "cache_byte_size": 0,  # with the cache, batches of the first epoch come with zeros for data (a race)
        },
        "extern_data": {
            "data": {"dim": setting["model_arguments"]["input_dim"]},
            "classes": {"dim": setting["model_arguments"]["output_dim"], "sparse": True},
        },
        "batch_size": setting["batch_size"],
        "max_seqs": setting["max_seqs"],
        "torch_dataloader_opts": {"num_workers": setting["returnn_workers"]},
        "get_model": get_model,
        "train_step": train_step,
        "optimizer": {"class": "adam"},
        "learning_rate": setting["learning_rate"],
        "model": str(folder / "returnn" / "model"),
        "learning_rate_file": str(folder / "returnn" / "learning_rates"),
        "num_epochs": setting["num_epochs"],
        "log_verbosity": 3,
    }
    rnn.init(config_updates=config)
    rnn.execute_main_task()
    rnn.finalize()
    return epochs


def lightning(folder: Path, setting: dict[str, Any]) -> list[dict[str, Any]]:
    """Lightning with our model, loader and step; its checkpoint each epoch, no other logger and no progress bar."""
    import lightning.pytorch as pl

    from returnn_hydra.batch import Batch, TensorSpec
    from returnn_hydra.data.batching import Batching
    from returnn_hydra.data.hdf import HDFDataset
    from returnn_hydra.data.loader import Loader
    from returnn_hydra.data.order import SeqOrder
    from returnn_hydra.models.blstm import BLSTM
    from returnn_hydra.steps.cross_entropy import CrossEntropy

    epochs, seen = [], Seen()
    arguments = setting["model_arguments"]
    specs = {
        "data": TensorSpec(dim=arguments["input_dim"]),
        "classes": TensorSpec(dim=arguments["output_dim"], sparse=True),
    }
    batching = Batching(batch_size=setting["batch_size"], max_seqs=setting["max_seqs"])
    loader = Loader(HDFDataset(setting["file"]), specs, SeqOrder(setting["seq_ordering"]), batching)

    class Batches(torch.utils.data.IterableDataset):
        """Our loader, the next epoch each time."""

        def __init__(self) -> None:
            self.epoch = 0

        def __iter__(self) -> Any:
            self.epoch += 1
            return loader.epoch(self.epoch)

    class Training(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = {"BLSTM": BLSTM, "Conv": peer_models.Conv}[setting["model"]](**arguments)
            self.model.load_state_dict(torch.load(folder / "initial.pt"))
            self.step = CrossEntropy()

        def training_step(self, batch: Batch, batch_index: int) -> torch.Tensor:
            seen.add(batch.lengths["data"], batch.seq_tags)
            losses = self.step(self.model, batch)
            self.log_dict(
                {"ce": losses["ce"].mean.detach(), "error": losses["error"].mean},
                on_step=False,
                on_epoch=True,
                batch_size=int(losses["ce"].count),
            )
            return losses["ce"].mean

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.model.parameters(), lr=setting["learning_rate"])

    class Timing(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
            if trainer.current_epoch == 0:
                self.clock = Clock()
            else:
                epochs[-1].update(self.clock.lap())

        def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
            epochs.append({"loss": float(trainer.callback_metrics["ce"]), **seen.report()})

        def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
            epochs[-1].update(self.clock.lap())

    trainer = pl.Trainer(
        max_epochs=setting["num_epochs"],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder / "lightning",
        callbacks=[Timing()],
    )
    trainer.fit(Training(), torch.utils.data.DataLoader(Batches(), batch_size=None))
    return epochs


def main() -> None:
    task, folder = sys.argv[1], Path(sys.argv[2])
    setting = json.loads((folder / "setting.json").read_text())
    torch.set_num_threads(setting["threads"])
    epochs = {"ours": ours, "returnn": returnn, "lightning": lightning}[task](folder, setting)
    print(json.dumps(epochs))


if __name__ == "__main__":
    main()
