"""A batch of nothing but sequences without frames, for every model, train step, forward step and search of conf/."""

import functools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from returnn_hydra.batch import TensorSpec
from returnn_hydra.build import Builder
from returnn_hydra.config.compose import finish
from returnn_hydra.config.paths import config_dir
from returnn_hydra.config.schema import register
from returnn_hydra.data.collate import collate
from returnn_hydra.data.dataset import Examples
from returnn_hydra.data.hdf_writer import HDFWriter
from returnn_hydra.search.search_step import SearchStep
from returnn_hydra.tasks.data import build_specs
from returnn_hydra.usage import UsageError

register()


def choices(group):
    """All but `none`, and what needs a trained language model."""
    names = sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))
    return [name for name in names if name != "none" and "an4" not in name]


@functools.cache
def composed(*words):
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return finish(compose("config", list(words)), []).values


def parts_of(model_name):
    """The model, and the steps and searches that can use it, by name."""
    builder, steps = Builder(), {}
    values = composed(f"model={model_name}")
    specs = build_specs(builder, values["extern_data"], "extern_data")
    model = builder.make(values["model"], "model", extern_data=specs)
    for group in ("train_step", "forward_step", "search"):
        for choice in choices(group):
            words = [f"{group}={choice}"]
            if choice == "log_likelihood":  # of a step that can use the model
                words.append(next(iter(steps)))
            step = builder.build(composed(*words)[group], group, extern_data=specs)
            try:
                step.check_model(model)
            except UsageError:
                continue
            steps[words[0]] = step
    return model, steps


def empty_batch(labels_only, specs):
    size = {"data": (0,) if labels_only else (0, 12), "classes": (0,)}
    streams = {name: [np.zeros(size[name], spec.dtype)] * 2 for name, spec in specs.items()}
    return collate(Examples(["a", "b"], streams), specs)


@pytest.mark.parametrize("name", choices("model"))
def test_every_model_with_every_step_that_fits(name):
    model, steps = parts_of(name)
    labels_only = name.endswith("_lm")
    data = TensorSpec(dim=9, sparse=True) if labels_only else TensorSpec(dim=12)
    batch = empty_batch(labels_only, {"data": data, "classes": TensorSpec(dim=9, sparse=True)})
    assert batch["data"].shape[:2] == (2, 1)
    assert batch.lengths["data"].tolist() == [0, 0]
    assert any(step.startswith("train_step=") for step in steps)
    for title, step in steps.items():
        for training in (True, False):
            model.train(training)
            model.zero_grad()
            if not title.startswith("train_step="):
                with torch.no_grad():
                    check_outputs(title, step(model.eval(), batch))
                continue
            losses = step(model, batch)
            for key, loss in losses.items():
                ends = float(loss.count) if key in ("ce", "error") and hasattr(model, "eos_id") else 0
                assert float(loss.sum) == 0 or ends, (title, key)
                assert math.isfinite(float(loss.sum)), (title, key)
            sum(loss.sum for loss in losses.values() if not loss.as_error).backward()
        for key, value in [*model.named_parameters(), *model.named_buffers()]:
            bad = value.grad if value.grad is not None else value
            assert not bad.is_floating_point() or bool(bad.isfinite().all()), (title, key)


def check_outputs(title, outputs):
    for key, output in outputs.items():
        for array in output.per_sequence():
            assert array.size == 0 or np.isfinite(array).all(), (title, key)
    if title == "forward_step=posteriors":
        assert [len(array) for array in outputs["output"].per_sequence()] == [0, 0]


def test_the_steps_meet_their_models():
    met = {name: set(parts_of(name)[1]) for name in ("time_conv_ctc", "transducer", "lstm_attention", "lstm_lm")}
    assert {"train_step=ctc", "search=ctc_prefix", "forward_step=posteriors"} <= met["time_conv_ctc"]
    assert {"train_step=transducer", "search=transducer_beam", "search=label_sync"} <= met["transducer"]
    assert {"train_step=joint_ctc_attention", "search=greedy", "search=ctc_align"} <= met["lstm_attention"]
    assert "train_step=language_model" in met["lstm_lm"]
    assert all(isinstance(step, SearchStep) for title, step in parts_of("transducer")[1].items() if "search" in title)


def test_a_training_with_batches_of_empty_sequences(command, capsys):
    rng = np.random.default_rng(1)
    for part in ("train", "dev"):
        with HDFWriter(
            Path(f"{part}.hdf"), {"data": TensorSpec(dim=2), "classes": TensorSpec(dim=3, sparse=True)}
        ) as file:
            for number, size in enumerate((0, 5, 0, 3, 0)):
                labels = rng.integers(0, 3, size).astype(np.int32)
                file.write(
                    f"{part}-{number}", {"data": rng.normal(size=(size, 2)).astype(np.float32), "classes": labels}
                )
    words = ["datasets=hdf", "data_folder=.", "datasets.train.source.files=train.hdf", "forward_data=dev", "name=x"]
    words += ["extern_data.data.dim=2", "extern_data.classes.dim=3", "model.hidden_dim=4", "max_seqs=1", "num_epochs=2"]
    assert command(*words) == 0, capsys.readouterr().err
    scores = json.loads(Path("outputs/x/scores.jsonl").read_text().splitlines()[-1])["scores"]
    assert {name: score["ce"]["count"] for name, score in scores.items()} == {"train": 8, "dev": 8}
    assert command("run=outputs/x", "task=forward", "forward_callback=text") == 0
    rows = [json.loads(line) for line in Path("outputs/x/forward.002/dev.jsonl").read_text().splitlines()]
    assert [len(row["output"]) for row in rows] == [0, 5, 0, 3, 0]
