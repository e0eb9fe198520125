"""The typed root of the configuration: the keys of conf/config.yaml, their types and their defaults.

Imported by every command line, so nothing here imports torch, numpy or h5py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf


@dataclass
class StreamConf:
    """One entry of extern_data or model_outputs (see returnn_hydra.batch.TensorSpec)."""

    dim: int | None = None
    shape: list[int | None] | None = None
    sparse: bool = False
    dtype: str | None = None
    available_for_inference: bool = True
    vocab: Any = None
    same_length_as: str | None = None


@dataclass
class DatasetConf:
    """One data set: where the sequences come from, in which order, and in what batches."""

    source: Any = MISSING
    """A node with `_target_`: a returnn_hydra.data source."""
    seq_ordering: Any = "default"
    seed: int | None = None
    """Of the ordering; default: the run's seed."""
    partition_epoch: int = 1
    repeat_epoch: int = 1
    keep_epochs: int = 1
    """A random order is kept for this many passes over the corpus."""
    seq_list_filter: Any = None
    """Tags to use: a text file with one tag per line, or a list."""
    batch_size: Any = None
    max_seqs: Any = None
    packed_batch_size: Any = None
    """Most frames of a batch without padding."""
    buckets: Any = None
    """[[longest length, sequences], ...]: batches of like lengths, instead of batch_size and max_seqs."""
    bucket_stream: str | None = None
    random_bucket_prob: float = 0.0
    """With this probability a sequence goes to any of the buckets that it fits into."""
    min_seq_length: Any = None
    max_seq_length: Any = None
    chunking: Any = None
    min_chunk_size: Any = 0
    on_too_long: str = "alone"
    shuffle_batches: Any = False
    """Yes or no; a number: only within so many in a row."""
    num_workers: int = 0
    prefetch: int = 4
    """Batches that are read ahead."""
    check_finite: bool = False


@dataclass
class DatasetsConf:
    train: DatasetConf | None = None
    dev: DatasetConf | None = None
    eval: DatasetConf | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    """Further data sets by name, each a DatasetConf; evaluated after every epoch like dev and eval."""


@dataclass
class CheckpointEveryConf:
    """Checkpoints inside an epoch, beside the one at its end; null: none."""

    steps: int | None = None
    minutes: float | None = None


@dataclass
class DebugConf:
    """Checks that cost time."""

    check_batch: bool = False
    """Before an epoch: forward and backward with its largest batch, without an update, to see that it fits."""


@dataclass
class EmaConf:
    """The exponential moving average of the parameters: evaluated and saved in place of those that are trained."""

    decay: float | None = None
    """Of each update, such as 0.999; null: no average."""


