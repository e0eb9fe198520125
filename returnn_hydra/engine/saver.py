"""Saves in the background: training goes on as soon as the tensors are copied."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

from returnn_hydra.engine.checkpoint import CheckpointStore
from returnn_hydra.engine.manifest import Progress, check_json
from returnn_hydra.engine.tensor_file import Snapshot

logger = logging.getLogger(__name__)


class BackgroundSaver:
    """One job at a time on a thread; each call waits for the job before, and raises what it raised.

    Used as a context manager: on the way out it waits, and raises; but only logs when another error is on its way.
    """

    def __init__(self, store: CheckpointStore) -> None:
        self.store = store
        self._snapshot = Snapshot()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save_epoch(self, progress: Progress, model: Mapping[str, Any], optimizer: Mapping[str, Any] | None) -> None:
        """Copy the state and save it as `model.NNN`; see `CheckpointStore.save_epoch`.

        Raises:
            NonFiniteError, StateWriteError: the job *before* this one failed.
        """
        self._save(self.store.save_epoch, progress, model, optimizer)

    def save_latest(self, progress: Progress, model: Mapping[str, Any], optimizer: Mapping[str, Any] | None) -> None:
        """Copy the state inside an epoch and save it; see `save_epoch`."""
        self._save(self.store.save_latest, progress, model, optimizer)

    def submit(self, job: Callable[[], Any]) -> None:
        """Run any other job on the files after the one before, such as deleting old checkpoints."""
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(job,), name="saver")
        self._thread.start()

    def wait(self) -> None:
        """Until everything is on the disk.

        Raises:
            NonFiniteError: something in the tensors is NaN or infinite; nothing was saved.
            StateWriteError: it could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _save(
        self,
        save: Callable[..., Any],
        progress: Progress,
        model: Mapping[str, Any],
        optimizer: Mapping[str, Any] | None,
    ) -> None:
        self.wait()
        check_json(dict(progress.state), "state")
        copy = self._snapshot.take({"model": model, "optimizer": optimizer}, "state")
        self.submit(lambda: save(progress, copy["model"], copy["optimizer"]))

    def _run(self, job: Callable[[], Any]) -> None:
        try:
            job()
        except BaseException as error:
            self._error = error

    def __enter__(self) -> BackgroundSaver:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.wait()
        except Exception as failure:
            if error is None:
                raise
            logger.error("The last save failed as well: %s", failure)
