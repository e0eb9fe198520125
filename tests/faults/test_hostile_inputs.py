"""Hostile configurations, data, vocabularies and score files: nothing is run, nothing outside the run is written."""

import contextlib
import os
import pickle
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from faulttools.hostile import Watch, calls

from returnn_hydra.compat.learning_rate_file import LearningRateFileError, read_learning_rate_file
from returnn_hydra.config.errors import ConfigError
from returnn_hydra.config.json_config import parse_json_config
from returnn_hydra.config.line_config import parse_line_config
from returnn_hydra.config.literals import parse_literal
from returnn_hydra.data.dataset import DataError
from returnn_hydra.data.files import read_literal, read_pickle
from returnn_hydra.data.hdf import HDFDataset
from returnn_hydra.data.vocab import read_label_ids
from returnn_hydra.engine.errors import UnsafeNameError
from returnn_hydra.engine.files import inside, safe_name
from returnn_hydra.search.ngram import read_arpa

HARM = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "subprocess.",
    "socket.",
    "pty.",
    "shutil.rmtree",
    "urllib.",
)
"""Beside these, writing. (Running code shows by its marker: late imports run code of their own.)"""


def harmful(events):
    own = "os.mkdir . "  # Hydra makes sure that the present folder is there
    return [event for event in events if event.startswith(HARM) or ("for writing" in event and own not in event)]


@pytest.fixture(scope="module")
def watch():
    platform.processor()  # h5py and others ask for it once, by a program
    return Watch()


def python_texts(marker):
    """Texts that run something wherever they are evaluated."""
    touch = f"__import__('os').system('touch {marker}')"
    return [
        touch,
        f"[{touch}]",
        f"{{1: {touch}}}",
        f"{{1: EpochData(learningRate={touch}, error={{}})}}",
        f"{{1: EpochData(0.1, {{'a': {touch}}})}}",
        f"EpochData.__init__.__globals__['__builtins__']['eval']({touch!r})",
        f"(lambda: {touch})()",
        f"[x for x in [{touch}]]",
        f"f'{{{touch}}}'",
        f'exec("{touch}")',
        f"open('{marker}', 'w')",
        "().__class__.__bases__[0].__subclasses__()",
        "'a' * 10 ** 12",
        "9 ** 9 ** 9",
        "(" * 5000,
        "-" * 100000 + "1",
        f"!!python/object/apply:os.system ['touch {marker}']",
        f"num_epochs = {touch}\n",
        f'{{"a": {touch}}}',
        f"a {touch}",
    ]


READERS = {
    "learning_rates": read_learning_rate_file,
    "vocab.txt": read_label_ids,
    "vocab.pkl": read_label_ids,
    "data.py": read_literal,
    "data.pkl": read_pickle,
    "lm.arpa": read_arpa,
    "a literal": lambda path: parse_literal(path.read_text(errors="replace")),
    "a JSON config": lambda path: parse_json_config(path.read_text(errors="replace"), str(path)),
    "a line config": lambda path: parse_line_config(path.read_text(errors="replace"), str(path)),
}


@pytest.mark.parametrize("reader", READERS)
def test_readers_run_nothing(tmp_path, watch, reader):
    marker = tmp_path / "outside" / "executed"
    marker.parent.mkdir()
    contents = [text.encode() for text in python_texts(marker)] + [call.opcodes() for call in calls(marker)]
    contents += [pickle.dumps([1, "a"])[:-1] + b"R.", b"\x80\x04\x8c\x02os\x8c\x06system\x93."]
    assert len(contents) * len(READERS) >= 400
    folder = tmp_path / "run"
    folder.mkdir()
    file = folder / reader.replace(" ", "_")
    refused = contextlib.suppress(DataError, ConfigError, LearningRateFileError, ValueError)
    for number, content in enumerate([b"", *contents]):
        file.write_bytes(content)
        with watch.on(folder) as events, refused:
            READERS[reader](file)
        assert number == 0 or harmful(events) == [], content[:80]
        assert [path.name for path in marker.parent.iterdir()] == [], content[:80]


