"""Our HDF files and orders in the real RETURNN: `RETURNN_PYTHON=... pytest -m peer`, a Python that has it."""

import json
import os
import subprocess

import numpy as np
import pytest

from returnn_hydra.batch import TensorSpec
from returnn_hydra.data.generating import EpisodicCopyTask, NumberBaseTask, Task12AX, XmlTask
from returnn_hydra.data.hdf_writer import HDFWriter
from returnn_hydra.data.order import SeqOrder

pytestmark = pytest.mark.peer

READ = """
import json, sys
from returnn.datasets.hdf import HDFDataset
dataset = HDFDataset([sys.argv[1]], seq_ordering=sys.argv[2], cache_byte_size=0)
for epoch in (1, 2):
    dataset.init_seq_order(epoch=epoch)
    seqs = []
    for i in range(dataset.num_seqs):
        dataset.load_seqs(i, i + 1)
        values = {key: dataset.get_data(i, key) for key in dataset.get_data_keys()}
        plain = lambda value: [v.decode() if isinstance(v, bytes) else v for v in value.tolist()]
        seqs.append([dataset.get_tag(i), {key: plain(value) for key, value in values.items()}])
    print(json.dumps(seqs))
facts = (dataset.num_outputs, dataset.labels)
print(json.dumps([{key: list(value) for key, value in fact.items()} for fact in facts]))
"""

GENERATE = """
import json, sys
from returnn.datasets.basic import init_dataset
dataset = init_dataset(json.loads(sys.argv[1]))
for epoch in (1, 3):
    dataset.init_seq_order(epoch=epoch)
    dataset.load_seqs(0, dataset.num_seqs)
    seqs = range(dataset.num_seqs)
    print(json.dumps([[dataset.get_data(i, key).tolist() for key in ("data", "classes")] for i in seqs]))
"""


@pytest.fixture
def returnn():
    """Runs a program with RETURNN; returns the JSON values it prints."""
    python = os.environ.get("RETURNN_PYTHON")
    if not python:
        pytest.skip("RETURNN_PYTHON is not set: a Python that has RETURNN")

    def run(program, *words):
        result = subprocess.run([python, "-c", program, *words], check=True, stdout=subprocess.PIPE, text=True)
        return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("[")]

    return run


@pytest.mark.parametrize("mode", ["default", "laplace:.3", "sorted_reverse", "random"])
def test_returnn_reads_what_we_write(tmp_path, returnn, mode):
    rng = np.random.RandomState(3)
    specs = {
        "data": TensorSpec(dim=3),
        "classes": TensorSpec(dim=5, sparse=True),
        "score": TensorSpec(shape=()),
        "text": TensorSpec(shape=(), dtype="string"),
    }
    written = []
    with HDFWriter(tmp_path / "x.hdf", specs, labels={"classes": list("abcde")}) as writer:
        for i, length in enumerate([4, 0, 9, 2, 7, 2]):
            data = rng.randn(length, 3).astype("float32")
            classes = rng.randint(0, 5, length + 1).astype("int32")
            written.append((f"seq/{i}-ü", data, classes, float(i), f"hällo {i}"))
            names = ("data", "classes", "score", "text")
            writer.write(written[-1][0], dict(zip(names, written[-1][1:], strict=True)))
    *epochs, (num_outputs, labels) = returnn(READ, str(tmp_path / "x.hdf"), mode)
    assert num_outputs == {"data": [3, 2], "classes": [5, 1], "score": [1, 1], "text": [1, 1]}
    assert labels["classes"] == list("abcde")
    lengths = np.array([len(seq[1]) for seq in written])
    for epoch, seqs in enumerate(epochs, 1):
        expected = [written[i] for i in SeqOrder(mode).indices(epoch, lengths)]
        assert [seq[0] for seq in seqs] == [tag for tag, *_ in expected]
        for (_, found), (_, data, classes, score, text) in zip(seqs, expected, strict=True):
            assert (found["data"], found["classes"]) == (data.tolist(), classes.tolist())
            assert (found["score"], found["text"]) == ([score], [text])


def test_returnn_reads_several_variable_axes_and_only_targets(tmp_path, returnn):
    with HDFWriter(tmp_path / "x.hdf", {"data": TensorSpec(shape=(None, None, 2))}) as writer:
        writer.write("a", {"data": np.arange(12).reshape(2, 3, 2)})
    seqs = returnn(READ, str(tmp_path / "x.hdf"), "default")[0]
    assert seqs == [["a", {"data": np.arange(12).reshape(6, 2).tolist(), "sizes": [2, 3]}]]
    with HDFWriter(tmp_path / "y.hdf", {"classes": TensorSpec(dim=5, sparse=True)}) as writer:
        writer.write("a", {"classes": [1, 4]})
        writer.write("b", {"classes": [2]})
    seqs = returnn(READ, str(tmp_path / "y.hdf"), "default")[0]
    assert seqs == [["a", {"classes": [1, 4]}], ["b", {"classes": [2]}]]


@pytest.mark.parametrize(
    ("name", "task", "options"),
    [
        ("Task12AXDataset", Task12AX, {}),
        ("TaskEpisodicCopyDataset", EpisodicCopyTask, {"random_seed_offset": 7}),
        ("TaskXmlModelingDataset", XmlTask, {"limit_stack_depth": 3}),
        ("TaskNumberBaseConvertDataset", NumberBaseTask, {"input_base": 16, "output_base": 3}),
    ],
)
def test_generated_tasks(returnn, name, task, options):
    epochs = returnn(GENERATE, json.dumps({"class": name, "num_seqs": 30, **options}))
    for epoch, seqs in zip((1, 3), epochs, strict=True):
        examples = task(30, **options).at_epoch(epoch).read(range(30))
        found = zip(examples.streams["data"], examples.streams["classes"], strict=True)
        assert [[data.tolist(), classes.tolist()] for data, classes in found] == seqs
