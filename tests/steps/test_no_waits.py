"""Train steps wait for no device: what they look at comes from the CPU."""

import numpy as np
import pytest
import torch

from returnn_hydra.batch import Batch, TensorSpec
from returnn_hydra.models.encoder_decoder import EncoderDecoder
from returnn_hydra.models.transducer import Transducer as TransducerModel
from returnn_hydra.models.transformer_decoder import TransformerDecoder
from returnn_hydra.models.transformer_encoder import TransformerEncoder
from returnn_hydra.models.transformer_lm import TransformerLanguageModel
from returnn_hydra.steps.attention import AttentionCrossEntropy, JointCTCAttention
from returnn_hydra.steps.cross_entropy import CrossEntropy
from returnn_hydra.steps.ctc import CTC
from returnn_hydra.steps.language_model import LanguageModelCrossEntropy
from returnn_hydra.steps.transducer import Transducer

F, LABELS = 5, 4
SMALL = {"model_dim": 8, "num_layers": 1, "num_heads": 2}
SPECS = {
    "data": TensorSpec(dim=F),
    "labels": TensorSpec(dim=LABELS, sparse=True),
    "frames": TensorSpec(dim=LABELS, sparse=True),
    "class": TensorSpec(dim=LABELS, sparse=True, shape=()),
}


def batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    lengths = {"data": torch.tensor([9, 8, 6]), "labels": torch.tensor([3, 1, 2])}
    lengths["frames"] = lengths["data"].clone()
    labels = {
        name: torch.randint(0, LABELS, size, generator=generator)
        for name, size in {"labels": (3, 3), "frames": (3, 9), "class": (3,)}.items()
    }
    return Batch({"data": torch.randn(3, 9, F, generator=generator), **labels}, lengths, ["a", "b", "c"])


def classifier() -> TransformerEncoder:
    return TransformerEncoder(F, LABELS + 1, **SMALL)


def attention() -> EncoderDecoder:
    return EncoderDecoder(TransformerEncoder(F, **SMALL), TransformerDecoder(8, LABELS, **SMALL), ctc=True)


def transducer() -> TransducerModel:
    return TransducerModel(TransformerEncoder(F, **SMALL), LABELS, 3, 4, 6)


STEPS = {
    "frames": (classifier, CrossEntropy, {"target_key": "frames"}),
    "sequence": (classifier, CrossEntropy, {"target_key": "class"}),
    "ctc": (classifier, CTC, {"target_key": "labels"}),
    "attention": (attention, AttentionCrossEntropy, {"target_key": "labels"}),
    "joint": (attention, JointCTCAttention, {"target_key": "labels"}),
    "transducer": (transducer, Transducer, {"target_key": "labels"}),
    "language model": (
        lambda: TransformerLanguageModel(LABELS, **SMALL),
        LanguageModelCrossEntropy,
        {"data_key": "labels"},
    ),
}


@pytest.mark.parametrize("name", STEPS)
def test_no_wait_where_the_streams_are_described(name, waits):
    make_model, kind, options = STEPS[name]
    torch.manual_seed(2)
    model, one = make_model(), batch()
    losses = []
    for title, extern_data in (("described", SPECS), ("not described", None)):
        torch.manual_seed(3)
        step = kind(**options, extern_data=extern_data)
        with waits:
            waits.now = title
            losses.append(step(model, one))
    assert waits.found["described"] == 0
    assert waits.found["not described"] > 0  # the counter counts: the labels are looked at
    for key, loss in losses[0].items():
        assert torch.equal(loss.sum, losses[1][key].sum)


def test_lengths_stay_at_hand_on_the_cpu():
    one = batch()
    moved = one.to("meta")
    assert moved.lengths["labels"].device.type == "meta"
    assert moved.lengths_on_cpu(moved.lengths["labels"]).tolist() == [3, 1, 2]
    assert moved.to("meta").cpu_lengths == moved.cpu_lengths
    assert one.lengths_on_cpu(one.lengths["data"] // 2).tolist() == [4, 4, 3]
    assert one.select(1, 3).lengths_on_cpu(one.select(1, 3).lengths["data"]).tolist() == [8, 6]
    assert isinstance(moved.lengths_on_cpu(moved.lengths["data"]), np.ndarray)
