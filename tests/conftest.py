"""What several test files use."""

import signal
import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

ROOT = Path(__file__).resolve().parents[1]


def pytest_sessionstart() -> None:
    """The tests may have been started under nohup or in the background, where signals are ignored: here they count."""
    for number, handler in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Run `run.py` with these words in this process, in an empty folder; returns the exit code."""
    import torch

    from returnn_hydra import cli

    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    def run(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", [str(ROOT / "run.py"), *words])
        try:
            cli.main()
        except SystemExit as end:
            return int(end.code or 0)
        finally:
            GlobalHydra.instance().clear()
        return 0

    return run


@pytest.fixture
def shared():
    """The workplace's folder of golden values and speech; the test is skipped where it is absent."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs ../shared (golden values and speech), which is not on this machine")
    return folder


@pytest.fixture(scope="session")
def several_ranks(tmp_path_factory):
    """Run `run.py` with these words as several processes (gloo, CPU); returns how it ended."""
    sys.path.insert(0, str(ROOT / "tests/faults/tools"))
    from faulttools.zygote import Zygote

    modules = ["torch.distributed.fsdp", "torch.distributed.checkpoint.state_dict", "torch._dynamo", "numpy.ma"]
    modules += ["hydra._internal.core_plugins.basic_launcher", "hydra._internal.core_plugins.basic_sweeper"]
    modules += [
        f"returnn_hydra.{name}" for name in ("cli", "tasks.job", "tasks.train", "data.embedded", "models.blstm")
    ]
    modules += [f"returnn_hydra.callbacks.{name}" for name in ("hdf", "progress", "search_output")]
    with Zygote(None, modules, tmp_path_factory.mktemp("ranks")) as zygote:

        def run(folder, *words, num_ranks=2, fault=None, patience=30.0):
            arguments = {"folder": str(folder), "words": words, "num_ranks": num_ranks, "fault": fault}
            arguments["patience"] = patience
            return zygote.run("faulttools.rank_runs:ranks", arguments, folder)

        yield run


@pytest.fixture
def waits():
    """Counts what would wait for a GPU, on the CPU: `with waits: waits.now = "step"`, then `waits.found["step"]`."""
    import traceback
    from collections import Counter

    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    names = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2")

    class Waits(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.now = None
            self.found = Counter()

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            name = str(function).split(".")[1]
            by_mask = name == "index" and any(getattr(index, "dtype", None) == torch.bool for index in args[1])
            if name in names or by_mask:
                in_optimizer = any("torch/optim" in at.filename for at in traceback.extract_stack())
                self.found[self.now] += not in_optimizer  # which has counters on the CPU
            return function(*args, **(kwargs or {}))

    return Waits()
