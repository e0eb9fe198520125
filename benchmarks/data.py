"""How fast data comes: against RETURNN, against plain h5py, and with millions of sequences.

    python benchmarks/data.py --peer-python PATH_TO_A_PYTHON_WITH_RETURNN
    python benchmarks/data.py --only padding --lengths AN4=FOLDER_OF_AN4 FSDD=FOLDER_OF_FSDD

Times are CPU seconds (user + system) of a process and its workers, the candidates taking turns. Of `--repeats` runs the
median of the ratios is shown, with the lowest and the highest: other work on the machine changes both sides of a ratio.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

from returnn_hydra.batch import TensorSpec
from returnn_hydra.data.batching import Batching
from returnn_hydra.data.hdf import HDFDataset
from returnn_hydra.data.hdf_writer import HDFWriter
from returnn_hydra.data.loader import Loader
from returnn_hydra.data.order import SeqOrder

PEER = Path(__file__).with_name("data_peer.py")
SPECS = {"data": TensorSpec(dim=40), "classes": TensorSpec(dim=100, sparse=True)}


def peer(python: str, *words: str) -> dict:
    """Run the RETURNN side and return what it prints."""
    command = [python, str(PEER), *words]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return json.loads(result.stdout.splitlines()[-1])


def alone(*words: str) -> dict:
    """Run a part of this file in a fresh process."""
    result = subprocess.run([sys.executable, __file__, "--part", *words], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(result.stdout.splitlines()[-1])


def cpu_seconds() -> float:
    """Of this process and its finished children."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def peak_mb() -> float:
    """Most resident memory of this process so far."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) / 1024


def read_epochs(path: str, cache: str, num_workers: int, epochs: int = 4) -> dict:
    """Frames and seconds of every epoch of padded torch batches."""
    loader = Loader(
        HDFDataset(path, cache=cache),
        SPECS,
        SeqOrder("laplace:.200"),
        Batching(batch_size=10_000),
        num_workers=num_workers,
    )
    gc.collect()
    results = []
    for epoch in range(1, epochs + 1):
        start, wall = cpu_seconds(), time.monotonic()
        frames = sum(int(batch.lengths["data"].sum()) for batch in loader.epoch(epoch))
        seconds = {"seconds": cpu_seconds() - start, "wall": time.monotonic() - wall}
        results.append({"frames": frames, **seconds})
    return {"epochs": results, "peak_mb": peak_mb()}


def read_blocks(path: str) -> dict:
    """h5py alone: the same streams in blocks of 16384 frames."""
    start = time.process_time()
    with h5py.File(path) as file:
        for name in ("inputs", "targets/data/classes"):
            dataset = file[name]
            for begin in range(0, len(dataset), 16384):
                dataset[begin : begin + 16384]
        return {"frames": len(file["inputs"]), "seconds": time.process_time() - start}


def memory_of_workers(path: str, num_workers: int) -> dict:
    """Resident memory of the processes while they read, and what of it the workers share with nobody."""
    specs = {"data": TensorSpec(dim=1)}
    batching = Batching(batch_size=1000)
    loader = Loader(HDFDataset(path, cache="none"), specs, SeqOrder("random"), batching, num_workers=num_workers)
    batches = loader.epoch(1)
    for _ in range(300):
        next(batches)
    main = memory_mb("self")
    workers = [memory_mb(str(process.pid)) for process in multiprocessing.active_children()]
    batches.close()  # type: ignore[attr-defined]
    return {"main": main, "workers": workers}


def memory_mb(process: str) -> dict:
    """Resident memory, and the private part of it."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:])
    sizes = {name: int(value.split()[0]) / 1024 for name, value in fields.items()}
    return {"rss": sizes["Rss"], "private": sizes["Private_Clean"] + sizes["Private_Dirty"]}


def order_and_batches(num_seqs: int) -> dict:
    """Order and batches of one epoch, and the most memory."""
    lengths = np.random.RandomState(1).randint(50, 551, num_seqs)
    start = time.process_time()
    indices = SeqOrder("laplace:.200").indices(1, lengths)
    ordered = time.process_time()
    batches = Batching(batch_size=10_000).make(indices, {"data": lengths, "classes": lengths})
    return {
        "order": ordered - start,
        "batches": time.process_time() - ordered,
        "num_batches": len(batches),
        "peak_mb": peak_mb(),
    }


def open_many(path: str) -> dict:
    """Open a file of very many sequences, and get the tags."""
    start = time.process_time()
    dataset = HDFDataset(path)
    opened = time.process_time()
    dataset.seq_tags([0])
    return {"num_seqs": len(dataset), "open": opened - start, "tags": time.process_time() - opened}