@dataclass
class Config:
    """The whole configuration of one run."""

    task: Any = MISSING
    name: str | None = None
    run: str | None = None
    overrides: str | None = None
    allow_targets: list[str] = field(default_factory=list)
    outputs: str = "outputs"
    returnn_config: Any = None
    """A RETURNN configuration file (or several): it takes the place of all that is below."""
    returnn: dict[str, Any] = field(default_factory=dict)
    """With `returnn_config`: further keys of RETURNN, over those of the files."""
    data_folder: str = "data"
    """Where the scripts/prepare_*.py put the files of the recipes."""

    device: str = "auto"
    seed: int = 1
    num_threads: int | None = None
    log_verbosity: int = 3
    log_every: int = 10

    extern_data: dict[str, Any] = field(default_factory=dict)
    """Stream name to StreamConf."""
    model_outputs: dict[str, Any] = field(default_factory=dict)
    """Output name to StreamConf."""
    datasets: DatasetsConf = field(default_factory=DatasetsConf)
    model: Any = MISSING
    train_step: Any = MISSING
    forward_step: Any = None
    forward_callback: Any = None
    forward_data: str = "eval"
    evaluate_data: Any = None
    check_data: bool = False
    """task=inspect, and task=train before its first step, read everything: labels in range, no NaN, no infinity."""
    optimizer: Any = MISSING
    learning_rate: float = 1e-3
    learning_rate_control: Any = None
    dynamic_learning_rate: Any = None
    """A function of the Python overrides of (global_train_step, epoch, epoch_continuous, learning_rate): the rate of
    the step, from that of the epoch. It takes the place of `learning_rate_control.schedule`."""
    search: Any = None
    search_output: Any = None
    callbacks: dict[str, Any] = field(default_factory=dict)

    batch_size: Any = None
    """Frames; or, like `max_seqs`, a function of the Python overrides of (epoch, seq_idx, epoch_continuous)."""
    max_seqs: Any = None
    num_epochs: int = 5
    load_epoch: Any = "last"
    init_from: Any = None
    resume_from: str | None = None
    """Another run's folder, or one of its checkpoints: go on from there, in a folder of its own."""
    replay_file: str | None = None
    loss_normalization: str = "mean"
    grad_accum_steps: Any = 1
    """Batches; or a function of the Python overrides of (epoch, epoch_continuous, global_train_step)."""
    max_grad_norm: float | None = None
    max_grad_value: float | None = None
    max_grad_norm_per_tensor: float | None = None
    gradient_noise: float = 0.0
    weight_decay_exclude: list[str] | None = None
    learning_rate_multipliers: dict[str, float] = field(default_factory=dict)
    freeze: list[str] = field(default_factory=list)
    ema: EmaConf = field(default_factory=EmaConf)
    amp: str = "none"
    compile: bool = False
    distributed: str = "ddp"
    """Under torchrun: ddp, every rank has the whole model; fsdp, a part of each parameter."""
    fsdp_units: list[str] = field(default_factory=list)
    """Globs over names of modules whose parameters are put together one by one, only while such a module works."""
    distributed_timeout: float = 300.0
    """Seconds that a rank waits for the others."""

    score: str | None = None
    keep_last: int | None = None
    keep_best: int | None = None
    keep_epochs: list[int] = field(default_factory=list)
    checkpoint_every: CheckpointEveryConf = field(default_factory=CheckpointEveryConf)
    allow_changed: list[str] = field(default_factory=list)
    on_nonfinite: str = "stop"
    max_consecutive_nonfinite: int = 10
    on_oom: str = "stop"
    debug: DebugConf = field(default_factory=DebugConf)
    stop_after: str | None = None
    steal_lock: bool = False


ENTRIES: dict[str, type] = {"extern_data": StreamConf, "model_outputs": StreamConf, "datasets.extra": DatasetConf}
"""Dictionaries with names of the user's choice, and what each entry is."""

CHOICES: dict[str, tuple[str, ...]] = {
    "loss_normalization": ("mean", "sum"),
    "amp": ("none", "bfloat16", "float16"),
    "on_nonfinite": ("stop", "skip", "rollback"),
    "on_oom": ("stop", "split"),
    "distributed": ("ddp", "fsdp"),
}
"""Flat keys whose value is one of a few words."""

MINIMUM: dict[str, float] = {
    "num_epochs": 1,
    "learning_rate": 0.0,
    "max_grad_norm": 0.0,
    "max_grad_value": 0.0,
    "max_grad_norm_per_tensor": 0.0,
    "gradient_noise": 0.0,
    "keep_last": 1,
    "keep_best": 0,
    "num_threads": 1,
    "log_every": 1,
    "log_verbosity": 0,
    "max_consecutive_nonfinite": 1,
    "distributed_timeout": 1.0,
}
"""Smallest allowed value of flat numeric keys."""


def register() -> None:
    """Make the schema known to Hydra, under names that are no choice of any group.

    `/schema/open@KEY` in the defaults of a YAML file: KEY is a dictionary with names of the user's choice, which the
    command line may add to.
    """
    node = OmegaConf.structured(Config)
    # OmegaConf can't grow a typed dictionary from the command line
    for path in (*ENTRIES, "returnn", "learning_rate_multipliers"):
        OmegaConf.set_struct(OmegaConf.select(node, path), False)
    ConfigStore.instance().store(group="schema", name="config", node=node, package="_global_")
    ConfigStore.instance().store(group="schema", name="open", node=OmegaConf.create({}, flags={"struct": False}))
