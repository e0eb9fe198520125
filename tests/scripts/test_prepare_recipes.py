"""The preparation scripts on small corpora of noise, in the layout of the real ones."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from returnn_hydra.data.features import AudioFeatures
from returnn_hydra.data.hdf import HDFDataset
from returnn_hydra.data.meta import MetaDataset
from returnn_hydra.data.subword_models import SentencePieceVocabulary
from returnn_hydra.data.text import LmDataset
from returnn_hydra.search.ngram import read_arpa

soundfile = pytest.importorskip("soundfile")
ROOT = Path(__file__).resolve().parents[2]
NUM_TRAIN = 103


def run_script(name, *arguments):
    command = [sys.executable, str(ROOT / "scripts" / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def noise(seconds, rate, seed):
    return np.random.default_rng(seed).uniform(-0.1, 0.1, int(seconds * rate))


@pytest.fixture(scope="module")
def an4(tmp_path_factory):
    corpus = tmp_path_factory.mktemp("an4")
    (corpus / "etc").mkdir()
    texts = {"train": [("GO" if i % 2 else "A B GO") for i in range(NUM_TRAIN)], "test": ["STOP"]}
    for part, folder, ending in (("train", "an4_clstk", "wav"), ("test", "an4test_clstk", "flac")):
        ids, lines = [], []
        for number, text in enumerate(texts[part]):
            tag = f"{part}{number:03d}-x-b"
            ids.append(f"{folder}/{'xy'[number % 2]}/{tag}")
            lines.append(f"<s> {text} </s> ({tag})" if part == "train" else f"{text} ({tag})")
            file = corpus / "wav" / f"{ids[-1]}.{ending}"
            file.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(file, noise(0.2 + 0.001 * number, 16_000, number), 16_000)
        (corpus / "etc" / f"an4_{part}.fileids").write_text("\n".join(ids) + "\n")
        (corpus / "etc" / f"an4_{part}.transcription").write_text("\n".join(lines) + "\n")
    return corpus


def test_an4(an4, tmp_path):
    (an4 / "etc/an4_test.transcription").write_text("GO A (test000-x-b)\n")
    done = run_script("prepare_an4.py", an4, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    assert (out / "vocab.txt").read_text().split("\n") == [" ", "A", "B", "G", "O", ""]
    dev = HDFDataset(out / "dev.hdf")
    train = HDFDataset([out / "train.hdf", out / "train.speed0.9.hdf", out / "train.speed1.1.hdf"])
    test = HDFDataset(out / "test.hdf")
    assert (len(dev), len(train), len(test)) == (100, 9, 1)
    assert train.seq_tags([0, 3, 6]) == [f"train100-x-b{ending}" for ending in ("", "-speed0.9", "-speed1.1")]
    lengths = train.seq_lengths("data")
    assert lengths[3] > lengths[0] > lengths[6]
    assert test.read([0]).streams["classes"][0].tolist() == [3, 4, 0, 1]
    extract = AudioFeatures(
        "db_mel_filterbank", num_feature_filters=40, preemphasis=0.97, feature_options={"min_amp": 5e-5}
    )
    of_speaker = [
        extract(*soundfile.read(an4 / f"wav/an4_clstk/y/train{number:03d}-x-b.wav")) for number in range(1, 100, 2)
    ]
    frames = np.concatenate(of_speaker)
    expected = (of_speaker[3] - frames.mean(0)) / frames.std(0)
    np.testing.assert_allclose(dev.read([7]).streams["data"][0], expected, atol=1e-4)
    assert (out / "lexicon.txt").read_text() == "A A\nB B\nGO G O\n"
    assert set(read_arpa(out / "lm.word.arpa").log_probs[()]) == {"A", "B", "GO", "<s>", "</s>"}
    assert "<space>" in read_arpa(out / "lm.char.arpa").log_probs[()]


def test_an4_subwords(an4, tmp_path):
    pytest.importorskip("sentencepiece")
    (an4 / "etc/an4_test.transcription").write_text("GO A (test000-x-b)\n")
    done = run_script("prepare_an4.py", an4, tmp_path, "--bpe", "10")
    assert done.returncode == 0, done.stderr
    vocab = SentencePieceVocabulary(tmp_path / "bpe.model")
    assert vocab.to_labels(vocab.encode("A B GO")) == ["▁A", "▁B", "▁GO"]
    assert vocab.decode(vocab.encode("GO A")) == "GO A"
    assert vocab.num_labels == 10
    unigrams = read_arpa(tmp_path / "lm.bpe.arpa").log_probs[()]
    assert set(unigrams) == {*vocab.labels, "<s>", "</s>"}
    assert {unit for unit, log_prob in unigrams.items() if log_prob > -200} == {"▁A", "▁B", "▁GO", "</s>"}
    files = {"train": ["train.hdf", "train.speed0.9.hdf", "train.speed1.1.hdf"], "dev": ["dev.hdf"]}
    for part, names in files.items():
        features = HDFDataset([tmp_path / name for name in names])
        texts = LmDataset([tmp_path / f"{part}.txt"] * len(names), vocab, seq_list_file=tmp_path / f"{part}.tags")
        joined = MetaDataset(
            {"features": features, "texts": texts}, {"data": ["features", "data"], "classes": ["texts", "data"]}
        )
        everything = range(len(joined))
        spelled = features.read(everything).streams["classes"]
        units = joined.read(everything).streams["classes"]
        letters = (tmp_path / "vocab.txt").read_text().split("\n")
        assert [vocab.decode(ids) for ids in units] == ["".join(letters[i] for i in ids) for ids in spelled]


def test_an4_transcription_of_another_utterance(an4, tmp_path):
    (an4 / "etc/an4_test.transcription").write_text("<s> STOP </s> (other)\n")
    done = run_script("prepare_an4.py", an4, tmp_path)
    assert done.returncode != 0
    assert "expected `<s> WORDS </s> (test000-x-b)`" in done.stderr


@pytest.mark.parametrize(
    ("script", "message"), [("prepare_an4.py", "expected the folder of AN4"), ("prepare_digits.py", "no .wav files")]
)
def test_another_folder(script, message, tmp_path):
    done = run_script(script, tmp_path, tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.startswith("ERROR: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_digits(tmp_path):
    for speaker in ("ann", "bob"):
        for digit in (3, 8):
            for index in (0, 5, 10):
                file = tmp_path / "recordings" / f"{digit}_{speaker}_{index}.wav"
                file.parent.mkdir(exist_ok=True)
                soundfile.write(file, noise(0.1, 8000, index), 8000)
    outs = [tmp_path / "one", tmp_path / "two"]
    for out in outs:
        done = run_script("prepare_digits.py", tmp_path / "recordings", out, "--strings", "5")
        assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in outs[0].iterdir())
    assert names == sorted(path.name for path in outs[1].iterdir())
    for part in ("train", "dev", "test", "all"):
        one, two = (HDFDataset(out / f"{part}.ann.hdf") for out in outs)
        first, second = (source.read([0, 1, 2]).streams for source in (one, two))
        for name in ("data", "classes"):
            for a, b in zip(first[name], second[name], strict=True):
                np.testing.assert_array_equal(a, b)
        assert {frames.shape[1] for frames in first["data"]} == {24}
        if part != "train":  # as recorded: no value beyond the outermost quantiles of a normal distribution
            assert 0.5 < np.abs(np.concatenate(first["data"])).max() < 2.6
        sizes = one.seq_lengths("classes")
        assert sizes.min() >= 1
        assert sizes.max() <= 7
        assert {3, 8} >= set(np.concatenate(first["classes"]).tolist())
    others = HDFDataset(outs[0] / "train.without_ann.txt")
    assert all(tag.startswith("train-bob-") for tag in others.seq_tags(range(len(others))))
    for file in (ROOT / "conf/datasets").glob("digits_without_*.yaml"):
        speaker = file.stem.removeprefix("digits_without_")
        datasets = yaml.safe_load(file.read_text())["datasets"]
        for name in (datasets[part]["source"]["files"].rsplit("/", 1)[-1] for part in ("train", "dev", "eval")):
            assert name.replace(speaker, "ann") in names


def test_picture_of_scores(tmp_path):
    pytest.importorskip("matplotlib")
    run = tmp_path / "run"
    run.mkdir()
    rows = [{"epoch": n, "scores": {"dev": {"ctc": {"sum": 1.0, "count": n, "mean": 1 / n}}}} for n in (1, 2)]
    (run / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run_script("plot_scores.py", tmp_path / "usual.png", run)
    assert (done.returncode, done.stdout) == (0, f"Picture: {tmp_path / 'usual.png'}\n")
    assert (tmp_path / "usual.png").stat().st_size > 5000
    assert "no scores.jsonl" in run_script("plot_scores.py", tmp_path / "x.png", tmp_path / "nothing").stderr
    assert run_script("plot_scores.py", tmp_path / "curve.png", run, "--score", "dev/ctc").returncode == 0
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    wrong = run_script("plot_scores.py", tmp_path / "curve.png", run, "--score", "dev/wer")
    assert wrong.returncode == 2
    assert "no score 'dev/wer'; there is: dev/ctc" in wrong.stderr


def test_a_curve_of_one_epoch_has_a_point(tmp_path):
    """A line through one point draws nothing: without a marker the plot would be empty."""
    pytest.importorskip("matplotlib")
    from matplotlib import image

    pictures = []
    for name, epochs in {"one": 1, "none": 0}.items():
        run = tmp_path / name
        run.mkdir()
        row = {
            "epoch": 1,
            "scores": {"dev": {"ctc": {"sum": 1.0, "count": 1, "mean": 1.0 if epochs else float("nan")}}},
        }
        (run / "scores.jsonl").write_text(json.dumps(row) + "\n")
        assert run_script("plot_scores.py", tmp_path / f"{name}.png", run).returncode == 0
        inside = image.imread(tmp_path / f"{name}.png")[100:300, 150:500, :3]
        pictures.append((inside.max(-1) - inside.min(-1)).max())  # colour
    assert pictures[0] > 0.3
    assert pictures[1] < 0.1
