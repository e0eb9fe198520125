"""Where the configuration files are: beside the package in a checkout, inside it when installed."""

from __future__ import annotations

from pathlib import Path


def config_dir() -> Path:
    """The folder with config.yaml and the groups, as an absolute path."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise FileNotFoundError(f"no conf/config.yaml inside or beside {package}; reinstall returnn-hydra")
