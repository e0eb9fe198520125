"""Data of every kind by the command line: sources, orders, batches, workers, and what happens when data are bad."""

import gzip
import itertools
import json
import math
import re
from pathlib import Path

import h5py
import numpy as np
import pytest

from returnn_hydra.batch import TensorSpec
from returnn_hydra.data.hdf_writer import HDFWriter
from returnn_hydra.data.vocab import CharacterVocabulary

DIM, NUM_CLASSES = 4, 3
SPECS = {"data": TensorSpec(dim=DIM), "classes": TensorSpec(dim=NUM_CLASSES, sparse=True)}
DATA = ("datasets=hdf", "data_folder=.", f"extern_data.data.dim={DIM}", f"extern_data.classes.dim={NUM_CLASSES}")
MODEL = ("model=blstm", "model.hidden_dim=4", "num_epochs=2", "name=run", "device=cpu")
TRAIN = ("task=train", *DATA, *MODEL, "log_verbosity=5")


def write(path, seqs, specs=SPECS):
    """An HDF file of {tag: {stream: array}}."""
    with HDFWriter(path, specs) as writer:
        for tag, streams in seqs.items():
            writer.write(tag, streams)


def sequences(prefix, lengths, seed=1):
    rng = np.random.default_rng(seed)
    return {
        f"{prefix}-{i}": {
            "data": rng.normal(size=(length, DIM)).astype(np.float32),
            "classes": rng.integers(0, NUM_CLASSES, length).astype(np.int32),
        }
        for i, length in enumerate(lengths)
    }


@pytest.fixture
def corpus(tmp_path):
    """Two HDF files for training and one for dev, in the folder of the run; returns the training sequences."""
    seqs = [sequences("a", range(3, 23)), sequences("b", range(5, 15), seed=2)]
    write(tmp_path / "train.1.hdf", seqs[0])
    write(tmp_path / "train.2.hdf", seqs[1])
    write(tmp_path / "dev.hdf", sequences("d", (4, 6, 9), seed=3))
    return {**seqs[0], **seqs[1]}


def records(name="run"):
    return [json.loads(line) for line in Path(f"outputs/{name}/scores.jsonl").read_text().splitlines()]


def damage(path, stream, tag, value):
    """Write a value into the first frame of a sequence of a finished file, whose checksums are then renewed."""
    with h5py.File(path, "r+") as file:
        tags = [name.decode() if isinstance(name, bytes) else name for name in file["seqTags"][:]]
        before = file["seqLengths"][: tags.index(tag)]
        names = ["data", *file["targets/data"]] if "targets/data" in file else ["data"]
        column = names.index(stream) if before.ndim == 2 and before.shape[1] > 1 else 0
        row = int(before[:, column].sum()) if before.ndim == 2 else int(before.sum())
        target = file["inputs"] if stream == "data" else file[f"targets/data/{stream}"]
        target[row] = value


@pytest.mark.parametrize("seq_ordering", ["laplace:.8", "bucket:.8"])
def test_order_partition_chunks_and_filters_are_the_same_for_any_number_of_workers(command, corpus, seq_ordering):
    words = (
        f"datasets.train.seq_ordering={seq_ordering}",
        "datasets.train.partition_epoch=2",
        "datasets.train.chunking=6:3",
        "datasets.train.max_seq_length=16",
        "datasets.train.source.cache=none",
        "batch_size=40",
        "max_seqs=4",
    )
    assert command(*TRAIN, *words, "name=none") == 0
    assert command(*TRAIN, *words, "name=two", "datasets.train.num_workers=2") == 0
    assert [line["scores"] for line in records("none")] == [line["scores"] for line in records("two")]
    kept = [streams["data"] for streams in corpus.values() if len(streams["data"]) <= 16]
    frames = sum(min(6, len(array) - start) for array in kept for start in range(0, len(array), 3))
    counts = [line["scores"]["train"]["ce"]["count"] for line in records("none")]
    assert sum(counts) == frames
    assert all(count < frames for count in counts)
    statistics = [line["statistics"] for line in records("none")]
    assert [line["num_filtered"] for line in statistics] == [len(corpus) - len(kept)] * 2


