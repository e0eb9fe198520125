"""Network dicts as public setups write them, whole: train, stop, go on, forward, search."""

import ast
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from returnn_hydra.batch import TensorSpec
from returnn_hydra.data.hdf_writer import HDFWriter

NETWORKS = Path(__file__).parent / "networks"
SEARCH = ["attention_specaugment", "transformer_translation", "transducer_like", "raw_waveform"]
FORWARD = ["hybrid_blstm", "ctc_conformer", "lm_lstm", "multi_task"]


def write(name, streams, sequences):
    with HDFWriter(f"{name}.hdf", streams) as writer:
        for number, arrays in enumerate(sequences):
            writer.write(f"seq-{number}", arrays)


def labels_with_end(rng, size, least, most):
    return np.append(rng.randint(1, size, rng.randint(least, most)), 0).astype("int32")


def features_of(rng, labels, frames_per_label, dim):
    """Every label as some frames that look like it."""
    frames = np.repeat(labels, frames_per_label)
    return (np.eye(dim)[frames] * 2 + 0.3 * rng.randn(len(frames), dim)).astype("float32")


@pytest.fixture
def data(tmp_path, monkeypatch):
    """HDF files of every kind that the configs read."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.RandomState(1)
    speech = {"data": TensorSpec(dim=8), "classes": TensorSpec(dim=6, sparse=True)}
    frames = {"data": TensorSpec(dim=8), "classes": TensorSpec(dim=5, sparse=True)}
    for postfix, count in (("", 14), ("_dev", 4)):
        texts = [labels_with_end(rng, 6, 2, 5) for _ in range(count)]
        name = "train" if not postfix else "dev"
        write(name, speech, [{"data": features_of(rng, text, 5, 8), "classes": text} for text in texts])
        pairs = {"data": TensorSpec(dim=7, sparse=True), "classes": TensorSpec(dim=6, sparse=True)}
        write(f"pairs{postfix}", pairs, [{"data": text + 1, "classes": text} for text in texts])
        samples = {"data": TensorSpec(dim=1), "classes": TensorSpec(dim=6, sparse=True)}
        waves = [np.concatenate([np.sin(np.arange(20) * (0.3 + 0.4 * label)) for label in text]) for text in texts]
        rows = [{"data": wave[:, None].astype("float32"), "classes": t} for wave, t in zip(waves, texts, strict=True)]
        write(f"samples{postfix}", samples, rows)
        states = [rng.randint(0, 5, rng.randint(20, 50)).astype("int32") for _ in range(count)]
        write(f"frames{postfix}", frames, [{"data": features_of(rng, s, 1, 8), "classes": s} for s in states])
        extra = {"classes": TensorSpec(dim=3, sparse=True)}
        write(f"extra{postfix}", extra, [{"classes": np.array([number % 3], "int32")} for number in range(count)])
        words = [labels_with_end(rng, 12, 4, 9) for _ in range(count)]
        lm = {"data": TensorSpec(dim=12, sparse=True), "delayed": TensorSpec(dim=12, sparse=True)}
        delayed = [np.append([0], text[:-1]).astype("int32") for text in words]
        rows = [{"data": w, "delayed": d} for w, d in zip(words, delayed, strict=True)]
        write(f"lm{postfix}", lm, rows)


@pytest.mark.parametrize("name", [*SEARCH, *FORWARD])
def test_config(run, data, name):
    """The score falls; a training that went on after a stop ends with the bits of a whole one."""
    config = NETWORKS / f"{name}.config"
    first = run(config, num_epochs=1)
    last = run(config)
    assert last < first
    run(config, model="whole/network", learning_rate_file="whole/learning_rates")
    newest = sorted(path.name for path in Path("net").glob("network.0*.pt"))[-1].replace(".opt", "")
    models = [torch.load(f"{folder}/{newest}", weights_only=True)["model"] for folder in ("net", "whole")]
    assert all(torch.equal(value, models[1][key]) for key, value in models[0].items())
    if name in SEARCH:
        assert run(config, task="search", search_output_file="found.py", search_output_file_format="py") == 4
        found = ast.literal_eval(Path("found.py").read_text())
        assert list(found) == [f"seq-{n}" for n in range(4)]
    else:
        assert run(config, task="forward", forward_data="dev", output_file="out.hdf") == 4
        with h5py.File("out.hdf") as file:
            assert np.isfinite(file["inputs"][:]).all() and len(file["inputs"]) > 6
    assert run(config, task="eval", load_epoch=1) > 0


def test_language_model_that_only_the_search_has(run, data):
    """`load_on_init` and `preload_from_files` inside of the loop; no loss of the search's network needs its layers."""
    rng = np.random.RandomState(2)
    for name, count in (("lm6", 40), ("lm6_dev", 4)):
        words = [
            np.append(np.cumsum(rng.randint(1, 3, rng.randint(3, 6))) % 5 + 1, 0).astype("int32") for _ in range(count)
        ]
        streams = {"data": TensorSpec(dim=6, sparse=True), "delayed": TensorSpec(dim=6, sparse=True)}
        write(name, streams, [{"data": w, "delayed": np.append([0], w[:-1]).astype("int32")} for w in words])
    config = NETWORKS / "shallow_fusion.config"
    assert run(config, is_lm=True) < 1.8
    first = run(config, num_epochs=1)
    assert run(config) < first
    found = {}
    for preload in (False, True):
        for scale in (0.0, 0.5, 20.0):
            file = f"found{preload}{scale}.py"
            values = {"search_output_file": file, "search_output_file_format": "py", "lm_scale": scale}
            assert run(config, task="search", preload=preload, **values) == 4
            words = ast.literal_eval(Path(file).read_text())
            assert found.setdefault(scale, words) == words
    assert all(list(hypotheses) == [f"seq-{n}" for n in range(4)] for hypotheses in found.values())
    assert found[20.0] != found[0.0]
    assert len({str(words) for words in found[20.0].values()}) == 1  # the language model alone, whatever is heard


