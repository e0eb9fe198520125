# ruff: noqa: E501
"""Named mistakes in the modules of the store: each must be found by one of the checks."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

ENGINE = Path(importlib.util.find_spec("returnn_hydra.engine").submodule_search_locations[0])  # type: ignore


@dataclass(frozen=True)
class Mutant:
    name: str
    module: str
    old: str
    new: str
    check: str
    """The check in faulttools.checks that must find it."""


MUTANTS = (
    Mutant("no fsync of files", "files", "            disk.fsync(handle)\n", "            pass\n", "crashes"),
    Mutant("writes in place", "files", "path.with_name(path.name + TEMPORARY)", "path", "crashes"),
    Mutant("no fsync of the folder", "files", "        sync_folder(disk, path.parent)\n    return", "        pass\n    return", "crashes"),
    Mutant("manifest before its files are safe", "checkpoint", "        sync_folder(self.disk, self.folder)", "        #", "crashes"),
    Mutant("no tombstone", "checkpoint", '                self.disk.rename(manifest, self._path(name, ".json" + GONE))\n', "", "crashes"),
    Mutant("tombstone not safe", "checkpoint", "                self.disk.fsync_folder(self.folder)\n", "", "crashes"),
    Mutant("old manifest stays during a save", "checkpoint", "        self._remove(name)\n        facts", "        facts", "crashes"),
    Mutant("no clean-up of removals", "checkpoint", "            self._finish_removal(match.group(1))", "            pass", "crashes"),
    Mutant("no clean-up of temporary files", "checkpoint", "            remove(self.disk, self.folder / match.group())", "            pass", "crashes"),
    Mutant("saves over the newest slot", "checkpoint", "slot for slot in slots if slot != keep", "slot for slot in slots if slot == keep", "crashes"),
    Mutant("slots not ordered", "checkpoint", "manifest.name), reverse=True)", "manifest.name), reverse=False)", "crashes"),
    Mutant("removes the slots first", "checkpoint", "for suffix in (\".opt.pt\", \".pt\", \".json\" + GONE):", "for suffix in (\".json\" + GONE,):", "leftovers"),
    Mutant("keeps one checkpoint", "retention", "SAFETY = 2", "SAFETY = 1", "falls back one epoch"),
    Mutant("deletes behind damaged ones", "retention", "if _is_valid(store, epoch):", "if True:", "deletes nothing it needs"),
    Mutant("keeps a damaged slot", "checkpoint", "for manifest in self._read(present) if self.is_valid(manifest)", "for manifest in self._read(present)", "damage and crash"),
    Mutant("no verification", "tensor_file", "        if found != expected:", "        if False:", "bit flips"),
    Mutant("verifies the size only", "tensor_file", "        if found != expected:", "        if found.bytes != expected.bytes:", "bit flips"),
    Mutant("manifest without seal", "manifest", "            if seal(values) == text:", "            if True:", "bit flips"),
    Mutant("scores without checksum", "score_file", "            if encode_line(record).encode() == line:", "            if True:", "bit flips"),
    Mutant("no fallback", "checkpoint", "        for manifest in self.manifests():\n            try:\n                return", "        for manifest in list(self.manifests())[:1]:\n            try:\n                return", "damage and crash"),
    Mutant("no look at the name", "checkpoint", "        if manifest.name != name or expected != name:", "        if False:", "forged manifests"),
    Mutant("no look at the epoch", "checkpoint", " or expected != name:", ":", "forged manifests"),
    Mutant("no look at the files' names", "checkpoint", '        if set(manifest.files) not in ({f"{name}.pt"}, {f"{name}.pt", f"{name}.opt.pt"}):', "        if False:", "forged manifests"),
    Mutant("no look at the run", "checkpoint", "        if self.run_id is not None and manifest.run_id != self.run_id:", "        if False:", "swaps"),
    Mutant("starts anew when all is damaged", "checkpoint", "        if names := self.names():\n", "        if False:\n", "all damaged"),
    Mutant("saves NaN", "checkpoint", "        self.check_finite(model, optimizer)\n        header", "        header", "bad numbers"),
    Mutant("ignores short writes", "files", "            while done < len(view):", "            if done < len(view):", "short writes"),
    Mutant("believes the disk", "files", "            _expect_size(disk, temporary, facts.bytes)\n", "", "lying disk"),
    Mutant("hides the cause", "files", "                raise writer.error", "                pass", "refusals in torch.save"),
    Mutant("leaves temporary files", "files", "            with contextlib.suppress(OSError):\n                disk.unlink(temporary)\n            raise", "            raise", "refusals in torch.save"),
    Mutant("message without free space", "files", "bytes needed, {free} free", "bytes needed", "refusals"),
)  # fmt: skip


class _MutatedSource:
    """Finds and loads one module from changed source text."""

    def __init__(self, mutant: Mutant) -> None:
        self.name = f"returnn_hydra.engine.{mutant.module}"
        path = ENGINE / f"{mutant.module}.py"
        source = path.read_text()
        if source.count(mutant.old) != 1:
            raise ValueError(f"mutant {mutant.name!r}: {mutant.old!r} is {source.count(mutant.old)} times in {path}")
        self.code = compile(source.replace(mutant.old, mutant.new), str(path), "exec")

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name == self.name else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        exec(self.code, module.__dict__)


@contextmanager
def mutated(mutant: Mutant) -> Iterator[ModuleType]:
    """`faulttools.checks`, imported anew on top of the changed module."""
    finder = _MutatedSource(mutant)
    ours = [name for name in sys.modules if name.startswith(("returnn_hydra.engine", "faulttools"))]
    before = {name: sys.modules.pop(name) for name in ours}
    sys.meta_path.insert(0, finder)  # type: ignore[arg-type]
    try:
        yield importlib.import_module("faulttools.checks")
    finally:
        sys.meta_path.remove(finder)  # type: ignore[arg-type]
        for name in [name for name in sys.modules if name.startswith(("returnn_hydra.engine", "faulttools"))]:
            del sys.modules[name]
        sys.modules.update(before)