@pytest.fixture
def train_loader(command, corpus, monkeypatch):
    """What the words make of the training data."""

    def make(*words):
        loaders = {}

        def describe(name, loader, *facts):
            loaders[name] = loader
            return []

        monkeypatch.setattr("returnn_hydra.tasks.inspect.describe", describe)
        assert command("task=inspect", *DATA, "name=look", *words) == 0
        return loaders["train"]

    return make


def _lengths(loader, epoch=1):
    return [loader.dataset.seq_lengths("data")[piece.indices].tolist() for piece in loader.batches(epoch)]


def test_packed_batch_size(train_loader):
    batches = _lengths(train_loader("datasets.train.packed_batch_size=40", "batch_size=null", "max_seqs=null"))
    assert len(batches) > 1
    assert all(sum(batch) <= 40 for batch in batches)
    assert all(sum(batch) + following[0] > 40 for batch, following in itertools.pairwise(batches))


def test_buckets(train_loader):
    loader = train_loader("datasets.train.buckets=[[8,3],[16,2]]")
    assert {(max(batch) > 8, len(batch)) for batch in _lengths(loader)} <= {
        (False, 3),
        (True, 2),
        (False, 1),
        (True, 1),
    }
    lengths = loader.dataset.seq_lengths("data")
    assert loader.statistics(1)["num_skipped"] == np.count_nonzero(lengths > 16)
    assert sorted(length for batch in _lengths(loader) for length in batch) == sorted(lengths[lengths <= 16])
    mixed = train_loader("datasets.train.buckets=[[8,3],[16,2]]", "datasets.train.random_bucket_prob=0.9")
    assert any(min(batch) <= 8 < max(batch) for batch in _lengths(mixed))
    assert _lengths(mixed) == _lengths(mixed) != _lengths(mixed, 2)


def test_keep_epochs_and_shuffling_in_blocks(train_loader):
    kept = train_loader("datasets.train.seq_ordering=random", "datasets.train.keep_epochs=2", "batch_size=40")
    assert _lengths(kept, 1) == _lengths(kept, 2) != _lengths(kept, 3)
    plain = _lengths(train_loader("batch_size=40"))
    for block, size in (("4", 4), ("true", len(plain)), ("false", 1)):
        found = _lengths(train_loader("batch_size=40", f"datasets.train.shuffle_batches={block}"))
        assert (found != plain) == (size > 1)
        for start in range(0, len(plain), size):
            assert sorted(found[start : start + size]) == sorted(plain[start : start + size])


def test_prefetch(train_loader, command):
    assert train_loader("datasets.train.prefetch=1").prefetch == 1
    assert command(*TRAIN, "num_epochs=1") == 0
    assert command(*TRAIN, "datasets.train.prefetch=0", "datasets.dev.num_workers=1") == 0  # the same run goes on


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("packed_batch_size=0", "packed_batch_size=0: expected a whole number from 1"),
        ("packed_batch_size={dta: 5}", "no stream 'dta'"),
        ("buckets=[[0,3]]", "expected pairs [longest length, sequences] of numbers from 1"),
        ("buckets=[100,8]", "expected pairs [longest length, sequences] of numbers from 1"),
        ("random_bucket_prob=0.5", "random_bucket_prob=0.5: expected 0 to 1, together with buckets"),
        ("keep_epochs=0", "keep_epochs=0: must be at least 1"),
        ("keep_epochs=few", "keep_epochs"),
        ("prefetch=-1", "prefetch=-1: expected"),
        ("num_workers=-1", "num_workers=-1"),
        ("shuffle_batches=often", "shuffle_batches='often': expected true, false, or a number"),
        ("min_seq_length=short", "min_seq_length='short': expected a whole number"),
        ("max_seq_length={dta: 5}", "no stream 'dta'"),
        ("chunking=a:b", "chunking='a:b': expected size"),
        ("min_chunk_size=-1", "min_chunk_size=-1: expected a whole number"),
        ("on_too_long=drop", "on_too_long='drop': expected alone, skip or error"),
    ],
)
def test_wrong_values_end_with_exit_code_2(command, corpus, capsys, word, message):
    assert command("task=inspect", *DATA, "name=look", f"datasets.train.{word}") == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert "datasets.train" in shown