@pytest.mark.parametrize("units", [16, pytest.param(500, marks=pytest.mark.slow)])
def test_blstm_of_the_documentation(run, data, monkeypatch, units):
    """train, forward and search; both directions go through the fast LSTM."""
    for name in ("train", "dev", "eval"):
        shutil.copy("frames.hdf" if name == "train" else "frames_dev.hdf", f"{name}.hdf.new")
        Path(f"{name}.hdf.new").replace(f"{name}.hdf")
    text = (NETWORKS / "blstm_of_the_documentation.config").read_text()
    Path("my.config").write_text(text.replace('"n_out": 500', f'"n_out": {units}'))
    calls = []
    lstm = torch.lstm
    monkeypatch.setattr(torch, "lstm", lambda *given: calls.append(given) or lstm(*given))
    first = run("my.config", num_epochs=1)
    assert run("my.config") < first
    assert len(calls) % 6 == 0 and len(calls) > 6 * 3 * 4  # never frame by frame
    assert run("my.config", task="forward", output_file="posteriors.hdf") == 4
    settings = {"search_output_file_format": "py"}
    assert run("my.config", task="search", search_data="eval", search_output_file="found.py", **settings) == 4
    found = ast.literal_eval(Path("found.py").read_text())
    with h5py.File("posteriors.hdf") as file:
        posteriors, lengths = file["inputs"][:], file["seqLengths"][:, 0]
        tags = [tag.decode() for tag in file["seqTags"]]
    np.testing.assert_allclose(posteriors.sum(1), 1.0, rtol=1e-4)
    for tag, rows in zip(tags, np.split(posteriors, np.cumsum(lengths)[:-1]), strict=True):
        assert found[tag] == rows.argmax(1).tolist()
    assert run("my.config", task="search", search_data="eval", search_output_file="found.txt") == 4
    assert len(Path("found.txt").read_text().splitlines()) == 4


def test_limits_of_streams_that_a_forward_pass_does_not_read(run, data):
    """`batch_size` as a dict, with streams by `num_outputs`."""
    text = (NETWORKS / "hybrid_blstm.config").read_text()
    lines = [line for line in text.splitlines() if not line.startswith(("num_outputs", "num_inputs", "batch_size"))]
    limits = 'num_outputs = {"data": [8, 2], "classes": [5, 1]}\nbatch_size = {"data": 400, "classes": 400}\n'
    Path("my.config").write_text("\n".join(lines) + "\n" + limits)
    run("my.config", num_epochs=1)
    assert run("my.config", task="forward", forward_data="dev", output_file="out.hdf") == 4
