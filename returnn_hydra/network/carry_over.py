"""Parameters of one network for the next one, when a network changes between epochs."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from returnn_hydra.network.model import NetworkModel

Blocks = Sequence[Sequence[int]]


@torch.no_grad()
def take_parameters(
    model: NetworkModel, other: NetworkModel, mode: str | None = None, leave_layers: Collection[str] = ()
) -> list[str]:
    """Copy what the other network has under the same names; returns the names that were copied, also in part.

    Args:
        mode: None or "ifpossible": of the same shape only; "subset": of another shape as far as both reach, block by
            block (the gates of an LSTM, the sources of a linear layer); "reset": nothing. A layer's own
            `custom_param_importer` wins.
        leave_layers: paths of layers that begin anew.
    """
    theirs = other.tf_parameters()
    left = {name for layer in leave_layers for name in model.store.by_layer.get(layer, ())}
    taken = []
    for name, parameter in model.tf_parameters().items():
        source = theirs.get(name)
        how = model.store.copy_modes.get(name) or mode
        if source is None or name in left or how == "reset":
            continue
        if source.shape == parameter.shape:
            parameter.copy_(source)
        elif how == "subset" and source.dim() == parameter.dim():
            copy_blocks(parameter, source, _blocks(model, name, parameter), _blocks(other, name, source))
        else:
            continue
        taken.append(name)
    return taken


def _blocks(model: NetworkModel, name: str, parameter: Tensor) -> Blocks:
    known = model.store.blocks.get(name)
    return known if known is not None else [[size] for size in parameter.shape]


def copy_blocks(target: Tensor, source: Tensor, target_blocks: Blocks, source_blocks: Blocks) -> None:
    """Copy every block's common corner; of an axis with another number of blocks, the first ones."""
    pairs = [list(_pairs(*axis)) for axis in zip(target_blocks, source_blocks, strict=True)]
    for combination in itertools.product(*pairs):
        to, frm = (tuple(part[side] for part in combination) for side in (0, 1))
        target[to] = source[frm].to(target)


def _pairs(target: Sequence[int], source: Sequence[int]) -> list[tuple[slice, slice]]:
    found = []
    starts = (list(itertools.accumulate(sizes, initial=0)) for sizes in (target, source))
    for a, b, first, second in zip(*starts, target, source, strict=False):
        size = min(first, second)
        found.append((slice(a, a + size), slice(b, b + size)))
    return found