def test_too_long_sequences_are_reported_once_per_epoch(command, corpus):
    assert command(*TRAIN, "batch_size=15", "datasets.train.on_too_long=skip", "datasets.train.min_seq_length=5") == 0
    lines = Path("outputs/run/run.log").read_text().splitlines()
    too_long = sum(len(streams["data"]) > 15 for streams in corpus.values())
    too_short = sum(len(streams["data"]) < 5 for streams in corpus.values())
    for epoch in (1, 2):
        about = [line for line in lines if f"Epoch {epoch}: train: {too_long} sequences longer than batch_size" in line]
        assert len(about) == 1
        assert sum(f"Epoch {epoch}: train: {too_short} sequences left out by" in line for line in lines) == 1
        assert sum(f"Epoch {epoch}: train: {too_long} of them skipped" in line for line in lines) == 1


def test_joined_data_sets_give_the_scores_of_one(command, corpus, tmp_path):
    write(
        tmp_path / "features.1.hdf", {tag: {"data": streams["data"]} for tag, streams in corpus.items()}, _only("data")
    )
    reverse = {tag: {"classes": corpus[tag]["classes"]} for tag in reversed(corpus)}
    with HDFWriter(tmp_path / "alignment.hdf", _only("classes"), input_stream="classes") as writer:
        for tag, streams in reverse.items():
            writer.write(tag, streams)
    joined = ("datasets=meta", "datasets.train.source.data_map.classes=[alignment,data]")
    assert command(*TRAIN, "datasets.dev=null", "name=one") == 0
    assert command(*TRAIN, *joined, "name=joined") == 0
    assert [line["scores"]["train"] for line in records("one")] == [
        line["scores"]["train"] for line in records("joined")
    ]


def _only(stream):
    return {stream: SPECS[stream]}


def test_tag_missing_in_one_of_the_joined_sets(command, corpus, tmp_path, capsys):
    write(
        tmp_path / "features.1.hdf", {tag: {"data": streams["data"]} for tag, streams in corpus.items()}, _only("data")
    )
    with HDFWriter(tmp_path / "alignment.hdf", _only("classes"), input_stream="classes") as writer:
        for tag in list(corpus)[:-1]:
            writer.write(tag, {"classes": corpus[tag]["classes"]})
    words = ("datasets=meta", "datasets.train.source.data_map.classes=[alignment,data]")
    assert command(*TRAIN, *words) == 65
    message = capsys.readouterr().err
    assert "b-9" in message
    assert "alignment" in message
    assert not _trained()


def _trained():
    """Whether any step was made: the log has a line for each at verbosity 5."""
    return any("train, step 0" in log.read_text() for log in Path("outputs").rglob("run.log"))


def test_seq_list_filter(command, corpus, tmp_path):
    wanted = ["a-3", "b-2", "a-9"]
    (tmp_path / "tags.txt").write_text("\n".join(wanted) + "\n")
    assert command(*TRAIN, "datasets.train.seq_list_filter=tags.txt") == 0
    assert _trained()
    frames = sum(len(corpus[tag]["data"]) for tag in wanted)
    assert records()[0]["scores"]["train"]["ce"]["count"] == frames
    assert records()[0]["statistics"]["num_seqs"] == 3


