"""Losses over whole sequences: CTC, edit distance, and those over the hypotheses of a search.

Legend: B batch, T time, F classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from returnn_hydra.network.activations import safe_log
from returnn_hydra.network.axis import BATCH
from returnn_hydra.network.bleu import sentence_bleu
from returnn_hydra.network.ctc import ctc_decode as decode_ctc
from returnn_hydra.network.ctc import ctc_neg_log_prob, ctc_viterbi_neg_log_prob
from returnn_hydra.network.errors import nearest
from returnn_hydra.network.losses import LossInput, LossValue, register_loss
from returnn_hydra.network.named_tensor import NamedTensor, unify
from returnn_hydra.nn.labels import edit_distances


@register_loss("ctc")
def ctc(
    data: LossInput,
    *,
    target_collapse_repeated: bool = False,
    auto_clip_target_len: bool = False,
    output_in_log_space: bool = False,
    beam_width: int = 100,
    ctc_opts: dict[str, Any] | None = None,
    use_native: bool = False,
    use_viterbi: bool = False,
    focal_loss_factor: float = 0.0,
) -> LossValue:
    """-log p(target | output) summed over alignments; blank is the last class. No possible alignment: 0.

    The error is the edit distance of the decoded sequence: greedy in training, by beam search otherwise.
    """
    del use_native
    if focal_loss_factor:
        raise data.call.error("loss 'ctc': option 'focal_loss_factor' is not supported; nearest: loss 'ce'")
    known = {
        "ignore_longer_outputs_than_inputs",
        "logits_normalize",
        "preprocess_collapse_repeated",
        "ctc_merge_repeated",
    }
    for option, value in (ctc_opts or {}).items():
        if option not in known or (option == "ctc_merge_repeated" and not value):
            raise data.call.error(f"loss 'ctc': ctc_opts {option} = {value!r} is not supported{nearest(option, known)}")
    target_collapse_repeated |= bool((ctc_opts or {}).get("preprocess_collapse_repeated"))
    logits = _ctc_logits(data, output_in_log_space)  # (B, T, F)
    time = data.call.time(data.output)
    target = data.reference
    label_axis = data.call.finder.time(target)
    batch = target.batch_axis
    if target.sparse_dim is None or label_axis is None or batch is None or time.lengths is None:
        raise data.call.error("loss 'ctc' needs a target of class indices with a time axis")
    if logits.shape[-1] != target.sparse_dim + 1:
        raise data.call.error(
            f"loss 'ctc' needs one output more than the target has classes (the blank): {target.sparse_dim + 1}, "
            f"not {logits.shape[-1]}"
        )
    labels = target.ordered([batch, label_axis]).raw.long()
    lengths, label_lengths = time.lengths, label_axis.lengths
    assert label_lengths is not None
    if target_collapse_repeated:
        labels, label_lengths = _collapse_repeated(labels, label_lengths)
    if auto_clip_target_len:
        label_lengths = torch.minimum(label_lengths, (lengths - 1).clamp(min=0))
    log_probs = torch.log_softmax(logits, -1)
    function = ctc_viterbi_neg_log_prob if use_viterbi else ctc_neg_log_prob
    value = function(log_probs, lengths, labels, label_lengths).sum()
    width = 1 if data.call.train else beam_width
    decoded = decode_ctc(log_probs.detach(), lengths, width)
    return LossValue(value, _distances(decoded, _sequences(labels, label_lengths), logits.device).sum())


def _ctc_logits(data: LossInput, in_log_space: bool) -> Tensor:
    output = data.output
    before = output.before_activation
    scores = output
    is_log = in_log_space
    if not in_log_space and before is not None and before[0] in ("softmax", "exp"):
        scores, is_log = before[1], True
    batch, feature = scores.batch_axis, scores.feature
    if batch is None or feature is None:
        raise data.call.error("loss 'ctc' needs an output with batch, time and feature axis")
    raw = scores.ordered([batch, data.call.time(scores), feature]).raw
    return raw if is_log else safe_log(raw)


def _sequences(labels: Tensor, lengths: Tensor) -> list[list[int]]:
    return [row[:length] for row, length in zip(labels.tolist(), lengths.tolist(), strict=True)]


def _collapse_repeated(labels: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    rows = [
        [label for i, label in enumerate(row) if i == 0 or label != row[i - 1]] for row in _sequences(labels, lengths)
    ]
    new_lengths = torch.tensor([len(row) for row in rows])
    padded = [row + [0] * (labels.shape[1] - len(row)) for row in rows]
    return torch.tensor(padded, device=labels.device, dtype=labels.dtype).reshape(labels.shape), new_lengths


@register_loss("edit_distance")
def edit_distance_loss(
    data: LossInput,
    *,
    label_map: dict[int, int] | None = None,
    ctc_decode: bool = False,
    output_in_log_space: bool = False,
    debug_print: bool = False,
) -> LossValue:
    """Only an error: Levenshtein distance between output and target (in a beam: of every hypothesis)."""
    del debug_print
    distances = sequence_distances(data, label_map, ctc_decode, output_in_log_space)
    return LossValue(None, distances.sum())


def sequence_distances(
    data: LossInput, label_map: dict[int, int] | None, decode: bool, output_in_log_space: bool
) -> Tensor:
    """Edit distance of every sequence: (B,) or (B, beam)."""
    if decode:
        logits = _ctc_logits(data, output_in_log_space)
        lengths = data.call.time(data.output).lengths
        assert lengths is not None
        hypotheses = decode_ctc(torch.log_softmax(logits, -1).detach(), lengths, 100)
        return _distances(_mapped(hypotheses, label_map), _mapped(_references(data), label_map), logits.device)
    rows, references, shape = label_rows(data)
    distances = _distances(_mapped(rows, label_map), _mapped(references, label_map), data.output.raw.device)
    return distances.reshape(shape)


def label_rows(data: LossInput) -> tuple[list[list[int]], list[list[int]], list[int]]:
    """Every sequence (or hypothesis) of the output, its reference, and the sizes of batch and beam."""
    output = data.output
    if output.feature is not None:
        raise data.call.error("this loss needs an output of class indices; edit_distance: or set ctc_decode")
    time = data.call.time(output)
    others = [axis for axis in output.axes if axis is not time]
    others.sort(key=lambda axis: axis.kind != BATCH)
    raw = output.expanded([*others, time])
    assert time.lengths is not None
    lengths = NamedTensor(time.lengths, time.over).expanded(others)
    rows = _sequences(raw.flatten(0, -2), lengths.reshape(-1))
    references = _references(data)
    repeated = [row for row in references for _ in range(len(rows) // max(len(references), 1))]
    return rows, repeated, [axis.size for axis in others]


def _references(data: LossInput) -> list[list[int]]:
    target = data.reference
    label_axis = data.call.finder.time(target)
    if label_axis is None or target.batch_axis is None or label_axis.lengths is None:
        raise data.call.error("this loss needs a target with a time axis")
    return _sequences(target.ordered([target.batch_axis, label_axis]).raw, label_axis.lengths)


def _distances(rows: list[list[int]], references: list[list[int]], device: torch.device) -> Tensor:
    """Edit distance of each pair of label sequences."""
    return edit_distances(*_padded(rows), *_padded(references)).float().to(device)


def _padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    longest = max((len(row) for row in rows), default=0)
    padded = torch.tensor([row + [0] * (longest - len(row)) for row in rows], dtype=torch.long)
    return padded.reshape(len(rows), longest), torch.tensor([len(row) for row in rows])


def _mapped(rows: list[list[int]], label_map: dict[int, int] | None) -> list[list[int]]:
    return rows if not label_map else [[label_map.get(label, label) for label in row] for row in rows]


@register_loss("bleu")
def bleu(data: LossInput) -> LossValue:
    """Only an error: minus the BLEU of every sequence (in a beam: of every hypothesis)."""
    rows, references, _ = label_rows(data)
    pairs = zip(rows, references, strict=True)
    scores = [sentence_bleu(row, reference) for row, reference in pairs]
    return LossValue(None, -torch.tensor(scores, device=data.output.raw.device).sum())


@register_loss("search_score")
def search_score(data: LossInput) -> LossValue:
    """Minus the scores of all hypotheses, or of those that were decided for."""
    beam = data.output.beam_axis
    choice: Any = beam.choice if beam is not None else None
    decided = (data.output.parts or {}).get("beam_scores")
    if decided is not None:
        return LossValue(-decided.raw.sum())
    if choice is None:
        raise data.call.error("loss 'search_score' needs a layer that searched (class 'choice')")
    return LossValue(-choice.final_scores.raw.sum())


@register_loss("expected_loss")
def expected_loss(
    data: LossInput,
    *,
    loss: dict[str, Any],
    loss_kind: str,
    norm_scores: bool = True,
    norm_scores_stop_gradient: bool = True,
    divide_beam_size: bool = True,
    subtract_average_loss: bool = True,
    loss_correction_grad_only: bool = False,
) -> LossValue:
    """Minimum risk: the loss of every hypothesis, weighted by its probability."""
    beam = data.output.beam_axis
    choice: Any = beam.choice if beam is not None else None
    if choice is None or beam is None:
        raise data.call.error("loss 'expected_loss' needs a layer that searched (class 'choice')")
    if loss.get("class") != "edit_distance" or loss_kind != "error":
        raise data.call.error("expected_loss: only loss_kind 'error' of {'class': 'edit_distance'} is supported")
    inner = {key: value for key, value in loss.items() if key != "class"}
    risks = sequence_distances(
        data, inner.get("label_map"), bool(inner.get("ctc_decode")), bool(inner.get("output_in_log_space"))
    )
    scores = choice.final_scores.raw  # (B, beam)
    corrected = risks
    if norm_scores:
        shift = torch.logsumexp(scores, 1, keepdim=True)
        weights = torch.exp(scores - (shift.detach() if norm_scores_stop_gradient else shift))
    else:
        weights = torch.exp(scores)
    if subtract_average_loss:
        corrected = risks - risks.mean(1, keepdim=True)
    weighted = (corrected * weights).sum(1)
    if loss_correction_grad_only and subtract_average_loss:
        weighted = weighted + ((risks - corrected) * weights).sum(1).detach()
    if divide_beam_size:
        weighted = weighted / beam.size
    return LossValue(weighted.sum())


@register_loss("via_layer")
def via_layer(
    data: LossInput,
    *,
    error_signal_layer: str | None = None,
    align_layer: str | None = None,
    loss_wrt_to_act_in: bool | str = False,
) -> LossValue:
    """The gradient that another layer computed (or output - alignment), and that layer's loss as the value."""
    name = error_signal_layer or align_layer
    if name is None or (error_signal_layer and align_layer):
        raise data.call.error("loss 'via_layer' needs one of error_signal_layer and align_layer")
    other = data.call.layer(name)
    other, output = unify([other, data.output])
    signal = other.expanded(output.axes) if error_signal_layer else output.raw - other.expanded(output.axes)
    signal = NamedTensor(signal, output.axes).masked(output.axes, 0.0).detach()
    wrt = output.raw
    if loss_wrt_to_act_in:
        before = data.output.before_activation
        if before is None or (isinstance(loss_wrt_to_act_in, str) and before[0] != loss_wrt_to_act_in):
            raise data.call.error(
                f"loss_wrt_to_act_in = {loss_wrt_to_act_in!r}, but the activation is {before and before[0]!r}"
            )
        wrt = before[1].ordered(data.output.axes).raw
    value = other.parts["output_loss"].raw.sum() if other.parts and "output_loss" in other.parts else None
    carrier = (wrt * signal).sum()  # its gradient with respect to `wrt` is the signal
    return LossValue(carrier - carrier.detach() + (value.detach() if value is not None else 0.0))
