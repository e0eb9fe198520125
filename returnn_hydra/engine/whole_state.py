"""The state of model and optimizer as whole tensors, also when every rank holds a part of each (DTensor).

So a checkpoint is the same on disk for one process, for DistributedDataParallel and for FSDP with any number of ranks.
torch.distributed.checkpoint puts the parts together, on the first rank's CPU, and deals the model's out again.
Legend: all ranks must call these functions together when the model is sharded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def is_sharded(model: nn.Module) -> bool:
    """Whether fully_shard was applied."""
    return any(_is_part(parameter) for parameter in model.parameters())


def model_state(model: nn.Module) -> Mapping[str, Any]:
    """The model's state dict; of a sharded model the first rank's is whole, the others' is empty."""
    if not is_sharded(model):
        return model.state_dict()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def load_model_state(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Take up whole tensors, which every rank has read."""
    if not is_sharded(model):
        model.load_state_dict(state)
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    set_model_state_dict(model, dict(state), options=StateDictOptions(full_state_dict=True))


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """`optimizer.state_dict()`, by the parameters' numbers; of a sharded model whole on the first rank, else empty."""
    if not is_sharded(model):
        return optimizer.state_dict()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    named: Any = get_optimizer_state_dict(model, optimizer, options=options)
    if not named:
        return {"state": {}, "param_groups": []}
    groups = optimizer.state_dict()["param_groups"]
    names = [name for group in named["param_groups"] for name in group["params"]]
    state = {index: named["state"][name] for index, name in enumerate(names) if name in named["state"]}
    return {"state": state, "param_groups": groups}


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """`optimizer.load_state_dict` of whole tensors, which every rank has read.

    Not by torch.distributed.checkpoint: that makes an update with rate 0 first, and refuses optimizers without state.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    dealt = {
        number: {key: _dealt(value, parameters[number]) for key, value in entries.items()}
        for number, entries in state["state"].items()
    }
    optimizer.load_state_dict({"state": dealt, "param_groups": state["param_groups"]})


def copy_into(target: Tensor, whole: Tensor) -> None:
    """`target.copy_(whole)`, also when this rank holds a part of the target."""
    with torch.no_grad():
        target.copy_(_dealt(whole, target))


def _is_part(tensor: Tensor) -> bool:
    return hasattr(tensor, "device_mesh")  # a DTensor; its class takes a second to import


def _dealt(value: Any, like: Tensor) -> Any:
    """This rank's part of a tensor that has the parameter's shape; anything else as it is."""
    if not _is_part(like) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)  # type: ignore[attr-defined]
