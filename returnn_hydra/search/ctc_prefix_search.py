"""Time-synchronous CTC prefix beam search, with a language model and a lexicon.

Legend: B sequences, T frames, C classes, K hypotheses per sequence (beam), A arcs of a lexicon node (labels that may
follow). Everything is logarithmic, float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from returnn_hydra.search.beam import top_k
from returnn_hydra.search.ctc_best_path import blank_class
from returnn_hydra.search.history import Histories
from returnn_hydra.search.lexicon import NO_ARC, NO_WORD, Lexicon
from returnn_hydra.search.result import NOTHING, Hypothesis
from returnn_hydra.search.scorer import Encoded, LabelScorer


@dataclass
class _Beam:
    """The prefixes of every sequence, (B, K) each."""

    ends_blank: np.ndarray
    """Probability of all paths of the prefix that end with a blank."""
    ends_label: np.ndarray
    """Probability of all paths that end with the last label."""
    bonus: np.ndarray
    """What the language model and the label reward add to the score."""
    prefix: np.ndarray
    """Number of the prefix; equal prefixes have equal numbers."""
    parent: np.ndarray
    """Number of the prefix without its last arc; -1 for the empty prefix."""
    arc: np.ndarray
    """Last arc: its place among the arcs of the lexicon node before; 0 for the empty prefix."""
    last: np.ndarray
    """Last label; -1 for the empty prefix."""
    node: np.ndarray
    """Lexicon node behind the prefix."""
    history: np.ndarray
    """Language model history."""
    history_row: np.ndarray
    """Its row in the table of scores."""

    def __getitem__(self, index: object) -> _Beam:
        return _Beam(**{name: array[index] for name, array in vars(self).items()})


class CTCPrefixSearch:
    """Beam search over label sequences, frame by frame, where every prefix has the probability of all of its paths.

    score = ctc_scale * log p(prefix | frames so far) + lm_scale * log p_lm(prefix) + label_reward * labels. In every
    frame each prefix stays or grows by one label; a grown prefix that is in the beam already is merged with it,
    exactly; the `beam_size` best go on (Hannun et al. 2014, "First-pass large vocabulary continuous speech recognition
    using bi-directional recurrent DNNs", algorithm 1; the search without words is that of Graves & Jaitly 2014). Equal
    scores: staying before growing, then the order of the beam, then the lower label.

    Arguments:
        blank: class of the blank; negative numbers count from the end.
        beam_size: K.
        num_best: hypotheses to return per sequence.
        ctc_scale: exponent of the CTC probability.
        lm: scores of the next label; it numbers labels like the CTC classes (with `lm_unit` "word": like the words of
            the lexicon).
        lm_scale: its weight.
        lm_bos: label that its histories start from; its number may be the blank's.
        lm_eos: label that it is asked for at the end; None: it is not.
        lm_unit: "label", or "word" with a lexicon: the language model scores a word when it is complete.
        label_reward: added for every label (for every word, with `lm_unit` "word"), against the language model's wish
            for short sequences.
        lexicon: only its words are found; each spelling is a hypothesis of its own. Its separator, if any, is in the
            labels of the result.

    Raises:
        ValueError: words without a lexicon, a language model without `lm_bos`, or sizes out of range.
    """

    def __init__(
        self,
        *,
        blank: int = -1,
        beam_size: int = 16,
        num_best: int = 1,
        ctc_scale: float = 1.0,
        lm: LabelScorer | None = None,
        lm_scale: float = 1.0,
        lm_bos: int | None = None,
        lm_eos: int | None = None,
        lm_unit: str = "label",
        label_reward: float = 0.0,
        lexicon: Lexicon | None = None,
    ) -> None:
        if lm_unit not in ("label", "word"):
            raise ValueError(f"lm_unit={lm_unit!r} is neither label nor word")
        if lm_unit == "word" and lexicon is None:
            raise ValueError("lm_unit=word needs a lexicon")
        if lm is not None and lm_bos is None:
            raise ValueError("a language model needs lm_bos, the label that its histories start from")
        if ctc_scale <= 0 or lm_scale < 0:
            raise ValueError(f"ctc_scale={ctc_scale} must be positive, and lm_scale={lm_scale} must not be negative")
        if not 1 <= num_best <= beam_size:
            raise ValueError(f"num_best={num_best} must be at least 1 and at most beam_size={beam_size}")
        self.blank, self.beam_size, self.num_best = blank, beam_size, num_best
        self.ctc_scale, self.label_reward, self.lexicon = ctc_scale, label_reward, lexicon
        self.lm = lm if lm_scale > 0 else None
        self.lm_scale, self.lm_bos, self.lm_eos, self.lm_unit = lm_scale, lm_bos, lm_eos, lm_unit

    @torch.inference_mode(False)
    @torch.no_grad()
    def __call__(self, encoded: Encoded) -> list[list[Hypothesis]]:
        """The best hypotheses of every sequence, best first; `[NOTHING]` where no word sequence of the lexicon fits.

        Raises:
            ValueError: there are no CTC log probabilities, or they hold NaN.
        """
        if encoded.ctc_log_probs is None:
            raise ValueError("a CTC search needs Encoded.ctc_log_probs, which is missing")
        log_probs = encoded.ctc_log_probs.detach().double().cpu().numpy()
        lengths = encoded.lengths.cpu().numpy()
        for seq, length in enumerate(lengths):
            if np.isnan(log_probs[seq, :length]).any():
                raise ValueError(f"the CTC log probabilities of sequence {seq} of the batch hold NaN")
        return _Run(self, encoded, log_probs, lengths).results()


class _Run:
    """One search over a batch."""

    def __init__(self, search: CTCPrefixSearch, encoded: Encoded, log_probs: np.ndarray, lengths: np.ndarray) -> None:
        num_classes = log_probs.shape[-1]
        self.search = search
        self.blank = blank_class(search.blank, num_classes)
        self.lexicon = search.lexicon or Lexicon.unconstrained([c for c in range(num_classes) if c != self.blank])
        self.order = np.argsort(-lengths, kind="stable")  # longest first: the sequences that go on are the first ones
        self.log_probs, self.lengths = log_probs[self.order], lengths[self.order]
        self.histories: Histories | None = None
        if search.lm is not None:
            assert search.lm_bos is not None
            self.histories = Histories(search.lm, encoded, search.lm_bos)
        self.tokens = self.lexicon.labels if search.lm_unit == "label" else self.lexicon.emits
        if search.lm is not None and self.tokens.max() >= search.lm.vocab_size:
            raise ValueError(
                f"the language model has {search.lm.vocab_size} {search.lm_unit}s, "
                f"and does not know {self.tokens.max()}"
            )
        self.prefixes: dict[tuple[int, int], int] = {}
        self.trace = [(-1, 0, 0)] * len(lengths)  # of every prefix: the one before, lexicon node before, arc

    def results(self) -> list[list[Hypothesis]]:
        found: list[list[Hypothesis]] = [[NOTHING]] * len(self.order)
        beam = self._start()
        num_active = len(self.order)
        for frame in range(int(self.lengths[0]) + 1 if num_active else 0):
            still = int((self.lengths > frame).sum())
            for row in range(still, num_active):
                found[self.order[row]] = self._finish(beam[row])
            beam, num_active = beam[:still], still
            if still:
                beam = self._step(beam, self.log_probs[:still, frame])
        return found

    def _start(self) -> _Beam:
        shape = (len(self.order), 1)
        zeros = np.zeros(shape, dtype=np.int64)
        roots = self.order[:, None].copy()
        rows = zeros if self.histories is None else self.histories.rows(roots[:, 0].tolist())[:, None]
        return _Beam(
            np.zeros(shape),
            np.full(shape, -np.inf),
            np.zeros(shape),
            roots,
            zeros - 1,
            zeros,
            zeros - 1,
            zeros,
            roots,
            rows,
        )

    def _step(self, beam: _Beam, log_probs: np.ndarray) -> _Beam:
        """The best prefixes after one more frame with log_probs (B, C)."""
        num_seqs, size = beam.prefix.shape
        every = np.arange(num_seqs)[:, None]
        total = np.logaddexp(beam.ends_blank, beam.ends_label)
        ends_blank = total + log_probs[:, self.blank, None]
        ends_label = (
            beam.ends_label + log_probs[every, beam.last]
        )  # the empty prefix has no path that ends with a label

        labels = self.lexicon.labels[beam.node]  # (B, K, A)
        enter = np.where(labels == beam.last[..., None], beam.ends_blank[..., None], total[..., None])
        grown = enter + log_probs[every[..., None], labels]
        grown[labels == NO_ARC] = -np.inf
        # what grows into a prefix of the beam joins it
        seqs, grown_to, grown_from = np.nonzero(beam.parent[:, :, None] == beam.prefix[:, None, :])
        arcs = beam.arc[seqs, grown_to]
        ends_label[seqs, grown_to] = np.logaddexp(ends_label[seqs, grown_to], grown[seqs, grown_from, arcs])
        grown[seqs, grown_from, arcs] = -np.inf

        bonus = beam.bonus[..., None] + self._bonus(beam)
        stay_score = self.search.ctc_scale * np.logaddexp(ends_blank, ends_label) + beam.bonus
        grow_score = (self.search.ctc_scale * grown + bonus).reshape(num_seqs, -1)
        scores = np.concatenate([stay_score, grow_score], axis=1)
        _, best = top_k(torch.from_numpy(scores), self.search.beam_size)
        choice = best.numpy()
        stay = choice < size
        source, arc = np.divmod(np.where(stay, 0, choice - size), labels.shape[2])
        source = np.where(stay, choice, source)

        kept = beam[every, source]
        kept.ends_blank = np.where(stay, ends_blank[every, source], -np.inf)
        kept.ends_label = np.where(stay, ends_label[every, source], grown[every, source, arc])
        possible = scores[every, choice] > -np.inf
        kept.bonus = np.where(stay, kept.bonus, bonus[every, source, arc])
        self._grow(kept, np.nonzero(~stay & possible), arc)
        kept.prefix[~possible], kept.parent[~possible] = -2, -3  # no hypothesis here: equal to none, grown from none
        return kept

    def _bonus(self, beam: _Beam) -> np.ndarray:
        """What each arc adds to the score beside CTC, (B, K, A)."""
        tokens = self.tokens[beam.node]
        has_token = tokens >= 0
        bonus = self.search.label_reward * has_token
        if self.histories is not None:
            scores = self.histories.scores(beam.history_row[..., None], np.where(has_token, tokens, 0))
            bonus = bonus + np.where(has_token, self.search.lm_scale * scores, 0.0)
        return bonus

    def _grow(self, beam: _Beam, places: tuple[np.ndarray, ...], arcs: np.ndarray) -> None:
        """Move the prefixes at `places` of the beam along their arcs."""
        nodes, arc = beam.node[places], arcs[places]
        before = beam.prefix[places]
        numbers = [self._prefix(*step) for step in zip(before.tolist(), nodes.tolist(), arc.tolist(), strict=True)]
        if self.histories is not None:
            tokens = self.tokens[nodes, arc].tolist()
            steps = zip(beam.history[places].tolist(), tokens, strict=True)
            beam.history[places] = [self.histories.child(*step) if step[1] >= 0 else step[0] for step in steps]
            beam.history_row[places] = self.histories.rows(beam.history[places].tolist())
            self.histories.retain(beam.history.flatten().tolist())
        beam.parent[places], beam.prefix[places], beam.arc[places] = before, numbers, arc
        beam.last[places], beam.node[places] = self.lexicon.labels[nodes, arc], self.lexicon.targets[nodes, arc]

    def _prefix(self, before: int, node: int, arc: int) -> int:
        """The number of a prefix with one more arc."""
        found = self.prefixes.get((before, arc))
        if found is None:
            found = self.prefixes[before, arc] = len(self.trace)
            self.trace.append((before, node, arc))
        return found

    def _finish(self, beam: _Beam) -> list[Hypothesis]:
        """The best hypotheses of a sequence (K,) whose frames are over."""
        scores = self.search.ctc_scale * np.logaddexp(beam.ends_blank, beam.ends_label) + beam.bonus
        ends = [
            (float(scores[k]) + self._end_bonus(int(beam.history[k]), word), k, word)
            for k in range(len(scores))
            if scores[k] > -np.inf
            for word in self.lexicon.final_words[beam.node[k]]
        ]
        ends = sorted((end for end in ends if end[0] > -np.inf), key=lambda end: -end[0])[: self.search.num_best]
        return [self._hypothesis(int(beam.prefix[k]), word, score) for score, k, word in ends] or [NOTHING]

    def _end_bonus(self, history: int, word: int) -> float:
        """What the last word, if it was not complete yet, and the end of the sequence add to the score."""
        bonus = 0.0
        if self.search.lm_unit == "word" and word != NO_WORD:
            bonus += self.search.label_reward
            if self.histories is not None:
                bonus += self.search.lm_scale * float(self.histories.scores(self.histories.rows([history]), word)[0])
                history = self.histories.child(history, word)
        if self.histories is not None and self.search.lm_eos is not None:
            row = self.histories.rows([history])
            bonus += self.search.lm_scale * float(self.histories.scores(row, self.search.lm_eos)[0])
        return bonus

    def _hypothesis(self, prefix: int, last_word: int, score: float) -> Hypothesis:
        labels, words = [], [] if last_word == NO_WORD else [last_word]
        while (step := self.trace[prefix])[0] >= 0:
            prefix, node, arc = step
            labels.append(int(self.lexicon.labels[node, arc]))
            if (word := int(self.lexicon.emits[node, arc])) != NO_WORD:
                words.append(word)
        return Hypothesis(labels[::-1], score, words=words[::-1] if self.search.lexicon else None)
