"""State files that try to run code or to reach other files, and a watch over what the process really does."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from faulttools.small_trainer import content
from returnn_hydra.engine.checkpoint import CheckpointStore
from returnn_hydra.engine.files import FileFacts
from returnn_hydra.engine.manifest import Progress, seal

FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "subprocess.Popen",
    "socket.connect",
    "socket.bind",
    "socket.getaddrinfo",
    "exec",
    "compile",
    "import",
    "ctypes.",
    "shutil.",
    "pty.spawn",
    "urllib.",
    "builtins.input",
    "os.symlink",
    "os.link",
    "os.chmod",
    "os.chown",
    "os.putenv",
    "webbrowser.",
    "pickle.find_class",
)
CHANGING = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.truncate")


class Watch:
    """An audit hook, installed once; it notes what happens while it is on."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.events: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event == "open":
            path, mode, flags = arguments[:3]
            writes = (isinstance(mode, str) and set(mode) & set("wax+")) or (isinstance(flags, int) and flags & 3)
            if isinstance(path, (str, bytes, Path)) and (writes or not self._known(str(path))):
                self._note(event, str(path), bool(writes))
        elif event in CHANGING:
            path = arguments[0]
            self._note(event, os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else str(path), True)
        elif any(event == name or (name.endswith(".") and event.startswith(name)) for name in FORBIDDEN):
            self.events.append(f"{event} {arguments!r}"[:200])

    def _known(self, path: str) -> bool:
        """Python and its packages may read their own files."""
        return any(path.startswith(prefix) for prefix in (sys.prefix, sys.base_prefix, "/proc/self", "/dev/null"))

    def _note(self, event: str, path: str, writes: bool) -> None:
        assert self.folder is not None
        place = Path(path).resolve() if event == "open" else Path(path).parent.resolve()  # a link itself may be removed
        if not place.is_relative_to(self.folder) and Path(path).resolve() != self.folder:
            self.events.append(f"{event} {path} {'for writing' if writes else 'for reading'}")

    @contextmanager
    def on(self, folder: Path) -> Iterator[list[str]]:
        self.events = []
        self.folder = folder.resolve()
        try:
            yield self.events
        finally:
            self.folder = None


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function: str, *arguments: Any) -> None:
        self.function = function
        self.arguments = arguments

    def opcodes(self) -> bytes:
        """A pickle of protocol 2, written by hand: the function need not be importable here."""
        module, _, name = self.function.rpartition(".")
        arguments = pickle.dumps(self.arguments, 2)[2:-1]
        return b"\x80\x02c" + f"{module}\n{name}\n".encode() + arguments + b"R."


def calls(marker: Path) -> list[Call]:
    """Functions that would leave a marker or do other harm."""
    path, code = str(marker), f"open({str(marker)!r}, 'w').close()"
    return [
        Call("os.system", f"touch {path}"),
        Call("posix.system", f"touch {path}"),
        Call("os.popen", f"touch {path}"),
        Call("subprocess.Popen", ["touch", path]),
        Call("subprocess.check_output", ["touch", path]),
        Call("builtins.eval", code),
        Call("builtins.exec", code),
        Call("builtins.open", path, "w"),
        Call("builtins.__import__", "antigravity"),
        Call("io.open", path, "w"),
        Call("codecs.open", path, "w"),
        Call("pathlib.Path.touch", path),
        Call("runpy._run_code", code, {}),
        Call("timeit.timeit", code),
        Call("cProfile.run", code),
        Call("pty.spawn", ["touch", path]),
        Call("os.spawnlp", 0, "touch", "touch", path),
        Call("importlib.import_module", "this"),
        Call("shutil.rmtree", str(marker.parent)),
        Call("os.remove", "/nonexistent"),
        Call("torch.load", path, None, None),
        Call("torch.hub.load", "a/b", "c"),
        Call("torch.serialization.load", path),
        Call("torch.utils.cpp_extension.load_inline", "x", code),
        Call("torch.storage._load_from_bytes", pickle.dumps(len)),
        Call("torch._dynamo.config.__class__", 1),
        Call("numpy.load", path, None, True),
        Call("numpy.fromfile", "/etc/passwd"),
        Call("functools.partial", len),
        Call("operator.attrgetter", "__class__"),
        Call("builtins.getattr", {}, "pop"),
        Call("setuptools._distutils.spawn.spawn", ["touch", path]),
        Call("logging.config.listen", 0),
        Call("ctypes.CDLL", "libc.so.6"),
    ]


