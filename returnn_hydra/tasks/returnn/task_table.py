"""RETURNN's task words, and what runs for each."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from returnn_hydra.compat.checkpoint_cleanup import CleanupRule
from returnn_hydra.config.errors import ConfigError, nearest
from returnn_hydra.engine.checkpoint import CheckpointStore, run_id_of_folder
from returnn_hydra.engine.files import FileSystem
from returnn_hydra.engine.tensor_file import write_tensors
from returnn_hydra.frontend.steps import call_with_wanted
from returnn_hydra.tasks.returnn.evaluating import evaluate_task
from returnn_hydra.tasks.returnn.forwarding import forward_task
from returnn_hydra.tasks.returnn.network_dict import NetworkDict
from returnn_hydra.tasks.returnn.network_tasks import network_forward, network_inspect, network_priors, network_search
from returnn_hydra.tasks.returnn.recipe import Recipe
from returnn_hydra.tasks.returnn.session import Session
from returnn_hydra.tasks.returnn.training import Cleanup, train
from returnn_hydra.tasks.returnn.user_functions import UserFunctions

logger = logging.getLogger(__name__)
Task = Callable[[Session, Any], Any]
WITH_RANKS = ("train", "eval")
"""Tasks that several processes share."""
CALLS = ("config:", "optional-config:")
ELSEWHERE = {
    "analyze": "task=eval gives the scores, task=forward any output",
    "analyze_data": "python run.py task=inspect datasets=... shows lengths, batches and padding of a data set",
    "dump": "python run.py task=inspect datasets=... shows the first sequences of a data set",
    "search_server": "there is no server",
    "hyper_param_tuning": "use a sweep: python run.py -m returnn_config=FILE returnn.learning_rate=0.1,0.01",
    "debug_shell": "start Python, and call returnn_hydra.tasks.returnn.session.open_session",
}
"""Tasks of RETURNN without a counterpart."""


def run_task(session: Session) -> Any:
    """Run the config's task; returns what it returns (a score, a number of sequences, ...).

    Raises:
        ConfigError: there is no such task.
    """
    word = str(session.values.get("task", "train"))
    if session.ranks.size > 1 and word not in WITH_RANKS:
        raise ConfigError(f"task={word}: runs in one process, and there are {session.ranks.size}")
    with session.surroundings():
        if (startup := session.values.get("startup_callback")) is not None:
            call_with_wanted(startup, {"config": session.config})
        if word.startswith(CALLS):
            return _call(session, word)
        task = task_of(word, session.is_network)
        if word == "nop":
            return task(session, None)
        recipe = make_recipe(session)
        with recipe.files():
            return task(session, recipe)


def task_of(word: str, is_network: bool) -> Task:
    """
    Raises:
        ConfigError: an unknown task, or one that only RETURNN has.
    """
    table = {**COMMON, **(NETWORK if is_network else FUNCTIONS)}
    if word in table:
        return table[word]
    if word in ELSEWHERE:
        raise ConfigError(f"task={word}: not here; {ELSEWHERE[word]} (there is: {', '.join(table)}, config:NAME)")
    raise ConfigError(f"task={word!r}: no such task{nearest(word, table)} (there is: {', '.join(table)}, config:NAME)")


def make_recipe(session: Session) -> Recipe:
    """
    Raises:
        ConfigError: the config has neither `get_model` nor a network.
    """
    if session.is_network:
        return NetworkDict(session)
    if session.values.get("get_model") is None:
        raise ConfigError("the config has neither get_model (with train_step) nor a network dict")
    return UserFunctions(session)


def _call(session: Session, word: str) -> Any:
    kind, _, name = word.partition(":")
    function = session.values.get(name)
    if callable(function):
        return call_with_wanted(function, {"config": session.config})
    if kind == "optional-config":
        logger.info("task=%s: the config has no such function", word)
        return None
    raise ConfigError(f"task={word}: the config has no function {name!r}{nearest(name, session.values)}")


def _nop(session: Session, recipe: Any) -> None:
    logger.info("Nothing to do")


def _initialize_model(session: Session, recipe: Recipe) -> str:
    """Save the model with its first parameters under the name in `model`; returns the file."""
    if session.prefix is None:
        raise ConfigError("model: task=initialize_model needs it: where to save to")
    file = session.prefix.with_name(session.prefix.name + ".pt")
    disk = FileSystem()
    disk.make_folder(file.parent)
    write_tensors(disk, file, {"model": dict(recipe.model(1, 0).state_dict()), "epoch": 0, "step": 0})
    logger.info("Saved the initial model: %s", file)
    return str(file)


def _init_train(session: Session, recipe: Recipe) -> None:
    model = recipe.model(1, 0)
    logger.info("Model: %d parameters", sum(parameter.numel() for parameter in model.parameters()))


def _cleanup(session: Session, recipe: Any) -> list[int]:
    if session.prefix is None:
        raise ConfigError("model: task=cleanup_old_models needs it")
    rule = CleanupRule.from_config(session.values.get("cleanup_old_models") or True)
    assert rule is not None
    folder = session.prefix.parent
    store = CheckpointStore(folder, run_id_of_folder(folder, FileSystem()), prefix=session.prefix.name)
    return Cleanup(rule, session.folder).apply(store, {})


def _search(session: Session, recipe: UserFunctions) -> int:
    return forward_task(session, recipe, "search")


def _priors(session: Session, recipe: UserFunctions) -> int:
    return forward_task(session, recipe, "prior")


COMMON: dict[str, Task] = {
    "train": train,
    "eval": evaluate_task,
    "initialize_model": _initialize_model,
    "nop": _nop,
    "nop_init_net_train": _init_train,
    "cleanup_old_models": _cleanup,
}
FUNCTIONS: dict[str, Task] = {
    "forward": forward_task,
    "hpx": forward_task,
    "search": _search,
    "prior": _priors,
    "compute_priors": _priors,
}
NETWORK: dict[str, Task] = {
    "forward": network_forward,
    "hpx": network_forward,
    "search": network_search,
    "compute_priors": network_priors,
    "inspect": network_inspect,
}
