"""Every layer gives a sequence the same in a padded batch as alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from returnn_hydra.batch import Batch

MIXES_SEQUENCES = {
    "reduce_mean_BT",
    "accumulate_mean",
    "batch_norm_train",
    "batch_norm_eval",
    "time_chunking",
    "time_unchunking",
}
"""These reduce over the batch, make their own batch axis, or (batch_norm) learn from what they see."""
READS_PADDING = {
    "conformer_block", "pad_T", "transposed_conv_overlap", "conv1d_stride", "pool1d_max", "pool1d_max3", "pool1d_avg",
    "att_encdec_eval", "att_encdec_search", "att_encdec_search_beam1",
}  # fmt: skip
"""Convolution, pooling and pad read the padding of shorter sequences, as RETURNN does, unless `use_time_mask`."""
NOT_PER_SEQUENCE = {"att_encdec_train", "range_in_axis", "range_in_axis_nokeep", "relative_positional_encoding"}
CASES = Path(__file__).parent.parent / "data/golden/tf_cases.py"


def golden_cases() -> dict[str, dict[str, Any]]:
    namespace: dict[str, Any] = {}
    exec(compile(CASES.read_text(), str(CASES), "exec"), namespace)
    return namespace["CASES"]


def names() -> list[str]:
    skip = MIXES_SEQUENCES | READS_PADDING | NOT_PER_SEQUENCE
    return [name for name in golden_cases() if name not in skip]


def cases_of_padding() -> list[dict[str, Any]]:
    """The networks that are tested here."""
    cases = golden_cases()
    return [cases[name]["net"] for name in names()]


@pytest.mark.parametrize("name", names())
def test_alone_or_padded(name: str, make_case: Any) -> None:
    case = make_case(name)
    case.model.eval()
    together = case.run(with_losses=not case.case.get("search"), layers=["decision"] if case.case.get("search") else [])
    for i in range(case.batch.num_seqs):
        one = case.batch.select(i, i + 1)
        alone = case.model(
            one,
            search=bool(case.case.get("search")),
            with_losses=not case.case.get("search"),
            layers=["decision"] if case.case.get("search") else [],
        )
        for path, value in together.outputs.items():
            if value.batch_axis is None or value.beam_axis is not None:
                continue
            mine = value.zero_padding().batch_major()
            other = alone.outputs[path].zero_padding().batch_major()
            raw = mine.raw[i]
            for place, axis in enumerate(mine.axes[1:]):
                if axis.is_dynamic:
                    raw = raw.narrow(place, 0, other.raw.shape[place + 1])
            torch.testing.assert_close(raw, other.raw[0], rtol=1e-4, atol=1e-5, msg=lambda m, p=path: f"{p}: {m}")


def test_masked_convolution_does_not_read_padding(make_case: Any) -> None:
    """`use_time_mask` makes convolutions independent of the padding."""
    from returnn_hydra.batch import TensorSpec
    from returnn_hydra.network import NetworkModel

    net = {
        "a": {"class": "linear", "from": "data", "n_out": 4, "activation": None, "bias_init": 1.0},
        "output": {
            "class": "conv", "from": "a", "n_out": 3, "filter_size": (3,), "padding": "same", "with_bias": True,
            "use_time_mask": True,
        },
    }  # fmt: skip
    model = NetworkModel(net, {"data": TensorSpec(dim=2)}).eval()
    data = torch.randn(2, 6, 2)
    both = Batch({"data": data}, {"data": torch.tensor([6, 3])}, ["a", "b"])
    together = model.layer_output(model(both)).per_sequence()
    alone = model.layer_output(model(both.select(1, 2))).per_sequence()
    torch.testing.assert_close(torch.from_numpy(together[1]), torch.from_numpy(alone[0]))


def test_facts_are_there() -> None:
    facts = json.loads((CASES.parent / "tf_netdict.json").read_text())["cases"]
    assert len(facts) == 114
