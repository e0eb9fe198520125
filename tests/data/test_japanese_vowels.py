"""The embedded data set: what is in it, and that the script makes the same files again."""

import importlib.util
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "returnn_hydra" / "data" / "japanese_vowels"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_japanese_vowels", ROOT / "scripts" / "make_japanese_vowels.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look it up there
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("part", "per_speaker"),
    [("train", [27] * 9), ("dev", [3] * 9), ("eval", [31, 35, 88, 44, 29, 24, 40, 50, 29])],  # eval as published
)
def test_parts(part, per_speaker):
    with h5py.File(FOLDER / f"{part}.hdf") as file:
        lengths, speakers = file["seqLengths"][:], file["targets/data/classes"][:]
        tags = [tag.decode() for tag in file["seqTags"][:]]
        assert np.bincount(speakers).tolist() == per_speaker
        assert 7 <= lengths[:, 0].min() < lengths[:, 0].max() <= 29
        assert set(lengths[:, 1].tolist()) == {1}
        assert file["inputs"].shape == (lengths[:, 0].sum(), 12)
        assert np.isfinite(file["inputs"][:]).all()
    assert len(set(tags)) == len(tags) == sum(per_speaker)
    for tag, speaker in zip(tags, speakers, strict=True):
        name, of_speaker, index = tag.split("-")
        assert (name, of_speaker) == (part, f"speaker{speaker + 1}")
        assert part == "eval" or (int(index) % 10 == 9) == (part == "dev")


def test_small_and_with_its_licence():
    assert sum(path.stat().st_size for path in FOLDER.glob("*.hdf")) < 1_000_000
    readme = (FOLDER / "README.md").read_text()
    assert "Kudo" in readme
    assert "CC BY 4.0" in readme


def fake_wheel(path: Path, utterances: list[tuple[np.ndarray, int]]) -> Path:
    """A wheel with the same few utterances as training and test part."""
    lines = ["# comment", "@problemName JapaneseVowels", "@data"]
    for cepstra, label in utterances:
        lines.append(":".join([*(",".join(map(str, series)) for series in cepstra.T.tolist()), str(label)]))
    with zipfile.ZipFile(path, "w") as wheel:
        for part in ("TRAIN", "TEST"):
            wheel.writestr(f"sktime/datasets/data/JapaneseVowels/JapaneseVowels_{part}.ts", "\n".join(lines))
    return path


def test_script_splits_and_writes_the_same_bytes(script, tmp_path, monkeypatch):
    generator = np.random.default_rng(1)
    utterances = [(generator.normal(size=(length, 12)), speaker) for speaker in (1, 9) for length in range(3, 14)]
    wheel = fake_wheel(tmp_path / "sktime.whl", utterances)
    for name in ("first", "second"):
        monkeypatch.setattr("sys.argv", ["make", str(wheel), str(tmp_path / name)])
        script.main()
    for part in ("train", "dev", "eval"):
        assert (tmp_path / "first" / f"{part}.hdf").read_bytes() == (tmp_path / "second" / f"{part}.hdf").read_bytes()
    with h5py.File(tmp_path / "first" / "dev.hdf") as file:
        assert [tag.decode() for tag in file["seqTags"][:]] == ["dev-speaker1-009", "dev-speaker9-009"]
        assert file["seqLengths"][:].tolist() == [[12, 1], [12, 1]]
        assert file["targets/data/classes"][:].tolist() == [0, 8]
        expected = np.concatenate([utterances[9][0], utterances[20][0]]).astype(np.float32)
        assert np.array_equal(file["inputs"][:], expected)


def test_script_refuses_what_it_does_not_know(script):
    with pytest.raises(ValueError, match="line 2: expected 12 series of one length"):
        script.parse_ts("@data\n1,2:3,4:1")
    with pytest.raises(ValueError, match=r"line 2: expected a class in 1\.\.9, got 10"):
        script.parse_ts("@data\n" + "1,2:" * 12 + "10")
