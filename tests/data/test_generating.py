"""The generated tasks against RETURNN's own sequences, and against their definitions."""

import hashlib
import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

from returnn_hydra.data.generating import (
    CopyTask,
    DummyDataset,
    EpisodicCopyTask,
    NumberBaseTask,
    Task12AX,
    VariableAssignmentTask,
    XmlTask,
)
from returnn_hydra.data.loader import Loader
from returnn_hydra.data.order import SeqOrder

GOLDEN = json.loads((Path(__file__).parent / "golden" / "generating_datasets.json").read_text())
CLASSES = {
    "TaskEpisodicCopyDataset": EpisodicCopyTask,
    "DummyDataset": DummyDataset,
    "CopyTaskDataset": CopyTask,
    "TaskXmlModelingDataset": XmlTask,
    "TaskNumberBaseConvertDataset": NumberBaseTask,
}
TASKS = [Task12AX, EpisodicCopyTask, XmlTask, VariableAssignmentTask, NumberBaseTask]


def text(dataset, stream, array):
    labels = dataset.labels[stream]
    return "".join(labels[i] for i in (array.argmax(1) if array.ndim == 2 else array))


def texts(dataset, indices):
    examples = dataset.read(indices)
    return [
        (text(dataset, "data", data), text(dataset, "classes", classes))
        for data, classes in zip(examples.streams["data"], examples.streams["classes"], strict=True)
    ]


@pytest.mark.parametrize("case", GOLDEN["task12ax"], ids=lambda case: str(case["opts"]))
def test_12ax(case):
    options = {name: value for name, value in case["opts"].items() if name not in ("class", "seq_ordering")}
    mode = case["opts"].get("seq_ordering", "default")
    task = Task12AX(**options)
    order = SeqOrder(mode, random_seed_offset=options.get("random_seed_offset"))
    for epoch, expected in case["epochs"].items():
        dataset = task.at_epoch(int(epoch))
        indices = order.indices(int(epoch), len(dataset))
        assert (len(indices), dataset.seq_lengths("data").sum()) == (expected["num_seqs"], expected["frames"])
        found = zip(dataset.seq_tags(indices), texts(dataset, indices[:3]), strict=False)
        assert [[tag, *pair] for tag, pair in found] == expected["first"]
        examples = dataset.read(indices)
        sha1 = hashlib.sha1()
        for data, classes in zip(examples.streams["data"], examples.streams["classes"], strict=True):
            sha1.update(data.argmax(1).astype(np.int32).tobytes())
            sha1.update(classes.astype(np.int32).tobytes())
        assert sha1.hexdigest() == next(value for name, value in expected.items() if name.startswith("sha1"))


@pytest.mark.parametrize(
    "case",
    [case for case in GOLDEN["generic"] if "error" not in case["result"]],
    ids=lambda case: str(case["opts"]),
)
def test_other_tasks(case):
    options = {name: value for name, value in case["opts"].items() if name not in ("class", "fixed_random_seed")}
    task = CLASSES[case["opts"]["class"]](**options)
    for epoch, expected in case["result"]["epochs"].items():
        dataset = task.at_epoch(int(epoch))
        examples = dataset.read(range(len(dataset)))
        for i, seq in enumerate(expected["seqs"]):
            assert examples.seq_tags[i] == seq["tag"]
            for name in ("data", "classes"):
                array, facts = examples.streams[name][i], seq[name]
                assert list(array.shape) == facts["shape"]
                assert hashlib.sha1(array.astype(facts["dtype"]).tobytes()).hexdigest() == facts["sha1"]
                assert dataset.seq_lengths(name)[i] == seq["len"][name]


def test_12ax_vectors_of_the_spec():
    pairs = texts(Task12AX(3), range(3))
    assert pairs[1] == ("AXX3Y1BYXBYYX1B", "LLLLLLLLLLLLLLL")
    assert pairs[2][0] == "2AXAXAX11AX31BYBY1AX3Z11YC2BY312BYBY2BY12AX2AXBBYX2BYAXAB2AXA2BY2"
    assert pairs[2][1] == "LLLLLLLLLLRLLLLLLLLRLLLLLLLLRLLLLRLRLLRLLLLLLLLLRLLLRLLLLLLLLLLRL"


