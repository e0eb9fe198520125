"""Audio files in zip archives and folders; real speech where ../shared is there."""

import io
import json
import pickle
import re
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from returnn_hydra.data.arrays import StaticDataset
from returnn_hydra.data.audio import AudioFolderDataset, AudioZipDataset
from returnn_hydra.data.audio_file import read_audio
from returnn_hydra.data.bpe import SamplingBytePairEncoding
from returnn_hydra.data.dataset import DataError
from returnn_hydra.data.features import AudioFeatures
from returnn_hydra.data.filter import RandomSubset
from returnn_hydra.data.meta import MetaDataset
from returnn_hydra.data.vocab import CharacterVocabulary

soundfile = pytest.importorskip("soundfile")
DATA = Path(__file__).parent / "golden" / "data"
AN4 = Path(__file__).parents[2] / ".." / "shared" / "data" / "an4"
needs_an4 = pytest.mark.skipif(not AN4.is_dir(), reason="the AN4 corpus is not at ../shared/data/an4")
RAW = AudioFeatures("raw", peak_normalization=False)


def characters():
    return CharacterVocabulary(DATA / "chars.txt", unknown_label="<unk>")


def golden_zip(**options):
    return AudioZipDataset(DATA / "ogg.zip", **({"audio": RAW, "targets": characters()} | options))


def test_zip_layout():
    """The archive that RETURNN's OggZipDataset reads, see golden/README: sine tones of 200 + 150 i Hz."""
    dataset = golden_zip()
    assert len(dataset) == 4
    assert dataset.seq_tags(range(4)) == [f"corpus/rec{i}/1" for i in range(4)]
    assert dataset.seq_lengths("data").tolist() == [1600, 800, 2400, 1200]
    assert dataset.order_lengths().tolist() == [10, 5, 15, 7]
    examples = dataset.read([0, 2])
    assert str(examples.streams["raw"][1]) == "a b c"
    assert bytes(examples.streams["orth"][1]) == b"a b c"
    assert examples.streams["classes"][1].tolist() == characters().encode("a b c")
    assert dataset.seq_lengths("classes").tolist() == dataset.seq_lengths("orth").tolist() == [11, 22, 5, 11]
    tone = 0.3 * np.sin(2 * np.pi * 500 * np.arange(2400) / 16000)
    np.testing.assert_allclose(examples.streams["data"][1][500:2000, 0], tone[500:2000], atol=0.05)


def test_text_only_and_streams():
    dataset = golden_zip(audio=None)
    assert set(dataset.streams) == {"classes", "orth", "raw"}
    assert set(golden_zip(targets=None).streams) == {"data", "orth", "raw"}
    assert set(golden_zip().with_streams(["classes"]).read([0]).streams) == {"classes"}
    upper = golden_zip(targets_post_process=lambda text: text.replace("hello", "he"))
    assert upper.read([0]).streams["classes"][0].tolist() == characters().encode("he world")


def test_folder_instead_of_zip(tmp_path):
    with zipfile.ZipFile(DATA / "ogg.zip") as archive:
        archive.extractall(tmp_path)
    folder = AudioZipDataset(tmp_path / "ogg", audio=RAW)
    expected = golden_zip(targets=None).read(range(4))
    found = folder.read(range(4))
    assert found.seq_tags == expected.seq_tags
    for a, b in zip(found.streams["data"], expected.streams["data"], strict=True):
        np.testing.assert_array_equal(a, b)


def test_other_list_and_several_archives(tmp_path):
    import gzip

    shutil.copy(DATA / "ogg.zip", tmp_path / "ogg.zip")
    shutil.copy(DATA / "ogg.zip", tmp_path / "two.zip")
    entries = [{"text": "new text", "file": "rec3.ogg", "seq_name": "x", "duration": 0.075}]
    (tmp_path / "ogg.txt.gz").write_bytes(gzip.compress(repr(entries).encode()))
    dataset = AudioZipDataset([tmp_path / "ogg.txt.gz", tmp_path / "ogg.zip"], audio=RAW)
    assert dataset.seq_tags(range(len(dataset))) == ["x"]
    assert len(dataset.read([0]).streams["data"][0]) == 1200
    both = AudioZipDataset([DATA / "ogg.zip", tmp_path / "two.zip"], content_name="ogg")
    with pytest.raises(DataError, match="is there 2 times"):
        len(both)


