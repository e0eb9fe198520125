"""More ways to write a config: packages, JSON, lines, dataset dicts of several classes, callables, hooks."""

import ast
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from returnn_hydra.batch import TensorSpec
from returnn_hydra.config.errors import ConfigError
from returnn_hydra.data.dataset import DataError
from returnn_hydra.data.hdf_writer import HDFWriter

NETWORK = {
    "lstm": {"class": "rec", "unit": "lstm", "n_out": 5, "from": "data"},
    "output": {"class": "softmax", "loss": "ce", "from": "lstm"},
}
FUNCTIONS = """
import torch
import returnn.frontend as rf


class Model(torch.nn.Module):
    def __init__(self, dim, num_classes):
        super().__init__()
        self.out = torch.nn.Linear(dim, num_classes)

    def forward(self, x):
        return self.out(x.float())


def train_step(*, model, extern_data, **_):
    data, classes = extern_data["data"], extern_data["classes"]
    logits = model(data.raw_tensor)
    targets = classes.raw_tensor.flatten().long()
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets, reduction="none")
    loss = rf.convert_to_tensor(loss.view(logits.shape[:2]), dims=data.dims[:2])
    rf.get_run_ctx().mark_as_loss(loss, "ce", use_normalized_loss=True)


def forward_step(*, model, extern_data, **_):
    data = extern_data["data"]
    dims = [*data.dims[:2], rf.Dim(2, name="out")]
    rf.get_run_ctx().mark_as_output(model(data.raw_tensor), "output", dims=dims)
"""
OPTIONS = """
extern_data = {"data": {"dim": 3}, "classes": {"dim": 2, "sparse": True, "available_for_inference": False}}
batch_size = 60
optimizer = {"class": "adam", "weight_decay": 0.1}
learning_rate = 0.01
num_epochs = 2
model = "net/model"
learning_rate_file = "net/learning_rates"


def get_model(**_):
    return Model(3, 2)


class Lengths:
    def init(self, *, model):
        self.lengths = {}

    def process_seq(self, *, seq_tag, outputs):
        self.lengths[seq_tag] = outputs["output"].raw_tensor.shape

    def finish(self):
        with open("lengths.txt", "w") as file:
            file.write(repr(self.lengths))


forward_callback = Lengths
"""


@pytest.fixture
def hdf(tmp_path):
    """Two files with 7 sequences each."""
    rng = np.random.RandomState(1)
    specs = {"data": TensorSpec(dim=3), "classes": TensorSpec(dim=2, sparse=True)}
    for name in ("a", "b"):
        with HDFWriter(tmp_path / f"{name}.hdf", specs, input_stream="data") as writer:
            for number in range(7):
                length = 4 + 3 * number % 11
                values = rng.randn(length, 3).astype("float32")
                labels = (values[:, 0] > 0).astype("int32")
                writer.write(f"{name}-{number}", {"data": values, "classes": labels})
    return tmp_path


def train_restart_forward(run, scores, config, tags):
    run(config, num_epochs=1)
    run(config)
    found = scores()
    assert sorted(found) == [1, 2] and found[2][1]["dev_loss_ce"] < found[1][1]["dev_loss_ce"]
    assert run(config, task="forward") == len(tags)
    lengths = ast.literal_eval(Path("lengths.txt").read_text())
    assert sorted(lengths) == sorted(tags) and all(shape[1] == 2 for shape in lengths.values())
    if not isinstance(tags, set):
        assert [shape[0] for shape in lengths.values()] == sorted((s[0] for s in lengths.values()), reverse=True)


