"""Layer classes, one module per family. A new module in this folder is found by itself."""

import importlib
import pkgutil


def load_families() -> None:
    """Import all modules of this folder; they register their classes."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