def test_unknown_tag_of_the_list(command, corpus, tmp_path, capsys):
    (tmp_path / "tags.txt").write_text("a-3\nnobody\n")
    assert command(*TRAIN, "datasets.train.seq_list_filter=tags.txt") == 65
    message = capsys.readouterr().err
    assert "nobody" in message
    assert "tags.txt" in message
    assert not _trained()


def test_too_long_for_a_batch_is_an_error_if_wanted(command, corpus, capsys):
    assert command(*TRAIN, "batch_size=15", "datasets.train.on_too_long=error") == 65
    assert re.search(r"train\.1\.hdf: sequence 'a-\d+' is longer .* on_too_long=error", capsys.readouterr().err)
    assert not _trained()


def test_training_without_a_batch_is_an_error(command, corpus, capsys):
    words = ("batch_size=2", "datasets.train.on_too_long=skip", "datasets.train.min_seq_length=5")
    assert command(*TRAIN, *words) == 65
    message = capsys.readouterr().err
    assert "datasets.train: no batch in epoch 1" in message
    assert "of them skipped" in message
    assert command("task=inspect", *DATA, *words, "name=look") == 0
    assert re.search("no batch\n.*left out by min_seq_length", capsys.readouterr().out)


def test_truncated_file(command, corpus, tmp_path, capsys):
    file = tmp_path / "train.2.hdf"
    file.write_bytes(file.read_bytes()[:-700])
    assert command(*TRAIN) == 65
    assert "train.2.hdf" in capsys.readouterr().err
    assert not _trained()


def test_lengths_that_do_not_add_up(command, corpus, tmp_path, capsys):
    with h5py.File(tmp_path / "train.2.hdf", "r+") as file:
        file["seqLengths"][0] = file["seqLengths"][0] + 1
    assert command(*TRAIN) == 65
    assert "train.2.hdf" in capsys.readouterr().err
    assert not _trained()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_nan_names_file_sequence_and_stream(command, corpus, tmp_path, capsys, num_workers):
    damage(tmp_path / "train.2.hdf", "data", "b-4", math.nan)
    workers = (f"datasets.train.num_workers={num_workers}", "datasets.train.source.cache=none")
    words = ("datasets.train.check_finite=true", *workers)
    assert command(*TRAIN, *words) == 65
    message = capsys.readouterr().err
    assert re.search(r"train\.2\.hdf: sequence 'b-4', stream 'data': nan .*expected a finite number", message)


def test_label_out_of_range_names_file_sequence_and_stream(command, corpus, tmp_path, capsys):
    damage(tmp_path / "train.1.hdf", "classes", "a-7", 9)
    assert command(*TRAIN) == 65
    message = capsys.readouterr().err
    assert re.search(r"train\.1\.hdf: sequence 'a-7', stream 'classes': label 9 .*expected 0 to 2", message)


def test_inspect_finds_bad_values_before_any_training(command, corpus, tmp_path, capsys):
    inspect = ("task=inspect", *DATA, "name=look")
    damage(tmp_path / "dev.hdf", "data", "d-2", math.inf)
    assert command(*inspect) == 0
    assert command(*inspect, "check_data=true") == 65
    shown = capsys.readouterr()
    assert "train: 30 sequences checked" in shown.out
    assert re.search(r"dev\.hdf: sequence 'd-2', stream 'data': inf ", shown.err)


STREAM = ("datasets=postprocessing_stream", "data_folder=.", "extern_data.data.dim=4", "extern_data.classes.dim=3")


