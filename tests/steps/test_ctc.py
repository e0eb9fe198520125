"""CTC: the sum over all paths written out, the best path, and what it refuses."""

import itertools

import pytest
import torch
from torch import nn

from returnn_hydra.batch import Batch
from returnn_hydra.steps.ctc import CTC, best_path

CLASSES = 3


class Given(nn.Module):
    """A model that passes its input on as logits."""

    def forward(self, features, lengths):
        return features, lengths


def collapse(path: tuple[int, ...], blank: int) -> list[int]:
    return [label for label, _ in itertools.groupby(path) if label != blank]


def make_batch(lengths: list[int], labels: list[list[int]]) -> Batch:
    generator = torch.Generator().manual_seed(1)
    padded = torch.zeros(len(labels), max(map(len, labels)), dtype=torch.int32)
    for row, sequence in zip(padded, labels, strict=True):
        row[: len(sequence)] = torch.tensor(sequence, dtype=torch.int32)
    streams = {"data": torch.randn(len(labels), max(lengths), CLASSES, generator=generator), "classes": padded}
    all_lengths = {"data": torch.tensor(lengths), "classes": torch.tensor(list(map(len, labels)))}
    return Batch(streams, all_lengths, [f"seq-{index}" for index in range(len(labels))])


def batch_for(blank: int) -> tuple[Batch, list[list[int]]]:
    first, second = [label for label in range(CLASSES) if label != blank % CLASSES]
    labels = [[first, second], [second, second], [first], []]
    return make_batch([4, 3, 1, 2], labels), labels


@pytest.mark.parametrize("blank", [-1, 0, 1])
def test_loss_is_the_sum_over_all_paths(blank):
    batch, labels = batch_for(blank)
    model = Given().eval()
    probabilities = batch["data"].double().softmax(-1)
    expected = []
    for row, length, sequence in zip(probabilities, batch.lengths["data"].tolist(), labels, strict=True):
        total = 0.0
        for path in itertools.product(range(CLASSES), repeat=length):
            if collapse(path, blank % CLASSES) == sequence:
                total += float(torch.stack([row[t, label] for t, label in enumerate(path)]).prod())
        expected.append(-torch.tensor(total).log())
    loss = CTC(blank=blank)(model, batch)["ctc"]
    assert float(loss.sum) == pytest.approx(float(sum(expected)), rel=1e-5)
    assert int(loss.count) == 5
    scores = CTC(blank=blank).log_likelihoods(model, batch)
    assert (-scores).tolist() == pytest.approx([float(value) for value in expected], rel=1e-5)


@pytest.mark.parametrize("blank", [0, 2])
def test_best_path(blank):
    torch.manual_seed(2)
    logits, lengths = torch.randn(20, 7, CLASSES), torch.randint(1, 8, (20,))
    labels, sizes = best_path(logits, lengths, blank)
    for index, length in enumerate(lengths.tolist()):
        path = tuple(logits[index, :length].argmax(-1).tolist())
        assert labels[index, : int(sizes[index])].tolist() == collapse(path, blank)


def test_label_error_counts_edits_in_evaluation_only():
    batch = make_batch([3, 2], [[0, 1], [1]])
    logits = torch.zeros(2, 3, CLASSES)
    for index, path in enumerate([(0, 2, 0), (2, 1)]):  # hypotheses: 0 0, and 1
        for t, label in enumerate(path):
            logits[index, t, label] = 5.0
    batch = Batch({**batch.tensors, "data": logits}, batch.lengths, batch.seq_tags)
    error = CTC()(Given().eval(), batch)["label_error"]
    assert (int(error.sum), int(error.count)) == (1, 3)
    assert error.as_error
    assert "label_error" not in CTC()(Given().train(), batch)


def test_too_many_labels():
    batch = make_batch([4, 2], [[0, 1], [1, 1]])
    with pytest.raises(
        ValueError, match=r"'seq-1' needs 3 outputs for its labels, and the model gives 2.*skip_too_long"
    ):
        CTC()(Given().eval(), batch)
    losses = CTC(skip_too_long=True)(Given().eval(), batch)
    only_first = CTC()(Given().eval(), batch.select(0, 1))
    assert float(losses["ctc"].sum) == pytest.approx(float(only_first["ctc"].sum), rel=1e-6)
    assert int(losses["ctc"].count) == 2
    assert (int(losses["ctc_skipped"].sum), losses["ctc_skipped"].count) == (1, 2)
    assert CTC().log_likelihoods(Given().eval(), batch)[1] == -torch.inf


def test_wrong_labels_are_named():
    with pytest.raises(ValueError, match=r"'seq-0': label 2 at position 1 .* 3 classes allow 0\.\.2 but 2, the blank"):
        CTC()(Given().eval(), make_batch([4], [[0, 2]]))
    with pytest.raises(ValueError, match=r"label 7 at position 0"):
        CTC()(Given().eval(), make_batch([4], [[7]]))
    with pytest.raises(ValueError, match=r"blank=3: the model has only 3 classes"):
        CTC(blank=3)(Given().eval(), make_batch([4], [[0]]))
    batch = make_batch([4], [[0]])
    without_time = Batch({**batch.tensors, "classes": torch.tensor([0])}, {"data": batch.lengths["data"]}, ["a"])
    with pytest.raises(ValueError, match="'classes' has one value per sequence"):
        CTC()(Given().eval(), without_time)