DATASETS = {
    "hdf": "{'class': 'HDFDataset', 'files': ['a.hdf', 'b.hdf'],"
    " 'use_cache_manager': True, 'seq_ordering': 'laplace:.4'}",
    "partitioned": "{'class': 'HDFDataset', 'files': ['a.hdf', 'b.hdf'],"
    " 'partition_epoch': 2, 'seq_ordering': 'random'}",
    "meta": "{'class': 'MetaDataset', 'datasets': {'x': {'class': 'HDFDataset', 'files': ['a.hdf']},"
    " 'y': {'class': 'HDFDataset', 'files': ['a.hdf']}}, 'seq_order_control_dataset': 'x',"
    " 'data_map': {'data': ('x', 'data'), 'classes': ('y', 'classes')}}",
    "combined": "{'class': 'CombinedDataset', 'datasets': {'x': {'class': 'HDFDataset', 'files': ['a.hdf']},"
    " 'y': {'class': 'HDFDataset', 'files': ['b.hdf']}}, 'data_map': {('x', 'data'): 'data', ('x', 'classes'):"
    " 'classes', ('y', 'data'): 'data', ('y', 'classes'): 'classes'}, 'seq_ordering': 'default'}",
    "multi_proc": "{'class': 'MultiProcDataset', 'dataset': {'class': 'HDFDataset', 'files': ['a.hdf']},"
    " 'num_workers': 1, 'buffer_size': 5}",
    "postprocessing": "{'class': 'PostprocessingDataset', 'dataset': {'class': 'HDFDataset', 'files': ['a.hdf']},"
    " 'map_seq': double}",
    "declared": "{'class': 'PostprocessingDataset', 'dataset': {'class': 'HDFDataset', 'files': ['a.hdf']},"
    " 'map_seq': more_streams, 'map_outputs': {'data': {'dims': [time, Dim(3, name='f')], 'dtype': 'float32'},"
    " 'classes': {'dims': [time], 'sparse_dim': Dim(2, name='c'), 'dtype': 'int32'}}}",
    "stream": "{'class': 'PostprocessingDataset', 'dataset': {'class': 'HDFDataset', 'files': ['a.hdf']},"
    " 'map_seq_stream': every_second}",
    "distribute": "{'class': 'DistributeFilesDataset', 'files': ['a.hdf', 'b.hdf'], 'partition_epoch': 2,"
    " 'get_sub_epoch_dataset': sub_epoch}",
    "callable": "lambda: {'class': 'HDFDataset', 'files': ['a.hdf']}",
}
MAPS = """
from returnn.tensor import Dim, Tensor

time = Dim(None, name="time")


def more_streams(tensors, *, rng, **_):
    '''RETURNN ignores what is not declared.'''
    data, classes = tensors.data["data"], tensors.data["classes"]
    assert classes.sparse_dim.dimension == 2 and data.dims[1].dimension == 3 and "seq_tag" in tensors.data
    tensors.data["noise"] = Tensor("noise", dims=data.dims[:1], dtype="float32")
    tensors.data["noise"].raw_tensor = rng.normal(size=len(data.raw_tensor)).astype("float32")
    return tensors


def double(tensors, **_):
    tensors.data["data"].raw_tensor = tensors.data["data"].raw_tensor * 2
    return tensors


def every_second(stream, **_):
    for number, tensors in enumerate(stream):
        if number % 2 == 0:
            yield tensors


def sub_epoch(files):
    return {"class": "HDFDataset", "files": files}
"""


@pytest.mark.parametrize("name", DATASETS)
def test_dataset_dicts(run, scores, hdf, name):
    data = f"train = {DATASETS[name]}\ndev = {{'class': 'HDFDataset', 'files': ['b.hdf']}}\nforward_data = 'dev'\n"
    Path(hdf / "my.config").write_text("#!rnn.py\n" + FUNCTIONS + MAPS + OPTIONS + data)
    train_restart_forward(run, scores, "my.config", [f"b-{number}" for number in range(7)])


