"""Values and gradients of rf_cases.py.txt, by whatever `import returnn.frontend` is.

With the real RETURNN installed, `python dump_cases.py VERSION FILE` writes the golden file; VERSION is a behaviour
version or "unset".
The tests call `evaluate` with this project behind `import returnn`.
"""

import importlib.machinery
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np

CASES = Path(__file__).with_name("rf_cases.py.txt")
MORE = Path(__file__).with_name("more_cases.py.txt")


def load_cases():
    """The module with the cases, as it is; our further cases have registered there, too."""
    module = _load("rf_cases", CASES)
    sys.modules["rf_cases"] = module
    try:
        _load("more_cases", MORE)
    finally:
        del sys.modules["rf_cases"]
    return module


def _load(name, path):
    loader = importlib.machinery.SourceFileLoader(name, str(path))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
    loader.exec_module(module)
    return module


def evaluate(cases, name):
    """Outputs, their descriptions, and the gradients of the module's parameters (of a sum over all real values)."""
    result = cases.run_case(name)
    arrays = {f"out/{key}": value.pop("array") for key, value in result["outputs"].items()}
    arrays |= {f"grad/{key}": value for key, value in gradients(cases, name).items()}
    return arrays, {"outputs": result["outputs"], "params": result["params"]}


def gradients(cases, name):
    """By name of the parameter; only for cases that return a module."""
    import returnn.frontend as rf

    rf.set_random_seed(42)
    rf.init_forward_step_run_ctx(epoch=1, step=0)
    result = cases.CASES[name](cases.Ctx())
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], dict)):
        return {}
    outputs, module = result
    total = None
    for number, key in enumerate(sorted(outputs)):
        tensor, dims = outputs[key]
        if not tensor.raw_tensor.is_floating_point() or not tensor.raw_tensor.requires_grad:
            continue
        part = rf.reduce_sum(tensor * tensor, axis=dims) * (1.0 + number) if dims else tensor
        total = part if total is None else total + part
    if total is None:
        return {}
    total.raw_tensor.backward()
    return {
        key: p.raw_tensor.grad.detach().numpy() for key, p in module.named_parameters() if p.raw_tensor.grad is not None
    }


def main(version, file):
    """Write FILE.npz and FILE.json."""
    from returnn.util import BehaviorVersion

    if version != "unset":
        BehaviorVersion.set(int(version))
    cases = load_cases()
    arrays, described = {}, {}
    for name in cases.CASES:
        values, described[name] = evaluate(cases, name)
        arrays |= {f"{name}/{key}": value for key, value in values.items()}
    np.savez_compressed(f"{file}.npz", **arrays)
    Path(f"{file}.json").write_text(json.dumps(described, separators=(",", ":")))


if __name__ == "__main__":
    main(*sys.argv[1:])
