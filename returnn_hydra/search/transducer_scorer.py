"""A transducer as a label-synchronous scorer: the probability that the labels begin with a prefix.

Legend: B sequences, K hypotheses per sequence, N rows, T encoder frames, E encoder features, H predictor features, C
classes (labels, and the blank as the last one).
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from returnn_hydra.batch import sequence_mask
from returnn_hydra.search.beam import gather_beams
from returnn_hydra.search.scorer import Encoded, concat_tensors
from returnn_hydra.search.step_scorer import Rows, StepScorer


class TransducerModel(Protocol):
    """A label predictor and a joint network."""

    blank_id: int
    """Last class; also what the predictor sees before the first label."""

    def initial_state(self, num_seqs: int, device: torch.device) -> Any:
        """State tensors of the predictor with first axis `num_seqs`."""

    def predict(self, labels: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Labels (N,) -> the predictor's output (N, H) behind them, and its new state."""

    def joint(self, encoder_out: Tensor, predicted: Tensor) -> Tensor:
        """Logits of (..., E) and (..., H), which broadcast -> (..., C)."""


class Predictor(StepScorer):
    """A transducer's predictor, as a scorer whose "scores" are its output features."""

    def __init__(self, model: TransducerModel) -> None:
        super().__init__(model, None)

    @torch.no_grad()
    def initial_state(self, encoded: Encoded) -> Rows:
        return self.start(self.module.initial_state(encoded.num_seqs, encoded.device), encoded.num_seqs)

    def step(self, labels: Tensor, state: Any) -> tuple[Tensor, Any]:
        return self.module.predict(labels, state)


class _State(NamedTuple):
    encoder: Tensor
    """(B, T, E)"""
    lengths: Tensor
    """(B,)"""
    predictor: Rows
    reached: Tensor | None
    """(B, K, T): log probability of all paths that have emitted the prefix, its last label in this frame or before,
    and are in the frame.
    None: the prefix is empty, and nothing has been scored yet."""
    labels: Tensor | None
    """(B, K_before, T, C): log probabilities of the classes behind the hypotheses that these were grown from."""
    parents: Tensor | None
    """(B, K): which of those."""
    score: Tensor
    """(B, K): log probability of all label sequences that begin with the prefix."""
    extended: Tensor | None
    """(B, K, V): the same for the prefix and one more label."""


class TransducerScorer:
    """Conditional label probabilities p(label | prefix) of a transducer; they sum to 1 with that of the end of the
    sequence.

    With the forward probability a(t, g) of Graves 2012, "Sequence transduction with recurrent neural networks", eq.
    16, the probability of all sequences that begin with g and go on with c is the sum over t of a(t, g) p(c | t, g),
    as every path emits c at exactly one frame; the sequence ends with p(blank | T, g) in the last frame. Every step
    runs the joint network over all frames.

    Arguments:
        model: a `TransducerModel`.
        vocab_size: labels of the search: the model's, and with `eos` behind them one more.
        eos: label for the end of the sequence; its number may be the blank's.
    """

    max_score = 0.0

    def __init__(self, model: TransducerModel, vocab_size: int, eos: int) -> None:
        if vocab_size != model.blank_id + 1:
            raise ValueError(
                f"the search has {vocab_size} labels; expected {model.blank_id} and the end of the sequence"
            )
        self.model, self.vocab_size, self.eos = model, vocab_size, eos
        self.predictor = Predictor(model)

    def initial_state(self, encoded: Encoded) -> _State:
        if encoded.encoder is None:
            raise ValueError("a transducer scorer needs the encoder's output (Encoded.encoder), which is missing")
        start = torch.zeros(encoded.num_seqs, 1, dtype=torch.double, device=encoded.device)
        predictor = self.predictor.initial_state(encoded)
        return _State(encoded.encoder, encoded.lengths, predictor, None, None, None, start, None)

    @torch.no_grad()
    def score(self, labels: Tensor, state: _State) -> tuple[Tensor, _State]:
        fed = torch.full_like(labels, self.model.blank_id) if state.reached is None else labels
        predicted, predictor = self.predictor.score(fed, state.predictor)  # (B, K, H)
        logits = self.model.joint(state.encoder[:, None], predicted[:, :, None])
        classes = logits.double().log_softmax(-1)  # (B, K, T, C)
        real = sequence_mask(state.lengths, classes.shape[2])[:, None]  # (B, 1, T)
        blanks = classes[..., self.model.blank_id].masked_fill(~real, 0.0)
        reached, score = self._advance(labels, state, blanks)
        reached = reached.masked_fill(~real, -torch.inf)

        extended = (reached[..., None] + classes.nan_to_num(nan=0.0)).logsumexp(2)  # padding may hold anything
        last = (state.lengths - 1).clamp(min=0)[:, None, None].expand(-1, labels.shape[1], 1)
        extended[..., self.model.blank_id] = -torch.inf
        ended = (reached + blanks).gather(2, last)[..., 0]
        extended[..., self.eos] = ended.where(state.lengths[:, None] > 0, 0.0)  # without frames: the empty sequence
        log_probs = torch.where(score[..., None] == -torch.inf, -torch.inf, extended - score[..., None])
        return log_probs, _State(state.encoder, state.lengths, predictor, reached, classes, None, score, extended)

    def _advance(self, labels: Tensor, state: _State, blanks: Tensor) -> tuple[Tensor, Tensor]:
        """`reached` and `score` of the prefixes that end with `labels`."""
        waited = blanks.cumsum(-1) - blanks  # (B, K, T): blanks before each frame
        if state.reached is None:
            return waited, state.score
        assert state.labels is not None and state.extended is not None
        every = torch.arange(len(labels), device=labels.device)[:, None]
        source = torch.arange(labels.shape[1], device=labels.device) if state.parents is None else state.parents
        emitted = state.labels[every, source, :, labels]  # (B, K, T)
        enter = (state.reached + emitted).masked_fill(state.reached == -torch.inf, -torch.inf)
        score = state.extended.gather(2, labels[..., None])[..., 0]
        return waited + torch.logcumsumexp(enter - waited, dim=-1), score

    def select(self, state: _State, parents: Tensor) -> _State:
        assert state.reached is not None and state.extended is not None
        return state._replace(
            predictor=self.predictor.select(state.predictor, parents),
            reached=gather_beams(state.reached, parents),
            parents=parents if state.parents is None else state.parents.gather(1, parents),
            score=state.score.gather(1, parents),
            extended=gather_beams(state.extended, parents),
        )

    def keep(self, state: _State, seqs: Tensor) -> _State:
        def pick(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.index_select(0, seqs)

        picked = {name: pick(value) for name, value in state._asdict().items() if name != "predictor"}
        return _State(predictor=self.predictor.keep(state.predictor, seqs), **picked)  # type: ignore[arg-type]

    def concat(self, states: list[_State]) -> _State:
        joined = concat_tensors([state._replace(predictor=None) for state in states])  # type: ignore[arg-type]
        return joined._replace(predictor=self.predictor.concat([state.predictor for state in states]))
