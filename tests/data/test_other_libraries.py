"""HuggingFace data sets, lhotse cuts, map-style objects, numpy's text files."""

import gzip
import pickle

import numpy as np
import pytest

from returnn_hydra.data.audio_file import read_audio
from returnn_hydra.data.bpe import SamplingBytePairEncoding
from returnn_hydra.data.dataset import DataError
from returnn_hydra.data.features import AudioFeatures
from returnn_hydra.data.huggingface import HuggingFaceDataset
from returnn_hydra.data.lhotse import LhotseDataset
from returnn_hydra.data.map import MapDataset
from returnn_hydra.data.numpy_dump import NumpyDumpDataset
from returnn_hydra.data.vocab import Utf8Bytes, Vocabulary

TABLE = {
    "id": ["a", "b", "c"],
    "x": [[1, 2], [3], []],
    "f": [[[1.0, 2.0]], [[3.0, 4.0], [5.0, 6.0]], []],
    "text": ["hi", "yo", "a b"],
    "size": [7, 5, 6],
}
STREAMS = {
    "x": {"dim": 9, "sparse": True},
    "f": {"dim": 2},
    "text": {"vocab": Utf8Bytes()},
    "raw": {"shape": [], "dtype": "string"},
    "n": {"shape": [], "dtype": "float32"},
}
COLUMNS = {"raw": "text", "n": "size"}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("cache")
    return datasets.Dataset.from_dict(TABLE)


def hugging_face(source, **options):
    return HuggingFaceDataset(source, **({"streams": STREAMS, "columns": COLUMNS} | options))


def check_table(dataset):
    examples = dataset.read([2, 0])
    assert examples.seq_tags == ["c", "a"]
    assert [a.tolist() for a in examples.streams["x"]] == [[], [1, 2]]
    assert [a.shape for a in examples.streams["f"]] == [(0, 2), (1, 2)]
    assert [bytes(a.astype("uint8")) for a in examples.streams["text"]] == [b"a b", b"hi"]
    assert [str(a) for a in examples.streams["raw"]] == ["a b", "hi"]
    assert [float(a) for a in examples.streams["n"]] == [6.0, 7.0]
    assert dataset.seq_lengths("x").tolist() == [2, 1, 0]
    assert dataset.seq_lengths("f").tolist() == [1, 2, 0]
    assert dataset.seq_lengths("text").tolist() == [2, 2, 3]
    assert dataset.seq_lengths("raw") is None


def test_huggingface_sources(table, tmp_path):
    check_table(hugging_face(table))
    table.save_to_disk(str(tmp_path / "folder"))
    check_table(hugging_face(tmp_path / "folder"))
    table.to_parquet(str(tmp_path / "t.parquet"))
    check_table(hugging_face(str(tmp_path / "t.parquet")))
    table.to_json(str(tmp_path / "t.jsonl"))
    check_table(hugging_face([tmp_path / "t.jsonl"]))
    check_table(pickle.loads(pickle.dumps(hugging_face(tmp_path / "folder"))))
    import datasets

    both = datasets.DatasetDict({"train": table, "dev": table.select([1])})
    check_table(hugging_face(both, split="train"))
    assert len(hugging_face(both, split="dev")) == 1
    assert hugging_face(table.select([2, 0])).seq_lengths("x").tolist() == [0, 2]
    with pytest.raises(DataError, match=r"split='test'; there is: 'train', 'dev'"):
        hugging_face(both, split="test")


def test_huggingface_options(table):
    dataset = hugging_face(table, seq_tag_column=None, sorting_seq_len_column="size")
    assert dataset.seq_tags([1]) == ["seq-1"]
    assert dataset.order_lengths().tolist() == [7, 5, 6]
    for options, message in [
        ({"streams": {"y": {"dim": 3}}}, "no column 'y'"),
        ({"seq_tag_column": "ids"}, "no column 'ids', did you mean 'id'"),
    ]:
        with pytest.raises(DataError, match=message):
            hugging_face(table, **options)
    with pytest.raises(DataError, match=r"seq_tag 'b', stream 'x': class index 3, expected 0 .. 2"):
        hugging_face(table, streams={"x": {"dim": 3, "sparse": True}}).read([0, 1])
    with pytest.raises(DataError, match=r"seq_tag 'a', stream 'text': .*no label 'hi'"):
        hugging_face(table, streams={"text": {"vocab": Vocabulary(labels=["yo"])}}).read([0])


