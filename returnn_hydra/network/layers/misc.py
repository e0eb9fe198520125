"""Layers that fit nowhere else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from returnn_hydra.network.call import LayerCall
from returnn_hydra.network.ctc import ctc_neg_log_prob, ctc_viterbi_neg_log_prob
from returnn_hydra.network.dumps import Dump
from returnn_hydra.network.losses import LossInput, compute_loss
from returnn_hydra.network.named_tensor import NamedTensor
from returnn_hydra.network.registry import register_layer
from returnn_hydra.network.sequence_losses import sequence_distances


@register_layer("print", framewise=True)
def print_layer(call: LayerCall, *, summarize: int = 99, extra_print_args: Any = ()) -> NamedTensor:
    """The input; prints it."""
    x = call.x
    if not call.run.building:
        print(f"{call.path} {list(x.axes)}: {x.raw.detach().flatten()[:summarize].tolist()}", *extra_print_args)
    return x


@register_layer("loss", concat=False, refs=("loss_",))
def loss_layer(call: LayerCall, *, loss_: Any, target_: Any = None, use_error: bool = False) -> NamedTensor:
    """The value (or error) of a loss of the input, as a scalar."""
    options = dict(loss_) if isinstance(loss_, dict) else {"class": loss_}
    name = options.pop("class")
    x = call.concat(call.sources)
    if call.run.building:
        return NamedTensor(torch.zeros((), device=call.device), ())
    del target_
    found = compute_loss(call, x, name, options)
    value = found.error if use_error else found.value
    if value is None:
        raise call.error(f"loss {name!r} has no {'error' if use_error else 'value'}")
    return NamedTensor(value, ())


@register_layer("ctc_loss", concat=False, refs=("logits", "targets"))
def ctc_loss(
    call: LayerCall,
    *,
    logits: str,
    targets: str,
    logits_normalized: bool = False,
    blank_index: int = -1,
    max_approx: bool = False,
    label_loop: bool = True,
) -> NamedTensor:
    """-log p(targets | logits) of every sequence: (B,)."""
    if not label_loop:
        raise call.error("option 'label_loop' = False is not supported")
    scores, labels = call.layer(logits), call.layer(targets)
    time, label_axis = call.time(scores), call.time(labels)
    batch, feature = scores.batch_axis, call.feature(scores)
    if batch is None or time.lengths is None or label_axis.lengths is None:
        raise call.error("needs batch and time axes")
    raw = scores.ordered([batch, time, feature]).raw
    log_probs = raw if logits_normalized else torch.log_softmax(raw, -1)
    classes = feature.size
    blank = blank_index % classes
    index = labels.ordered([batch, label_axis]).raw.long()
    if blank != classes - 1:  # put the blank last
        order = [c for c in range(classes) if c != blank] + [blank]
        log_probs = log_probs[..., order]
        index = torch.where(index > blank, index - 1, index)
    function = ctc_viterbi_neg_log_prob if max_approx else ctc_neg_log_prob
    return NamedTensor(function(log_probs, time.lengths, index, label_axis.lengths), (batch,))


@register_layer("edit_distance", concat=False, refs=("a", "b"))
def edit_distance(call: LayerCall, *, a: str, b: str) -> NamedTensor:
    """Levenshtein distance of the sequences of two layers: (B,)."""
    first, second = call.layer(a), call.layer(b)
    distances = sequence_distances(LossInput(call, first, second), None, False, False)
    others = [axis for axis in first.axes if axis.is_batch_like]
    others.sort(key=lambda axis: axis.kind != "batch")
    return NamedTensor(distances.to(torch.int32), tuple(others))


@register_layer("hdf_dump", refs=("extra",))
def hdf_dump(
    call: LayerCall,
    *,
    filename: str,
    extra: Mapping[str, str] | None = None,
    dump_whole_batches: bool = False,
    labels: Sequence[str] | None = None,
    extend_existing_file: bool = False,
    dump_per_run: bool = False,
) -> NamedTensor:
    """The input; who runs the pass writes it to the file, with `extra` layers beside it (`NetworkResult.dumps`)."""
    if not isinstance(filename, str) or dump_whole_batches or extend_existing_file or dump_per_run:
        raise call.error(
            "only a file name as text, without 'dump_whole_batches', 'extend_existing_file' and 'dump_per_run', is "
            "supported: every sequence goes to one new file"
        )
    x = call.x
    others = {key: call.layer(ref) for key, ref in (extra or {}).items()}
    if not call.run.building:
        call.run.dumps.append(Dump(call.path, filename, {"data": x, **others}, labels))
    return x


@register_layer("cond", concat=False, refs=("condition",))
def cond(call: LayerCall, *, condition: Any, true_layer: dict[str, Any], false_layer: dict[str, Any]) -> NamedTensor:
    """One of two layers, by a scalar condition."""
    from returnn_hydra.network.layers.subnetwork import run_subnetwork

    test = condition if isinstance(condition, bool) else bool(call.layer(condition).raw)
    layers = {"true": dict(true_layer), "false": dict(false_layer)}
    for layer in layers.values():
        sources = layer.get("from", "data")
        layer["from"] = [f"base:{name}" for name in ([sources] if isinstance(sources, str) else sources)]
    value = run_subnetwork(call, layers, {}, output="true" if test else "false")
    if call.run.building:  # both have parameters
        for name in layers:
            call.scope.children[call.name].get(name)
    return value
