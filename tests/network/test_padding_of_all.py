"""No layer class is left out: each gives a sequence the same in a padded batch as alone, or is excused with a reason.

Classes that the golden cases have (`test_padding.py`) are not repeated here.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from returnn_hydra.batch import Batch, TensorSpec
from returnn_hydra.network import NetworkModel
from returnn_hydra.network.registry import layer_class, layer_class_names
from tests.network.test_padding import cases_of_padding

EXCUSED = {
    "accumulate_mean": "the mean over a batch",
    "loss": "a sum over the batch",
    "random": "draws for the whole batch",
    "global_train_step": "has no batch axis",
    "boolean_mask": "the result has no batch axis",
    "istft": "overlaps with what is behind the end, as in RETURNN",
    "time_chunking": "makes its own batch axis; a long sequence gives the others more chunks, as in RETURNN",
    "time_unchunking": "see time_chunking",
    "batch_norm": "golden case; learns from all frames of the batch",
    "kenlm": "needs a file; tests/network/test_kenlm.py has sequences of several lengths",
}
SPECS = {
    "data": TensorSpec(dim=4),
    "classes": TensorSpec(dim=5, sparse=True, same_length_as="data"),
    "other": TensorSpec(dim=5, sparse=True),
    "sizes": TensorSpec(dim=2, shape=(2,), dtype="int32"),
}
LENGTHS, OTHER = [8, 5, 7], [3, 4, 2]


def layer(cls: str, frm: Any = "data", **options: Any) -> dict[str, Any]:
    return {"class": cls, "from": frm, **options}


EMBEDDED = layer("linear", "data:other", n_out=4, activation=None)
SUMMARY = layer("reduce", "data", mode="mean", axis="T")
HEADS = {"q": layer("linear", n_out=4, activation=None), "query": layer("reduce", "q", mode="mean", axis="T")}
STEP = {
    "output": layer("copy", "data:source"),
    "table": layer("edit_distance_table", "output", target="layer:base:data:other", is_output_layer=True),
    "best": layer("optimal_completions", "prev:table", target="layer:base:data:other", is_output_layer=True),
}
DECODER = {
    "embed": layer("linear", "prev:output", n_out=3, activation=None),
    "s": layer("rnn_cell", ["embed", "base:summary"], n_out=6, unit="LSTMBlock"),
    "prob": layer("softmax", "s", n_out=5),
    "output": layer("choice", "prob", target="other", beam_size=3, initial_output=1, length_normalization=False),
    "end": layer("compare", "output", value=0),
}


def searched(last: dict[str, Any], unit: dict[str, Any] = DECODER) -> dict[str, Any]:
    """A layer behind a search whose sequences end at different steps."""
    found = layer("rec", [], unit=unit, target="other", max_seq_len=6, include_eos=True)
    return {"summary": SUMMARY, "output": found, "found": {**last, "only_on_search": True}}


PARENTS = layer("choice_get_src_beams", "output", is_output_layer=True, only_on_search=True)
# class -> network with an "output"; all of them read `data` (8, 5, 7 frames) and `other` (3, 4, 2)
NETWORKS: dict[str, dict[str, Any]] = {
    "batch_softmax": {"output": layer("batch_softmax")},
    "choice": searched(layer("decide", "output")),
    "choice_get_beam_scores": searched(layer("choice_get_beam_scores", "output")),
    "choice_get_src_beams": searched(layer("copy", "output/parents"), {**DECODER, "parents": PARENTS}),
    "decide_keep_beam": searched(layer("decide_keep_beam", "output")),
    "split_batch_beam": searched(layer("split_batch_beam", "output")),
    "cum_concat": {
        "output": layer("rec", unit={
            "frames": layer("cum_concat", "data:source"),
            "energy": layer("dot", ["data:source", "frames"], red1="F", red2="F", var1=None, var2="stag:rec-history"),
            "weights": layer("softmax_over_spatial", "energy", axis="stag:rec-history"),
            "output": layer("dot", ["weights", "frames"], red1="stag:rec-history", red2="stag:rec-history",
                            var1=None, var2="F"),
        }),
    },
    "combine_dims": {
        "parts": layer("split_dims", axis="F", dims=(2, 2)),
        "output": layer("combine_dims", "parts", axes="static"),
    },
    "cond": {
        "train": {"class": "train_flag"},
        "output": layer("cond", [], condition="train", true_layer=layer("copy"),
                        false_layer=layer("eval", eval="3 * source(0)")),
    },
    "ctc_loss": {
        "logits": layer("linear", n_out=6, activation=None),
        "output": layer("ctc_loss", [], logits="logits", targets="data:other"),
    },
    "dct": {"output": layer("dct", norm="ortho")},
    "dot_attention": {**HEADS, "output": layer("dot_attention", "query", base="data", base_ctx="q")},
    "edit_distance": {"output": layer("edit_distance", [], a="data:classes", b="data:other")},
    "edit_distance_table": {"rec": layer("rec", "data:classes", unit=STEP), "output": layer("copy", "rec/table")},
    "optimal_completions": {"rec": layer("rec", "data:classes", unit=STEP), "output": layer("copy", "rec/best")},
    "elemwise_prod": {"output": layer("elemwise_prod", axes="F", size=4, initializer=2.0)},
    "fast_bw": {
        "scores": layer("linear", n_out=6, activation="log_softmax"),
        "output": layer("fast_bw", "scores", align_target="ctc", align_target_key="other"),
    },
    "forced_align": {
        "scores": layer("linear", n_out=6, activation="log_softmax"),
        "output": layer("forced_align", "scores", align_target="data:other", topology="ctc", input_type="log_prob"),
    },
    "flatten_batch": {
        "flat": layer("flatten_batch"),
        "h": layer("eval", "flat", eval="2 * source(0)"),
        "output": layer("unflatten_batch", "h"),
    },
    "fold": {
        "windows": layer("window", window_size=3),
        "output": layer("fold", "windows", in_spatial_dim="T", window_dim="dim:3", mode="sum"),
    },
    "gauss_window_attention": {
        "mean": SUMMARY,
        "place": layer("slice", "mean", axis="F", slice_end=1),
        "output": layer("gauss_window_attention", "place", base="data", window_size=3),
    },
    "hdf_dump": {"output": layer("hdf_dump", filename="never-written.hdf")},
    "hidden": {"output": layer("hidden", n_out=3, activation="tanh")},
    "forward": {"output": layer("forward", n_out=3, activation="tanh")},
    "identity": {"output": layer("identity")},
    "source": {"output": layer("source")},
    "complex_to_alternating_real": {
        "wave": layer("linear", n_out=1, activation=None),
        "spectra": layer("stft", "wave", frame_shift=2, frame_size=4),
        "output": layer("complex_to_alternating_real", "spectra"),
    },
    "math_norm": {"output": layer("math_norm", p=2, axis="T")},
    "mel_filterbank": {
        "power": layer("linear", n_out=9, activation="exp"),
        "output": layer("mel_filterbank", "power", n_out=5, fft_size=16, sampling_rate=16000),
    },
    "print": {"output": layer("print", summarize=0)},
    "range_from_length": {
        "n": layer("length"),
        "range": layer("range_from_length", "n"),
        "output": layer("combine", ["classes_", "range"], kind="mul"),
        "classes_": layer("copy", "data:classes"),
    },
    "range_in_axis": {
        "range": layer("range_in_axis", axis="T", keepdims=False, dtype="float32"),
        "output": layer("combine", ["data", "range"], kind="mul"),
    },
    "rec_last_output": {
        "rec": layer("rec", "data", unit={
            "lstm": layer("rnn_cell", "data:source", n_out=3, unit="LSTMBlock", is_output_layer=True),
            "output": layer("linear", ["lstm", "prev:output"], n_out=2, activation="tanh", need_last=True),
        }),
        "output": layer("rec_last_output", [], rec_layer="rec", sub_layer_name="output"),
    },
    "rec_unstack": {
        "output": layer("rec", "data", unit={
            "other": layer("rec_unstack", "base:twice", axis="T"),
            "output": layer("combine", ["data:source", "other"], kind="mul"),
        }),
        "twice": layer("eval", eval="2 * source(0)"),
    },
    "remove": {"output": layer("remove", "data:classes", symbol=2)},
    "resize": {"output": layer("resize", factor=2, axis="T")},
    "scaled_grad": {"output": layer("scaled_grad", scale=0.5)},
    "scatter_nd": {
        "i": layer("range_in_axis", "data:other", axis="T"),
        "value": layer("cast", "data:other", dtype="float32"),
        "position": layer("combine", ["i", "data:other"], kind="minimum"),
        "output": layer("scatter_nd", "value", position="position", position_axis="T", output_dim_via_time_from="data"),
    },
    "search_sorted": {
        "sorted": layer("cumsum", "data:classes", axis="T"),
        "output": layer("search_sorted", [], sorted_sequence="sorted", values="data:other", axis="T"),
    },
    "sparse_softmax_cross_entropy_with_logits": {
        "logits": layer("linear", n_out=5, activation=None),
        "output": layer("sparse_softmax_cross_entropy_with_logits", [], logits="logits", targets="data:classes"),
    },
    "split": {"s": layer("split", axis="F", size_splits=[1, 3]), "output": layer("copy", "s/1")},
    "split_batch_time": {
        "flat": layer("merge_dims", axes="BT", keep_order=True),
        "output": layer("split_batch_time", "flat", base="data"),
    },
    "stft": {
        "wave": layer("linear", n_out=1, activation=None),
        "spectra": layer("stft", "wave", frame_shift=2, frame_size=4),
        "output": layer("eval", "spectra", eval="tf.abs(source(0))"),
    },
    "synthetic_gradient": {"a": layer("linear", n_out=4), "output": layer("synthetic_gradient", "data", gradient="a")},
    "top_k": {"output": layer("top_k", axis="F", k=2)},
    "unflatten_nd": {"output": layer("unflatten_nd", sizes="data:sizes", num_axes=2)},
}  # fmt: skip
SEARCHES = {"choice", "split_batch_beam", "choice_get_beam_scores", "choice_get_src_beams", "decide_keep_beam"}
COVERED_BY = {
    "decide": "choice", "train_flag": "cond", "unflatten_batch": "flatten_batch"
}  # fmt: skip
"""Classes that another one's network has."""