def test_huggingface_errors(tmp_path):
    pytest.importorskip("datasets")
    (tmp_path / "folder").mkdir()
    for source, message in [
        (tmp_path / "folder", "not a folder of save_to_disk"),
        (tmp_path / "x.parquet", "no such file"),
        (tmp_path / "x.txt", "expected files of one kind"),
        (3, "got int"),
    ]:
        with pytest.raises(DataError, match=message):
            hugging_face(source)


def test_huggingface_audio(table, tmp_path):
    soundfile = pytest.importorskip("soundfile")
    import datasets

    soundfile.write(tmp_path / "a.wav", np.sin(np.arange(3000) * 0.1) * 0.5, 16000)
    audio = datasets.Dataset.from_dict({"id": ["a"], "sound": [str(tmp_path / "a.wav")]}).cast_column(
        "sound", datasets.Audio()
    )
    dataset = HuggingFaceDataset(audio, {}, {"data": "sound"}, {"data": AudioFeatures("log_mel_filterbank", 8)})
    expected = AudioFeatures("log_mel_filterbank", 8)(*read_audio(tmp_path / "a.wav", ""))
    np.testing.assert_array_equal(dataset.read([0]).streams["data"][0], expected)
    assert dataset.seq_lengths("data") is None


def test_huggingface_draws(table, tmp_path):
    (tmp_path / "labels").write_text("\n".join([*"hiyoab", *(f"{c}@@" for c in "hiyoab"), "hi"]))
    vocab = SamplingBytePairEncoding(tmp_path / "labels", breadth_prob=0.5)
    dataset = hugging_face(table, streams={"text": {"vocab": vocab}})
    draws = [dataset.at_epoch(e).read([0]).streams["text"][0].tolist() for e in (1, 2, 3, 4, 5, 6, 1)]
    assert draws[0] == draws[-1]
    assert len({tuple(d) for d in draws}) == 2


@pytest.fixture
def cuts(tmp_path):
    lhotse = pytest.importorskip("lhotse")
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "a.wav", np.sin(np.arange(16000) * 0.1) * 0.5, 16000)
    recording = lhotse.Recording.from_file(tmp_path / "a.wav")
    made = []
    for i, (start, duration) in enumerate([(0.25, 0.5), (0.0, 0.125)]):
        text = lhotse.SupervisionSegment(id=f"s{i}", recording_id="a", start=0, duration=duration, text=f"text {i}")
        made.append(
            lhotse.MonoCut(
                id=f"cut-{i}", start=start, duration=duration, channel=0, recording=recording, supervisions=[text]
            )
        )
    return lhotse.CutSet.from_cuts(made)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_lhotse_audio(cuts, tmp_path):
    cuts.to_file(tmp_path / "cuts.jsonl.gz")
    dataset = LhotseDataset(
        tmp_path / "cuts.jsonl.gz", AudioFeatures("raw", peak_normalization=False), targets=Utf8Bytes()
    )
    dataset = pickle.loads(pickle.dumps(dataset))
    examples = dataset.read([1, 0])
    assert examples.seq_tags == ["cut-1", "cut-0"]
    whole = read_audio(tmp_path / "a.wav", "")[0].astype("float32")
    np.testing.assert_allclose(examples.streams["data"][1][:, 0], whole[4000:12000], atol=1e-6)
    assert bytes(examples.streams["classes"][0].astype("uint8")) == b"text 1"
    assert dataset.seq_lengths("data").tolist() == [8000, 2000]
    assert dataset.order_lengths().tolist() == [50, 12]
    with pytest.raises(DataError, match="no such file"):
        len(LhotseDataset(tmp_path / "none.jsonl.gz"))
    (tmp_path / "bad.jsonl.gz").write_bytes(gzip.compress(b"{"))
    with pytest.raises(DataError, match=r"bad\.jsonl\.gz"):
        len(LhotseDataset(tmp_path / "bad.jsonl.gz"))
    (tmp_path / "a.wav").unlink()
    with pytest.raises(DataError, match="cut 'cut-0'"):
        dataset.read([0])


