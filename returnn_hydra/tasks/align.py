"""task=align: the CTC forced alignment of the true labels, written as HDF and as label times."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
from torch import nn

from returnn_hydra.batch import TensorSpec
from returnn_hydra.callbacks.hdf import HDF
from returnn_hydra.callbacks.search_output import SearchOutput
from returnn_hydra.config.errors import ConfigError
from returnn_hydra.engine.callback import ForwardCallback
from returnn_hydra.search.ctc_steps import CTCAlign
from returnn_hydra.tasks.context import Context, check_model
from returnn_hydra.tasks.forward import forward_data
from returnn_hydra.tasks.parts import load_model

logger = logging.getLogger(__name__)


class AlignmentFiles(ForwardCallback):
    """The class of every frame as HDF (streams `data` and `positions`), the labels with their frames as JSON lines."""

    def __init__(self, hdf: HDF, times: SearchOutput) -> None:
        self.hdf, self.times = hdf, times

    def init(self, model: nn.Module) -> None:
        self.hdf.init(model)
        self.times.init(model)

    def process_seq(self, seq_tag: str, outputs: Mapping[str, np.ndarray]) -> None:
        self.hdf.process_seq(seq_tag, {name: outputs[name] for name in ("alignment", "positions")})
        rest = {name: values for name, values in outputs.items() if name not in ("alignment", "positions")}
        self.times.process_seq(seq_tag, rest)

    def finish(self) -> None:
        self.hdf.finish()
        self.times.finish()


def run(context: Context) -> int:
    """Align `forward_data` with the model of `load_epoch`; returns the number of sequences."""
    context.require_one_process()
    node = context.values["search"]
    step = context.builder.build(node, "search", extern_data=context.extern_data)
    if not isinstance(step, CTCAlign):
        raise ConfigError("search: task=align needs search=ctc_align")
    if step.target_key not in context.extern_data:
        raise ConfigError(f"search.target_key={step.target_key}: no stream of extern_data")
    model, epoch = load_model(context)
    check_model(step, model, "search")
    name = context.values["forward_data"]
    folder = context.folder.path / f"align.{epoch:03d}"
    vocab = context.extern_data[step.target_key].vocab
    specs = {"positions": TensorSpec(shape=(None,), dtype="int32")}
    num_classes = (context.extern_data[step.target_key].dim or 0) + 1
    specs["alignment"] = TensorSpec(dim=num_classes, sparse=True)
    files = AlignmentFiles(
        HDF(folder, name, specs, output="alignment"), SearchOutput(folder, name, vocab, formats=("jsonl",))
    )
    count = forward_data(context, name, model, step, files, [step.target_key])
    logger.info("Aligned %d sequences of '%s' with epoch %d: %s", count, name, epoch, folder)
    return count
