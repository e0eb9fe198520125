"""Copies of state, the check for bad numbers, and .pt files that are damaged or hostile."""

import io
import os
import pickle
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from returnn_hydra.engine.errors import DamagedStateError, NonFiniteError, StateReadError
from returnn_hydra.engine.files import FileFacts, FileSystem
from returnn_hydra.engine.tensor_file import (
    Snapshot,
    check_finite,
    named_tensors,
    num_bytes,
    open_verified,
    read_foreign_tensors,
    read_tensors,
    write_tensors,
)

DISK = FileSystem()


def test_what_is_written_is_read_back(tmp_path):
    content = {
        "model": {"weight": torch.randn(3, 4), "steps": torch.tensor(7)},
        "epoch": 3,
        "names": ["a", None, 1.5, True],
    }
    facts = write_tensors(DISK, tmp_path / "a.pt", content)
    assert facts.bytes == (tmp_path / "a.pt").stat().st_size
    loaded = read_tensors(DISK, tmp_path / "a.pt", facts)
    assert loaded["epoch"] == 3
    assert loaded["names"] == content["names"]
    assert torch.equal(loaded["model"]["weight"], content["model"]["weight"])


def test_the_same_state_gives_the_same_bytes(tmp_path):
    content = {"model": {"weight": torch.arange(6.0)}}
    assert write_tensors(DISK, tmp_path / "a.pt", content) == write_tensors(DISK, tmp_path / "b.pt", content)


def test_a_loaded_state_gives_the_same_bytes_as_the_first(tmp_path):
    model = torch.nn.Linear(2, 3)
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.9, 0.99))
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    first = write_tensors(DISK, tmp_path / "a.pt", Snapshot().take(optimizer.state_dict(), "s"))
    optimizer.load_state_dict(read_tensors(DISK, tmp_path / "a.pt", first))
    assert write_tensors(DISK, tmp_path / "b.pt", Snapshot().take(optimizer.state_dict(), "s")) == first


def test_a_copy_does_not_change_with_the_model():
    weight = torch.zeros(3)
    snapshot = Snapshot()
    copy = snapshot.take({"model": {"weight": weight}, "list": [weight + 1, (2, None)]}, "state")
    weight += 5
    assert copy["model"]["weight"].tolist() == [0, 0, 0]
    assert copy["list"][0].tolist() == [1, 1, 1]
    assert copy["list"][1] == (2, None)
    again = snapshot.take({"model": {"weight": weight}, "list": []}, "state")
    assert again["model"]["weight"].tolist() == [5, 5, 5]
    assert again["model"]["weight"].data_ptr() == copy["model"]["weight"].data_ptr()


def test_a_copy_takes_new_memory_when_the_shape_changes():
    snapshot = Snapshot()
    assert snapshot.take({"a": torch.zeros(2)}, "s")["a"].shape == (2,)
    assert snapshot.take({"a": torch.zeros(3)}, "s")["a"].shape == (3,)
    assert snapshot.take({"a": torch.zeros(3, dtype=torch.int64)}, "s")["a"].dtype == torch.int64


def test_tied_weights_stay_tied_and_views_are_cut_out(tmp_path):
    weight = torch.randn(4, 4, requires_grad=True)
    copy = Snapshot().take(
        {"a": weight, "b": weight, "row": weight[0], "empty": torch.empty(0), "none": torch.empty(0)}, "s"
    )
    assert copy["a"] is copy["b"]
    assert copy["empty"] is not copy["none"]
    assert not copy["a"].requires_grad
    assert torch.equal(copy["row"], weight[0])
    facts = write_tensors(DISK, tmp_path / "a.pt", copy)
    loaded = read_tensors(DISK, tmp_path / "a.pt", facts)
    assert loaded["a"].data_ptr() == loaded["b"].data_ptr()


def test_numbers_of_numpy_become_plain(tmp_path):
    copy = Snapshot().take({"lr": np.float64(0.1), "steps": np.int64(3), "flag": np.bool_(True)}, "s")
    assert [type(value) for value in copy.values()] == [float, int, bool]
    facts = write_tensors(DISK, tmp_path / "a.pt", copy)
    assert read_tensors(DISK, tmp_path / "a.pt", facts) == {"lr": 0.1, "steps": 3, "flag": True}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": {"b": [1, print]}}, r"state\.a\.b\[1\]: a builtin_function"),
        ({(1, 2): 3}, r"key \(1, 2\) is a tuple"),
        ({"a": Path("x")}, "PosixPath can't be saved"),
        ({"a": {1, 2}}, "set can't be saved"),
    ],
)
def test_what_cannot_be_loaded_safely_is_not_saved(state, message):
    with pytest.raises(TypeError, match=message):
        Snapshot().take(state, "state")


def test_names_and_sizes():
    state = {"a": torch.zeros(2, 3), "b": [torch.zeros(4, dtype=torch.uint8), 5]}
    assert [name for name, _ in named_tensors(state, "s")] == ["s.a", "s.b[0]"]
    assert num_bytes(state) == 24 + 4 + 4096


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_bad_numbers_are_named(dtype, bad):
    state = {"good": torch.ones(3, dtype=dtype), "bad": torch.ones(2, 2, dtype=dtype), "count": torch.tensor(3)}
    check_finite(state, "model")
    state["bad"][1, 0] = bad
    with pytest.raises(NonFiniteError, match=r"NaN or infinity in model\.bad:") as caught:
        check_finite(state, "model")
    assert caught.value.exit_code == 76


