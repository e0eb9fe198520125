"""One command on a RETURNN configuration: its values, and what holds while it runs."""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from returnn_hydra.build import Builder
from returnn_hydra.compat.import_hook import returnn_imports
from returnn_hydra.compat.shim.config import global_config_ctx
from returnn_hydra.compat.shim.vocabulary import create_vocab
from returnn_hydra.compat.training_options import device as device_name
from returnn_hydra.config.errors import ConfigError
from returnn_hydra.config.returnn_config import load_returnn_config
from returnn_hydra.config.returnn_keys import KeyReport, check_keys, declared_types
from returnn_hydra.config.returnn_values import ReturnnConfig
from returnn_hydra.engine.device import select_device
from returnn_hydra.engine.ranks import Ranks
from returnn_hydra.frontend.ambient import NEWEST_BEHAVIOR_VERSION, ambient_state
from returnn_hydra.frontend.rand import set_random_seed

DEFAULT_SEED = 42
FLOAT_DTYPES = ("float16", "bfloat16", "float32", "float64")
logger = logging.getLogger(__name__)


@dataclass
class Session:
    """The checked configuration and its surroundings."""

    config: ReturnnConfig
    report: KeyReport
    values: dict[str, Any] = field(init=False)
    device: torch.device = field(init=False)
    builder: Builder = field(default_factory=Builder)
    ranks: Ranks = Ranks()

    def __post_init__(self) -> None:
        self.values = self.config.to_dict()
        self._check_frontend_keys()
        self._check_backend_keys()
        local_rank = self.ranks.local_rank if self.ranks.size > 1 else None
        try:
            self.device = select_device(device_name(self.values.get("device") or "auto"), local_rank)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def _check_frontend_keys(self) -> None:
        version, dtype = self.values.get("behavior_version"), self.values.get("default_float_dtype")
        if version is not None and not 0 <= version <= NEWEST_BEHAVIOR_VERSION:
            raise ConfigError(f"behavior_version={version}: expected a number from 0 to {NEWEST_BEHAVIOR_VERSION}")
        if dtype not in (None, *FLOAT_DTYPES):
            raise ConfigError(f"default_float_dtype={dtype!r}: expected one of {', '.join(FLOAT_DTYPES)}")
        if self.is_network and dtype not in (None, "float32"):
            raise ConfigError(f"default_float_dtype={dtype!r}: a network dict computes with float32")

    def _check_backend_keys(self) -> None:
        """Keys that ask for something else with a network dict than with torch."""
        decoupled, optimizer = self.values.get("decouple_constraints"), self.values.get("optimizer")
        if self.is_network:
            if decoupled:
                raise ConfigError("decouple_constraints=True: with a network dict, L2 is part of the loss")
        elif decoupled is False and isinstance(optimizer, Mapping) and optimizer.get("weight_decay"):
            raise ConfigError("decouple_constraints=False: weight_decay of a torch optimizer is not part of the loss")

    @property
    def is_network(self) -> bool:
        """The model is a network dict."""
        return self.values.get("get_model") is None and any(
            self.values.get(key) is not None for key in ("network", "get_network")
        )

    @property
    def seed(self) -> int:
        return self.values.get("random_seed", DEFAULT_SEED)

    @property
    def prefix(self) -> Path | None:
        """How the checkpoints' paths begin; None: the config has no `model`, nothing is saved."""
        model = self.values.get("model")
        return Path(model) if model else None

    @property
    def folder(self) -> Path:
        """Where this project puts what RETURNN does not have: scores, lock, result."""
        assert self.prefix is not None
        return self.prefix.with_name(self.prefix.name + ".run")

    def function(self, name: str) -> Any:
        """A function of the config.

        Raises:
            ConfigError: it is not there.
        """
        found = self.values.get(name)
        if not callable(found):
            raise ConfigError(f"{name}: task={self.values.get('task', 'train')} needs this function in the config")
        return found

    def seed_for_model(self, epoch: int, step: int) -> None:
        """Seed all generators as RETURNN does before `get_model`, so that the first parameters are the same."""
        seed = (epoch * 193939 + step * 19937 + self.seed * 27644437 + 479001599) % 2**31
        set_random_seed(seed)
        np.random.seed(seed)
        random.seed(seed)

    @contextlib.contextmanager
    def changed(self, values: Mapping[str, Any]) -> Iterator[None]:
        """Other values for some keys, for the config's functions, too."""
        before = {key: self.values[key] for key in values}
        self._set(values)
        try:
            yield
        finally:
            self._set(before)

    def _set(self, values: Mapping[str, Any]) -> None:
        self.values.update(values)
        for key, value in values.items():
            self.config.set(key, value)

    @contextlib.contextmanager
    def surroundings(self) -> Iterator[None]:
        """`import returnn`, the global config and the frontend's defaults, while the config's functions run."""
        version, dtype = self.values.get("behavior_version"), self.values.get("default_float_dtype") or "float32"
        state = ambient_state(behavior_version=version, options=self.values, make_vocab=create_vocab, float_dtype=dtype)
        before = torch.get_default_dtype()
        torch.set_default_dtype(getattr(torch, dtype))
        try:
            with surroundings(self.config), state:
                yield
        finally:
            torch.set_default_dtype(before)


@contextlib.contextmanager
def surroundings(config: ReturnnConfig) -> Iterator[None]:
    """What holds while a config's files are read."""
    with returnn_imports(), global_config_ctx(config):
        yield


def open_session(
    files: Sequence[str | Path],
    overrides: Sequence[tuple[str, str]] = (),
    *,
    values: Mapping[str, Any] | None = None,
    strict: bool = False,
    ranks: Ranks | None = None,
) -> Session:
    """Read the files, and check every key.

    Args:
        overrides: `++key value` of the command line.
        values: further typed values, over those of the files, which see them while they are read.
        strict: unknown keys are errors.

    Raises:
        ConfigError: a file or a value is wrong.
    """
    config = load_returnn_config(files, overrides, declared=declared_types(), values=values, active=surroundings)
    for key, value in (values or {}).items():
        config.set(key, value)
    return Session(config, check_keys(config, strict), ranks=ranks or Ranks())
