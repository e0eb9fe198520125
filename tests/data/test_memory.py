"""Limits of memory."""

import subprocess
import sys

from returnn_hydra.data import memory

FAULTS = """
import resource, sys
import numpy as np
from returnn_hydra.data.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()

def faults(rounds):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for i in range(rounds):
        kept = [np.ones(300_000 + 50_000 * k) for k in range(5)]
        del kept
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults(5)
print(faults(20))
"""


def test_available_memory(tmp_path, monkeypatch):
    machine = memory.available_memory()
    assert 2**20 < machine < 2**50
    (tmp_path / "max").write_text("5000\n")
    (tmp_path / "current").write_text("3000\n")
    monkeypatch.setattr(memory, "CGROUP_FILES", [(str(tmp_path / "max"), str(tmp_path / "current"))])
    assert memory.available_memory() == 2000
    (tmp_path / "max").write_text("max\n")
    assert memory.available_memory() > 2**20


def test_freed_memory_is_kept():
    found = {}
    for mode in ("default", "keep"):
        command = [sys.executable, "-c", FAULTS, mode]
        found[mode] = int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    assert found["keep"] < 100
    assert found["keep"] < found["default"]
