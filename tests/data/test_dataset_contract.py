"""What every data source must do, run over every one of them."""

import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from returnn_hydra.data.arrays import AnythingDataset, StaticDataset
from returnn_hydra.data.audio import AudioFolderDataset, AudioZipDataset
from returnn_hydra.data.bpe import SamplingBytePairEncoding
from returnn_hydra.data.cache import CachedDataset
from returnn_hydra.data.chunk import ChunkDataset
from returnn_hydra.data.combine import CombinedDataset
from returnn_hydra.data.concat import ConcatDataset, ConcatSeqsDataset, RepeatDataset
from returnn_hydra.data.dataset import DataError, Dataset
from returnn_hydra.data.distribute import DistributeFilesDataset
from returnn_hydra.data.features import AudioFeatures
from returnn_hydra.data.filter import CurriculumDataset, FilterDataset, RandomSubset
from returnn_hydra.data.hdf import HDFDataset
from returnn_hydra.data.huggingface import HuggingFaceDataset
from returnn_hydra.data.lhotse import LhotseDataset
from returnn_hydra.data.map import MapDataset
from returnn_hydra.data.meta import MetaDataset
from returnn_hydra.data.numpy_dump import NumpyDumpDataset
from returnn_hydra.data.ordered import LengthsFromFile, OrderedDataset
from returnn_hydra.data.postprocessing import PostprocessingDataset
from returnn_hydra.data.text import LmDataset, TextDictDataset, TranslationDataset
from returnn_hydra.data.variable import MultiEpochDataset, VariableDataset
from returnn_hydra.data.views import SubsetDataset
from returnn_hydra.data.vocab import CharacterVocabulary, Utf8Bytes, Vocabulary

DATA = Path(__file__).parent / "golden" / "data"


