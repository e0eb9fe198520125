import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]


def test_mean_of_two_epochs(command, tmp_path):
    assert command("task=train", "model.hidden_dim=4", "num_epochs=2", "name=run") == 0
    script = str(ROOT / "scripts/average_checkpoints.py")
    subprocess.run([sys.executable, script, "outputs/run", "1", "2", "--out", "mean.pt"], cwd=tmp_path, check=True)
    mean = torch.load("mean.pt", weights_only=True)["model"]
    one, two = (torch.load(f"outputs/run/checkpoints/model.00{n}.pt", weights_only=True)["model"] for n in (1, 2))
    for name, value in mean.items():
        assert torch.allclose(value, (one[name] + two[name]) / 2, atol=1e-7)
    missing = subprocess.run(
        [sys.executable, script, "outputs/run", "7", "--out", "x.pt"], capture_output=True, text=True, check=False
    )
    assert missing.returncode == 2
    assert "no checkpoint of epoch 7" in missing.stderr
