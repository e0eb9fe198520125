"""Print the layers of a config's network, and draw how they are connected.

Run: python scripts/describe_network.py my.config [--draw net.svg] [--epoch 1]

The config is executed, as in training.
"""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Mapping
from typing import Any

from returnn_hydra.batch import TensorSpec
from returnn_hydra.network import NetworkError, NetworkModel
from returnn_hydra.network.describe import as_text, draw, layer_infos
from returnn_hydra.network.schedule import NetworkSchedule
from returnn_hydra.network.tf_face import tensorflow_modules


def load(path: str) -> dict[str, Any]:
    """The config's values; `import tensorflow` gives the small face while it runs."""
    modules = tensorflow_modules()
    kept = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        return runpy.run_path(path)
    finally:
        for name, module in kept.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def extern_data(config: Mapping[str, Any]) -> dict[str, TensorSpec]:
    """`extern_data`, or the older `num_outputs` (size, dimensions) with `num_inputs`."""
    if "extern_data" in config:
        known = {"dim", "shape", "sparse", "dtype", "available_for_inference", "vocab", "same_length_as"}
        return {
            key: TensorSpec(**{option: value for option, value in options.items() if option in known})
            for key, options in config["extern_data"].items()
        }
    outputs = config.get("num_outputs") or {}
    if not isinstance(outputs, Mapping):
        outputs = {"classes": outputs}
    specs = {}
    for key, value in outputs.items():
        size, dimensions = (value, 1) if isinstance(value, int) else value[:2]
        specs[key] = TensorSpec(dim=size, sparse=dimensions == 1, available_for_inference=key == "data")
    if "data" not in specs:
        specs["data"] = TensorSpec(dim=config["num_inputs"])
    return specs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("--draw", metavar="FILE", help="also draw it; .svg, .png or .pdf")
    parser.add_argument("--epoch", type=int, default=1)
    args = parser.parse_args()
    config = load(args.config)
    schedule = NetworkSchedule(config.get("network"), config.get("get_network"), config.get("pretrain"))
    try:
        model = NetworkModel(
            schedule.network(args.epoch),
            extern_data(config),
            target=config.get("target"),
            behavior_version=config.get("behavior_version", 0),
            options=config,
        )
    except NetworkError as error:
        print(f"{args.config}: {error}", file=sys.stderr)
        return 1
    infos = layer_infos(model)
    print(as_text(infos))
    if args.draw:
        draw(infos, args.draw)
    return 0


if __name__ == "__main__":
    sys.exit(main())
