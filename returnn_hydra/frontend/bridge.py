"""From frontend modules to torch modules and back; parameters are the same torch parameters, with the same names."""

from __future__ import annotations

from typing import Any

import torch

from returnn_hydra.frontend.dim import Dim
from returnn_hydra.frontend.module import Module
from returnn_hydra.frontend.parameter import Parameter
from returnn_hydra.frontend.tensor import dtype_name


class RFModuleAsPTModule(torch.nn.Module):
    """A frontend module as torch module. Its state dict has RETURNN's names; auxiliary parameters are buffers.

    `rf_module` is the frontend module; calls go to it.
    """

    def __init__(self, rf_module: Module, aux_params_as_buffers: bool = True) -> None:
        super().__init__()
        self._rf_module = rf_module
        self._aux_params_as_buffers = aux_params_as_buffers
        for name, child in rf_module.named_children():
            self.add_module(name, _as_pt(child, aux_params_as_buffers))
        for name, parameter in rf_module.own_parameters():
            if parameter.auxiliary and aux_params_as_buffers:
                self.register_buffer(name, parameter.raw_tensor)
            else:
                self.register_parameter(name, parameter.raw_tensor)

    @property
    def rf_module(self) -> Module:
        return self._rf_module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._rf_module(*args, **kwargs)

    def _get_name(self) -> str:
        return f"{type(self._rf_module).__name__}[RF→PT]"

    def _apply(self, fn: Any, recurse: bool = True) -> RFModuleAsPTModule:
        """Moves as torch does, then tells the frontend's parameters about it."""
        super()._apply(fn, recurse)
        self._tell_frontend()
        return self

    def _tell_frontend(self) -> None:
        for name, parameter in self._rf_module.own_parameters():
            raw = self._buffers.get(name) if name in self._buffers else self._parameters.get(name)
            if raw is None:
                continue
            if not isinstance(raw, torch.nn.Parameter):
                raw = torch.nn.Parameter(raw, requires_grad=False)
                self._buffers[name] = raw
            parameter.dtype = dtype_name(raw)
            parameter.raw_tensor = raw


def _as_pt(value: Module, aux_params_as_buffers: bool) -> torch.nn.Module:
    if isinstance(value, PTModuleAsRFModule):
        return value.pt_module
    return RFModuleAsPTModule(value, aux_params_as_buffers)


def rf_module_to_pt_module(rf_module: Module, *, aux_params_as_buffers: bool = True) -> torch.nn.Module:
    """A torch module around a frontend module."""
    return _as_pt(rf_module, aux_params_as_buffers)


class PTModuleAsRFModule(Module):
    """A torch module as frontend module."""

    def __init__(self, pt_module: torch.nn.Module) -> None:
        super().__init__()
        self.pt_module = pt_module
        for name, child in pt_module.named_children():
            setattr(self, name, pt_module_to_rf_module(child))
        for name, raw in pt_module.named_parameters(recurse=False):
            dims = [Dim(size, name=f"{name}_dim{axis}") for axis, size in enumerate(raw.shape)]
            parameter = Parameter(dims, dtype_name(raw), trainable=raw.requires_grad)
            parameter.raw_tensor = raw
            setattr(self, name, parameter)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.pt_module(*args, **kwargs)


def pt_module_to_rf_module(pt_module: torch.nn.Module) -> Module:
    """A frontend module around a torch module."""
    return pt_module.rf_module if isinstance(pt_module, RFModuleAsPTModule) else PTModuleAsRFModule(pt_module)


wrapped_pt_module_to_rf_module = pt_module_to_rf_module