def rewrite(source: str, target: str) -> None:
    """The same corpus by our writer."""
    dataset = HDFDataset(source, cache="none")
    with HDFWriter(target, SPECS) as writer:
        for begin in range(0, len(dataset), 100):
            examples = dataset.read(np.arange(begin, min(begin + 100, len(dataset))))
            for i, tag in enumerate(examples.seq_tags):
                writer.write(tag, {name: arrays[i] for name, arrays in examples.streams.items()})


def write_like_returnn(path: str, num_seqs: int) -> None:
    """A stand-in for the peer's file: the same chunks."""
    rng = np.random.RandomState(1)
    lengths = rng.randint(50, 551, num_seqs)
    with h5py.File(path, "w") as file:
        total = int(lengths.sum())
        inputs = file.create_dataset("inputs", (total, 40), "f4", chunks=(154, 10), maxshape=(None, None))
        for begin in range(0, total, 100_000):
            inputs[begin : begin + 100_000] = rng.randn(min(100_000, total - begin), 40)
        classes = rng.randint(0, 100, total).astype("int32")
        file.create_dataset("targets/data/classes", data=classes, chunks=(1024,), maxshape=(None,))
        file.require_group("targets/size").attrs["classes"] = [100, 1]
        file["seqLengths"] = np.stack([lengths, lengths], 1).astype("int32")
        file["seqTags"] = np.array([f"seq-{i}".encode() for i in range(num_seqs)])


def write_many(path: str, num_seqs: int) -> None:
    """Very many short sequences."""
    lengths = np.random.RandomState(1).randint(1, 3, num_seqs)
    with h5py.File(path, "w") as file:
        file["inputs"] = np.zeros((int(lengths.sum()), 1), "f4")
        file["seqLengths"] = np.stack([lengths, 0 * lengths], 1).astype("int32")
        file.create_dataset("seqTags", data=[f"corpus/recording-{i // 100}/{i}" for i in range(num_seqs)])


def speed(result: dict) -> float:
    """Million frames per CPU second."""
    return result["frames"] / result["seconds"] / 1e6


def best(result: dict, epochs: slice) -> float:
    """The best of the given epochs of one run."""
    return max(speed(epoch) for epoch in result["epochs"][epochs])


def spread(values: list[float], unit: str) -> str:
    """`5.1 x (4.8 to 5.6)`"""
    return f"{statistics.median(values):6.1f} {unit} ({min(values):.1f} to {max(values):.1f})"


def line(name: str, values: list[float], returnn: list[float], blocks: list[float]) -> None:
    """One candidate: its speed, and its ratios to what ran in the same round."""
    shares = [100 * value / block for value, block in zip(values, blocks, strict=True)]
    ratios = [value / theirs for value, theirs in zip(values, returnn, strict=True)] if returnn else []
    text = f"{name:50s} {statistics.median(values):6.2f} M frames/CPU-s {spread(shares, '% of h5py blocks')}"
    print(text, spread(ratios, "x RETURNN") if ratios else "")


def reading(folder: Path, arguments: argparse.Namespace) -> None:
    """Batches out of HDF files."""
    theirs, ours = str(folder / "returnn.hdf"), str(folder / "ours.hdf")
    if arguments.peer_python:
        peer(arguments.peer_python, "write", theirs, str(arguments.num_seqs))
    else:
        write_like_returnn(theirs, arguments.num_seqs)
    rewrite(theirs, ours)
    with h5py.File(theirs) as file:
        print(f"{len(file['seqTags'])} sequences, {len(file['inputs'])} frames, chunks {file['inputs'].chunks}")
    candidates = {
        "RETURNN": lambda: peer(arguments.peer_python, "read", theirs, "default"),
        "RETURNN, cache_byte_size=0": lambda: peer(arguments.peer_python, "read", theirs, "0"),
        "RETURNN, our writer's file": lambda: peer(arguments.peer_python, "read", ours, "default"),
        "blocks": lambda: alone("blocks", theirs),
        "cache: ram": lambda: alone("read", theirs, "ram", "0"),
        "cache: none": lambda: alone("read", theirs, "none", "0"),
        "cache: ram, 2 workers": lambda: alone("read", theirs, "ram", "2"),
        "cache: none, 2 workers": lambda: alone("read", theirs, "none", "2"),
        "our writer's file, cache: ram": lambda: alone("read", ours, "ram", "0"),
        "our writer's file, cache: none": lambda: alone("read", ours, "none", "0"),
        "our writer's file, blocks": lambda: alone("blocks", ours),
    }
    if not arguments.peer_python:
        candidates = {name: run for name, run in candidates.items() if "RETURNN" not in name}
    results: dict[str, list[dict]] = {name: [] for name in candidates}
    for _ in range(arguments.repeats):
        for name, run in candidates.items():
            results[name].append(run())
    blocks = [speed(result) for result in results.pop("blocks")]
    own_blocks = [speed(result) for result in results.pop("our writer's file, blocks")]
    same_file = [results[name] for name in ("RETURNN", "RETURNN, cache_byte_size=0") if name in results]
    returnn = [max(best(run, slice(None)) for run in runs) for runs in zip(*same_file, strict=True)]
    line("h5py alone, blocks of 16384 frames", blocks, returnn, blocks)
    line("h5py alone, our writer's file", own_blocks, returnn, blocks)
    for name, runs in results.items():
        for text, epochs in {"first epoch": slice(0, 1), "later epochs": slice(1, None)}.items():
            line(f"{name}: {text}", [best(run, epochs) for run in runs], returnn, blocks)
    memory = {name: runs[0]["peak_mb"] for name, runs in results.items() if "peak_mb" in runs[0]}
    print("largest resident memory (MB):", ", ".join(f"{name} {size:.0f}" for name, size in memory.items()))


