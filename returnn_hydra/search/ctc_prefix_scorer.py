"""CTC as a label-synchronous scorer: the probability that the labels begin with a prefix.

Legend: B sequences, K hypotheses per sequence, T frames, C classes (labels and the blank), V labels of the search.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from returnn_hydra.batch import sequence_mask
from returnn_hydra.search.beam import gather_beams
from returnn_hydra.search.ctc_best_path import blank_class
from returnn_hydra.search.scorer import Encoded, concat_tensors

LOG_ZERO = -1e4
"""Log probability that stands for 0 in single frames: sums over frames stay finite, and far below everything that
happens.
"""


class _Prefixes(NamedTuple):
    """Forward probabilities of the prefixes, all log, float64."""

    blanks: Tensor
    """(B, T) log probability of the blank; 0 behind the end, where a sequence only waits."""
    labels: Tensor
    """(B, T, V) log probability of every label; LOG_ZERO behind the end."""
    ends_blank: Tensor
    """(B, K, T): all paths of the prefix through frame t that end with a blank."""
    ends_label: Tensor
    """(B, K, T): those that end with the prefix's last label."""
    last: Tensor | None
    """(B, K) last label of the prefix; None: the prefix is empty."""
    score: Tensor
    """(B, K): log probability of all label sequences that begin with the prefix."""
    extended: Tensor | None
    """(B, K, V): the same for the prefix and one more label; None: not computed yet."""


class CTCPrefixScorer:
    """Conditional label probabilities p(label | prefix) of a CTC model; they sum to 1 with that of the end of the
    sequence.

    p(c | g) = psi(g c) / psi(g), where psi(g) is the probability of all label sequences that begin with g, and p(end |
    g) = p(g) / psi(g). Prefix probabilities as in Graves 2008, "Supervised sequence labelling with recurrent neural
    networks", section 7.5, and Watanabe et al. 2017, "Hybrid CTC/attention architecture for end-to-end speech
    recognition", algorithm 2; the recursions over frames are written as cumulative sums here, so that a step is a few
    tensor operations without a loop over frames.

    A label that fits the prefix less than exp(-700) times as well as the best frame does counts as impossible
    (underflow).

    Arguments:
        vocab_size: V. C = V + 1: the labels are the classes without the blank. C = V: labels and classes have the same
            numbers, and the label of the blank's number is impossible.
        eos: label for the end of the sequence; the class of the same number, if any, is never used.
        blank: class of the blank; negative numbers count from the end.
    """

    max_score = 0.0

    def __init__(self, vocab_size: int, eos: int, blank: int = -1) -> None:
        self.vocab_size, self.eos, self.blank = vocab_size, eos, blank

    def initial_state(self, encoded: Encoded) -> _Prefixes:
        """
        Raises:
            ValueError: no CTC log probabilities, or the number of classes does not fit the vocabulary.
        """
        if encoded.ctc_log_probs is None:
            raise ValueError("a CTC prefix scorer needs Encoded.ctc_log_probs, which is missing")
        num_classes = encoded.ctc_log_probs.shape[-1]
        if num_classes not in (self.vocab_size, self.vocab_size + 1):
            raise ValueError(
                f"CTC has {num_classes} classes; expected the vocabulary size {self.vocab_size}, "
                f"or {self.vocab_size + 1} with the blank as a class of its own"
            )
        blank = blank_class(self.blank, num_classes)
        real = sequence_mask(encoded.lengths, encoded.ctc_log_probs.shape[1])[..., None]
        log_probs = encoded.ctc_log_probs.double().clamp(min=LOG_ZERO)
        blanks = log_probs[..., blank].masked_fill(~real[..., 0], 0.0)
        labels = log_probs.masked_fill(~real, LOG_ZERO)
        if num_classes == self.vocab_size:
            labels[..., blank] = LOG_ZERO
        else:
            labels = torch.cat([labels[..., :blank], labels[..., blank + 1 :]], dim=-1)
        ends_blank = blanks.cumsum(1)[:, None]  # the empty prefix: nothing but blanks
        ends_label = torch.full_like(ends_blank, -torch.inf)
        return _Prefixes(blanks, labels, ends_blank, ends_label, None, torch.zeros_like(ends_blank[..., 0]), None)

    @torch.no_grad()
    def score(self, labels: Tensor, state: _Prefixes) -> tuple[Tensor, _Prefixes]:
        prefixes = state if state.extended is None else _append(labels, state)
        extended = _log_matmul(_enter(prefixes), prefixes.labels)  # (B, K, V)
        if prefixes.last is not None:
            again = (_enter_again(prefixes) + _emissions(prefixes.last, prefixes)).logsumexp(-1)
            extended.scatter_(2, prefixes.last[..., None], again[..., None])
        extended[..., self.eos] = torch.logaddexp(prefixes.ends_blank[..., -1], prefixes.ends_label[..., -1])
        score = prefixes.score[..., None]
        log_probs = torch.where(score == -torch.inf, score, extended - score)
        return log_probs, prefixes._replace(extended=extended)

    def select(self, state: _Prefixes, parents: Tensor) -> _Prefixes:
        return _select_hypotheses(state, lambda tensor: gather_beams(tensor, parents))

    def keep(self, state: _Prefixes, seqs: Tensor) -> _Prefixes:
        state = _select_hypotheses(state, lambda tensor: tensor.index_select(0, seqs))
        return state._replace(blanks=state.blanks.index_select(0, seqs), labels=state.labels.index_select(0, seqs))

    def concat(self, states: list[_Prefixes]) -> _Prefixes:
        return concat_tensors(states)


