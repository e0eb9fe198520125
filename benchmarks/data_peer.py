"""The RETURNN side of benchmarks/data.py, run with the Python of an environment that has RETURNN:

    python benchmarks/data_peer.py write FILE NUM_SEQS       a file by its SimpleHDFWriter
    python benchmarks/data_peer.py read FILE CACHE_BYTES     two epochs by its HDFDataset and torch pipeline
    python benchmarks/data_peer.py order NUM_SEQS            its order alone

Prints one line of JSON.
"""

import gc
import json
import sys
import time

import numpy as np


def write(path, num_seqs):
    """40 numbers and a label per frame, 300 frames on average."""
    from returnn.datasets.hdf import SimpleHDFWriter

    rng = np.random.RandomState(1)
    writer = SimpleHDFWriter(path, dim=40, ndim=2, extra_type={"classes": (100, 1, "int32")})
    for start in range(0, num_seqs, 10):
        lens = rng.randint(50, 551, min(10, num_seqs - start))
        if start == 0:
            lens[0] = 615  # h5py derives the chunks from the first sequence: (154, 10)
        for i, n in enumerate(lens):
            data = rng.randn(1, n, 40).astype("float32")
            classes = rng.randint(0, 100, (1, n)).astype("int32")
            writer.insert_batch(data, [n], [f"corpus/seq-{start + i}"], extra={"classes": classes})
    writer.close()
    return {}


def read(path, cache_bytes):
    """Seconds and frames of two epochs."""
    from returnn.config import Config, set_global_config
    from returnn.datasets.basic import init_dataset
    from returnn.torch.data import pipeline, returnn_dataset_wrapper
    from torch.utils.data import DataLoader

    set_global_config(Config({}))
    options = {} if cache_bytes == "default" else {"cache_byte_size": int(cache_bytes)}
    options = {"class": "HDFDataset", "files": [path], "seq_ordering": "laplace:.200", **options}
    dataset = init_dataset(options)
    gc.collect()
    results = []
    for epoch in (1, 2):
        dataset.init_seq_order(epoch=epoch)
        start = time.process_time()
        reset = returnn_dataset_wrapper.ReturnnDatasetResetNoOpCallback()
        sequences = returnn_dataset_wrapper.ReturnnDatasetIterDataPipe(dataset, reset_callback=reset)
        batches = pipeline.BatchingIterDataPipe(sequences, batch_size=10_000, max_seqs=None)
        frames = 0
        for batch in DataLoader(batches, collate_fn=pipeline.collate_batch, batch_size=None, num_workers=0):
            frames += int(batch["data:seq_len"].sum())
        results.append({"frames": frames, "seconds": time.process_time() - start})
    return {"epochs": results}


def order(num_seqs):
    """Seconds for the order of one epoch."""
    from returnn.datasets.basic import Dataset

    lens = np.random.RandomState(1).randint(50, 551, num_seqs)
    dataset = Dataset(seq_ordering="laplace:.200")
    start = time.process_time()
    dataset.get_seq_order_for_epoch(epoch=1, num_seqs=num_seqs, get_seq_len=lambda i: lens[i])
    return {"seconds": time.process_time() - start}


if __name__ == "__main__":
    task, *arguments = sys.argv[1:]
    if task == "write":
        result = write(arguments[0], int(arguments[1]))
    elif task == "read":
        result = read(*arguments)
    else:
        result = order(int(arguments[0]))
    print(json.dumps(result))