def write_corpus(folder, durations=True, rate=8000, **changes):
    rng = np.random.default_rng(0)
    lines = []
    for i, n in enumerate((4000, 3000, 5000)):
        soundfile.write(folder / f"u{i}.wav", 0.1 * rng.normal(size=n), rate)
        lines.append(
            {"file": f"u{i}.wav", "text": f"text {i}", "seq_name": f"utt-{i}"}
            | ({"duration": n / rate} if durations else {})
        )
    lines[1] |= changes
    (folder / "list.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return folder / "list.jsonl"


def test_manifests(tmp_path):
    jsonl = AudioFolderDataset(write_corpus(tmp_path), audio=RAW)
    (tmp_path / "list.tsv").write_text(
        "seq_name\tfile\ttext\nutt-0\tu0.wav\ttext 0\nutt-1\tu1.wav\ttext 1\nutt-2\tu2.wav\ttext 2\n"
    )
    tsv = AudioFolderDataset(tmp_path / "list.tsv", audio=RAW)
    for dataset in (jsonl, tsv):
        examples = dataset.read([2, 0])
        assert examples.seq_tags == ["utt-2", "utt-0"]
        assert [len(a) for a in examples.streams["data"]] == [5000, 4000]
        assert dataset.seq_lengths("data").tolist() == [4000, 3000, 5000]
    assert tsv.order_lengths().tolist() == [4000, 3000, 5000]
    assert jsonl.order_lengths().tolist() == [50, 37, 62]


def test_segments_of_a_recording(tmp_path):
    write_corpus(tmp_path)
    lines = [
        {"file": "u0.wav", "seq_name": f"s{i}", "offset": o, "duration": d}
        for i, (o, d) in enumerate([(0, 0.25), (0.1, 0.4)])
    ]
    (tmp_path / "segments.jsonl").write_text("\n".join(map(json.dumps, lines)))
    whole = read_audio(tmp_path / "u0.wav", "")[0]
    for lengths in ("auto", "header", "duration"):
        dataset = AudioFolderDataset(tmp_path / "segments.jsonl", audio=RAW, lengths=lengths)
        arrays = dataset.read([0, 1]).streams["data"]
        np.testing.assert_allclose(arrays[0][:, 0], whole[:2000], rtol=1e-6)
        np.testing.assert_allclose(arrays[1][:, 0], whole[800:4000], rtol=1e-6)
        assert dataset.seq_lengths("data").tolist() == [2000, 3200]
    (tmp_path / "segments.jsonl").write_text(json.dumps({"file": "u0.wav", "offset": 0.3, "duration": 0.3}))
    with pytest.raises(DataError, match=r"u0\.wav.*segment from 0.3 s to 0.6 s of a file of 0.5 s"):
        AudioFolderDataset(tmp_path / "segments.jsonl", audio=RAW).read([0])
    (tmp_path / "segments.jsonl").write_text(json.dumps({"file": "u0.wav", "offset": 0.3}))
    with pytest.raises(DataError, match="without duration"):
        len(AudioFolderDataset(tmp_path / "segments.jsonl"))


def test_durations_that_are_not_exact_are_not_believed(tmp_path):
    for duration in (0.38, 0.3751, None):
        dataset = AudioFolderDataset(write_corpus(tmp_path, duration=duration), audio=RAW)
        assert dataset.seq_lengths("data").tolist() == [4000, 3000, 5000]
    wrong = AudioFolderDataset(write_corpus(tmp_path, duration=0.5), audio=RAW, lengths="duration")
    assert wrong.seq_lengths("data").tolist() == [4000, 4000, 5000]
    with pytest.raises(DataError, match=r"u1.wav, seq_tag 'utt-1': 3000 frames, but 4000 by the duration"):
        wrong.read([1])
    with pytest.raises(DataError, match="'utt-1' has no duration"):
        AudioFolderDataset(write_corpus(tmp_path, duration=None), audio=RAW, lengths="duration").seq_lengths("data")
    assert AudioFolderDataset(write_corpus(tmp_path), audio=RAW, lengths="header").seq_lengths("data").tolist() == [
        4000,
        3000,
        5000,
    ]


def test_speed_perturbation_depends_on_epoch_and_sequence_alone(tmp_path):
    manifest = write_corpus(tmp_path)
    dataset = AudioFolderDataset(manifest, audio=RAW, speed_factors=[0.9, 1.0, 1.1])
    lengths = {}
    for epoch in (1, 2, 3, 4):
        now = dataset.at_epoch(epoch)
        lengths[epoch] = now.seq_lengths("data").tolist()
        assert [len(a) for a in now.read([0, 1, 2]).streams["data"]] == lengths[epoch]
        assert set(now.seq_lengths("data").tolist()) <= {4445, 4000, 3637, 3334, 3000, 2728, 5556, 5000, 4546}
        backwards = pickle.loads(pickle.dumps(dataset)).at_epoch(epoch).read([2, 1, 0]).streams["data"]
        assert [len(a) for a in backwards[::-1]] == lengths[epoch]
    assert len({tuple(value) for value in lengths.values()}) > 1
    other = AudioFolderDataset(manifest, audio=RAW, speed_factors=[0.9, 1.0, 1.1], seed=2)
    assert [other.at_epoch(e).seq_lengths("data").tolist() for e in lengths] != list(lengths.values())


def test_random_features_and_labels(tmp_path):
    manifest = write_corpus(tmp_path)
    random_audio = AudioFeatures(
        "log_mel_filterbank", 8, random_permute={"rnd_stretch_switch": 0, "rnd_pitch_switch": 0}
    )
    vocab = SamplingBytePairEncoding(DATA / "bpe.vocab", breadth_prob=0.8)
    dataset = AudioFolderDataset(manifest, audio=random_audio, targets=vocab)
    assert dataset.seq_lengths("data") is None
    assert dataset.seq_lengths("classes") is None
    first = dataset.at_epoch(5).read([1, 0])
    again = pickle.loads(pickle.dumps(dataset)).at_epoch(5).read([0])
    np.testing.assert_array_equal(first.streams["data"][1], again.streams["data"][0])
    np.testing.assert_array_equal(first.streams["classes"][1], again.streams["classes"][0])
    assert not np.array_equal(first.streams["data"][1], dataset.at_epoch(6).read([0]).streams["data"][0])


def test_errors(tmp_path):
    manifest = write_corpus(tmp_path)
    (tmp_path / "u1.wav").write_bytes((tmp_path / "u1.wav").read_bytes()[:40])
    with pytest.raises(DataError, match=r"u1.wav, seq_tag 'utt-1'"):
        AudioFolderDataset(manifest, audio=RAW).read([1])
    (tmp_path / "u1.wav").unlink()
    with pytest.raises(DataError, match=r"u1.wav.*no such file"):
        AudioFolderDataset(manifest, audio=RAW).read([1])
    with pytest.raises(DataError, match="8000 Hz, expected 16000"):
        AudioFolderDataset(manifest, audio=AudioFeatures(sample_rate=16000)).read([0])
    with pytest.raises(DataError, match=r"seq_tag 'utt-0': .*no label 't' and no unknown_label|no label 't'"):
        AudioFolderDataset(manifest, targets=CharacterVocabulary(labels=["a"])).read([0])
    (tmp_path / "bad.jsonl").write_text('{"file": "u0.wav"}\n{"text": "no file"}\n')
    with pytest.raises(DataError, match=r"bad.jsonl: line 2: needs `file`"):
        len(AudioFolderDataset(tmp_path / "bad.jsonl"))
    (tmp_path / "bad.tsv").write_text("file\ttext\nu0.wav\n")
    with pytest.raises(DataError, match=r"line 2 has 1 fields, the first line 2"):
        len(AudioFolderDataset(tmp_path / "bad.tsv"))
    (tmp_path / "cut.zip").write_bytes((DATA / "ogg.zip").read_bytes()[:9000])
    with pytest.raises(DataError, match=r"cut.zip: not a zip archive"):
        len(AudioZipDataset(tmp_path / "cut.zip"))
    with pytest.raises(DataError, match=r"ogg.zip: has no file 'ogx.txt', did you mean 'ogg.txt'"):
        len(golden_zip(content_name="ogx"))
    with pytest.raises(DataError, match=r"no file .rec0\.ogg., did you mean .ogg/rec0\.ogg."):
        golden_zip(zip_audio_files_have_name_as_prefix=False).read([0])
    with pytest.raises(DataError, match="did you mean 'header'"):
        golden_zip(lengths="headers")


def test_a_broken_flac_is_an_error(tmp_path):
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "a.flac", 0.1 * rng.normal(size=20000), 16000)
    content = (tmp_path / "a.flac").read_bytes()
    read_audio(content, "whole")
    with pytest.raises(DataError, match="cut"):
        read_audio(content[: len(content) // 2], "cut")


@pytest.mark.parametrize(("ending", "subtype"), [("wav", "PCM_16"), ("ogg", "VORBIS"), ("flac", "PCM_16")])
@pytest.mark.parametrize("left", [0.1, 0.5, 0.97])
def test_an_audio_file_that_was_cut_off_is_an_error(tmp_path, ending, subtype, left):
    soundfile = pytest.importorskip("soundfile")
    path = tmp_path / f"a.{ending}"
    soundfile.write(path, 0.1 * np.random.RandomState(1).randn(40_000), 16000, subtype=subtype)
    content = path.read_bytes()
    assert len(read_audio(path, "a")[0]) == len(read_audio(content, "a")[0]) == 40_000
    cut = content[: int(left * len(content))]
    path.write_bytes(cut)
    for data in (path, cut):
        with pytest.raises(DataError, match=r"^here: (cut off: |can't be read as audio|broken: )"):
            read_audio(data, "here")


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_an_ogg_file_that_was_cut_between_two_pages(subtype):
    file = io.BytesIO()
    soundfile.write(file, 0.1 * np.random.RandomState(1).randn(80_000), 16000, format="OGG", subtype=subtype)
    content = file.getvalue()
    assert len(read_audio(content, "here")[0]) == 80_000
    pages = [match.start() for match in re.finditer(b"OggS", content)]
    assert len(pages) > 6
    for page in pages[3:]:  # behind the headers
        with pytest.raises(DataError, match=r"^here: cut off: it ends with a page that is not "):
            read_audio(content[:page], "here")


def test_an_ogg_file_without_the_mark_is_like_a_cut_one_to_libsndfile():
    """So that it must be refused: the library gives no sign which of both it is."""
    file = io.BytesIO()
    soundfile.write(file, 0.1 * np.random.RandomState(1).randn(80_000), 16000, format="OGG", subtype="VORBIS")
    content = file.getvalue()
    last = content.rindex(b"OggS")
    page = bytearray(content[last:])
    assert page[5] & 4
    page[5] &= ~4
    page[22:26] = bytes(4)
    page[22:26] = struct.pack("<I", ogg_checksum(page))
    unmarked, cut = content[:last] + bytes(page), content[:last]
    assert len(soundfile.read(io.BytesIO(unmarked))[0]) == 80_000
    shorter = soundfile.SoundFile(io.BytesIO(cut))
    assert shorter.frames == len(shorter.read()) < 80_000
    for data in (unmarked, cut):
        with pytest.raises(DataError, match=r"if its encoder marks none, write it anew \(ffmpeg"):
            read_audio(data, "here")


def ogg_checksum(page):
    """RFC 3533, section 6, field 7."""
    value = 0
    for byte in page:
        value ^= byte << 24
        for _ in range(8):
            value = (value << 1 ^ 0x04C11DB7 if value & 1 << 31 else value << 1) & 0xFFFFFFFF
    return value


def test_a_sphere_file_that_was_cut_off_is_an_error():
    fields = ("sample_count -i 500", "sample_rate -i 16000", "sample_n_bytes -i 2", "channel_count -i 1")
    header = "\n".join(
        ("NIST_1A", "   1024", *fields, "sample_byte_format -s2 01", "sample_coding -s3 pcm", "end_head\n")
    )
    content = header.ljust(1024).encode() + np.arange(500, dtype="<i2").tobytes()
    assert len(read_audio(content, "here")[0]) == 500
    with pytest.raises(DataError, match="here: cut off: 2000 bytes, but its header says 2024"):
        read_audio(content[:2000], "here")
    with pytest.raises(DataError, match="here: can't be read as audio"):
        read_audio(b"NIST_1A\nmany\nsample_count -i few\n", "here")


def test_a_wav_file_out_of_a_pipe_does_not_know_its_length(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "a.wav", np.zeros(1000), 16000)
    content = bytearray((tmp_path / "a.wav").read_bytes())
    content[4:8] = content[40:44] = b"\xff" * 4
    assert content[36:40] == b"data"
    assert len(read_audio(bytes(content), "a")[0]) == 1000


def test_forked_processes_have_their_own_archive():
    """Parent and child read at the same time; a shared position in the file would give broken data."""
    torch_data = pytest.importorskip("torch.utils.data")
    dataset = golden_zip(targets=None)
    expected = dataset.read(range(4)).streams["data"]

    class Reader(torch_data.Dataset):
        def __len__(self):
            return 40

        def __getitem__(self, index):
            return dataset.read([index % 4]).streams["data"][0].sum()

    loader = torch_data.DataLoader(Reader(), batch_size=None, num_workers=2, multiprocessing_context="fork")
    for index, total in enumerate(loader):
        assert total == expected[index % 4].sum()


def test_joined_with_labels_of_another_set():
    tags = golden_zip().seq_tags(range(4))
    labels = StaticDataset([{"data": [i]} for i in range(4)], {"data": {"dim": 9, "sparse": True}}, tags[::-1])
    meta = MetaDataset(
        {"audio": golden_zip(), "labels": labels}, {"data": ["audio", "data"], "classes": ["labels", "data"]}
    )
    assert [int(a[0]) for a in meta.read([0, 3]).streams["classes"]] == [3, 0]
    assert meta.order_lengths().tolist() == [10, 5, 15, 7]
    assert len(RandomSubset(golden_zip(), 2)) == 2


@needs_an4
def test_sphere_files_hold_what_the_flac_files_hold():
    for path in sorted((AN4 / "sphere_samples").glob("*.sph")):
        samples, rate = read_audio(path, str(path))
        expected, expected_rate = read_audio(next((AN4 / "wav").rglob(path.stem + ".flac")), str(path))
        assert rate == expected_rate == 16000
        np.testing.assert_array_equal(samples, expected)


@needs_an4
def test_an4_folder(tmp_path):
    files = (AN4 / "etc" / "an4_train.fileids").read_text().split()[:5]
    (tmp_path / "list.jsonl").write_text("\n".join(json.dumps({"file": f"{name}.flac"}) for name in files))
    dataset = AudioFolderDataset(
        tmp_path / "list.jsonl", AN4 / "wav", AudioFeatures("log_mel_filterbank", 40, sample_rate=16000)
    )
    arrays = dataset.read(range(5)).streams["data"]
    assert [len(array) for array in arrays] == dataset.seq_lengths("data").tolist()
    assert all(np.isfinite(array).all() and array.std() > 0.5 for array in arrays)