def test_lhotse_stored_features(cuts, tmp_path):
    lhotse = pytest.importorskip("lhotse")
    with lhotse.NumpyFilesWriter(tmp_path / "feats") as writer:
        array = np.arange(50 * 3, dtype="float32").reshape(50, 3)
        cut = next(iter(cuts)).drop_features()
        stored = writer.write("k", array)
        cut.features = lhotse.Features(
            type="x", num_frames=50, num_features=3, frame_shift=0.01, sampling_rate=16000, start=0.25, duration=0.5,
            storage_type="numpy_files", storage_path=str(tmp_path / "feats"), storage_key=stored, channels=0,
        )  # fmt: skip
    dataset = LhotseDataset(lhotse.CutSet.from_cuts([cut]), stored_features=3)
    np.testing.assert_array_equal(dataset.read([0]).streams["data"][0], array)
    assert dataset.seq_lengths("data").tolist() == [50]
    with pytest.raises(DataError, match=r"shape \(50, 3\), expected 4"):
        LhotseDataset(lhotse.CutSet.from_cuts([cut]), stored_features=4).read([0])
    with pytest.raises(DataError, match="cut 'cut-0' has no stored features"):
        LhotseDataset(cuts, stored_features=3).seq_lengths("data")


class Numbers:
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return {"data": np.zeros((index, 2), "float64"), "label": index}

    def get_seq_len(self, index):
        return 10 - index


def test_map_style():
    dataset = MapDataset(Numbers, {"data": {"dim": 2}, "label": {"dim": 3, "sparse": True, "shape": []}})
    assert dataset.seq_tags([1]) == ["seq-1"]
    assert dataset.order_lengths().tolist() == [10, 9, 8]
    assert dataset.seq_lengths("data") is None
    assert dataset.read([2]).streams["data"][0].dtype == np.float32
    with pytest.raises(DataError, match=r"Numbers, seq_tag 'seq-2', stream 'label': class index 2, expected 0 .. 1"):
        MapDataset(Numbers(), {"data": {"dim": 2}, "label": {"dim": 2, "sparse": True, "shape": []}}).read([2])
    with pytest.raises(DataError, match="a int has no __len__"):
        MapDataset(3, {})
    assert MapDataset([{"data": [1.0]}], {"data": {"shape": [None]}}).read([0]).streams["data"][0].tolist() == [1.0]


class Ordered(Numbers):
    def get_seq_order(self, epoch):
        if epoch > 2:
            raise NotImplementedError
        return [2, 0, 2][epoch - 1 :]


def test_map_style_with_an_order_of_its_own():
    dataset = MapDataset(Ordered(), {"data": {"dim": 2}, "label": {"dim": 3, "sparse": True, "shape": []}})
    tags = [dataset.at_epoch(e).seq_tags(range(len(dataset.at_epoch(e)))) for e in (1, 2, 3)]
    assert tags == [["seq-2", "seq-0", "seq-2#2"], ["seq-0", "seq-2"], ["seq-0", "seq-1", "seq-2"]]


def test_numpy_dump(tmp_path):
    arrays = [np.arange(n * 3.0).reshape(n, 3) for n in (2, 1, 4)]
    for i, array in enumerate(arrays):
        np.savetxt(tmp_path / f"d{i}.data.txt.gz", array)
        np.savetxt(tmp_path / f"d{i}.targets.txt.gz", np.arange(len(array)), fmt="%i")
    dataset = NumpyDumpDataset(tmp_path / "d", 3, 5)
    assert len(dataset) == 3
    examples = dataset.read([2, 1])
    np.testing.assert_array_equal(examples.streams["data"][0], arrays[2])
    np.testing.assert_array_equal(examples.streams["data"][1], arrays[1])
    assert examples.streams["classes"][0].tolist() == [0, 1, 2, 3]
    assert dataset.seq_lengths("data").tolist() == [2, 1, 4]
    assert NumpyDumpDataset(tmp_path / "d", 3, 5, start_seq=1, end_seq=3).seq_tags([0, 1]) == ["seq-1", "seq-2"]
    with pytest.raises(DataError, match=r"d2\.targets.*class index 3, expected 0 .. 2"):
        NumpyDumpDataset(tmp_path / "d", 3, 3).read([2])
    with pytest.raises(DataError, match="no such file"):
        NumpyDumpDataset(tmp_path / "x", 3, 3)
    (tmp_path / "d0.data.txt.gz").write_bytes(gzip.compress(b"1 2 x\n"))
    with pytest.raises(DataError, match=r"d0\.data"):
        NumpyDumpDataset(tmp_path / "d", 3, 5).read([0])
