"""The transducer's loss against the sum over all alignments, written out."""

import itertools
import math

import pytest
import torch

from returnn_hydra.nn.transducer_loss import transducer_loss

BLANK = 3


def slow_loss(log_probs: torch.Tensor, labels: list[int]) -> torch.Tensor:
    """All orders of T blanks (the last one fixed) and U labels."""
    num_frames, num_labels = log_probs.shape[0], len(labels)
    scores = []
    for emit_at in itertools.combinations(range(num_frames - 1 + num_labels), num_labels):
        t = u = 0
        score = log_probs.new_zeros(())
        for position in range(num_frames + num_labels):
            if position in emit_at:
                score = score + log_probs[t, u, labels[u]]
                u += 1
            else:
                score = score + log_probs[t, u, BLANK]
                t += 1
        assert (t, u) == (num_frames, num_labels)
        scores.append(score)
    return -torch.stack(scores).logsumexp(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_and_gradient_equal_the_sum_over_alignments(dtype):
    torch.manual_seed(1)
    cases = [(4, [0, 2, 2]), (1, []), (3, []), (1, [1, 0, 1]), (2, [2])]
    num_frames, num_labels = 4, 3
    logits = torch.randn(len(cases), num_frames, num_labels + 1, 4, dtype=dtype, requires_grad=True)
    log_probs = logits.log_softmax(-1)
    labels = torch.zeros(len(cases), num_labels, dtype=torch.long)
    for row, (_, sequence) in zip(labels, cases, strict=True):
        row[: len(sequence)] = torch.tensor(sequence, dtype=torch.long)
    frame_lengths = torch.tensor([frames for frames, _ in cases])
    label_lengths = torch.tensor([len(sequence) for _, sequence in cases])
    losses = transducer_loss(log_probs, labels, frame_lengths, label_lengths, BLANK)
    expected = torch.stack(
        [slow_loss(log_probs[i, :frames, : len(seq) + 1], seq) for i, (frames, seq) in enumerate(cases)]
    )
    torch.testing.assert_close(losses, expected)
    weights = torch.randn(len(cases), dtype=dtype)
    (gradient,) = torch.autograd.grad((losses * weights).sum(), logits, retain_graph=True)
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), logits)
    torch.testing.assert_close(gradient, expected_gradient)


def test_all_alignments_equally_likely():
    frames, labels, classes = 50, 20, 10
    log_probs = torch.full((1, frames, labels + 1, classes), -math.log(classes))
    loss = transducer_loss(
        log_probs, torch.ones(1, labels, dtype=torch.long), torch.tensor([frames]), torch.tensor([labels]), 0
    )
    ways = math.comb(frames - 1 + labels, labels)
    assert float(loss) == pytest.approx((frames + labels) * math.log(classes) - math.log(ways), rel=1e-5)


def test_without_frames_there_is_only_the_empty_sequence():
    log_probs = torch.randn(3, 2, 2, 4).log_softmax(-1).requires_grad_()
    labels, label_lengths = torch.ones(3, 1, dtype=torch.long), torch.tensor([0, 1, 1])
    losses = transducer_loss(log_probs, labels, torch.tensor([0, 0, 2]), label_lengths, 0)
    assert losses[:2].tolist() == [0.0, math.inf]
    assert math.isfinite(float(losses[2].detach()))
    losses.sum().backward()
    assert not log_probs.grad[:2].any()
    assert log_probs.grad.isfinite().all()
