"""Print the layers of a config's network, and draw how they are connected.

Run: python scripts/describe_network.py my.config [--draw net.svg] [--epoch 1]

The config is executed, as in training; for configs with a `network` dict.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from returnn_hydra.config.errors import ConfigError
from returnn_hydra.tasks.returnn.session import open_session
from returnn_hydra.tasks.returnn_command import report, run_session


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--draw", metavar="FILE", help="also draw it; .svg, .png or .pdf")
    parser.add_argument("--epoch", type=int, default=1)
    args = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        picture = args.draw or str(Path(folder) / "network.svg")
        values = {"task": "inspect", "load_epoch": args.epoch, "output_file": picture, "log": ["stdout"]}
        try:
            if Path(picture).suffix not in (".svg", ".png", ".pdf"):
                raise ConfigError(f"--draw {picture}: expected a name that ends with .svg, .png or .pdf")
            session = open_session([args.config], [("log_verbosity", "2")], values=values)
            if not session.is_network:
                raise ConfigError(f"{args.config} has no `network` dict; its model is made by get_model")
            run_session(session)
        except Exception as error:
            return report(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
