"""Names of RETURNN that can be imported, but do nothing or can't be used here.

Classes of RETURNN's engines, which configs name in annotations and `isinstance`: making one is an error, there is no
counterpart with the same methods. Functions that only concern such objects give None. Functions that can't work here
are an error when they are called, not when they are imported: a config may have them in a branch that never runs.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

CLASSES: dict[str, tuple[str, ...]] = {
    "returnn.torch.engine": ("Engine", "TrainCtx"),
    "returnn.torch.updater": ("Updater",),
    "returnn.torch.distributed": ("DistributedContext",),
    "returnn.torch.data.returnn_dataset_wrapper": ("ReturnnDatasetIterDataPipe",),
    "returnn.engine.base": ("EngineBase",),
    "returnn.learning_rate_control": ("LearningRateControl",),
    "returnn.datasets.cached2": ("CachedDataset2",),
    "returnn.datasets.meta": ("MetaDataset", "CombinedDataset", "ConcatSeqsDataset"),
    "returnn.datasets.audio": ("OggZipDataset",),
    "returnn.datasets.multi_proc": ("MultiProcDataset",),
    "returnn.tf.engine": ("Engine", "Runner"),
    "returnn.tf.data_pipeline": ("BatchSetGenerator", "FeedDictDataProvider"),
    "returnn.tf.network": ("TFNetwork", "LayerBase", "ExternData"),
    "returnn.tf.layers.base": ("LayerBase", "SearchChoices", "Loss"),
    "returnn.tf.layers.basic": ("EvalLayer", "LayerBase", "Loss", "_ConcatInputLayer"),
    "returnn.tf.layers.rec": ("RecLayer", "RnnCellLayer", "BaseChoiceLayer"),
}
"""RETURNN's module to the names in it."""
FUNCTIONS: dict[str, tuple[str, ...]] = {
    "returnn.torch.engine": ("get_global_engine",),
    "returnn.torch.distributed": ("get_ctx",),
    "returnn.tf.engine": ("get_global_engine",),
    "returnn.tf.layers.basic": ("register_layer_class",),
}
"""Functions that give the object that is active, or tell it something: None, there is no such object here. A layer
class of the config's own is an error where a network names it."""
_TRANSDUCER = "use returnn_hydra.nn.transducer_loss, or torchaudio.functional.rnnt_loss in a train_step with torch"
REFUSED: dict[str, dict[str, str]] = {
    "returnn.extern": {},
    "returnn.extern.HawkAaronWarpTransducer": {"rnnt_loss": _TRANSDUCER, "is_checked_out": _TRANSDUCER},
    "returnn.extern.WarpRna": {"rna_loss": _TRANSDUCER, "is_checked_out": _TRANSDUCER},
    "returnn.extern_private": {},
    "returnn.extern_private.BergerMonotonicRNNT": {"rnnt_loss": _TRANSDUCER},
    "returnn.tf.hyper_param_tuning": {
        "HyperParam": "sweep over values with python run.py -m returnn_config=... key=a,b"
    },
}
"""Module to the functions that can't work here, each with what to do instead."""


def names_only_modules() -> dict[str, types.ModuleType]:
    """Module name to module; their packages, too."""
    made: dict[str, types.ModuleType] = {}
    for name in {**CLASSES, **REFUSED}:
        module = types.ModuleType(name, "Names for annotations; see returnn_hydra.compat.shim.names_only.")
        for kind in CLASSES.get(name, ()):
            setattr(module, kind, name_only(name, kind))
        for function in FUNCTIONS.get(name, ()):
            setattr(module, function, _nothing)
        for function, instead in REFUSED.get(name, {}).items():
            setattr(module, function, _refusing(f"{name}.{function}", instead))
        made[name] = module
    return made


def _nothing(*_arguments: Any, **_options: Any) -> None:
    """There is no such object here."""


def _refusing(name: str, instead: str) -> Callable[..., Any]:
    def refuse(*_arguments: Any, **_options: Any) -> Any:
        raise NotImplementedError(f"{name} is not there in returnn-hydra: {instead}")

    return refuse


def name_only(module: str, name: str) -> type:
    """A class to be named; making an object of it is an error."""

    def refuse(self: Any, *_arguments: Any, **_options: Any) -> None:
        raise TypeError(
            f"{type(self).__name__}: {module}.{name} is there for annotations and isinstance only;"
            " objects of it can't be made in returnn-hydra"
        )

    return type(name, (), {"__init__": refuse, "__module__": module, "__doc__": "A name only."})
