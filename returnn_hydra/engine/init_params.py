"""Parameters for the start of a run out of other files: weights only, no optimizer, no epoch number."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from torch import Tensor, nn

from returnn_hydra.engine.errors import DamagedStateError, StateReadError
from returnn_hydra.engine.files import FileSystem
from returnn_hydra.engine.foreign import load_model_file
from returnn_hydra.engine.log import SUMMARY
from returnn_hydra.engine.whole_state import copy_into
from returnn_hydra.extras import require

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class InitFrom:
    """One file, and which parameters of the model come out of it.

    What RETURNN's `preload_from_files` does: names below `prefix` are looked up without it, through `name_map` if they
    are in there.
    """

    file: str
    """`.pt` (RETURNN's or ours; the suffix may be left out) or `.safetensors`."""
    prefix: str = ""
    """Only parameters of the model whose names begin with this."""
    name_map: Mapping[str, str] = field(default_factory=dict)
    """Name in the model, without the prefix, to name in the file."""
    ignore: Sequence[str] = ()
    """Globs over names in the file that are not loaded."""
    ignore_missing: bool = False
    """Parameters that are not in the file keep their values; else they are an error."""

    def apply(self, model: nn.Module, disk: FileSystem) -> list[str]:
        """Load into the model; returns the names that were loaded.

        Raises:
            DamagedStateError: a parameter is missing or has another shape, or the file is damaged.
        """
        content = read_state(Path(self.file), disk)
        there = {name for name in content if not any(fnmatchcase(name, pattern) for pattern in self.ignore)}
        loaded, missing = [], []
        state = {name: value for name, value in model.state_dict().items() if name.startswith(self.prefix)}
        for name, value in state.items():
            local = name[len(self.prefix) :]
            source = self.name_map.get(local, local)
            if source not in there:
                missing.append(name)
                continue
            if content[source].shape != value.shape:
                raise DamagedStateError(
                    f"init_from {self.file}: '{source}' has shape {tuple(content[source].shape)}, "
                    f"the model's '{name}' has {tuple(value.shape)}"
                )
            copy_into(value, content[source])
            loaded.append(name)
        if missing and not self.ignore_missing:
            raise DamagedStateError(
                f"init_from {self.file}: it has no {', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''} "
                f"(it has: {', '.join(sorted(there)[:8])}{' ...' if len(there) > 8 else ''}); "
                "ignore_missing=true accepts it"
            )
        logger.log(SUMMARY, "%d of %d parameters from %s", len(loaded), len(state), self.file)
        return loaded


def read_state(file: Path, disk: FileSystem) -> dict[str, Tensor]:
    """The tensors of a file by name.

    Raises:
        StateReadError: there is no such file.
        MissingExtra: the extra for safetensors is missing.
    """
    if file.suffix != ".safetensors":
        return load_model_file(file, disk).model
    safetensors = require("safetensors.torch", "safetensors", f"init_from={file}")
    if not file.is_file():
        raise StateReadError(f"init_from {file}: no such file")
    return safetensors.load_file(str(file))
