"""A model out of another run: as a language model in a search, as a part of a model."""

from __future__ import annotations

from pathlib import Path

import yaml
from torch import nn

from returnn_hydra.build import Builder
from returnn_hydra.config.compose import CONFIG_FILE
from returnn_hydra.config.errors import ConfigError
from returnn_hydra.engine.checkpoint import CheckpointStore
from returnn_hydra.tasks.data import build_specs
from returnn_hydra.tasks.parts import epoch_to_load


def trained_model(run: str, load_epoch: int | str = "best") -> nn.Module:
    """The model of a run's folder with the parameters of one of its epochs, in evaluation mode.

    Only targets of the default list are built: the other run's configuration is data.

    Args:
        run: the folder of a finished training.
        load_epoch: a number, last, or best.

    Raises:
        ConfigError: no such run, or no such checkpoint.
    """
    folder = Path(run)
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise ConfigError(f"run={run}: no {CONFIG_FILE} there, so this is no run's folder")
    values = yaml.safe_load(file.read_text())
    builder = Builder()
    extern_data = build_specs(builder, values["extern_data"], "extern_data")
    model = builder.make(values["model"], f"{file}: model", extern_data=extern_data)
    store = CheckpointStore(folder / "checkpoints")
    epoch = epoch_to_load(folder, store.epochs(), load_epoch, values["score"])
    model.load_state_dict(store.load(epoch).model)
    return model.eval()
