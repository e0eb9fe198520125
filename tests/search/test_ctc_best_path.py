"""Best path decoding and forced alignment against enumeration of all paths."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from returnn_hydra.search.align import ctc_align
from returnn_hydra.search.ctc_best_path import collapse_path, ctc_best_path

C = 3


@pytest.mark.parametrize("blank", [-1, 0, 1])
def test_best_path_is_the_best_of_all_paths(toy: SimpleNamespace, blank: int) -> None:
    encoded = toy.encoded(4, 5, C, seed=blank + 1)
    for seq, (hyp,) in enumerate(ctc_best_path(encoded.ctc_log_probs, encoded.lengths, blank)):
        frames = int(encoded.lengths[seq])
        table = encoded.ctc_log_probs[seq, :frames]
        paths = itertools.product(range(C), repeat=frames)
        score, path = max((sum(float(table[t, c]) for t, c in enumerate(path)), path) for path in paths)
        assert hyp.score == pytest.approx(score, abs=1e-6)
        assert tuple(hyp.labels) == toy.collapse(path, blank % C)
        for label, (start, end) in zip(hyp.labels, hyp.times, strict=True):
            assert set(path[start:end]) == {label}
            assert start == 0 or path[start - 1] != label
            assert end == frames or path[end] != label


@given(st.lists(st.integers(0, 2), max_size=12))
def test_frames_of_labels_and_blanks_cover_the_path(path: list[int]) -> None:
    hyp = collapse_path(path, 0, 0.0)
    rebuilt = [0] * len(path)
    for label, (start, end) in zip(hyp.labels, hyp.times or [], strict=True):
        rebuilt[start:end] = [label] * (end - start)
    assert rebuilt == path


def test_no_such_blank(toy: SimpleNamespace) -> None:
    encoded = toy.encoded(1, 3, C)
    with pytest.raises(ValueError, match="blank=3 is not one of the 3 classes"):
        ctc_best_path(encoded.ctc_log_probs, encoded.lengths, 3)


LABELS = [[], [1], [1, 1], [1, 2], [2, 1, 2], [2, 2, 1]]


@pytest.mark.parametrize("num_frames", [1, 2, 4, 6])
def test_alignment_is_the_best_path_of_its_labels(toy: SimpleNamespace, num_frames: int) -> None:
    labels = [seq for seq in LABELS if len(seq) + sum(a == b for a, b in itertools.pairwise(seq)) <= num_frames]
    rng = torch.Generator().manual_seed(num_frames)
    log_probs = torch.randn(len(labels), num_frames + 2, C, generator=rng).log_softmax(-1)
    log_probs[:, num_frames:] = torch.nan  # padding
    lengths = torch.full((len(labels),), num_frames)
    padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(seq, dtype=torch.long) for seq in labels], True, 77)
    found = ctc_align(log_probs, lengths, padded, torch.tensor([len(seq) for seq in labels]), blank=0)
    for b, seq in enumerate(labels):
        paths = [p for p in itertools.product(range(C), repeat=num_frames) if toy.collapse(p, 0) == tuple(seq)]
        score, path = max((sum(float(log_probs[b, t, c]) for t, c in enumerate(p)), p) for p in paths)
        assert float(found.scores[b]) == pytest.approx(score, abs=1e-6)
        assert tuple(found.classes[b, :num_frames].tolist()) == path
        assert (found.positions[b, num_frames:] == -1).all()
        positions = found.positions[b, :num_frames].tolist()
        assert [seq[p] if p >= 0 else 0 for p in positions] == list(path)
        assert list(dict.fromkeys(p for p in positions if p >= 0)) == list(range(len(seq)))
        expected = collapse_path(list(path), 0, 0.0).times
        assert found.label_times()[b] == expected


def test_alignment_does_not_depend_on_the_batch(toy: SimpleNamespace) -> None:
    encoded = toy.encoded(4, 9, 5)
    labels, label_lengths = torch.randint(0, 4, (4, 3)), torch.tensor([3, 1, 0, 2])
    whole = ctc_align(encoded.ctc_log_probs, encoded.lengths, labels, label_lengths)
    for b in (3, 1):
        alone = toy.part(encoded, [b], cut=True)
        cut = labels[[b], : int(label_lengths[b])]
        single = ctc_align(alone.ctc_log_probs, alone.lengths, cut, label_lengths[[b]])
        assert torch.equal(single.positions[0], whole.positions[b, : int(encoded.lengths[b])])
        assert torch.equal(single.scores[0], whole.scores[b])


@pytest.mark.parametrize(
    ("labels", "frames", "message"),
    [
        ([1, 1, 2], 3, "sequence utt-1 has 3 frames, but its labels need at least 4"),
        ([1, 0], 5, "sequence utt-1: label 1 is 0; expected a class in .0, 3. other than the blank, 0"),
        ([1, 3], 5, "label 1 is 3"),
    ],
)
def test_impossible_alignments(labels: list[int], frames: int, message: str) -> None:
    log_probs = torch.zeros(1, frames, 3).log_softmax(-1)
    lengths, label_lengths = torch.tensor([frames]), torch.tensor([len(labels)])
    with pytest.raises(ValueError, match=message):
        ctc_align(log_probs, lengths, torch.tensor([labels]), label_lengths, blank=0, seq_tags=["utt-1"])
    if frames == 5 and labels == [1, 3]:
        log_probs[:, :, 2] = -torch.inf
        with pytest.raises(ValueError, match="sequence utt-1: every CTC path of its labels has probability 0"):
            ctc_align(log_probs, lengths, torch.tensor([[1, 2]]), label_lengths, blank=0, seq_tags=["utt-1"])