@pytest.mark.parametrize(
    ("most", "what"), [(200, "  epoch 1: 4 batches"), (2, "  the beginning of epoch 1: 3 batches")]
)
def test_inspect_reads_what_only_reading_tells(command, corpus, tmp_path, capsys, monkeypatch, most, what):
    monkeypatch.setattr("returnn_hydra.tasks.inspect.MOST_BATCHES", most)
    write(tmp_path / "train.hdf", corpus)
    words = (*STREAM, "max_seqs=5", "datasets.train.max_seq_length=12", "name=look")
    assert command("task=inspect", *words) == 0
    shown = capsys.readouterr().out
    kept = [len(streams["data"]) for streams in corpus.values() if len(streams["data"]) <= 12]
    assert len(kept) == 18
    assert what in shown
    assert ("12 sequences left out by min_seq_length / max_seq_length" in shown) == (most == 200)
    assert f"  lengths: {min(kept)} to " in shown
    assert Path("outputs/look/inspect.png").is_file()
    damage(tmp_path / "train.hdf", "data", "b-2", math.nan)
    assert command("task=inspect", *words, "check_data=true") == 65
    assert re.search(r"train\.hdf: sequence 'b-2', stream 'data': nan ", capsys.readouterr().err)


def test_text_language_model(command, tmp_path):
    (tmp_path / "characters.txt").write_text("\n".join("abc ") + "\n")
    (tmp_path / "train.txt").write_text("abc abc\ncab\n\nbca a")  # the last line has no end
    (tmp_path / "dev.txt").write_text("abc\n")
    words = ("datasets=text_lm", "datasets.train.source.corpus_file=train.txt", "data_folder=.")
    small = ("extern_data.data.dim=4", "model.hidden_dim=4", "model.embedding_dim=4", "num_epochs=2", "name=run")
    assert command("task=train", *words, *small) == 0
    (score, *_) = records()[0]["scores"]["train"].values()
    assert score["count"] == len("abc abc") + len("cab") + len("bca a") + 3  # and an end for each line


def test_audio_folder_with_log_mel_features_and_names_in_the_search_output(command, tmp_path):
    soundfile = pytest.importorskip("soundfile")
    rng = np.random.default_rng(1)
    (tmp_path / "characters.txt").write_text("\n".join(("a", "b", " ", "-")) + "\n")
    rows = ["file\ttext"]
    for i, text in enumerate(("a b", "ba", "a", "abba")):
        soundfile.write(tmp_path / f"{i}.wav", 0.1 * rng.normal(size=4000 + 400 * i), 16000)
        rows.append(f"{i}.wav\t{text}")
    (tmp_path / "train.tsv").write_text("\n".join(rows) + "\n")
    words = ("datasets=audio_folder", "data_folder=.", "extern_data.classes.dim=4", "datasets.train.num_workers=0")
    model = ("model=blstm_ctc", "train_step=ctc", "num_epochs=1", "name=run", "device=cpu")
    assert command("task=train", *words, *model) == 0
    assert records()[0]["statistics"]["num_seqs"] == 4
    search = ("task=search", "run=outputs/run", "search=ctc_best_path", "forward_data=train")
    assert command(*search) == 0
    (file,) = Path("outputs/run").glob("search.*/train*.jsonl")
    vocab = CharacterVocabulary(vocab_file=str(tmp_path / "characters.txt"))
    lines = {line["seq_tag"]: line for line in map(json.loads, file.read_text().splitlines())}
    assert {tag: line["reference"] for tag, line in lines.items()} == dict(row.split("\t") for row in rows[1:])
    best = [line["hypotheses"][0] for line in lines.values()]
    assert any(hypothesis["labels"] for hypothesis in best)
    assert [hypothesis["text"] for hypothesis in best] == [vocab.decode(hypothesis["labels"]) for hypothesis in best]


SELF_CONTAINED = (
    "task12ax", "copy_task", "episodic_copy", "xml", "variable_assignment", "number_base", "dummy", "static", "map",
    "anything", "multi_epoch",
)  # fmt: skip


@pytest.mark.parametrize("name", SELF_CONTAINED)
def test_data_sets_without_files_can_be_inspected(command, name, capsys):
    assert command("task=inspect", f"datasets={name}", "name=look", "check_data=true") == 0
    assert "sequences checked" in capsys.readouterr().out


