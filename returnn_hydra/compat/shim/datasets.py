"""returnn.datasets, returnn.datasets.basic"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from returnn_hydra.compat.dataset_dicts import build_dataset
from returnn_hydra.compat.shim.dataset_face import DatasetFace, DatasetSeq, convert_data_dims
from returnn_hydra.compat.shim.names_only import name_only
from returnn_hydra.compat.shim.util import NumbersDict
from returnn_hydra.compat.shim.vocabulary import create_vocab
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
    options = {**(default_kwargs or {}), **kwargs, **(extra_kwargs or {})}
    return OptionsFace(build_dataset(options, "init_dataset"), options)


class OptionsFace(DatasetFace):
    """A data set made of options; what RETURNN keeps of them as attributes is there, too."""

    def __init__(self, source: Dataset, options: Mapping[str, Any]) -> None:
        super().__init__(source)
        self.options = dict(options)

    @functools.cached_property
    def datasets(self) -> dict[str, DatasetFace]:
        """The data sets inside of MetaDataset, CombinedDataset and the like, by name."""
        parts = self.options.get("datasets")
        if not isinstance(parts, Mapping):
            raise AttributeError(f"{self.options.get('class')} is not made of data sets (it has no 'datasets')")
        return {name: init_dataset(part) for name, part in parts.items()}

    @functools.cached_property
    def targets(self) -> Any:
        """The vocabulary of OggZipDataset's `targets`."""
        vocab = self.options.get("targets")
        return create_vocab(vocab) if isinstance(vocab, Mapping) else vocab
