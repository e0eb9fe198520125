"""task=search: the best label sequences of a data set, as files, with error rates where there are references."""

from __future__ import annotations

import logging

from returnn_hydra.config.errors import ConfigError
from returnn_hydra.search.search_step import SearchStep
from returnn_hydra.tasks.context import Context, check_model
from returnn_hydra.tasks.forward import build_callback, forward_data
from returnn_hydra.tasks.parts import load_model

logger = logging.getLogger(__name__)


def run(context: Context) -> float | None:
    """Search `forward_data` with the model of `load_epoch`; returns the first error rate, if there are references."""
    context.require_one_process()
    step = context.builder.build(context.values["search"], "search", extern_data=context.extern_data)
    if not isinstance(step, SearchStep):
        raise ConfigError("search: this task needs one (ctc_best_path, ctc_prefix, label_sync, ...)")
    target = context.extern_data.get(step.target_key or "")
    if step.target_key is not None and target is None:
        raise ConfigError(f"search.target_key={step.target_key}: no stream of extern_data")
    model, epoch = load_model(context)
    check_model(step, model, "search")
    name = context.values["forward_data"]
    vocab = target.vocab if target else None
    output = build_callback(context, "search_output", f"search.{epoch:03d}", name, vocab=vocab)
    references = [step.target_key] if step.target_key else []
    count = forward_data(context, name, model, step, output, references)
    logger.info("Searched %d sequences of '%s' with epoch %d", count, name, epoch)
    return next(iter(output.scores.values()), None)
