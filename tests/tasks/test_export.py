"""task=export from the command line: an ONNX file that gives what the model does, for any batch."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from returnn_hydra.data.embedded import japanese_vowels
from returnn_hydra.models.blstm import BLSTM

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

TRAIN = ("task=train", "num_epochs=1", "batch_size=20000", "max_seqs=300", "name=run")
SMALL = {
    "blstm": ("model.hidden_dim=8", "model.input_noise=0.0"),
    "vgg_blstm": ("model.parts.0.channels=[2,4]", "model.parts.1.hidden_dim=4"),
    "transformer": ("model.model_dim=16", "model.num_layers=1", "model.num_heads=2"),
    "conformer": ("model.model_dim=16", "model.num_layers=1", "model.num_heads=2"),
}


def session(file):
    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("model", SMALL)
def test_export(command, capsys, model):
    assert command(*TRAIN, f"model={model}", *SMALL[model]) == 0
    capsys.readouterr()
    assert command("run=outputs/run", "task=export", "task.num_batches=2") == 0
    assert "Largest difference to the model on" in capsys.readouterr().out
    assert 0.0 <= json.loads(Path("outputs/run/result.export.json").read_text())["score"] < 1e-4
    folder = Path("outputs/run/export.001")
    assert [file.name for file in folder.iterdir()] == ["encoder.onnx"]
    exported = session(folder / "encoder.onnx")
    for num_seqs, num_frames in ((1, 4), (5, 50)):
        features = np.random.default_rng(0).normal(size=(num_seqs, num_frames, 12)).astype(np.float32)
        lengths = np.array([num_frames, 7, 3, 1, 30][:num_seqs])
        together, together_lengths = exported.run(None, {"features": features, "lengths": lengths})
        for seq, length in enumerate(lengths):
            one = {"features": features[seq : seq + 1, :length], "lengths": lengths[seq : seq + 1]}
            alone, alone_lengths = exported.run(None, one)
            assert alone_lengths[0] == together_lengths[seq] == alone.shape[1]
            np.testing.assert_allclose(together[seq, : alone_lengths[0]], alone[0], atol=1e-5)


def test_exported_blstm_against_its_checkpoint(command):
    assert command(*TRAIN, "model=blstm", *SMALL["blstm"]) == 0
    assert command("run=outputs/run", "task=export", "task.file=here.onnx", "forward_data=dev") == 0
    model = BLSTM(12, 9, hidden_dim=8, input_norm=True).eval()
    model.load_state_dict(torch.load("outputs/run/checkpoints/model.001.pt", weights_only=True)["model"])
    features = torch.from_numpy(japanese_vowels("eval").read([0]).streams["data"][0])[None]
    lengths = torch.tensor([features.shape[1]])
    with torch.no_grad():
        expected, _ = model(features, lengths)
    found, _ = session("here.onnx").run(None, {"features": features.numpy(), "lengths": lengths.numpy()})
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_wrong_options(command, capsys):
    assert command(*TRAIN, "model=blstm", *SMALL["blstm"]) == 0
    for word, message in {
        "task.data_key=classes": "task.data_key=classes: expected a stream of extern_data with one vector",
        "task.num_batches=0": "num_batches=0",
        "task.tolerance=-1": "tolerance=-1",
        "forward_data=foo": "forward_data=foo: no such data set",
        "task.tolerances=1": "did you mean 'tolerance'?",
    }.items():
        capsys.readouterr()
        assert command("run=outputs/run", "task=export", word) == 2
        assert message in capsys.readouterr().err
    assert not Path("outputs/run/export.001").exists()
