"""status.json while a run lives and result.json when it has ended: for schedulers, sweeps and people."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from returnn_hydra.engine.errors import MEANING, Stopped, exit_code_of, last_line
from returnn_hydra.engine.files import FileSystem, write_text

STATUS_FILE = "status.json"
RESULT_FILE = "result.json"


def write_status(disk: FileSystem, folder: Path, state: str, **facts: Any) -> None:
    """`state`: starting, training, evaluating, ...; `facts`: epoch, batch, step, ... as JSON types."""
    process = {"pid": os.getpid(), "host": socket.gethostname(), "time": time.time()}
    write_text(disk, folder / STATUS_FILE, json.dumps({"state": state, **process, **facts}, indent=1) + "\n")


def write_result(disk: FileSystem, folder: Path, error: BaseException | None, facts: Mapping[str, Any]) -> int:
    """How the run ended: `{"status": "done" | "stopped" | "failed", "exit_code", "meaning", "error", **facts}`.

    Returns:
        The exit code for the process.
    """
    code = exit_code_of(error)
    status = "done" if error is None else "stopped" if isinstance(error, Stopped) else "failed"
    result = {
        "status": status,
        "exit_code": code,
        "meaning": MEANING.get(code, "an exit code of its own"),
        "error": None if error is None else last_line(error),
        **facts,
    }
    write_text(disk, folder / RESULT_FILE, json.dumps(result, indent=1) + "\n")
    return code
