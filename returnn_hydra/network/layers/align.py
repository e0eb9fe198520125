"""Alignments of labels to frames.

Legend: B sequences, T frames, C classes, the last one the blank.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from returnn_hydra.network.activations import safe_log
from returnn_hydra.network.axis import Axis
from returnn_hydra.network.call import LayerCall
from returnn_hydra.network.ctc import ctc_posteriors
from returnn_hydra.network.named_tensor import NamedTensor
from returnn_hydra.network.registry import register_layer
from returnn_hydra.search.align import ctc_align


def _scores(call: LayerCall, input_type: str) -> tuple[Tensor, Axis, Axis, Axis]:
    """Log scores (B, T, C), and their axes."""
    x = call.x
    if input_type not in ("log_prob", "prob"):
        raise call.error(f"input_type {input_type!r} is not supported; nearest: 'log_prob', 'prob'")
    is_log = input_type == "log_prob"
    before = x.before_activation
    if not is_log and before is not None and before[0] == "softmax":
        feature = call.feature(before[1])
        x, is_log = before[1].dense(torch.log_softmax(before[1].raw, before[1].index(feature))), True
    batch, time, feature = x.batch_axis, call.time(x), call.feature(x)
    if batch is None or time.lengths is None:
        raise call.error("needs batch and time axes")
    raw = x.ordered([batch, time, feature]).raw
    return raw if is_log else safe_log(raw), batch, time, feature


def _labels(call: LayerCall, target: NamedTensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """(B, S) and (B,)."""
    axis, batch = call.time(target), target.batch_axis
    if batch is None or axis.lengths is None or target.sparse_dim != num_classes - 1:
        raise call.error(f"needs labels of {num_classes - 1} classes with a time axis, one less than the scores have")
    return target.ordered([batch, axis]).raw.long(), axis.lengths


@register_layer("fast_bw")
def fast_bw(
    call: LayerCall,
    *,
    align_target: str,
    align_target_key: str | None = None,
    ctc_opts: Mapping[str, Any] | None = None,
    sprint_opts: Any = None,
    input_type: str = "log_prob",
    tdp_scale: float = 1.0,
    am_scale: float = 1.0,
    min_prob: float = 0.0,
    staircase_seq_len_source: Any = None,
) -> NamedTensor:
    """Soft alignment: the probability of every class at every frame, given the labels (Baum-Welch); for `via_layer`."""
    del tdp_scale  # scales the transitions of `sprint` automata only
    if align_target != "ctc" or sprint_opts is not None or staircase_seq_len_source is not None:
        raise call.error(f"align_target {align_target!r} is not supported; nearest: 'ctc'")
    options = dict(ctc_opts or {})
    if options.pop("ctc_merge_repeated", True) is not True or options.pop("label_loop", True) is not True or options:
        raise call.error(f"ctc_opts = {dict(ctc_opts or {})!r} is not supported")
    scores, batch, time, feature = _scores(call, input_type)
    if min_prob > 0:
        scores = scores.clamp(min=float(torch.tensor(min_prob).log()))
    target = call.scope.target(align_target_key or call.default_target())
    labels, label_lengths = _labels(call, target, feature.size)
    assert time.lengths is not None
    posteriors, loss = ctc_posteriors(scores * am_scale, time.lengths, labels, label_lengths)
    parts = {"output_loss": NamedTensor(loss, (batch,))}
    return call.x.dense(posteriors, [batch, time, feature], feature=feature, parts=parts)


@register_layer("forced_align", refs=("align_target",))
def forced_align(
    call: LayerCall,
    *,
    align_target: str,
    topology: str,
    input_type: str,
    blank_idx: int = -1,
    blank_included: bool = False,
) -> NamedTensor:
    """The most likely class of every frame, given the labels (Viterbi): (B, T); `layer/scores`: log probabilities."""
    if topology != "ctc":
        raise call.error(f"topology {topology!r} is not supported; nearest: 'ctc'")
    if blank_idx != -1 or blank_included:
        raise call.error("the blank must be the last class, and no label: blank_idx = -1, blank_included = False")
    scores, batch, time, feature = _scores(call, input_type)
    labels, label_lengths = _labels(call, call.layer(align_target), feature.size)
    assert time.lengths is not None
    device = scores.device
    if call.run.building:  # made-up labels may need more frames than there are
        label_lengths = torch.zeros_like(label_lengths)
    found = ctc_align(scores, time.lengths.to(device), labels, label_lengths.to(device), seq_tags=call.run.seq_tags)
    parts = {"scores": NamedTensor(found.scores.to(scores.dtype), (batch,))}
    return NamedTensor(found.classes.to(torch.int32), (batch, time), sparse_dim=feature.size, parts=parts)