def test_package_with_relative_imports(run, scores, hdf):
    package = hdf / "experiment"
    (package / "nets").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "nets" / "__init__.py").write_text("from .linear import Model, forward_step, train_step\n")
    (package / "nets" / "linear.py").write_text(FUNCTIONS)
    (package / "config.py").write_text(
        "from .nets import Model, forward_step, train_step\n"
        + OPTIONS
        + "train = {'class': 'HDFDataset', 'files': 'a.hdf'}\n"
        "dev = eval = {'class': 'HDFDataset', 'files': ['b.hdf']}\n"
    )
    train_restart_forward(run, scores, "experiment/config.py", [f"b-{number}" for number in range(7)])


def test_another_number_of_classes_than_in_the_data(run, scores, hdf):
    """As in RETURNN, the config's number is the model's, the file's that of the file."""
    options = OPTIONS.replace('"classes": {"dim": 2', '"classes": {"dim": 4').replace("Model(3, 2)", "Model(3, 4)")
    data = "train = dev = {'class': 'HDFDataset', 'files': ['a.hdf']}\n"
    Path("my.config").write_text("#!rnn.py\n" + FUNCTIONS + options + data)
    run("my.config", num_epochs=1)
    assert "dev_loss_ce" in scores()[1][1]


def test_network_dict_as_json_and_as_lines(run, scores, hdf):
    values = {
        "use_tensorflow": True,
        "network": NETWORK,
        "train": {"class": "HDFDataset", "files": ["a.hdf"]},
        "dev": {"class": "HDFDataset", "files": ["b.hdf"]},
        "extern_data": {"data": {"dim": 3}, "classes": {"dim": 2, "sparse": True}},
        "batch_size": 40,
        "num_epochs": 2,
        "optimizer": {"class": "nadam"},
        "learning_rate": 0.01,
        "model": "net/model",
        "learning_rate_file": "net/learning_rates",
    }
    Path("my.json").write_text("{ // as JSON\n" + json.dumps(values)[1:])
    lines = [
        f"{key} {value if isinstance(value, (str, int, float)) else json.dumps(value)}" for key, value in values.items()
    ]
    Path("lines.config").write_text("\n".join(lines) + "\n")
    run("my.json")
    first = scores()
    assert first[2][1]["dev_score"] < first[1][1]["dev_score"] and "dev_error" in first[1][1]
    run("lines.config", model="other/model", learning_rate_file="other/lr")
    assert scores("other/lr") == first
    run("my.json", num_epochs=3)
    assert sorted(scores()) == [1, 2, 3]
    assert run("my.json", task="forward", forward_data="dev", output_file="out.hdf") == 7
    assert run("my.json", task="compute_priors", output_file="priors.txt") == 7
    assert np.exp(np.loadtxt("priors.txt")).sum() == pytest.approx(1)
    assert run("my.json", task="eval", num_epochs=3) == pytest.approx(scores()[3][1]["dev_score"])


def test_search_in_a_network_dict(run, hdf):
    """A decoder that repeats the class of a frame's sign: what comes out has the corpus's order and a known form."""
    unit = {
        "embed": {"class": "linear", "from": "output", "n_out": 4, "activation": None, "initial_output": 0},
        "prob": {"class": "softmax", "from": ["data:source", "prev:embed"], "target": "classes", "loss": "ce"},
        "output": {"class": "choice", "from": "prob", "target": "classes", "beam_size": 3, "initial_output": 0},
    }
    text = f"""#!rnn.py
use_tensorflow = True
network = {{
    "output": {{"class": "rec", "from": "data", "target": "classes", "unit": {unit!r}}},
    "decision": {{"class": "decide", "from": "output", "target": "classes"}},
}}
train = {{"class": "HDFDataset", "files": ["a.hdf"]}}
eval = {{"class": "HDFDataset", "files": ["b.hdf"]}}
extern_data = {{
    "data": {{"dim": 3}},
    "classes": {{"vocab": {{"class": "Vocabulary", "labels": ["n", "p"], "unknown_label": None}}}},
}}
batch_size = 40
num_epochs = 1
learning_rate = 0.01
model = "net/model"
"""
    Path("my.config").write_text(text)
    run("my.config")
    assert run("my.config", task="search", search_output_file="beam.py", search_output_file_format="py") == 7
    beam = ast.literal_eval(Path("beam.py").read_text())
    assert list(beam) == [f"b-{number}" for number in range(7)]
    assert all(scores == sorted(scores, reverse=True) for scores in ([s for s, _ in hyps] for hyps in beam.values()))
    best = {"search_output_layer": "decision", "search_output_file_format": "py"}
    run("my.config", task="search", search_output_file="best.py", **best)
    assert ast.literal_eval(Path("best.py").read_text()) == {tag: hyps[0][1] for tag, hyps in beam.items()}
    with pytest.raises(ConfigError, match="the file exists"):
        run("my.config", task="search", search_output_file="best.py", **best)


