"""What a network dict leaves on the disk besides checkpoints: `hdf_dump` layers, and the picture of task=inspect."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from returnn_hydra.data.dataset import DataError

CONFIG = """#!rnn.py
use_tensorflow = True
eval = {"class": "Task12AXDataset", "num_seqs": 7, "fixed_random_seed": 1}
train, dev = eval, eval
extern_data = {"data": {"dim": 9, "shape": (None, 9)}, "classes": {"dim": 2, "sparse": True}}
batch_size, max_seqs = 500, 3
num_epochs = 1
learning_rate = 0.01
model = "net/model"
network = {
    "h": {"class": "linear", "from": "data", "activation": "tanh", "n_out": 4},
    "half": {"class": "pool", "from": "h", "mode": "max", "pool_size": (2,), "padding": "same"},
    "square": {"class": "dot", "from": ["h", "half"], "red1": "F", "red2": "F", "var1": "T", "var2": "T"},
    "mean": {"class": "reduce", "from": "h", "mode": "mean", "axis": "T"},
    "output": {"class": "softmax", "from": "h", "loss": "ce", "target": "classes"},
    "dump": {"class": "hdf_dump", "from": "output", "extra": {"mean": "mean"}, "filename": "out/posteriors.hdf",
             "is_output_layer": True},
    "dump2": {"class": "hdf_dump", "from": "square", "filename": "out/square.hdf", "is_output_layer": True},
}
"""


@pytest.mark.parametrize("task", ["forward", "eval"])
def test_hdf_dump(run, task, capsys):
    Path("my.config").write_text(CONFIG)
    run("my.config", log_verbosity=3)
    assert "no file is written in a training" in capsys.readouterr().out and not Path("out").exists()
    if task == "eval":
        run("my.config", task="eval", train="None", dev="None")
    else:
        run("my.config", task="forward", output_file="posteriors.hdf")
    with h5py.File("out/posteriors.hdf") as file, h5py.File("out/square.hdf") as square:
        inputs, lengths = file["inputs"][:], file["seqLengths"][:, 0]
        assert sorted(tag.decode() for tag in file["seqTags"]) == [f"seq-{n}" for n in range(7)]
        np.testing.assert_allclose(inputs.sum(1), 1.0, rtol=1e-5)
        assert file["targets/data/mean"].shape[-1] == 4
        assert int((lengths * -(-lengths // 2)).sum()) == len(square["inputs"])  # T frames times T/2 frames
        assert square["targets/data/sizes"][:2].tolist() == [lengths[0], -(-lengths[0] // 2)]
    if task == "forward":
        with h5py.File("out/posteriors.hdf") as file, h5py.File("posteriors.hdf") as forwarded:
            assert np.array_equal(file["inputs"][:], forwarded["inputs"][:])
        with pytest.raises(DataError, match="exists"):
            run("my.config", task="forward", output_file="again.hdf")


def test_inspect(run, capsys):
    """The layers as a table, and their picture beside the checkpoints."""
    Path("my.config").write_text(CONFIG)
    assert run("my.config", task="inspect", log_verbosity=2) == 7
    text = capsys.readouterr().out
    assert "softmax" in text and "W[9, 4], b[4]" in text and "[B, T:data, F:4]" in text
    picture = Path("net/network.svg").read_text()
    assert "<svg" in picture[:400]
    run("my.config", task="inspect", output_file="net.png")
    assert Path("net.png").read_bytes()[:4] == b"\x89PNG"
