"""returnn.datasets, returnn.datasets.basic"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from returnn_hydra.compat.dataset_dicts import build_dataset
from returnn_hydra.compat.shim.dataset_face import DatasetFace, DatasetSeq, convert_data_dims
from returnn_hydra.compat.shim.names_only import name_only
from returnn_hydra.compat.shim.util import NumbersDict
from returnn_hydra.data.dataset import Dataset

Batch = name_only("returnn.datasets.basic", "Batch")
BatchSetGenerator = name_only("returnn.datasets.basic", "BatchSetGenerator")

__all__ = ["Batch", "BatchSetGenerator", "Dataset", "DatasetSeq", "NumbersDict", "convert_data_dims", "init_dataset"]


def init_dataset(
    kwargs: Any,
    extra_kwargs: Mapping[str, Any] | None = None,
    default_kwargs: Mapping[str, Any] | None = None,
    **_options: Any,
) -> Any:
    """A data set with RETURNN's methods, from RETURNN's dict (or a function that gives one); a data set stays one."""
    if callable(kwargs) and not isinstance(kwargs, type):
        kwargs = kwargs()
    if not isinstance(kwargs, Mapping):
        return kwargs
    return DatasetFace(build_dataset({**(default_kwargs or {}), **kwargs, **(extra_kwargs or {})}, "init_dataset"))
