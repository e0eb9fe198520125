"""Search: `choice` inside of a loop, `decide` behind it.

Legend: B sequences, K hypotheses, V labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from returnn_hydra.network.activations import safe_log
from returnn_hydra.network.axis import BEAM, Axis
from returnn_hydra.network.call import LayerCall
from returnn_hydra.network.errors import nearest
from returnn_hydra.network.named_tensor import NamedTensor, latest_beam, select_beams, to_beam
from returnn_hydra.network.rec.search import SearchStep, best_successors, scores_to_combine
from returnn_hydra.network.registry import register_layer
from returnn_hydra.network.tf_face.network import UserChoice
from returnn_hydra.network.tf_face.tensor import tf_tensor

INPUT_TYPES = ("prob", "log_prob", "logits", "regression")


@register_layer("choice", concat=False, framewise=True, refs=("explicit_search_source", "explicit_search_sources"))
def choice(
    call: LayerCall,
    *,
    beam_size: int,
    keep_beams: bool = False,
    search: bool | None = None,
    add_to_beam_scores: bool | None = None,
    input_type: str = "prob",
    prob_scale: float = 1.0,
    base_beam_score_scale: float = 1.0,
    random_sample_scale: float = 0.0,
    length_normalization: bool = True,
    length_normalization_exponent: float = 1.0,
    custom_score_combine: Callable[..., Tensor] | None = None,
    source_beam_sizes: Any = None,
    scheduled_sampling: Any = False,
    cheating: Any = False,
    explicit_search_source: Any = None,
    explicit_search_sources: Any = None,
) -> NamedTensor:
    """The next label: from the target in training, the best continuations in search."""
    del source_beam_sizes
    if input_type not in INPUT_TYPES:
        raise call.error(f"input_type {input_type!r} is not supported{nearest(input_type, INPUT_TYPES)}")
    del add_to_beam_scores
    searching = call.run.search if search is None else search
    key = call.default_target()
    if not searching and scheduled_sampling and call.train and call.stepping:
        return _sampled(call, input_type, key, scheduled_sampling)
    if not searching:
        target = call.scope.target(key)
        beam = latest_beam(call.sources) if call.run.search and call.stepping else None
        if beam is not None and target.beam_axis is None:  # the same for all hypotheses of another choice
            axes = [call.run.batch, beam, *[axis for axis in target.axes if axis is not call.run.batch]]
            return target.like(target.expanded(axes), axes)
        return target.like(target.raw, feature=target.feature)
    if not call.stepping:
        raise call.error("searches only inside of a rec layer")
    if len(call.sources) != 1:
        raise call.error("a search needs one source of label scores")
    if input_type == "regression":
        if beam_size != 1:
            raise call.error(f"a regression has one hypothesis, not beam_size = {beam_size}")
        return _prediction(call, call.sources[0])
    scores = log_scores(call, call.sources[0], input_type)
    options = _Options(
        beam_size, keep_beams, random_sample_scale, length_normalization, length_normalization_exponent, cheating
    )
    if custom_score_combine is not None:
        combine = _by_user(call, custom_score_combine, explicit_search_sources or explicit_search_source or ())
    else:

        def combine(base: Tensor, new: Tensor, ended: Tensor | None) -> Tensor:
            del ended
            return new * prob_scale + base * base_beam_score_scale

    return _search(call, scores, options, combine, key)


@dataclass(frozen=True)
class _Options:
    beam: int
    keep_beams: bool
    sample: float
    normalize: bool
    exponent: float
    cheating: Any


Combine = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Scores so far (B, K, 1), of the next label (B, K, V), which have ended (B, K): new scores (B, K, V)."""


