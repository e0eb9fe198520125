"""Scorers around modules that score step by step: attention decoders and language models.

Legend: B sequences, K hypotheses per sequence, N = B * K rows, V labels, T encoder frames, F encoder features.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from returnn_hydra.search.scorer import Encoded, concat_tensors, map_tensors, rows_of, tensors_of


class Decoder(Protocol):
    """A label decoder that attends to an encoder.

    With an attribute `shares_memory` that is true, `step` also takes state tensors that no step changes with one row
    for each sequence only, while the labels and the other tensors have K rows for each, one sequence's behind the
    other's. A tensor that is not such a constant is then a new one after every step.
    """

    def initial_state(self, encoder_out: Tensor, encoder_lengths: Tensor) -> Any:
        """State tensors with first axis N, for encoder_out (N, T, F)."""

    def step(self, labels: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Labels (N,) -> log probabilities (N, V) of the next ones, and the new state."""


class LanguageModel(Protocol):
    """A model of label sequences alone."""

    def initial_state(self, num_seqs: int, device: torch.device) -> Any:
        """State tensors with first axis `num_seqs`."""

    def step(self, labels: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Labels (N,) -> log probabilities (N, V) of the next ones, and the new state."""


class Rows(NamedTuple):
    """The state of a module, and which of its tensors no step has changed since the start.

    These (the encoder's output, projected keys) are the same for all hypotheses of a sequence: selecting by parent
    need not copy them.
    """

    tensors: Any
    num_seqs: int
    beam: int
    constant: tuple[bool, ...]


class StepScorer:
    """The LabelScorer methods over a module's `step`."""

    @property
    def max_score(self) -> float:
        return 0.0

    def __init__(self, module: Any, vocab_size: int | None) -> None:
        self.module = module
        self.vocab_size: Any = vocab_size

    def step(self, labels: Tensor, state: Any) -> tuple[Tensor, Any]:
        """What the module does with labels (N,)."""
        return self.module.step(labels, state)

    def start(self, tensors: Any, num_seqs: int) -> Rows:
        """The state before the first step."""
        return Rows(tensors, num_seqs, 1, (True,) * len(tensors_of(tensors)))

    @torch.no_grad()
    def score(self, labels: Tensor, state: Rows) -> tuple[Tensor, Rows]:
        before = tensors_of(state.tensors)
        versions = [_version(tensor) for tensor in before]
        log_probs, tensors = self.step(labels.flatten(), state.tensors)
        if self.vocab_size is not None and log_probs.shape != (labels.numel(), self.vocab_size):
            raise ValueError(
                f"{type(self.module).__name__}.step returned log_probs of shape {tuple(log_probs.shape)}; "
                f"expected ({labels.numel()} hypotheses, {self.vocab_size} labels)"
            )
        after = tensors_of(tensors)
        constant = len(before) == len(after)
        flags = tuple(
            constant and was and new is old and _version(new) == version
            for was, new, old, version in zip(state.constant, after, before, versions, strict=False)
        )
        flags += (False,) * (len(after) - len(flags))
        return log_probs.view(*labels.shape, -1), state._replace(tensors=tensors, constant=flags)

    def select(self, state: Rows, parents: Tensor) -> Rows:
        beam = state.beam
        rows = rows_of(parents, beam)
        constant = iter(state.constant)
        leave_constant = parents.shape[1] == beam or getattr(self.module, "shares_memory", False)

        def pick(tensor: Tensor) -> Tensor:
            return tensor if next(constant) and leave_constant else tensor.index_select(0, rows)

        return state._replace(tensors=map_tensors(pick, state.tensors), beam=parents.shape[1])

    def keep(self, state: Rows, seqs: Tensor) -> Rows:
        def pick(tensor: Tensor) -> Tensor:
            beam = len(tensor) // state.num_seqs  # 1 in a memory that the hypotheses share
            return tensor.unflatten(0, (state.num_seqs, beam)).index_select(0, seqs).flatten(0, 1)

        return state._replace(tensors=map_tensors(pick, state.tensors), num_seqs=len(seqs))

    def concat(self, states: list[Rows]) -> Rows:
        tensors = concat_tensors([state.tensors for state in states])
        constant = tuple(all(flags) for flags in zip(*(state.constant for state in states), strict=True))
        return Rows(tensors, sum(state.num_seqs for state in states), states[0].beam, constant)


def _version(tensor: Tensor) -> int:
    """Grows with every change in place. Inference tensors have none and can't be changed outside inference mode, where
    searches run.
    """
    return 0 if tensor.is_inference() else tensor._version


class DecoderScorer(StepScorer):
    """An attention decoder as a scorer: log p(label | labels before, encoder).

    Arguments:
        decoder: a `Decoder` (any module with `initial_state` and `step`).
        vocab_size: V.
        coverage_scale: weight of the number of frames that have been attended to, against hypotheses that leave out or
            repeat parts (Chorowski & Jaitly 2017, "Towards better decoding and language model integration in sequence
            to sequence models", eq. 11). It is added to the scores as it grows.
        coverage_threshold: sum of the attention weights from which on a frame counts.
        attended_key: state tensor (N, T) with the sum of all attention weights so far.
    """

    def __init__(
        self,
        decoder: Decoder,
        vocab_size: int,
        coverage_scale: float = 0.0,
        coverage_threshold: float = 0.5,
        attended_key: str = "attended",
    ) -> None:
        super().__init__(decoder, vocab_size)
        self.coverage_scale, self.coverage_threshold = coverage_scale, coverage_threshold
        self.attended_key = attended_key

    @property
    def max_score(self) -> float:
        return 0.0 if self.coverage_scale == 0 else float("inf")

    @torch.no_grad()
    def initial_state(self, encoded: Encoded) -> Rows:
        """
        Raises:
            ValueError: there is no encoder output, or a coverage scale and a decoder that does not sum up its
                attention.
        """
        if encoded.encoder is None:
            raise ValueError("a decoder scorer needs the encoder's output (Encoded.encoder), which is missing")
        state = self.module.initial_state(encoded.encoder, encoded.lengths)
        if self.coverage_scale != 0 and self.attended_key not in state:
            raise ValueError(
                f"coverage needs the sum of the attention weights as state {self.attended_key!r}, "
                f"and {type(self.module).__name__} has only {', '.join(state)}"
            )
        return self.start(state, encoded.num_seqs)

    def step(self, labels: Tensor, state: Any) -> tuple[Tensor, Any]:
        log_probs, new_state = self.module.step(labels, state)
        if self.coverage_scale != 0:
            growth = self._coverage(new_state) - self._coverage(state)
            log_probs = log_probs + self.coverage_scale * growth[:, None]
        return log_probs, new_state

    def _coverage(self, state: Any) -> Tensor:
        """Number of frames that have been attended to, (N,)."""
        return (state[self.attended_key] > self.coverage_threshold).sum(1)


class InternalLanguageModelScorer(DecoderScorer):
    """What an attention decoder knows of the labels alone: log p(label | labels before) where the encoder's output is a
    single frame of zeros (Meng et al. 2021, "Internal language model estimation for domain-adaptive end-to-end speech
    recognition", section 3.2). With a negative scale it is taken out of the decoder's scores, in favour of another
    language model.

    Arguments:
        decoder, vocab_size: as for `DecoderScorer`.
    """

    def __init__(self, decoder: Decoder, vocab_size: int) -> None:
        super().__init__(decoder, vocab_size)

    def initial_state(self, encoded: Encoded) -> Rows:
        """
        Raises:
            ValueError: there is no encoder output.
        """
        nothing = None if encoded.encoder is None else torch.zeros_like(encoded.encoder[:, :1])
        return super().initial_state(Encoded(torch.ones_like(encoded.lengths), nothing))


class LanguageModelScorer(StepScorer):
    """A language model as a scorer: log p(label | labels before).

    Arguments:
        model: a `LanguageModel` (any module with `initial_state` and `step`).
        vocab_size: V.
    """

    def __init__(self, model: LanguageModel, vocab_size: int) -> None:
        super().__init__(model, vocab_size)

    @torch.no_grad()
    def initial_state(self, encoded: Encoded) -> Rows:
        return self.start(self.module.initial_state(encoded.num_seqs, encoded.device), encoded.num_seqs)