def test_rates_batches_and_hooks_from_functions(run, scores, hdf):
    text = """
seen = []


def dynamic_learning_rate(*, global_train_step, learning_rate, **_):
    return learning_rate / (1 + global_train_step)


def batch_size(*, epoch, **_):
    return 20 * epoch


def epoch_start(*, epoch, step, model, dataset_name, **_):
    with open("hooks.txt", "a") as file:
        print("start", epoch, dataset_name, step, type(model).__name__, file=file)


def epoch_end(*, epoch, dataset_name, **_):
    import os
    with open("hooks.txt", "a") as file:
        print("end", epoch, dataset_name, os.path.exists(f"net/model.00{epoch}.pt"), file=file)


calculate_exp_loss = True
train = {"class": "HDFDataset", "files": ["a.hdf"]}
eval_datasets = {"devtrain": {"class": "HDFDataset", "files": ["a.hdf"]}}
"""
    Path("my.config").write_text("#!rnn.py\n" + FUNCTIONS + OPTIONS + text)
    run("my.config")
    found = scores()[1][1]
    assert found["devtrain_loss_ce:exp"] == pytest.approx(np.exp(found["devtrain_loss_ce"]))
    lines = [line.split() for line in Path("hooks.txt").read_text().splitlines()]
    assert [line[:3] for line in lines] == [
        [when, epoch, name] for epoch in "12" for name in ("train", "devtrain") for when in ("start", "end")
    ]
    before_saving = [line[3] for line in lines if line[0] == "end" and line[2] == "train"]
    assert before_saving == ["False", "False"]  # the evaluation may end before the thread that saves
    Path("hooks.txt").unlink()
    run("my.config", task="eval")
    assert [line.split()[2] for line in Path("hooks.txt").read_text().splitlines()] == ["devtrain", "devtrain"]
    rate = torch.load("net/model.001.pt", weights_only=True)["effective_learning_rate"]
    steps = torch.load("net/model.001.pt", weights_only=True)["step"]
    assert rate == pytest.approx(0.01 / steps)


BUCKETS = "torch_batching = {'class': 'BucketOrderingIterDataPipe', 'buckets': [(8, 2), (20, 3)], 'length_key': 'data'"


@pytest.mark.parametrize(
    ("line", "steps"),
    [
        (BUCKETS + "}", 3),  # 4 7, 10 13 11, 5 8
        (BUCKETS.replace("'data'", "'classes'") + "}", 3),
        ("packed_batch_size = 20", 4),  # 4 7, 10, 13 5, 8 11
        ("packed_batch_size = {'classes': 20}\nmax_seqs = 1", 7),
    ],
)
def test_other_ways_to_make_batches(run, hdf, line, steps):
    options = OPTIONS.replace("batch_size = 60\n", "")
    text = f"num_epochs = 1\ntrain = {{'class': 'HDFDataset', 'files': ['a.hdf']}}\n{line}\n"
    Path("my.config").write_text("#!rnn.py\n" + FUNCTIONS + options + text)
    run("my.config")
    assert torch.load("net/model.001.pt", weights_only=True)["step"] == steps


