"""Label-synchronous beam search: all hypotheses of all sequences of a batch grow by one label per step, in one tensor.

Legend: B sequences still searched, K hypotheses per sequence (beam), V labels, M finished hypotheses kept per
sequence, L labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from returnn_hydra.search.beam import best_extensions, gather_beams, top_k
from returnn_hydra.search.result import NOTHING, Hypothesis
from returnn_hydra.search.scorer import Encoded, LabelScorer, State


@dataclass(frozen=True)
class LengthNormalization:
    """How the score of a finished hypothesis depends on its length n, its end-of-sequence label counted.

    final = (sum of label scores + reward * (n - 1)) / norm(n).

    kind "none": norm = 1; "power": norm = n ** exponent (exponent 1 is the mean per label, as RETURNN's choice layer
    does; e.g. Murray & Chiang 2018, "Correcting length bias in neural machine translation", section 3); "gnmt": norm =
    ((5 + n) / 6) ** exponent (Wu et al. 2016, "Google's neural machine translation system", eq. 14). The reward per
    label is that of He et al. 2016, "Improved neural machine translation with SMT features", section 3.3.

    Raises:
        ValueError: another kind, or a negative exponent.
    """

    kind: str = "power"
    exponent: float = 1.0
    reward: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in ("none", "power", "gnmt"):
            raise ValueError(f"length normalization {self.kind!r} is not one of none, power, gnmt")
        if self.exponent < 0:
            raise ValueError(f"the exponent of the length normalization must not be negative, got {self.exponent}")

    def norm(self, length: Tensor) -> Tensor:
        """norm(n) of lengths that count the end-of-sequence label."""
        if self.kind == "none":
            return torch.ones_like(length, dtype=torch.double)
        return (length.double() if self.kind == "power" else (5 + length.double()) / 6) ** self.exponent


class _Active(NamedTuple):
    """The hypotheses that still grow."""

    seqs: Tensor
    """(B,) index in the batch."""
    tokens: Tensor
    """(B, K, t)."""
    scores: Tensor
    """(B, K) sum of label scores; -inf where there is no hypothesis."""
    state: State


class _Finished(NamedTuple):
    """The best finished hypotheses so far, best first."""

    scores: Tensor
    """(B, M), normalized; -inf where there is none."""
    lengths: Tensor
    """(B, M) labels without the end-of-sequence label."""
    tokens: Tensor
    """(B, M, t)."""
    accepted: Tensor
    """(B,) number of hypotheses that have finished."""


class LabelSyncSearch:
    """Beam search over label sequences that end with an end-of-sequence label.

    In every step the candidates of a sequence are all its hypotheses extended by all labels. Those that end and are
    among the `beam_size` best candidates are finished; the `beam_size` best others go on. A hypothesis with the most
    labels allowed can only end.

    A sequence is done when no hypothesis can go on; when `stop_after` hypotheses have finished; or when no hypothesis
    that goes on can get better than the `num_best`-th finished one any more (exact: needs scores that are never
    positive, so no negative scale). With beam_size >= V ** max labels and `stop_after=None` the result is the true
    best.

    Arguments:
        scorer: scores of the next label.
        bos: label that every hypothesis starts from.
        eos: label that ends a hypothesis.
        beam_size: K.
        num_best: hypotheses to return per sequence.
        length_normalization: see `LengthNormalization`.
        max_labels_per_frame, max_labels: most labels of a hypothesis: frames * max_labels_per_frame + max_labels.
        min_labels_per_frame: fewest labels of a hypothesis, per frame.
        stop_after: "beam" for the beam size, a number, or None for no such limit.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        scorer: LabelScorer,
        *,
        bos: int,
        eos: int,
        beam_size: int = 12,
        num_best: int = 1,
        length_normalization: LengthNormalization | None = None,
        max_labels_per_frame: float = 1.0,
        max_labels: int = 0,
        min_labels_per_frame: float = 0.0,
        stop_after: int | str | None = "beam",
    ) -> None:
        if beam_size < 1 or num_best < 1:
            raise ValueError(f"beam_size and num_best must be at least 1, got {beam_size} and {num_best}")
        for name, label in {"bos": bos, "eos": eos}.items():
            if not 0 <= label < scorer.vocab_size:
                raise ValueError(f"{name}={label} is not a label; there are {scorer.vocab_size}")
        if isinstance(stop_after, str) and stop_after != "beam":
            raise ValueError(f'stop_after={stop_after!r} is neither "beam", a number nor None')
        self.scorer = scorer
        self.bos, self.eos = bos, eos
        self.beam_size, self.num_best = beam_size, num_best
        self.normalization = length_normalization or LengthNormalization()
        self.max_labels_per_frame, self.max_labels = max_labels_per_frame, max_labels
        self.min_labels_per_frame = min_labels_per_frame
        self.stop_after = beam_size if isinstance(stop_after, str) else stop_after

    @torch.inference_mode(False)
    @torch.no_grad()
    def __call__(self, encoded: Encoded) -> list[list[Hypothesis]]:
        """The `num_best` best hypotheses of every sequence, best first; `[NOTHING]` where none is possible."""
        longest, shortest = self._limits(encoded.lengths)
        active, finished = self._start(encoded)
        results: list[list[Hypothesis]] = [[NOTHING]] * encoded.num_seqs
        step = 0
        while len(active.seqs):
            active, finished = self._step(active, finished, shortest[active.seqs], longest[active.seqs], step)
            step += 1
            done = self._done(active, finished, longest[active.seqs], step)
            if 4 * int(done.sum()) >= len(done):  # dropping sequences copies states: not for every single one
                for row in done.nonzero()[:, 0].tolist():
                    results[int(active.seqs[row])] = _hypotheses(finished, row)
                active, finished = self._keep(active, finished, (~done).nonzero()[:, 0])
            elif bool(done.any()):
                active = active._replace(scores=active.scores.masked_fill(done[:, None], -torch.inf))
        return results

    def _limits(self, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Most and fewest labels of a hypothesis, both (B,)."""
        longest = (lengths * self.max_labels_per_frame).floor().long() + self.max_labels
        shortest = (lengths * self.min_labels_per_frame).floor().long()
        return longest, torch.minimum(shortest, longest)

    def _start(self, encoded: Encoded) -> tuple[_Active, _Finished]:
        size, device = encoded.num_seqs, encoded.device
        seqs = torch.arange(size, device=device)
        scores = torch.zeros(size, 1, dtype=torch.double, device=device)
        tokens = torch.full((size, 1, 0), self.eos, device=device)
        none = torch.full((size, self.num_best), -torch.inf, dtype=torch.double, device=device)
        zeros = torch.zeros(size, self.num_best, dtype=torch.long, device=device)
        finished = _Finished(none, zeros, zeros[:, :, None][:, :, :0], zeros[:, 0])
        return _Active(seqs, tokens, scores, self.scorer.initial_state(encoded)), finished

    def _step(
        self, active: _Active, finished: _Finished, shortest: Tensor, longest: Tensor, step: int
    ) -> tuple[_Active, _Finished]:
        """Extend all hypotheses, which have `step` labels, by one."""
        last = active.tokens[:, :, -1] if step else torch.full_like(active.scores, self.bos, dtype=torch.long)
        log_probs, state = self.scorer.score(last, active.state)  # (B, K, V)
        candidates = active.scores[:, :, None] + log_probs.double()
        is_eos = torch.arange(self.scorer.vocab_size, device=last.device) == self.eos
        candidates.masked_fill_((step < shortest)[:, None, None] & is_eos, -torch.inf)
        candidates.masked_fill_((step >= longest)[:, None, None] & ~is_eos, -torch.inf)
        labels, parents, scores = best_extensions(candidates, self._num_candidates(active))
        if bool(scores.isnan().any()):  # topk puts NaN first
            raise ValueError(f"the scores of label number {step + 1} of a hypothesis are NaN")

        ends = (labels == self.eos) & (torch.arange(labels.shape[1], device=last.device) < self.beam_size)
        finished = self._finish(finished, active.tokens, parents, scores.masked_fill(~ends, -torch.inf), step)

        scores = scores.masked_fill(labels == self.eos, -torch.inf)
        scores, order = top_k(scores, self.beam_size)
        parents, labels = parents.gather(1, order), labels.gather(1, order)
        tokens = torch.cat([gather_beams(active.tokens, parents), labels[:, :, None]], dim=2)
        return _Active(active.seqs, tokens, scores, self.scorer.select(state, parents)), finished

    def _num_candidates(self, active: _Active) -> int:
        """Enough for `beam_size` hypotheses that go on, even if all of the others end."""
        return self.beam_size + min(self.beam_size, active.scores.shape[1])

    def _finish(self, finished: _Finished, tokens: Tensor, parents: Tensor, scores: Tensor, step: int) -> _Finished:
        """`finished` with those of the new ones that are better; scores (B, n) are -inf for hypotheses that don't
        end.
        """
        length = torch.tensor(step, device=scores.device)
        final = (scores + self.normalization.reward * step) / self.normalization.norm(length + 1)
        best, order = top_k(torch.cat([finished.scores, final], dim=1), self.num_best)
        lengths = torch.cat([finished.lengths, length.expand_as(parents)], dim=1)
        padded = torch.nn.functional.pad(finished.tokens, (0, step - finished.tokens.shape[2]), value=self.eos)
        tokens = torch.cat([padded, gather_beams(tokens, parents)], dim=1)
        accepted = finished.accepted + (scores > -torch.inf).sum(1)
        return _Finished(best, lengths.gather(1, order), gather_beams(tokens, order), accepted)

    def _done(self, active: _Active, finished: _Finished, longest: Tensor, step: int) -> Tensor:
        """(B,) whether the search of a sequence is over; hypotheses have `step` labels."""
        best = active.scores.max(dim=1).values
        done = best == -torch.inf
        if self.stop_after is not None:
            done |= finished.accepted >= self.stop_after
        if self.scorer.max_score > 0:
            return done
        reward = self.normalization.reward
        best = best + reward * (longest if reward > 0 else step)
        most = (longest + 1).clamp(min=step + 1)
        norm = torch.where(
            best < 0, self.normalization.norm(most), self.normalization.norm(torch.full_like(most, step + 1))
        )
        return done | (finished.scores[:, -1] >= best / norm)

    def _keep(self, active: _Active, finished: _Finished, rows: Tensor) -> tuple[_Active, _Finished]:
        if not len(rows):
            return active._replace(seqs=rows), finished
        kept = _Active(
            active.seqs[rows], active.tokens[rows], active.scores[rows], self.scorer.keep(active.state, rows)
        )
        return kept, _Finished(*(tensor[rows] for tensor in finished))


def _hypotheses(finished: _Finished, row: int) -> list[Hypothesis]:
    found = zip(
        finished.scores[row].tolist(), finished.lengths[row].tolist(), finished.tokens[row].tolist(), strict=True
    )
    return [Hypothesis(tokens[:length], score) for score, length, tokens in found if score > -torch.inf] or [NOTHING]


class GreedySearch(LabelSyncSearch):
    """The best label at every step, until the end-of-sequence label or the length limit; the score is the plain sum."""

    def __init__(
        self, scorer: LabelScorer, *, bos: int, eos: int, max_labels_per_frame: float = 1.0, max_labels: int = 0
    ) -> None:
        super().__init__(
            scorer,
            bos=bos,
            eos=eos,
            beam_size=1,
            length_normalization=LengthNormalization("none"),
            max_labels_per_frame=max_labels_per_frame,
            max_labels=max_labels,
            stop_after=1,
        )