def test_every_source_is_in_the_documentation():
    root = Path(__file__).resolve().parents[1]
    page = (root / "docs/data.md").read_text()
    table = page[page.index("## Sources") : page.index("## Order")]
    named = {
        name
        for row in table.splitlines()
        if row.startswith("| `")
        for name in re.findall(r"`(\w+)`", row.split("|")[1])
    }
    recipes = {"an4", "an4_bpe", "an4_test", "an4_text", "digits", "japanese_vowels"}
    choices = {path.stem for path in (root / "conf/datasets").glob("*.yaml")}
    assert named == {name for name in choices - recipes if not name.startswith("digits_")}


def test_tag_in_two_files(command, corpus, tmp_path, capsys):
    write(tmp_path / "train.3.hdf", sequences("b", (5, 5), seed=4))
    assert command(*TRAIN) == 65
    message = capsys.readouterr().err
    assert all(word in message for word in ("duplicate seq_tag 'b-0'", "train.2.hdf", "train.3.hdf"))
    assert not _trained()


OVER_HDF = (
    "cached", "chunk", "combine", "concat", "concat_seqs", "curriculum", "distribute_files", "filter", "postprocessing",
    "postprocessing_stream", "random_subset", "repeat", "specaugment", "variable",
)  # fmt: skip


@pytest.mark.parametrize("name", OVER_HDF)
def test_data_sets_over_hdf_files_give_batches(command, tmp_path, name):
    for i, file in enumerate(("train", "train.1", "train.2", "dev", "read", "spontaneous", "clean", "noisy")):
        write(tmp_path / f"{file}.hdf", sequences(file, range(30, 40), seed=i))
    (tmp_path / "train.tags.txt").write_text("train-1\ntrain-5\n")
    (tmp_path / "train.joined.txt").write_text("train-1;train-5\ntrain-2;train-0;train-3\n")
    (tmp_path / "train.files.txt").write_text("train.1.hdf\ntrain.2.hdf\n")
    words = ["data_folder=.", f"extern_data.data.dim={DIM}", f"extern_data.classes.dim={NUM_CLASSES}"]
    words += ["datasets.train.source.partition_epoch=2"] if name == "distribute_files" else []
    words += ["datasets.train.source.size=0.5"] if name == "random_subset" else []
    train = ("task=train", f"datasets={name}", *MODEL, "num_epochs=1", *words)
    assert command(*train) == 0
    expected = {"filter": 2, "concat_seqs": 2, "random_subset": 5, "concat": 20, "repeat": 20, "combine": 1500}
    assert records()[0]["statistics"]["num_seqs"] == expected.get(name, 10)


def test_translation_and_numpy_dump_can_be_inspected(command, tmp_path, capsys):
    for side, words in (("source", "ein haus"), ("target", "a house")):
        (tmp_path / f"{side}.vocab.txt").write_text("\n".join([*words.split(), "<unk>"]) + "\n")
        with gzip.open(tmp_path / f"train.{side}.txt.gz", "wt") as file:
            file.write(f"{words}\n{words} xyz")
    small = ("data_folder=.", "check_data=true")
    dims = ("extern_data.data.dim=3", "extern_data.classes.dim=3")
    assert command("task=inspect", "datasets=translation", "name=text", *small, *dims) == 0
    np.savetxt(tmp_path / "train.0.data.txt.gz", np.ones((4, 3)))
    np.savetxt(tmp_path / "train.0.targets.txt.gz", np.array([0, 1, 2, 2]))
    assert command("task=inspect", "datasets=numpy_dump", "name=dump", *small, *dims) == 0
    shown = capsys.readouterr().out
    assert "train: 2 sequences checked" in shown
    assert "train: 1 sequences checked" in shown
    np.savetxt(tmp_path / "train.0.targets.txt.gz", np.array([0, 1, 1.5, 2]))
    assert command("task=inspect", "datasets=numpy_dump", "name=dump", *small, *dims) == 65
    assert "train.0.targets.txt.gz: label 1.5 at 2" in capsys.readouterr().err