@pytest.mark.parametrize("change", [("length_key", "key"), ("Ordering", "Sorting"), ("}", ", 'size': 3}")])
def test_other_torch_batching_is_refused(run, hdf, change):
    text = "train = {'class': 'HDFDataset', 'files': ['a.hdf']}\n" + (BUCKETS + "}\n").replace(*change)
    Path("my.config").write_text("#!rnn.py\n" + FUNCTIONS + OPTIONS + text)
    with pytest.raises(ConfigError, match=r"torch_batching=.*BucketOrderingIterDataPipe with buckets and a length_key"):
        run("my.config")


def test_config_classes_can_be_pickled(run, hdf):
    """A config's module stays under its name, so that workers find its functions."""
    Path("my.config").write_text(
        "#!rnn.py\ndef f():\n    return 3\ndef check():\n    import pickle\n    return pickle.dumps(f)\n"
    )
    assert pickle.loads(run("my.config", task="config:check"))() == 3


def test_dims_as_axes(run, scores, hdf):
    """Newer dicts name sizes and axes by `Dim` objects."""
    text = """#!rnn.py
from returnn.tf.util.data import FeatureDim, SpatialDim, batch_dim

use_tensorflow = True
time_dim, in_dim, classes_dim = SpatialDim("time"), FeatureDim("in", 3), FeatureDim("classes", 2)
hidden_dim, head_dim = FeatureDim("hidden", 6), SpatialDim("heads", 2)
extern_data = {"data": {"dim": 3}, "classes": {"dim": 2, "sparse": True}}
network = {
    "h": {"class": "linear", "from": "data", "out_dim": hidden_dim, "activation": "tanh"},
    "split": {"class": "split_dims", "from": "h", "axis": hidden_dim, "dims": (2, 3)},
    "heads": {"class": "reduce", "mode": "sum", "from": "split", "axis": head_dim},
    "mean": {"class": "reduce", "mode": "mean", "from": "heads", "axis": time_dim},
    "both": {"class": "combine", "kind": "add", "from": ["heads", "mean"]},
    "output": {"class": "softmax", "from": "both", "out_dim": classes_dim, "loss": "ce", "target": "classes"},
}
train, dev = {"class": "HDFDataset", "files": ["a.hdf"]}, {"class": "HDFDataset", "files": ["b.hdf"]}
batch_size, num_epochs, learning_rate = 40, 2, 0.01
optimizer = {"class": "adam"}
model, learning_rate_file = "net/model", "net/learning_rates"
"""
    Path("my.config").write_text(text)
    run("my.config")
    assert scores()[2][1]["dev_score"] < scores()[1][1]["dev_score"]
    Path("wrong.config").write_text(text.replace('"axis": head_dim', '"axis": SpatialDim("other", 5)'))
    with pytest.raises(ConfigError, match="network: heads"):
        run("wrong.config", model="wrong/model")


PIPES = """
from returnn.config import get_global_config
from returnn.torch.data.pipeline import BatchingIterDataPipe
from returnn.util.basic import NumbersDict

seen = []


class LongAndShort(BatchingIterDataPipe):
    def __iter__(self):
        kinds = {True: [], False: []}
        for seq in self._dataset:
            assert self._parse_max_seqs(self._max_seqs, data_dict=seq) == 2
            lengths = NumbersDict({key: value.shape[0] for key, value in seq.items() if value.shape})
            kind = kinds[lengths["data"] > 8]
            kind.append(seq)
            if len(kind) == self._max_seqs:
                yield kind
                kind.clear()
        yield from filter(None, kinds.values())


def torch_batching(dataset, *, train, **_):
    options = {key: get_global_config().typed_value(key) for key in ("batch_size", "max_seqs")}
    return (LongAndShort if train else BatchingIterDataPipe)(dataset, **options)


def train_step(*, model, extern_data, _step=train_step, **_):
    seen.append((extern_data["data"].dims[1].dyn_size.tolist(), model.training))
    _step(model=model, extern_data=extern_data)


def epoch_end(*, epoch, **_):
    import json, os

    if not os.path.exists("seen.json"):
        json.dump(seen, open("seen.json", "w"))


num_epochs = 1
max_seqs = 2
train = dev = {"class": "HDFDataset", "files": ["a.hdf"]}
"""


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_by_a_function(run, hdf, workers):
    lines = f"torch_dataloader_opts = {{'num_workers': {workers}}}\nbatch_size = 26\n"
    Path("my.config").write_text("#!rnn.py\n" + FUNCTIONS + OPTIONS + PIPES + lines)
    run("my.config")
    seen = [lengths for lengths, training in json.loads(Path("seen.json").read_text()) if training]
    assert seen == [[4, 7], [10, 13], [5, 8], [11]]
    assert torch.load("net/model.001.pt", weights_only=True)["step"] == 4