def _select_hypotheses(state: _Prefixes, pick: Callable[[Tensor], Tensor]) -> _Prefixes:
    return state._replace(
        ends_blank=pick(state.ends_blank),
        ends_label=pick(state.ends_label),
        last=None if state.last is None else pick(state.last),
        score=pick(state.score),
        extended=None if state.extended is None else pick(state.extended),
    )


def _append(labels: Tensor, state: _Prefixes) -> _Prefixes:
    """The prefixes with one more label (B, K) each."""
    assert state.extended is not None
    enter = _enter(state)
    if state.last is not None:
        enter = torch.where((labels == state.last)[..., None], _enter_again(state), enter)
    ends_label = _accumulate(enter, _emissions(labels, state))
    ends_blank = _accumulate(_before(ends_label, -torch.inf), state.blanks[:, None])
    score = state.extended.gather(2, labels[..., None])[..., 0]
    return _Prefixes(state.blanks, state.labels, ends_blank, ends_label, labels, score, None)


def _accumulate(enter: Tensor, emission: Tensor) -> Tensor:
    """r[t] = (r[t - 1] + enter[t]) * emission[t] in log space, over the last axis, as a cumulative sum."""
    total = emission.cumsum(-1)
    return total + torch.logcumsumexp(enter - (total - emission), dim=-1)


def _enter(prefixes: _Prefixes) -> Tensor:
    """(B, K, T): all paths of the prefix that are complete before frame t."""
    paths = torch.logaddexp(prefixes.ends_blank, prefixes.ends_label)
    return _before(paths, 0.0 if prefixes.last is None else -torch.inf)


def _enter_again(prefixes: _Prefixes) -> Tensor:
    """(B, K, T): those after which the same label counts as a new one."""
    return _before(prefixes.ends_blank, -torch.inf)


def _before(scores: Tensor, first: float) -> Tensor:
    """Values of the frame before; `first` in frame 0."""
    return torch.nn.functional.pad(scores[..., :-1], (1, 0), value=first)


def _emissions(labels: Tensor, prefixes: _Prefixes) -> Tensor:
    """Log probabilities (B, K, T) of labels (B, K)."""
    index = labels[:, None, :].expand(-1, prefixes.labels.shape[1], -1)  # (B, T, K)
    return prefixes.labels.gather(2, index).transpose(1, 2)


def _log_matmul(rows: Tensor, columns: Tensor) -> Tensor:
    """log(exp(rows) @ exp(columns)) for rows (B, K, T) and columns (B, T, V)."""
    row_max = rows.amax(-1, keepdim=True).clamp(min=-1e300)
    column_max = columns.amax(1, keepdim=True)
    return ((rows - row_max).exp() @ (columns - column_max).exp()).log() + row_max + column_max
