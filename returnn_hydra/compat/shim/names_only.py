"""Classes of RETURNN's engines, which configs name in annotations and `isinstance`; making one is an error.

There is no counterpart with the same methods: training is done by returnn_hydra.engine. Functions that only concern
such objects give None.
"""

from __future__ import annotations

import types
from typing import Any

CLASSES: dict[str, tuple[str, ...]] = {
    "returnn.torch.engine": ("Engine", "TrainCtx"),
    "returnn.torch.updater": ("Updater",),
    "returnn.torch.distributed": ("DistributedContext",),
    "returnn.torch.data.pipeline": ("BatchingIterDataPipe", "ChunkingIterDataPipe"),
    "returnn.torch.data.returnn_dataset_wrapper": ("ReturnnDatasetIterDataPipe",),
    "returnn.engine.base": ("EngineBase",),
    "returnn.learning_rate_control": ("LearningRateControl",),
    "returnn.datasets.cached2": ("CachedDataset2",),
    "returnn.datasets.meta": ("MetaDataset", "CombinedDataset", "ConcatSeqsDataset"),
    "returnn.datasets.audio": ("OggZipDataset",),
    "returnn.datasets.multi_proc": ("MultiProcDataset",),
    "returnn.datasets.lm": ("LmDataset", "TranslationDataset"),
    "returnn.tf.engine": ("Engine", "Runner"),
    "returnn.tf.network": ("TFNetwork", "LayerBase", "ExternData"),
    "returnn.tf.layers.base": ("LayerBase", "SearchChoices", "Loss"),
    "returnn.tf.layers.basic": ("LayerBase", "_ConcatInputLayer", "Loss"),
    "returnn.tf.layers.rec": ("RecLayer", "RnnCellLayer", "BaseChoiceLayer"),
}
"""RETURNN's module to the names in it."""
FUNCTIONS: dict[str, tuple[str, ...]] = {
    "returnn.torch.engine": ("get_global_engine",),
    "returnn.torch.distributed": ("get_ctx",),
    "returnn.tf.engine": ("get_global_engine",),
}
"""Functions that give the object that is active: None, there is no such object here."""


def names_only_modules() -> dict[str, types.ModuleType]:
    """Module name to module; their packages, too."""
    made: dict[str, types.ModuleType] = {}
    for name, classes in CLASSES.items():
        module = types.ModuleType(name, "Names for annotations; see returnn_hydra.compat.shim.names_only.")
        for kind in classes:
            setattr(module, kind, _name_only(name, kind))
        for function in FUNCTIONS.get(name, ()):
            setattr(module, function, _nothing)
        made[name] = module
    return made


def _nothing(**_options: Any) -> None:
    """There is no such object here."""


def _name_only(module: str, name: str) -> type:
    def refuse(self: Any, *_arguments: Any, **_options: Any) -> None:
        raise TypeError(
            f"{type(self).__name__}: {module}.{name} is there for annotations and isinstance only;"
            " objects of it can't be made in returnn-hydra"
        )

    return type(name, (), {"__init__": refuse, "__module__": module, "__doc__": "A name only."})