def _by_user(call: LayerCall, function: Callable[..., Any], sources: Sequence[str] | str) -> Combine:
    """`custom_score_combine`: a function of the config."""

    def combine(base: Tensor, new: Tensor, ended: Tensor | None) -> Tensor:
        step = call.scope.step
        assert step is not None
        flags = torch.zeros(new.shape[:2], dtype=torch.bool, device=new.device) if ended is None else ended
        names = [sources] if isinstance(sources, str) else list(sources)
        result = function(
            layer=UserChoice(call, names, new.shape[2]),
            scores_in=tf_tensor(new),
            scores_base=tf_tensor(base),
            t=tf_tensor(torch.tensor(step.t, dtype=torch.int32)),
            end_flags=tf_tensor(flags),
            batch_dim=new.shape[0],
            scores_beam_in=new.shape[1],
            base_beam_in=new.shape[1],
        )
        if not isinstance(result, Tensor) or result.shape != new.shape:
            raise call.error(
                f"custom_score_combine gave {getattr(result, 'shape', result)}, expected {tuple(new.shape)}"
            )
        return result.as_subclass(Tensor)

    return combine


def log_scores(call: LayerCall, source: NamedTensor, input_type: str) -> NamedTensor:
    """Log probabilities over the labels."""
    feature = call.feature(source)
    before = source.before_activation
    if input_type == "log_prob":
        return source
    if input_type == "logits":
        return source.dense(torch.log_softmax(source.raw, source.index(feature)))
    if before is not None and before[0] == "softmax" and before[1].feature is not None:
        logits = before[1]
        return logits.dense(torch.log_softmax(logits.raw, logits.index(before[1].feature)))
    return source.dense(safe_log(source.raw))


def _search(call: LayerCall, scores: NamedTensor, options: _Options, combine: Combine, key: str) -> NamedTensor:
    step = call.scope.step
    assert step is not None
    batch, labels = call.run.batch, call.feature(scores)
    source = step.beam
    if source is not None:
        scores = to_beam(scores, source)
    extra = [axis for axis in scores.axes if axis not in (batch, source, labels)]
    if extra:
        raise call.error(f"the scores have axes {extra} besides batch and labels")
    lead = [batch, source] if source is not None else [batch]
    raw = scores.expanded([*lead, labels]).reshape(batch.size, -1, labels.size)  # (B, K, V)
    earlier: Any = source.choice if source is not None else None
    base = earlier.scores.raw if earlier is not None else raw.new_zeros(batch.size, 1)
    ended = step.ended()
    flags = None if ended is None else ended.expanded(lead).reshape(base.shape)
    so_far, new = scores_to_combine(
        base, raw, step.t, flags, length_normalization=options.normalize, exponent=options.exponent
    )
    combined = combine(so_far, new, flags)
    if options.sample:
        noise = -torch.log(-torch.log(torch.rand_like(combined)))
        combined = combined + noise * options.sample
    gold = None
    if options.cheating:
        target = call.scope.target(key)
        if target.axes != (batch,):
            raise call.error("cheating needs the target, and a loop over its frames")
        gold = target.raw
    parents, best, values = best_successors(
        combined, options.beam, gold, options.cheating == "exclusive", options.keep_beams
    )
    beam = Axis(f"{call.path}:beam", options.beam, BEAM)
    axes = (batch, beam)
    beam.choice = SearchStep(source, NamedTensor(parents, axes), NamedTensor(values, axes), options.normalize)
    step.beam = beam
    dim, vocab = call.scope.target_spec(key)
    return NamedTensor(best.to(torch.int32), axes, sparse_dim=dim if dim is not None else labels.size, vocab=vocab)


def _prediction(call: LayerCall, source: NamedTensor) -> NamedTensor:
    """Nothing to choose: the source is the next frame, as the only hypothesis."""
    step = call.scope.step
    assert step is not None
    batch, before = call.run.batch, step.beam
    beam = Axis(f"{call.path}:beam", 1, BEAM)
    zeros = torch.zeros(batch.size, 1, device=source.raw.device)
    earlier: Any = before.choice if before is not None else None
    scores = zeros if earlier is None else earlier.scores.raw
    axes = (batch, beam)
    beam.choice = SearchStep(before, NamedTensor(zeros.long(), axes), NamedTensor(scores, axes))
    step.beam = beam
    if before is not None:
        return to_beam(to_beam(source, before), beam) if source.beam_axis is not None else source
    rest = [axis for axis in source.axes if axis is not batch]
    return source.like(source.expanded([batch, beam, *rest]), [batch, beam, *rest], feature=source.feature)


