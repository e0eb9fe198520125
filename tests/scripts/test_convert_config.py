"""The script around `returnn_hydra.tasks.returnn.convert`: help and usage."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "convert_config.py"


def test_help_and_no_file():
    done = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "usage: convert_config.py FILE" in done.stdout
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("ERROR 2: expected: FILE")
