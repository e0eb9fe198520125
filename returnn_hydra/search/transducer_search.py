"""Transducer search: greedy, and beam search that is synchronous in frames plus labels.

Legend: B sequences, K hypotheses per sequence (beam), T encoder frames, E encoder features, H predictor features, C
classes (labels, and the blank as the last one), V labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from returnn_hydra.search.beam import top_k
from returnn_hydra.search.history import Histories
from returnn_hydra.search.result import NOTHING, Hypothesis
from returnn_hydra.search.scorer import Encoded, LabelScorer, put_rows, take_rows
from returnn_hydra.search.transducer_scorer import Predictor, TransducerModel


class TransducerGreedySearch:
    """The best class at every node of the path; all sequences of a batch move at once.

    The score is that of the path.

    Arguments:
        model: a `TransducerModel`.
        max_labels_per_frame: after so many labels the path moves on to the next frame.
    """

    def __init__(self, model: TransducerModel, *, max_labels_per_frame: int = 10) -> None:
        if max_labels_per_frame < 1:
            raise ValueError(f"max_labels_per_frame must be at least 1, got {max_labels_per_frame}")
        self.model, self.max_labels_per_frame = model, max_labels_per_frame

    @torch.inference_mode(False)
    @torch.no_grad()
    def __call__(self, encoded: Encoded) -> list[list[Hypothesis]]:
        """One hypothesis for every sequence, with the frame each label was emitted in."""
        encoder = _encoder(encoded)
        size, blank = encoded.num_seqs, self.model.blank_id
        frame = torch.zeros_like(encoded.lengths)
        in_frame = torch.zeros_like(frame)
        scores = torch.zeros(size, dtype=torch.double, device=encoded.device)
        found: list[list[tuple[int, int]]] = [[] for _ in range(size)]
        start = self.model.initial_state(size, encoded.device)
        predicted, state = self.model.predict(torch.full_like(frame, blank), start)
        rows = (frame < encoded.lengths).nonzero()[:, 0]
        while len(rows):
            log_probs = self.model.joint(encoder[rows, frame[rows]], predicted[rows]).double().log_softmax(-1)
            best, labels = log_probs.max(dim=-1)
            full = in_frame[rows] >= self.max_labels_per_frame
            labels = labels.masked_fill(full, blank)
            scores[rows] += torch.where(full, log_probs[:, blank], best)
            emits = labels != blank
            emitting = rows[emits]
            for row, at, label in zip(emitting.tolist(), frame[emitting].tolist(), labels[emits].tolist(), strict=True):
                found[row].append((label, at))
            frame[rows[~emits]] += 1
            in_frame[rows] = torch.where(emits, in_frame[rows] + 1, 0)
            if len(emitting):
                outputs, after = self.model.predict(labels[emits], take_rows(state, emitting))
                predicted = predicted.index_copy(0, emitting, outputs)
                state = put_rows(state, emitting, after)
            rows = rows[frame[rows] < encoded.lengths[rows]]
        return [
            [Hypothesis([label for label, _ in labels], score, [(at, at + 1) for _, at in labels])]
            for labels, score in zip(found, scores.tolist(), strict=True)
        ]


@dataclass
class _Beam:
    """The hypotheses of every sequence, (B, K) each; all of a sequence have the same number of frames and labels
    together.
    """

    score: np.ndarray
    """log probability of all paths to here; -inf: no hypothesis."""
    bonus: np.ndarray
    """What the language model and the label reward add."""
    prefix: np.ndarray
    """Number of the label sequence; equal ones have equal numbers."""
    parent: np.ndarray
    """Number of the sequence without its last label; -1 for the empty one."""
    last: np.ndarray
    """Last label; 0 for the empty one."""
    num_labels: np.ndarray
    row: np.ndarray
    """Row of the predictor's output."""
    history_row: np.ndarray
    """Row of the language model's scores."""

    def __getitem__(self, index: object) -> _Beam:
        return _Beam(**{name: array[index] for name, array in vars(self).items()})