def torch_archive(data_pickle: bytes, legacy: str = "") -> bytes:
    """A .pt file with this pickle as its content."""
    if legacy == "pickle":
        return data_pickle
    if legacy == "stream":  # the format before zip: magic number, protocol version, system info, object
        head = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
        return b"".join(head) + data_pickle + pickle.dumps([], 2)
    buffer = io.BytesIO()
    torch.save({"model": {"w": torch.zeros(2)}}, buffer)
    target = io.BytesIO()
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(target, "w") as archive:
        for member in source.namelist():
            archive.writestr(member, data_pickle if member.endswith("data.pkl") else source.read(member))
    return target.getvalue()


Plant = Callable[[Path], None]
"""Puts one hostile thing into a run folder with two good epochs."""


def good_run(folder: Path) -> None:
    store = CheckpointStore(folder, "me")
    for epoch in (1, 2):
        store.save_epoch(Progress(epoch, None, epoch, 0.1), *content(float(epoch), 0.5))
    (folder / "run.json").write_text(seal({"run_id": "me"}))


def plant_tensors(suffix: str, data: bytes) -> Plant:
    """In place of a state file of epoch 2, with a manifest that fits: the attacker knows the format."""

    def plant(folder: Path) -> None:
        name = f"model.002{suffix}"
        (folder / name).write_bytes(data)
        manifest = CheckpointStore(folder, "me").manifest("model.002")
        facts = FileFacts(len(data), hashlib.sha256(data).hexdigest())
        forged = replace(manifest, files={**manifest.files, name: facts})
        (folder / "model.002.json").write_text(forged.to_text())

    return plant


def plant_text(name: str, data: bytes) -> Plant:
    def plant(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return plant


def plant_manifest(**changes: Any) -> Plant:
    def plant(folder: Path) -> None:
        manifest = CheckpointStore(folder, "me").manifest("model.002")
        (folder / "model.002.json").write_text(replace(manifest, **changes).to_text())

    return plant


def plant_link(name: str, target: str) -> Plant:
    def plant(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return plant


def corpus(marker: Path) -> dict[str, Plant]:
    """Name to what is planted."""
    items: dict[str, Plant] = {}
    for call in calls(marker):
        for suffix in (".pt", ".opt.pt"):
            items[f"{call.function} in {suffix}"] = plant_tensors(suffix, torch_archive(call.opcodes()))
        for legacy in ("stream", "pickle"):
            items[f"{call.function} in a {legacy}"] = plant_tensors(".pt", torch_archive(call.opcodes(), legacy))
        for name in ("model.002.json", "scores.jsonl", "run.json", "run.lock"):
            items[f"{call.function} in {name}"] = plant_text(name, call.opcodes())
    texts = {
        "python": f"__import__('os').system('touch {marker}')".encode(),
        "python in json": f"{{\"run_id\": \"__import__('os').system('touch {marker}')\"}}\n".encode(),
        "EpochData": f"{{1: EpochData(learningRate=__import__('os').system('touch {marker}'), error={{}})}}".encode(),
        "yaml tag": f"!!python/object/apply:os.system ['touch {marker}']\n".encode(),
        "resolver": b'{"run_id": "${oc.env:HOME}", "_target_": "os.system"}\n',
        "deep": b"[" * 200_000,
        "deep object": b'{"a":' * 100_000,
        "long number": b"9" * 100_000,
        "nul": b"\0" * 4096,
        "long line": b'"' + b"a" * 1_000_000 + b'"',
        "surrogate": b'{"run_id": "\\ud800"}\n',
    }
    for kind, data in texts.items():
        for name in ("model.002.json", "scores.jsonl", "run.json", "run.lock"):
            items[f"{kind} in {name}"] = plant_text(name, data)
    outside = FileFacts(10, "0" * 64)
    for path in ("../../../etc/passwd", "/etc/passwd", "../outside.pt", "model.001.pt", "sub/x.pt", ""):
        items[f"manifest names {path!r}"] = plant_manifest(files={path: outside})
        items[f"manifest is called {path!r}"] = plant_manifest(name=path)
    for name in ("model.002.pt", "model.002.opt.pt", "model.002.json", "scores.jsonl", "run.json"):
        items[f"{name} links to /etc/passwd"] = plant_link(name, "/etc/passwd")
    for name in (
        "model.003.pt",
        "model.003.pt.tmp",
        "model.003.json.tmp",
        "model.003.json",
        "run.json.tmp",
        "scores.jsonl.tmp",
    ):
        items[f"{name} links out"] = plant_link(name, str(marker.with_name("victim")))
    for name in ("evil/../archive/data.pkl", "../../x", "/tmp/x"):
        data = torch_archive(pickle.dumps({}, 2))
        buffer = io.BytesIO(data)
        with zipfile.ZipFile(buffer, "a") as archive:
            archive.writestr(name, b"x")
        items[f"zip member {name}"] = plant_tensors(".pt", buffer.getvalue())
    return items
