"""returnn.torch.data.extern_data"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from returnn_hydra.frontend.dim import Dim, batch_dim
from returnn_hydra.frontend.extern_data import make_templates
from returnn_hydra.frontend.tensor_dict import TensorDict

__all__ = ["extern_data_template_from_config_opts", "get_batch_dim_from_extern_data"]


def extern_data_template_from_config_opts(extern_data_dict: Mapping[str, Any]) -> TensorDict:
    """The config's `extern_data` as tensors without values."""
    return make_templates(extern_data_dict)


def get_batch_dim_from_extern_data(extern_data: TensorDict) -> Dim:
    """The batch dim of its first tensor that has one."""
    return next((dim for tensor in extern_data.values() for dim in tensor.dims if dim.is_batch_dim()), batch_dim)