def test_12ax_by_its_definition():
    for source, target in texts(Task12AX(200, seed=3), range(200)):
        for end in range(len(source)):
            before = source[: end + 1]
            context = re.findall("[12]", before)[-1:]
            inner = re.search("([AB])[^ABXY]*[XY]$", before)
            right = bool(context and inner and context[0] + inner[1] + before[-1] in ("1AX", "2BY"))
            assert (target[end] == "R") == right


def test_episodic_copy_by_its_definition():
    for source, target in texts(EpisodicCopyTask(50), range(50)):
        chars, pause, dots = re.fullmatch(r"([0-7]+)( +)(\.+)", source).groups()
        assert len(dots) == len(chars) + 2
        assert target == " " * (len(chars) + len(pause) + 1) + chars + "."


def test_xml_predicts_the_next_character():
    for source, target in texts(XmlTask(100, limit_stack_depth=3), range(100)):
        stack = []
        for close, tag in re.findall("<(/?)([a-h]+)>", source):
            assert not close or stack.pop() == tag
            stack += [] if close else [tag]
            assert len(stack) <= 3
        assert not stack
        assert len(source) == len(target)
        for known, following in zip(target, source[1:], strict=False):
            assert known in (" ", following)
        unknown = sum(len(tag) + 1 for tag in re.findall("<([a-h]+)>", source)) + source.count("</")
        assert target.count(" ") == unknown


def test_variable_assignment_by_its_definition():
    for source, target in texts(VariableAssignmentTask(100), range(100)):
        store = dict(re.findall(r"S\(([a-h]+),([a-h]+)\)", source))
        key, value = re.search(r"Q\(([a-h]+)\)([a-h]+)\.$", source).groups()
        assert store[key] == value
        assert len(source) == len(target)
        assert target.endswith(value + ". ")
        assert target[: -len(value) - 2].isspace()


def test_number_bases():
    dataset = NumberBaseTask(200, input_base=16, output_base=3)
    for source, target in texts(dataset, range(200)):
        assert int(source, 16) == int(target, 3)
        assert target == "0" or target[0] != "0"
    with pytest.raises(ValueError, match="output_base=1"):
        NumberBaseTask(output_base=1)
    with pytest.raises(ValueError, match="min_input_seq_len=9"):
        NumberBaseTask(min_input_seq_len=9)


def test_copy_task_grows():
    task = CopyTask(50, nsymbols=3, minlen=2, maxlen=2, maxlen_epoch_factor=1)
    assert task.at_epoch(4).seq_lengths("data").max() == 6
    with pytest.raises(ValueError, match="epoch 1: lengths from 0 to 0"):
        CopyTask(5, nsymbols=3).read([0])


@pytest.mark.parametrize("task", TASKS)
def test_epochs_and_seeds(task):
    dataset = task(20)
    first = texts(dataset, range(20))
    assert texts(pickle.loads(pickle.dumps(dataset)), range(20)) == first
    assert texts(dataset, [7, 3]) == [first[7], first[3]]
    assert texts(dataset.at_epoch(2), range(20)) != first
    assert texts(dataset.at_epoch(2).at_epoch(1), range(20)) == first
    assert texts(task(20, seed=2), range(20)) not in (first, texts(dataset.at_epoch(2), range(20)))
    assert texts(task(20, random_seed_offset=1), range(20)) == texts(dataset.at_epoch(2), range(20))
    assert texts(task(20, fixed_random_seed=1).at_epoch(5), range(20)) == first
    halves = task(20, partition_epoch=2)
    assert texts(halves.at_epoch(2), range(20)) == first
    assert texts(halves.at_epoch(3), range(20)) == texts(dataset.at_epoch(2), range(20))
    assert dataset.seq_lengths("data").tolist() == [len(pair[0]) for pair in first]


def test_loader_gets_new_sequences_in_every_epoch():
    data = Loader(Task12AX(30), order=SeqOrder("laplace"))
    first, second = next(data.epoch(1)), next(data.epoch(2))
    assert first["data"].shape != second["data"].shape
    assert first.lengths["data"].max() == first["data"].shape[1]