@pytest.fixture(scope="module")
def batch() -> Batch:
    generator = torch.Generator().manual_seed(9)
    tensors = {
        "data": torch.randn(3, 8, 4, generator=generator),  # the padding has values, too
        "classes": torch.randint(0, 5, (3, 8), generator=generator, dtype=torch.int32),
        "other": torch.randint(0, 5, (3, 4), generator=generator, dtype=torch.int32),
        "sizes": torch.tensor([[4, 2], [5, 1], [7, 1]], dtype=torch.int32),
    }
    lengths, other = torch.tensor(LENGTHS), torch.tensor(OTHER)
    return Batch(tensors, {"data": lengths, "classes": lengths, "other": other}, ["a", "b", "c"])


def test_no_class_is_missing() -> None:
    ours = {name for name in layer_class_names() if layer_class(name, "").function.__module__.startswith("returnn_")}
    golden = {name for net in cases_of_padding() for name in classes_of(net)}
    here = {*NETWORKS, *COVERED_BY}
    assert ours - golden - here - set(EXCUSED) == set()
    assert here | set(EXCUSED) <= ours
    places = {**{name: name for name in NETWORKS}, **COVERED_BY}
    assert [name for name, place in places.items() if name not in {*classes_of(NETWORKS[place]), "decide"}] == []


def classes_of(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["class"]} if isinstance(value.get("class"), str) else set()
        return own.union(*map(classes_of, value.values()))
    if isinstance(value, (list, tuple)):
        return set().union(*map(classes_of, value))
    return set()


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_alone_or_padded(name: str, batch: Batch) -> None:
    torch.manual_seed(2)
    wanted = "found" if name in SEARCHES else "output"
    model = NetworkModel(NETWORKS[name], SPECS, search=name in SEARCHES).eval()
    options: dict[str, Any] = {"search": name in SEARCHES, "with_losses": False, "layers": [wanted]}
    with torch.no_grad():
        together = model(batch, **options).outputs[wanted].zero_padding().batch_major()
        for i in range(batch.num_seqs):
            alone = model(batch.select(i, i + 1), **options).outputs[wanted].zero_padding().batch_major()
            mine, other = together.raw[i], alone.raw[0]
            for place, axis in enumerate(together.axes[1:]):
                if axis.is_dynamic:
                    own = length_of(axis.lengths, i)
                    assert alone.axes[place + 1].size == own
                    mine = mine.narrow(place, 0, own)
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def length_of(lengths: torch.Tensor, i: int) -> int:
    """The longest, where lengths differ from frame to frame."""
    return int(lengths[i].max())