def static(tmp_path=None, prefix="seq"):
    rng = np.random.default_rng(1)
    lengths = [5, 3, 0, 9, 1, 7]
    data = [
        {"data": rng.normal(size=(n, 2)), "classes": rng.integers(0, 4, n // 2), "text": f"text {n}"} for n in lengths
    ]
    streams = {
        "data": {"dim": 2, "dtype": "float64"},
        "classes": {"dim": 4, "sparse": True},
        "text": {"shape": [], "dtype": "string"},
    }
    return StaticDataset(data, streams, [f"{prefix}-{i}" for i in range(len(lengths))])


def frames(tmp_path=None, prefix="seq"):
    return FilterDataset(static(prefix=prefix), min_seq_length={"data": 1})


class Squares:
    """A map-style object as users write them."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return {"data": np.full((index, 1), index**2, dtype="float32")}


class Lengthy(Squares):
    def get_seq_lengths(self, stream):
        return [0, 1, 2, 3]

    def get_seq_tag(self, index):
        return f"square {index}"


def hdf_of_epoch(epoch):
    return HDFDataset([DATA / f"part{epoch % 2}.hdf"])


def hdf_of_files(files):
    return HDFDataset(files)


def concat_seqs(tmp_path):
    return ConcatSeqsDataset(HDFDataset([DATA / "feat.hdf"]), DATA / "concat_list.txt")


def lengths_from_file(tmp_path):
    (tmp_path / "lens.json").write_text(str({f"seq-{i}": 10 - i for i in range(6)}).replace("'", '"'))
    return LengthsFromFile(static(), tmp_path / "lens.json")


def meta(tmp_path):
    sets = {"f": HDFDataset([DATA / "feat.hdf"]), "a": HDFDataset([DATA / "align.hdf"])}
    return MetaDataset(sets, {"data": ["f", "data"], "classes": ["a", "data"]})


def combined(tmp_path):
    sets = {"x": static(prefix="x"), "y": static(prefix="y")}
    maps = {"x": {"data": "data", "text": "text"}, "y": {"data": "other", "classes": "classes"}}
    return CombinedDataset(sets, maps, mixing="interleave")


def distribute(tmp_path):
    return DistributeFilesDataset([DATA / f"part{i}.hdf" for i in range(4)], hdf_of_files, partition_epoch=2)


def audio_folder(tmp_path):
    (tmp_path / "ogg").mkdir(exist_ok=True)
    with zipfile.ZipFile(DATA / "ogg.zip") as archive:
        archive.extractall(tmp_path)
    lines = [json.dumps({"file": f"rec{i}.ogg", "text": "the cat" * i}) for i in range(4)]
    (tmp_path / "ogg" / "list.jsonl").write_text("\n".join(lines))
    options = {"audio": AudioFeatures("mfcc", 13, random_permute={"rnd_stretch_switch": 0, "rnd_pitch_switch": 0})}
    return AudioFolderDataset(tmp_path / "ogg" / "list.jsonl", **options, targets=Utf8Bytes())


def lm(**options):
    return LmDataset([DATA / "lm.txt", DATA / "lm.txt.gz"], **({"vocab": Utf8Bytes()} | options))


def numpy_dump(tmp_path):
    for i in range(3):
        np.savetxt(tmp_path / f"d{i}.data.txt.gz", np.arange(2.0 * (i + 1)).reshape(-1, 2))
        np.savetxt(tmp_path / f"d{i}.targets.txt.gz", np.arange(i + 1), fmt="%i")
    return NumpyDumpDataset(tmp_path / "d", 2, 3)


def hugging_face(tmp_path):
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({"id": ["a", "b"], "x": [[1, 2], []], "text": ["hi", "you"]})
    vocab = SamplingBytePairEncoding(DATA / "bpe.vocab", breadth_prob=0.5)
    return HuggingFaceDataset(table, {"x": {"dim": 9, "sparse": True}, "text": {"vocab": vocab}})


def lhotse_cuts(tmp_path):
    lhotse = pytest.importorskip("lhotse")
    with zipfile.ZipFile(DATA / "ogg.zip") as archive:
        archive.extract("ogg/rec2.ogg", tmp_path)
    cut = lhotse.MonoCut("whole", 0.0, 0.15, 0, recording=lhotse.Recording.from_file(tmp_path / "ogg" / "rec2.ogg"))
    return LhotseDataset(
        lhotse.CutSet.from_cuts([cut, cut.truncate(duration=0.1).with_id("part")]), AudioFeatures("mfcc", 13)
    )


def noisy(streams, rng):
    return {**streams, "data": streams["data"] + rng.normal(size=streams["data"].shape)}


SOURCES = {
    "cached": lambda _: CachedDataset(static(), cache="ram"),
    "cached audio": lambda _: CachedDataset(AudioZipDataset(DATA / "ogg.zip", AudioFeatures("mfcc", 13), Utf8Bytes())),
    "cached, other epochs": lambda _: CachedDataset(OrderedDataset(static(), seq_ordering="random")),
    "numpy dump": numpy_dump,
    "huggingface": hugging_face,
    "lhotse": lhotse_cuts,
    "postprocessing": lambda _: PostprocessingDataset(static(), noisy, same_lengths=True),
    "postprocessing, other lengths": lambda _: PostprocessingDataset(static(), noisy),
    "lm": lambda _: lm(
        vocab=CharacterVocabulary(DATA / "chars.txt"), add_delayed_seq_data=True, delayed_seq_data_start_symbol="<s>"
    ),
    "lm, drawn": lambda _: lm(vocab=SamplingBytePairEncoding(DATA / "bpe.vocab", breadth_prob=0.5)),
    "lm, skipping": lambda _: lm(vocab=Vocabulary(DATA / "vocab.txt"), skip_invalid_seqs=True, dtype="smallest"),
    "translation": lambda _: TranslationDataset(DATA / "source.tr.gz", Utf8Bytes(), DATA / "target.tr.gz", Utf8Bytes()),
    "text dict": lambda _: TextDictDataset(DATA / "text_dict.py.txt", Utf8Bytes(), "single"),
    "audio zip": lambda _: AudioZipDataset(DATA / "ogg.zip", AudioFeatures("log_mel_filterbank", 8), Utf8Bytes()),
    "audio zip, other speeds": lambda _: AudioZipDataset(
        DATA / "ogg.zip", AudioFeatures("raw"), speed_factors=[0.9, 1.1]
    ),
    "audio folder, random": audio_folder,
    "static": static,
    "anything": lambda _: AnythingDataset(
        {"data": {"dim": 3}, "t": {"shape": [], "dtype": "string"}}, num_seqs=3, seq_len=2
    ),
    "hdf": lambda _: HDFDataset([DATA / "feat.hdf"]),
    "map": lambda _: MapDataset(Squares(), {"data": {"dim": 1}}),
    "map with lengths": lambda _: MapDataset(Lengthy, {"data": {"dim": 1}}),
    "meta": meta,
    "combined": combined,
    "combined, drawn": lambda tmp_path: CombinedDataset(
        {"x": static(prefix="x"), "y": static()},
        {"x": {"data": "data"}, "y": {"data": "data"}},
        mixing="random_dataset",
    ),
    "combined, sampled": lambda tmp_path: CombinedDataset(
        {"x": static(prefix="x"), "y": static()}, {"x": {"data": "data"}, "y": {"data": "data"}}, sampling_sizes=7
    ),
    "concat": lambda _: ConcatDataset([static(), static(prefix="other")]),
    "concat with names": lambda _: ConcatDataset({"a": static(), "b": static()}, prefix_tags=True),
    "concat seqs": concat_seqs,
    "repeat": lambda _: RepeatDataset(static(), 2),
    "filter": frames,
    "random subset": lambda _: RandomSubset(static(), 3),
    "curriculum": lambda _: CurriculumDataset(static(), {"1": 4}),
    "chunk": lambda _: ChunkDataset(static(), {"data": 4}, {"data": 2}),
    "ordered": lambda _: OrderedDataset(static(), seq_ordering="laplace", partition_epoch=2),
    "lengths from file": lengths_from_file,
    "subset": lambda _: SubsetDataset(static(), [4, 2, 4, 0]),
    "variable": lambda _: VariableDataset(hdf_of_epoch),
    "multi epoch": lambda _: MultiEpochDataset(OrderedDataset(static(), seq_ordering="random", partition_epoch=3), 2),
    "distribute files": distribute,
}


@pytest.fixture(params=SOURCES)
def make(request, tmp_path):
    """Builds the source anew at every call."""
    return lambda: SOURCES[request.param](tmp_path)


@pytest.fixture
def dataset(make):
    return make().at_epoch(1)


def same(first, second):
    assert first.seq_tags == second.seq_tags
    assert first.streams.keys() == second.streams.keys()
    for name, arrays in first.streams.items():
        assert len(arrays) == len(first.seq_tags)
        for a, b in zip(arrays, second.streams[name], strict=True):
            np.testing.assert_array_equal(a, b)


def test_tags(dataset):
    tags = dataset.seq_tags(range(len(dataset)))
    assert len(tags) == len(dataset) > 0
    assert all(isinstance(tag, str) for tag in tags)
    assert len(set(tags)) == len(tags)
    assert dataset.seq_tags(np.array([len(tags) - 1, 0])) == [tags[-1], tags[0]]
    assert dataset.read(range(len(dataset))).seq_tags == tags


def test_arrays_are_what_the_specs_say(dataset):
    examples = dataset.read(range(len(dataset)))
    assert set(examples.streams) == set(dataset.streams)
    for name, spec in dataset.streams.items():
        for array in examples.streams[name]:
            assert isinstance(array, np.ndarray)
            assert array.ndim == len(spec.shape)
            assert all(size is None or size == found for size, found in zip(spec.shape, array.shape, strict=True))
            if spec.dtype == "string":
                assert array.dtype.kind == "U"
            else:
                assert array.dtype == spec.dtype
            if spec.sparse and array.size:
                assert array.min() >= 0
                assert array.max() < spec.dim


def test_lengths_are_those_of_the_arrays(dataset):
    examples = dataset.read(range(len(dataset)))
    for name, spec in dataset.streams.items():
        lengths = dataset.seq_lengths(name)
        if lengths is not None:
            assert lengths.shape == (len(dataset),)
            assert lengths.dtype == np.int64
            assert lengths.tolist() == [array.shape[spec.time_axis] for array in examples.streams[name]]
    order = dataset.order_lengths()
    assert order is None or np.shape(order) == (len(dataset),)


def test_any_order_and_duplicates(dataset):
    """Reading some sequences gives what reading all gives."""
    everything = dataset.read(range(len(dataset)))
    rng = np.random.default_rng(0)
    for indices in (rng.permutation(len(dataset)), rng.integers(0, len(dataset), 7), [0], np.array([len(dataset) - 1])):
        part = dataset.read(indices)
        for name, arrays in part.streams.items():
            for index, array in zip(indices, arrays, strict=True):
                np.testing.assert_array_equal(array, everything.streams[name][index])
        assert part.seq_tags == [everything.seq_tags[i] for i in indices]


def test_nothing(dataset):
    for empty in ([], np.zeros(0, dtype=np.int64)):
        examples = dataset.read(empty)
        assert examples.seq_tags == dataset.seq_tags(empty) == []
        assert {name: list(arrays) for name, arrays in examples.streams.items()} == {
            name: [] for name in dataset.streams
        }


def test_pickles(make):
    """Before and after it was used; a copy reads the same."""
    fresh = make()
    expected = fresh.at_epoch(1).read(range(len(fresh.at_epoch(1))))
    for source in (make(), fresh):
        copy = pickle.loads(pickle.dumps(source)).at_epoch(1)
        same(copy.read(range(len(copy))), expected)


def test_an_epoch_is_a_pure_function(make):
    """Epoch 2 is the same whether epoch 1 was there before or not; before at_epoch it is epoch 1."""
    used, fresh = make(), make()
    first = used.at_epoch(1)
    first.read(range(len(first)))
    second, alone = used.at_epoch(2), fresh.at_epoch(2)
    same(second.read(range(len(second))), alone.read(range(len(alone))))
    again = used.at_epoch(1)
    same(again.read(range(len(again))), make().at_epoch(1).read(range(len(first))))
    assert set(second.streams) == set(used.streams)
    unasked = make()
    same(unasked.read(range(len(unasked))), first.read(range(len(first)))) if type(
        unasked
    ) is not CombinedDataset else None


def test_some_streams_alone(make):
    """Reading fewer streams gives the same tags, lengths and arrays; a data set may give more than was asked for."""
    whole = make().at_epoch(2)
    name = sorted(whole.streams)[-1]
    part = make().with_streams([name]).at_epoch(2)
    expected, found = whole.read(range(len(whole))), part.read(range(len(part)))
    assert found.seq_tags == expected.seq_tags
    assert name in found.streams
    for stream, arrays in found.streams.items():
        for a, b in zip(arrays, expected.streams[stream], strict=True):
            np.testing.assert_array_equal(a, b)
    for stream in whole.streams:
        np.testing.assert_array_equal(whole.seq_lengths(stream), part.seq_lengths(stream))
    np.testing.assert_array_equal(whole.order_lengths(), part.order_lengths())


def test_unknown_stream(dataset):
    with pytest.raises(DataError, match="'no such stream'"):
        dataset.seq_lengths("no such stream")


def test_it_is_a_dataset(make):
    assert isinstance(make(), Dataset)
    assert isinstance(make().at_epoch(3), Dataset)