class TransducerBeamSearch:
    """Alignment-length synchronous beam search (Saon et al. 2020, "Alignment-length synchronous decoding for RNN
    transducer").

    In step i all hypotheses have i frames and labels together. Each goes on with a blank (to the next frame) or with a
    label; paths to the same label sequence are added up, exactly; the `beam_size` best go on. A hypothesis is finished
    with the blank of the last frame. A sequence is done when all of its hypotheses together are less likely than the
    worst of the `num_best` finished ones (not with a positive reward).

    score = log p(labels) + lm_scale * log p_lm(labels) + label_reward * number of labels.

    Arguments:
        model: a `TransducerModel`.
        beam_size: K.
        num_best: hypotheses to return per sequence.
        max_labels_per_frame, max_labels: most labels of a hypothesis: frames * max_labels_per_frame + max_labels.
        lm: scores of the next label, with the model's numbers for labels; lm_bos, lm_eos and lm_scale as in
            `CTCPrefixSearch`.
        label_reward: added for every label.

    Raises:
        ValueError: a language model without `lm_bos`, or sizes out of range.
    """

    def __init__(
        self,
        model: TransducerModel,
        *,
        beam_size: int = 8,
        num_best: int = 1,
        max_labels_per_frame: float = 1.0,
        max_labels: int = 10,
        lm: LabelScorer | None = None,
        lm_scale: float = 1.0,
        lm_bos: int | None = None,
        lm_eos: int | None = None,
        label_reward: float = 0.0,
    ) -> None:
        if beam_size < 1 or num_best < 1:
            raise ValueError(f"beam_size and num_best must be at least 1, got {beam_size} and {num_best}")
        if lm is not None and lm_bos is None:
            raise ValueError("a language model needs lm_bos, the label that its histories start from")
        if lm_scale < 0:
            raise ValueError(f"lm_scale={lm_scale} must not be negative")
        self.model, self.beam_size, self.num_best = model, beam_size, num_best
        self.max_labels_per_frame, self.max_labels = max_labels_per_frame, max_labels
        self.lm = lm if lm_scale > 0 else None
        self.lm_scale, self.lm_bos, self.lm_eos, self.label_reward = lm_scale, lm_bos, lm_eos, label_reward

    @torch.inference_mode(False)
    @torch.no_grad()
    def __call__(self, encoded: Encoded) -> list[list[Hypothesis]]:
        """The best hypotheses of every sequence, best first."""
        return _Run(self, encoded).results()