CONFIGS = {
    "target in the model": ("composed.yaml", "returnn_hydra.models.blstm.BLSTM", "os.system"),
    "target of a data set": ("composed.yaml", "returnn_hydra.data.embedded.japanese_vowels", "subprocess.run"),
    "target of the task": ("composed.yaml", "returnn_hydra.tasks.train.run", "os.system"),
    "an alias": ("composed.yaml", "returnn_hydra.models.blstm.BLSTM", "returnn_hydra.models.blstm.torch.load"),
    "own code allowed": ("composed.yaml", "allow_targets: []", "allow_targets: [os., evil.]"),
    "Python of its own": ("composed.yaml", "overrides: null", "overrides: outputs/x/evil.py"),
    "a RETURNN config": ("composed.yaml", "returnn_config: null", "returnn_config: outputs/x/evil.py"),
    "YAML tag": ("composed.yaml", "seed: 1", "seed: !!python/object/apply:os.system ['touch MARKER']"),
    "YAML tag in the words": ("overrides.yaml", None, "!!python/object/apply:os.system ['touch MARKER']"),
    "no list of words": ("overrides.yaml", None, "a: b"),
    "a list of lists": ("overrides.yaml", None, "- [seed=1]"),
    "Python in the words": ("overrides.yaml", None, "- overrides=outputs/x/evil.py"),
    "Python in the words, forced": ("overrides.yaml", None, "- ++overrides=outputs/x/evil.py"),
    "RETURNN in the words": ("overrides.yaml", None, "- returnn_config=outputs/x/evil.py"),
    "own code in the words": ("overrides.yaml", None, "- allow_targets=[os.]\n- model._target_=os.system"),
    "another config folder": ("overrides.yaml", None, "- --config-dir=outputs/x"),
    "a sweep": ("overrides.yaml", None, "- --multirun\n- seed=1,2"),
    "Hydra's launcher": ("overrides.yaml", None, "- hydra.launcher._target_=os.system"),
    "Hydra's launcher, added": ("overrides.yaml", None, "- +hydra.launcher.x=1"),
    "Hydra's folder": ("overrides.yaml", None, "- hydra.run.dir=OUTSIDE"),
    "Hydra's callbacks": ("overrides.yaml", None, "- +hydra/callbacks=evil"),
    "other outputs": ("overrides.yaml", None, "- outputs=OUTSIDE"),
    "another name": ("overrides.yaml", None, "- name=../../outside/x"),
    "a file of the output": ("overrides.yaml", None, "- forward_callback.file=OUTSIDE/x.hdf"),
    "a file of the output, in a node": ("overrides.yaml", None, "- forward_callback={file: OUTSIDE/x.hdf}"),
    "a file in the config": ("composed.yaml", "  file: null", "  file: OUTSIDE/x.hdf"),
    "a file of a callback": (
        "overrides.yaml",
        None,
        "- +callbacks.t={_target_: returnn_hydra.callbacks.text.Text, file: OUTSIDE/x}",
    ),
    "deep": ("composed.yaml", "seed: 1", "seed: " + "[" * 20000),
    "no text": ("composed.yaml", "seed: 1", "seed: \0\x01"),
}
"""Name to (file of the run's folder, what is replaced in it or None for everything, by what)."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small finished run, to be copied."""
    folder = tmp_path_factory.mktemp("trained")
    root = Path(__file__).resolve().parents[2]
    words = [sys.executable, str(root / "run.py"), "task=train", "model.hidden_dim=2", "num_epochs=1", "name=x"]
    words += ["+forward_callback.file=null"]
    subprocess.run(words, cwd=folder, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return folder / "outputs/x"


QUICK = (
    "target in the model",
    "Python of its own",
    "YAML tag",
    "Python in the words, forced",
    "own code in the words",
    "another config folder",
    "Hydra's launcher",
    "other outputs",
    "a file of the output",
)


@pytest.mark.parametrize(
    "kind", [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in CONFIGS]
)
def test_a_run_folder_from_somewhere_else(command, tmp_path, trained, watch, kind):
    """Forwarding with it runs nothing of it and writes nothing but into it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    folder = tmp_path / "outputs/x"
    shutil.copytree(trained, folder)
    (folder / "evil.py").write_text(f"open({str(outside / 'executed')!r}, 'w').close()\n")
    name, old, new = CONFIGS[kind]
    new = new.replace("MARKER", str(outside / "executed")).replace("OUTSIDE", str(outside))
    text = (folder / name).read_text()
    assert old is None or old in text
    (folder / name).write_text(new if old is None else text.replace(old, new, 1))
    with watch.on(folder) as events:
        code = command("task=forward", "run=outputs/x")
    assert code in (0, 2), code
    assert harmful(events) == []
    assert list(outside.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outputs", "outside"]
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["x"]


def hdf(path, change):
    with h5py.File(path, "w") as file:
        file["inputs"] = np.zeros((6, 2), "float32")
        file["seqLengths"] = [[2], [4]]
        file["seqTags"] = np.array([b"a", b"b"])
        change(file)


def replace(name, value):
    def change(file):
        del file[name]
        file[name] = value

    return change


def external(name, shape, kind, size):
    def change(file):
        del file[name]
        file.create_dataset(name, shape, kind, external=[("/etc/passwd", 0, size)])

    return change


def virtual(file):
    del file["inputs"]
    layout = h5py.VirtualLayout((6, 2), "float32")
    layout[:] = h5py.VirtualSource("/etc/passwd", "inputs", (6, 2))
    file.create_virtual_dataset("inputs", layout)


LINKS = {
    "external link": replace("inputs", h5py.ExternalLink("/etc/passwd", "inputs")),
    "external link of lengths": replace("seqLengths", h5py.ExternalLink("/etc/passwd", "x")),
    "external link of tags": replace("seqTags", h5py.ExternalLink("/etc/passwd", "x")),
    "soft link": replace("inputs", h5py.SoftLink("/seqLengths")),
    "soft link in a circle": replace("inputs", h5py.SoftLink("/inputs")),
    "external storage": external("inputs", (6, 2), "f4", 48),
    "external storage of lengths": external("seqLengths", (2, 1), "i4", 8),
    "external storage of tags": external("seqTags", (2,), "S1", 2),
    "virtual data set": virtual,
    "linked targets": lambda file: (
        file.update({"targets": h5py.ExternalLink("/etc/passwd", "x")})
        if hasattr(file, "update")
        else file.__setitem__("targets", h5py.ExternalLink("/etc/passwd", "x"))
    ),
}


@pytest.mark.parametrize("kind", LINKS)
def test_hdf_files_that_reach_out_are_refused(tmp_path, watch, kind):
    hdf(tmp_path / "x.hdf", LINKS[kind])
    with watch.on(tmp_path) as events, pytest.raises(DataError, match=r"x\.hdf"):
        HDFDataset(tmp_path / "x.hdf")
    assert not [event for event in events if "passwd" in event]


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "/etc/x",
        "a/../../x",
        "..",
        ".",
        "",
        "~/x",
        "a\0b",
        "a\nb",
        "-rf",
        ".hidden",
        "a//b",
        "a/",
        "ä",
        "x" * 201,
    ],
)
def test_output_names_stay_inside(tmp_path, name):
    for check in (safe_name, lambda text: inside(tmp_path, text)):
        with pytest.raises(UnsafeNameError):
            check(name)