def _sampled(call: LayerCall, input_type: str, key: str, options: Any) -> NamedTensor:
    """Scheduled sampling: a label drawn from the model, or the reference with some probability."""
    settings = dict(options) if isinstance(options, Mapping) else {}
    unknown = set(settings) - {"gold_mixin_prob", "enabled"}
    if unknown:
        raise call.error(f"scheduled_sampling: {sorted(unknown)} is not supported; nearest: 'gold_mixin_prob'")
    target = call.scope.target(key)
    if settings.get("enabled", True) is False:
        return target
    scores = log_scores(call, call.sources[0], input_type)
    rows, other = scores.rows(call.feature(scores))
    drawn = torch.multinomial(rows.softmax(-1), 1).reshape([axis.size for axis in other]).to(target.raw.dtype)
    gold = settings.get("gold_mixin_prob") or 0.0
    if gold:
        keep = torch.rand(drawn.shape, device=drawn.device) < float(gold)
        drawn = torch.where(keep, target.expanded(other), drawn)
    return target.like(drawn, other)


@register_layer("decide", concat=False)
def decide(call: LayerCall, *, length_normalization: bool = False) -> NamedTensor:
    """The best hypothesis of every sequence; without a search, the input."""
    x = call.concat(call.sources)
    beam = x.beam_axis
    if beam is None:
        return x.batch_major()
    step: Any = beam.choice
    scores = step.final_scores.raw
    batch = step.final_scores.axes[0]
    time = call.finder.time(x)
    if length_normalization and time is not None and time.lengths is not None:
        scores = scores / NamedTensor(time.lengths.to(scores.device), time.over).expanded([batch, beam])
    best = Axis("best", 1, BEAM)
    parts = {"beam_scores": NamedTensor(scores.amax(1), (batch,))}
    chosen = select_beams(x, NamedTensor(scores.argmax(1, keepdim=True), (batch, best)), best)
    result = chosen.select(best, 0)
    for axis in result.axes:
        if axis.lengths is not None and best in axis.over:
            result = _cut(result, axis, best)
    return result.like(result.raw, parts=parts).batch_major()


def _cut(x: NamedTensor, axis: Axis, best: Axis) -> NamedTensor:
    """Lengths of the chosen hypotheses, and no more frames than the longest has."""
    assert axis.lengths is not None
    lengths = axis.lengths.select(axis.over.index(best), 0)
    size = int(lengths.max()) if lengths.numel() else 0
    new = Axis(axis.name, size, axis.kind, lengths=lengths, over=[a for a in axis.over if a is not best])
    raw = x.raw.narrow(x.index(axis), 0, size)
    return x.like(raw, [new if a is axis else a for a in x.axes], time=new if x.time is axis else x.time)


@register_layer("decide_keep_beam", concat=False)
def decide_keep_beam(call: LayerCall) -> NamedTensor:
    """The input, with all hypotheses."""
    return call.concat(call.sources)


def _search_step(call: LayerCall) -> tuple[Axis, Any]:
    x = call.concat(call.sources)
    if x.beam_axis is None:
        raise call.error("the input comes from no search")
    return x.beam_axis, x.beam_axis.choice


@register_layer("choice_get_beam_scores", concat=False)
def choice_get_beam_scores(call: LayerCall) -> NamedTensor:
    """Log scores of all hypotheses: (B, K)."""
    _, step = _search_step(call)
    return step.final_scores


@register_layer("choice_get_src_beams", concat=False)
def choice_get_src_beams(call: LayerCall) -> NamedTensor:
    """Which hypothesis each one came from: (B, K)."""
    _, step = _search_step(call)
    return step.source_beams


@register_layer("split_batch_beam", concat=False)
def split_batch_beam(call: LayerCall) -> NamedTensor:
    """The hypotheses as an axis of its own."""
    x = call.concat(call.sources)
    beam = x.beam_axis
    if beam is None:
        raise call.error("the input comes from no search")
    new = Axis(f"{call.name}:beam", beam.size)
    changed = {
        axis: Axis(
            axis.name, axis.size, axis.kind, lengths=axis.lengths, over=[new if a is beam else a for a in axis.over]
        )
        for axis in x.axes
        if beam in axis.over
    }
    result = x.relabelled(beam, new)
    for old, axis in changed.items():
        result = result.relabelled(old, axis)
    return result