def scale(folder: Path, arguments: argparse.Namespace) -> None:
    """Millions of sequences."""
    for num_seqs in (1_000_000, 10_000_000):
        facts = min((alone("order", str(num_seqs)) for _ in range(arguments.repeats)), key=lambda facts: facts["order"])
        print(
            f"{num_seqs} sequences: order {facts['order']:.2f} s, batches {facts['batches']:.2f} s, "
            f"peak memory {facts['peak_mb']:.0f} MB, {facts['num_batches']} batches"
        )
        if arguments.peer_python:
            print(
                f"    RETURNN, the order alone: {peer(arguments.peer_python, 'order', str(num_seqs))['seconds']:.2f} s"
            )
    write_many(str(folder / "many.hdf"), 1_000_000)
    facts = alone("open", str(folder / "many.hdf"))
    print(
        f"HDF of {facts['num_seqs']} sequences: opened in {facts['open']:.2f} s, tags {facts['tags']:.2f} s when needed"
    )
    for num_workers in (1, 3):
        found = alone("workers", str(folder / "many.hdf"), str(num_workers))
        workers = ", ".join(f"{worker['rss']:.0f} MB ({worker['private']:.0f} its own)" for worker in found["workers"])
        print(f"    resident memory with {num_workers} workers: main {found['main']['rss']:.0f} MB, workers {workers}")


def audio_lengths(folder: Path) -> np.ndarray:
    """Frames of 10 ms of all wav and flac files in a folder."""
    import soundfile

    files = sorted(path for path in folder.rglob("*") if path.suffix in (".wav", ".flac"))
    return np.array([int(100 * soundfile.info(str(path)).duration) for path in files], np.int64)


def padding(lengths_files: list[str], epochs: int = 10) -> None:
    """How much of the batches is padding, by order: the mean of some epochs. `sorted` is the best possible."""
    for entry in lengths_files:
        name, _, path = entry.partition("=")
        lengths = audio_lengths(Path(path))
        for seqs in (10, 50):
            limit = max(seqs * int(lengths.mean()), int(lengths.max()))
            shares = []
            for mode in ("random", "laplace:.200", "bucket:.200", "bucket", "sorted"):
                real, padded = 0, 0
                for epoch in range(1, epochs + 1):
                    indices = SeqOrder(mode).indices(epoch, lengths)
                    batches = Batching(batch_size=limit).make(indices, {"data": lengths})
                    real, padded = np.add((real, padded), batches.num_frames(lengths, "data"))
                shares.append(f"{mode} {(1 - real / padded) * 100:.1f} %")
            print(f"padding, {name} ({len(lengths)} sequences, batch_size {limit}): {', '.join(shares)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="a Python that has RETURNN")
    parser.add_argument("--num-seqs", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--lengths", nargs="*", default=[], help="NAME=FOLDER of wav or flac, for the padding")
    parser.add_argument("--only", choices=("reading", "scale", "padding"), help="default: all")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        task, *words = arguments.part
        parts = {
            "read": lambda: read_epochs(words[0], words[1], int(words[2])),
            "blocks": lambda: read_blocks(words[0]),
            "workers": lambda: memory_of_workers(words[0], int(words[1])),
            "order": lambda: order_and_batches(int(words[0])),
            "open": lambda: open_many(words[0]),
        }
        print(json.dumps(parts[task]()))
        return
    with tempfile.TemporaryDirectory() as name:
        if arguments.only in (None, "reading"):
            reading(Path(name), arguments)
        if arguments.only in (None, "scale"):
            scale(Path(name), arguments)
    if arguments.only in (None, "padding"):
        padding(arguments.lengths)


if __name__ == "__main__":
    main()
