"""A RETURNN configuration as YAML and a Python module: `python scripts/convert_config.py my.config [++key value] ...`.

Writes `converted/experiment/my.yaml` and `converted/my.py`; `++to FOLDER` for another folder.
"""

import sys
from pathlib import Path

from returnn_hydra.config.command_line import parse_command_line
from returnn_hydra.config.errors import ConfigError
from returnn_hydra.tasks.returnn.convert import convert


def main() -> None:
    try:
        line = parse_command_line(sys.argv[1:])
        if line.show_help:
            print(f"{__doc__}\nusage: convert_config.py FILE ... [++key value] ... [++to FOLDER]")
            return
        if not line.files:
            raise ConfigError("expected: FILE ... [++key value] ... [++to FOLDER]")
        folder = Path(dict(line.overrides).get("to", "converted"))
        overrides = [(key, value) for key, value in line.overrides if key != "to"]
        name = Path(line.files[-1]).stem
        file, module = convert(line.files, overrides, folder, name)
    except ConfigError as error:
        print(f"ERROR 2: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"Settings: {file}\nCode: {module}\nRun it: python run.py --config-dir={folder} experiment={name}")


if __name__ == "__main__":
    main()