def test_a_function_that_yields_no_lists(run, hdf):
    lines = "def torch_batching(dataset, **_):\n    return dataset\n"
    Path("my.config").write_text("#!rnn.py\n" + FUNCTIONS + OPTIONS + PIPES + lines)
    with pytest.raises(DataError, match="torch_batching yielded dict: expected a list of the sequences"):
        run("my.config")


RIVALS = """
import functools
import json

turn = {"now": "odd"}
norms = []


class OneSide(torch.optim.AdamW):
    def step(self, closure=None):
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append([float(torch.nn.utils.get_total_norm(gradients, p)) for p in (1, 2)])
        for group in self.param_groups:
            if group["side"] != turn["now"]:
                for p in group["params"]:
                    p.grad = None
        super().step(closure)


def sides(*, model, rate, **_):
    weights = {"odd": [model.out.bias], "even": [model.out.weight]}
    rates = {"odd": 1.0, "even": rate}
    return [{"params": weights[k], "side": k, "learning_rate_multiplier": rates[k]} for k in weights]


def get_model(**_):
    torch.manual_seed(3)
    return Model(3, 2)


def train_step(*, model, extern_data, _step=train_step, **_):
    turn["now"] = "odd" if rf.get_run_ctx().step % 2 else "even"
    _step(model=model, extern_data=extern_data)


def epoch_end(*, dataset_name, **_):
    with open("norms.json", "w") as file:
        json.dump(norms, file)


optimizer = {"class": OneSide, "param_groups_custom": functools.partial(sides, rate=0.5), "betas": (0.5, 0.98)}
train = {"class": "HDFDataset", "files": ["a.hdf"]}
batch_size = 26
num_epochs = 1
"""


@pytest.mark.parametrize(("value", "name", "column"), [("True", "p2", 1), ("1", "p1", 0), ("1.0", "p1", 0)])
def test_norms_of_rivals(run, scores, hdf, value, name, column):
    """Two sides that take turns by an optimizer of their own; what log_grad_norm logs is from before that."""
    lines = f"log_grad_norm = {value}\ncalculate_exp_loss = True\n"
    Path("my.config").write_text("#!rnn.py\n" + FUNCTIONS + OPTIONS + RIVALS + lines)
    run("my.config")
    norms = np.array(json.loads(Path("norms.json").read_text()))
    found = scores()[1][1]
    assert found[f"train_loss_grad_norm:{name}"] == pytest.approx(norms[:, column].mean(), rel=1e-6)
    assert [key for key in found if "grad_norm" in key] == [f"train_loss_grad_norm:{name}"]
    model = torch.load("net/model.001.pt", weights_only=True)["model"]
    torch.manual_seed(3)
    first = torch.nn.Linear(3, 2)
    assert len(norms) == 4
    # AdamW with betas moves every entry by about the rate: 2 turns of 0.005 or 0.01
    assert 0 < (model["out.weight"] - first.weight).abs().max() <= 2.2 * 0.005
    assert 0 < (model["out.bias"] - first.bias).abs().max() <= 2.2 * 0.01