class _Run:
    """One search over a batch."""

    def __init__(self, search: TransducerBeamSearch, encoded: Encoded) -> None:
        self.search = search
        self.encoder = _encoder(encoded)
        self.lengths = encoded.lengths.cpu().numpy()
        self.most = np.floor(self.lengths * search.max_labels_per_frame).astype(np.int64) + search.max_labels
        self.predictor = Histories(Predictor(search.model), encoded, search.model.blank_id)
        self.histories: Histories | None = None
        if search.lm is not None:
            assert search.lm_bos is not None
            self.histories = Histories(search.lm, encoded, search.lm_bos)
        self.labels: list[tuple[int, int]] = [
            (-1, -1)
        ] * encoded.num_seqs  # of every prefix: the one before, last label
        self.finished: list[list[tuple[float, int]]] = [[] for _ in self.lengths]  # score, prefix

    def results(self) -> list[list[Hypothesis]]:
        for seq in np.flatnonzero(self.lengths == 0).tolist():  # no frames: the empty path is all
            history_row = 0 if self.histories is None else int(self.histories.rows([seq])[0])
            self.finished[seq].append((self._end_bonus(history_row), seq))
        seqs = np.flatnonzero(self.lengths)
        beam = self._start(seqs)
        step = 0
        while len(seqs):
            beam = self._step(seqs, beam, step)
            step += 1
            going = np.array([self._goes_on(seq, beam[row]) for row, seq in enumerate(seqs.tolist())], dtype=np.bool_)
            seqs, beam = seqs[going], beam[going]
        return [[self._hypothesis(*item) for item in self._best(seq)] or [NOTHING] for seq in range(len(self.lengths))]

    def _start(self, seqs: np.ndarray) -> _Beam:
        zeros = np.zeros((len(seqs), 1), dtype=np.int64)
        roots = seqs[:, None].copy()
        row = self.predictor.rows(seqs.tolist())[:, None]
        history_row = zeros if self.histories is None else self.histories.rows(seqs.tolist())[:, None]
        return _Beam(zeros * 0.0, zeros * 0.0, roots, zeros - 1, zeros, zeros, row, history_row)

    def _step(self, seqs: np.ndarray, beam: _Beam, step: int) -> _Beam:
        every, size = np.arange(len(seqs))[:, None], beam.score.shape[1]
        blank = self.search.model.blank_id
        frame = step - beam.num_labels  # (B, K)
        log_probs = self._joint(seqs, beam, frame)  # (B, K, C)
        waits = beam.score + log_probs[..., blank]
        grown = beam.score[..., None] + log_probs[..., :blank]  # (B, K, V)
        grown[beam.num_labels >= self.most[seqs, None]] = -np.inf
        last_frame = frame == self.lengths[seqs, None] - 1
        for row, k in zip(*np.nonzero(last_frame & (waits > -np.inf)), strict=True):
            end = float(waits[row, k] + beam.bonus[row, k]) + self._end_bonus(int(beam.history_row[row, k]))
            self.finished[seqs[row]].append((end, int(beam.prefix[row, k])))
        waits[last_frame] = -np.inf

        # what grows into a label sequence of the beam joins it: both are in the same frame then
        rows, grown_to, grown_from = np.nonzero(beam.parent[:, :, None] == beam.prefix[:, None, :])
        labels = beam.last[rows, grown_to]
        waits[rows, grown_to] = np.logaddexp(waits[rows, grown_to], grown[rows, grown_from, labels])
        grown[rows, grown_from, labels] = -np.inf

        bonus = beam.bonus[..., None] + self._bonus(beam, blank)
        scores = np.concatenate([waits + beam.bonus, (grown + bonus).reshape(len(seqs), -1)], axis=1)
        choice = top_k(torch.from_numpy(scores), self.search.beam_size)[1].numpy()
        stay = choice < size
        source, label = np.divmod(np.where(stay, 0, choice - size), blank)
        source = np.where(stay, choice, source)
        kept = beam[every, source]
        kept.score = np.where(stay, waits[every, source], grown[every, source, label])
        kept.bonus = np.where(stay, kept.bonus, bonus[every, source, label])
        possible = scores[every, choice] > -np.inf
        self._grow(kept, np.nonzero(~stay & possible), label)
        kept.prefix[~possible], kept.parent[~possible] = -2, -3  # no hypothesis here: equal to none, grown from none
        live = kept.prefix[possible].tolist()
        for histories in (self.predictor, self.histories):
            if histories is not None:
                histories.retain(live)
        kept.row[~possible] = kept.history_row[~possible] = 0
        return kept

    def _joint(self, seqs: np.ndarray, beam: _Beam, frame: np.ndarray) -> np.ndarray:
        """Log probabilities of the classes, (B, K, C)."""
        device = self.encoder.device
        at = torch.from_numpy(np.clip(frame, 0, self.lengths[seqs, None] - 1)).to(device)
        encoder = self.encoder[torch.from_numpy(seqs[:, None]).to(device), at]  # (B, K, E)
        predicted = torch.from_numpy(self.predictor.scores(beam.row, slice(None))).to(encoder)  # (B, K, H)
        return self.search.model.joint(encoder, predicted).double().log_softmax(-1).cpu().numpy()

    def _bonus(self, beam: _Beam, num_labels: int) -> np.ndarray | float:
        """What each label adds to the score beside the transducer, (B, K, V)."""
        if self.histories is None:
            return np.full((1, 1, num_labels), self.search.label_reward)
        scores = self.histories.scores(beam.history_row, slice(0, num_labels))
        return self.search.label_reward + self.search.lm_scale * scores

    def _end_bonus(self, history_row: int) -> float:
        if self.histories is None or self.search.lm_eos is None:
            return 0.0
        return self.search.lm_scale * float(self.histories.scores(np.array(history_row), self.search.lm_eos))

    def _grow(self, beam: _Beam, places: tuple[np.ndarray, ...], labels: np.ndarray) -> None:
        """Append labels to the prefixes at `places` of the beam. Prefixes have the numbers of their histories."""
        before, label = beam.prefix[places], labels[places]
        numbers = [self.predictor.child(*step) for step in zip(before.tolist(), label.tolist(), strict=True)]
        self.labels += [(-1, -1)] * (max(numbers, default=-1) + 1 - len(self.labels))
        for number, *step in zip(numbers, before.tolist(), label.tolist(), strict=True):
            self.labels[number] = (step[0], step[1])
        beam.row[places] = self.predictor.rows(numbers)
        if self.histories is not None:
            same = [self.histories.child(*step) for step in zip(before.tolist(), label.tolist(), strict=True)]
            assert same == numbers
            beam.history_row[places] = self.histories.rows(numbers)
        beam.parent[places], beam.prefix[places], beam.last[places] = before, numbers, label
        beam.num_labels[places] += 1

    def _best(self, seq: int) -> list[tuple[float, int]]:
        return sorted(self.finished[seq], key=lambda item: -item[0])[: self.search.num_best]

    def _goes_on(self, seq: int, beam: _Beam) -> bool:
        scores = beam.score + beam.bonus
        if scores.max() == -np.inf:
            return False
        best = self._best(seq)
        can_gain = self.search.label_reward > 0 or (self.search.lm is not None and self.search.lm.max_score > 0)
        if can_gain or len(best) < self.search.num_best:
            return True
        return bool(np.logaddexp.reduce(scores) > best[-1][0])

    def _hypothesis(self, score: float, prefix: int) -> Hypothesis:
        labels = []
        while self.labels[prefix][0] >= 0:
            prefix, label = self.labels[prefix]
            labels.append(label)
        return Hypothesis(labels[::-1], score)


def _encoder(encoded: Encoded) -> Tensor:
    if encoded.encoder is None:
        raise ValueError("a transducer search needs the encoder's output (Encoded.encoder), which is missing")
    return encoded.encoder
