"""Exit codes, the last line of a failed run, and result.json."""

import json

import pytest
import torch

from returnn_hydra.data.dataset import DataError
from returnn_hydra.engine import errors
from returnn_hydra.engine.errors import exit_code_of, last_line
from returnn_hydra.engine.files import FileSystem
from returnn_hydra.engine.resume import refuse_changes
from returnn_hydra.engine.status import write_result

CODES = [
    (None, 0),
    (RuntimeError("x"), 1),
    (errors.ChangedConfigError("x"), 2),
    (errors.NoCheckpointError("x"), 2),
    (errors.UnsafeNameError("x"), 2),
    (DataError("x"), 65),
    (errors.OutOfMemoryError("x"), 71),
    (MemoryError(), 71),
    (torch.OutOfMemoryError("CUDA out of memory"), 71),
    (RuntimeError("could not create a primitive. Run workload with ONEDNN_VERBOSE"), 71),
    (RuntimeError("could not create a primitive descriptor for the LSTM forward propagation primitive"), 1),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), 71),
    (RuntimeError("can't start new thread"), 71),
    (OSError(12, "Cannot allocate memory"), 71),
    (errors.LockedError("x"), 73),
    (errors.StateWriteError("x"), 74),
    (errors.StateReadError("x"), 74),
    (errors.DamagedStateError("x"), 74),
    (OSError(5, "Input/output error"), 74),
    (errors.NonFiniteError("x"), 76),
    (KeyboardInterrupt(), 130),
    (errors.Stopped("x", 130), 130),
    (errors.Stopped("x"), 143),
]


@pytest.mark.parametrize(("error", "code"), CODES, ids=lambda value: repr(value)[:40])
def test_exit_codes(error, code):
    assert exit_code_of(error) == code
    assert code in errors.MEANING


def test_the_last_line_has_the_code_and_is_one_line():
    assert last_line(errors.StateWriteError("can't write a:\n no space")) == "ERROR 74: can't write a: no space"
    assert last_line(KeyError("a")) == "ERROR 1: KeyError: 'a'"
    assert last_line(MemoryError()).startswith(
        "ERROR 71: out of memory, or at another limit of the system (MemoryError):"
    )
    assert last_line(errors.OutOfMemoryError("batch of 9")) == "ERROR 71: batch of 9"
    assert last_line(errors.Stopped("SIGTERM: saved")) == "STOPPED 143: SIGTERM: saved"


def test_result(tmp_path):
    disk = FileSystem()
    for error, expected, code in (
        (None, "done", 0),
        (errors.Stopped("SIGINT: saved", 130), "stopped", 130),
        (errors.NonFiniteError("NaN"), "failed", 76),
    ):
        assert write_result(disk, tmp_path, error, {"score": 0.5}) == code
        result = json.loads((tmp_path / "result.json").read_text())
        assert (result["status"], result["exit_code"], result["score"]) == (expected, code, 0.5)
        assert (result["error"] is None) == (error is None)
        assert result["meaning"] == errors.MEANING[code]


def test_a_changed_configuration_is_refused():
    saved = {"seed": 1, "model.hidden_dim": 4, "model.dropout": 0.1, "gone": None}
    refuse_changes(saved, dict(saved))
    present = {"seed": 2, "model.hidden_dim": 8, "model.dropout": 0.1, "new": [1]}
    with pytest.raises(errors.ChangedConfigError) as caught:
        refuse_changes(saved, present)
    text = str(caught.value)
    assert "seed: 1 -> 2" in text
    assert "model.hidden_dim: 4 -> 8" in text
    assert "gone: None -> (not set)" in text
    assert "allow_changed=[gone,model.hidden_dim,new,seed]" in text
    refuse_changes(saved, present, allowed=["seed", "model", "gone", "new"])
    with pytest.raises(errors.ChangedConfigError, match="seed"):
        refuse_changes(saved, present, allowed=["model", "gone", "new", "se"])
