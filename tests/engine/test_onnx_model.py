"""ONNX export: what is written is checked, and what goes wrong is said."""

import sys

import pytest
import torch
from torch import nn

from returnn_hydra.engine import onnx_model
from returnn_hydra.engine.onnx_model import Encoder, ExportError, export, largest_difference
from returnn_hydra.extras import MissingExtra

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
pytest.importorskip("onnxscript")


class Double(nn.Module):
    def forward(self, features, lengths):
        return 2 * features, lengths


class HalfOfTheFrames(nn.Module):
    def forward(self, features, lengths):
        return features[:, ::2], (lengths + 1) // 2


class WithEncoder(nn.Module):
    def encode(self, features, lengths):
        return features + 1, lengths

    def forward(self, features, lengths, labels, label_lengths):
        raise AssertionError


class OtherInExport(nn.Module):
    """Computes something else while it is exported."""

    def forward(self, features, lengths):
        return features + (1.0 if torch.onnx.is_in_onnx_export() else 2.0), lengths


PAIRS = [(torch.randn(batch, time, 3), torch.tensor([time, 1, 4][:batch])) for batch, time in ((3, 9), (1, 4))]


def exported(model, tmp_path, pairs=PAIRS, tolerance=1e-6):
    file = tmp_path / "model.onnx"
    encoder = Encoder(model)
    return file, export(encoder, 3, file, lambda part: largest_difference(part, encoder, pairs, tolerance))


@pytest.mark.parametrize("model", [Double(), HalfOfTheFrames(), WithEncoder()])
def test_first_way_that_passes(model, tmp_path):
    file, (way, difference) = exported(model, tmp_path)
    assert way == "tracing"
    assert difference < 1e-6
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_no_way(tmp_path):
    with pytest.raises(
        ExportError,
        match=r"tracing: ExportError: .+differs from torch by 1.+; torch.export: ExportError: .+ by 1",
    ):
        exported(OtherInExport(), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (nn.Sequential(), None),
        (Double(), "differs from torch by"),
        (HalfOfTheFrames(), r"outputs \(3, 9, 3\) with lengths \[9, 1, 4\], torch \(3, 5, 3\) with \[5, 1, 2\]"),
    ],
)
def test_file_of_another_model(tmp_path, other, message):
    class Same(nn.Module):
        def forward(self, features, lengths):
            return 1 * features, lengths

    file, _ = exported(Same(), tmp_path)
    encoder = Encoder(Same() if message is None else other)
    if message is None:
        assert largest_difference(file, encoder, PAIRS, 1e-6) == 0.0
        return
    with pytest.raises(ExportError, match=message):
        largest_difference(file, encoder, PAIRS, 1e-6)


def test_padding_may_differ(tmp_path):
    class Padding(nn.Module):
        def __init__(self, value):
            super().__init__()
            self.value = value

        def forward(self, features, lengths):
            real = torch.arange(features.shape[1]) < lengths[:, None]
            return features.masked_fill(~real[:, :, None], self.value), lengths

    file, _ = exported(Padding(0.0), tmp_path)
    assert largest_difference(file, Encoder(Padding(5.0)), PAIRS, 1e-6) == 0.0


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_missing_package_names_the_extra(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=r"pip install 'returnn-hydra\[export\]'"):
        onnx_model.require_packages()