def test_large_numbers_are_no_bad_numbers():
    check_finite({"a": torch.full((1000,), 3e38), "b": torch.full((3,), 1e300, dtype=torch.float64)}, "model")
    check_finite({"a": torch.empty(0), "b": 3}, "model")


def test_masks_may_be_infinite_but_not_nan():
    state = {"mask": torch.tensor([0.0, -float("inf")])}
    with pytest.raises(NonFiniteError, match=r"model\.mask"):
        check_finite(state, "model")
    check_finite(state, "model", may_be_infinite=["mask"])
    state["mask"][0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"model\.mask"):
        check_finite(state, "model", may_be_infinite=["mask"])


def test_many_bad_tensors_are_counted():
    with pytest.raises(NonFiniteError, match=r"m\.7 and 2 more"):
        check_finite({str(index): torch.tensor(float("nan")) for index in range(10)}, "m")


def test_missing_and_unreadable(tmp_path):
    with pytest.raises(DamagedStateError, match=r"a\.pt: missing, its manifest expects 5 bytes"):
        read_tensors(DISK, tmp_path / "a.pt", FileFacts(5, "0"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(StateReadError, match="EISDIR"):
        read_tensors(DISK, tmp_path / "folder", FileFacts(5, "0"))
    with pytest.raises(StateReadError, match="ENOENT"):
        read_foreign_tensors(DISK, tmp_path / "a.pt")


def test_an_error_while_torch_reads_is_an_error_of_the_disk(tmp_path, monkeypatch):
    facts = write_tensors(DISK, tmp_path / "a.pt", {"a": torch.zeros(2)})

    def fail(*arguments, **options):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(StateReadError, match="EIO"):
        read_tensors(DISK, tmp_path / "a.pt", facts)


def test_a_file_that_differs_is_closed(tmp_path):
    (tmp_path / "a.pt").write_bytes(b"other")
    with pytest.raises(DamagedStateError, match="damaged or swapped: 5 bytes"):
        open_verified(DISK, tmp_path / "a.pt", FileFacts(5, "0" * 64))


def test_an_error_of_the_disk_while_a_foreign_file_is_checked(tmp_path, monkeypatch):
    (tmp_path / "a.pt").write_bytes(torch_bytes({"a": torch.zeros(2)}))

    def fail(archive):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(zipfile.ZipFile, "testzip", fail)
    with pytest.raises(StateReadError, match="EIO"):
        read_foreign_tensors(DISK, tmp_path / "a.pt")


def torch_bytes(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def test_foreign_files(tmp_path):
    (tmp_path / "a.pt").write_bytes(torch_bytes({"model": {"w": torch.ones(2)}, "epoch": 1}))
    assert read_foreign_tensors(DISK, tmp_path / "a.pt")["epoch"] == 1
    (tmp_path / "b.pt").write_bytes(torch_bytes([1, 2]))
    with pytest.raises(DamagedStateError, match="holds a list, expected a dict"):
        read_foreign_tensors(DISK, tmp_path / "b.pt")


def test_no_flip_or_truncation_of_a_foreign_file_is_silent(tmp_path):
    """Plain `torch.load` lets most of these through. Flips of unused header fields may be harmless, never wrong."""
    weight = torch.arange(500.0)
    data, rng, refused = torch_bytes({"model": {"w": weight}}), random.Random(0), 0
    path = tmp_path / "a.pt"
    for number in range(800):
        changed = bytearray(data)
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(changed if number < 600 else data[: rng.randrange(len(data))])
        try:
            loaded = read_foreign_tensors(DISK, path)
        except DamagedStateError:
            refused += 1
            continue
        assert torch.equal(loaded["model"]["w"], weight)
    assert refused > 600


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", ["zip", "legacy", "plain", "tar"])
def test_nothing_in_a_file_is_executed(tmp_path, kind):
    path, marker = tmp_path / "a.pt", tmp_path / "executed"
    if kind == "plain":
        path.write_bytes(pickle.dumps({"model": Bomb(marker)}))
    elif kind == "tar":
        path.write_bytes(b"\0" * 1024 + pickle.dumps(Bomb(marker)))
    else:
        torch.save({"model": Bomb(marker)}, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(DamagedStateError, match=r"a\.pt"):
        read_foreign_tensors(DISK, path)
    with path.open("rb") as file:
        facts = FileFacts(path.stat().st_size, __import__("hashlib").file_digest(file, "sha256").hexdigest())
    with pytest.raises(DamagedStateError, match=r"refuses it"):
        read_tensors(DISK, path, facts)
    assert not marker.exists()


@pytest.mark.parametrize(
    "name", ["../../evil", "/etc/x", "archive/../x", "archive/code/run.py", "archive/data/0/x", "x"]
)
def test_member_names_that_torch_does_not_write(tmp_path, name):
    path = tmp_path / "a.pt"
    path.write_bytes(torch_bytes({"a": torch.zeros(1)}))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(DamagedStateError, match=r"does not belong|no zip|damaged"):
        read_foreign_tensors(DISK, path)


def test_compressed_members_are_refused(tmp_path):
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10_000_000)
    with pytest.raises(DamagedStateError, match="does not belong"):
        read_foreign_tensors(DISK, path)
