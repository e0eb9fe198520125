"""RETURNN's configuration keys: their types, and what becomes of each.

No key is silently ignored: one without an effect here gives a note that says why, one that can't be honoured an error,
and an unknown one a warning with the nearest known key.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from returnn_hydra.config.errors import ConfigError, nearest
from returnn_hydra.config.literals import describe, fits
from returnn_hydra.config.returnn_values import ReturnnConfig

Fate = Literal["translated", "used", "idle", "refused"]
Function = Callable[..., Any]
DatasetType = dict | str | Function | None
PerEpoch = int | Function | None
Lengths = int | float | dict | None
PLAIN = (bool, int, float, str, list, tuple, dict, type(None))


@dataclass(frozen=True)
class Key:
    """One key."""

    name: str
    kind: Any
    """The type that its value must have."""
    fate: Fate
    """translated: into our key; used: as it is; idle: without effect here; refused: an error."""
    ours: str
    """Our key or the part that uses it; for idle and refused: why, and what to do instead."""
    harmless: tuple[Any, ...] = ()
    """Values that ask for nothing: no error of a refused key, no note of an idle one."""


def _group(fate: Fate, *rows: tuple[Any, ...]) -> dict[str, Key]:
    return {row[0]: Key(row[0], row[1], fate, row[2], *row[3:]) for row in rows}


_TRANSLATED = _group(
    "translated",
    ("task", str, "task"),
    ("batch_size", int | float | dict | Function | None, "datasets.*.batch_size"),
    ("batch_size_train", int | float | dict | Function | None, "datasets.train.batch_size"),
    ("batch_size_dev", int | float | dict | Function | None, "datasets.dev.batch_size"),
    ("max_seqs", PerEpoch, "datasets.*.max_seqs"),
    ("packed_batch_size", int | dict | None, "datasets.*.packed_batch_size"),
    ("torch_batching", dict | Function | None, "datasets.*.buckets; a function: the batches of its own"),
    ("max_seq_length", Lengths, "datasets.*.max_seq_length"),
    ("min_seq_length", Lengths, "datasets.*.min_seq_length"),
    ("chunking", str | int | list | dict | None, "datasets.*.chunking"),
    ("min_chunk_size", int | dict, "datasets.*.min_chunk_size"),
    ("batching", str | Function, "datasets.*.seq_ordering"),
    ("online_shuffle_batches", int | dict | None, "datasets.train.shuffle_batches"),
    ("train", DatasetType, "datasets.train"),
    ("dev", DatasetType, "datasets.dev"),
    ("eval", DatasetType, "datasets.eval"),
    ("eval_datasets", dict | None, "datasets.extra"),
    ("forward_data", DatasetType, "forward_data"),
    ("search_data", DatasetType, "forward_data"),
    ("extern_data", dict, "extern_data"),
    ("num_inputs", int, "extern_data.data.dim"),
    ("num_outputs", int | dict, "extern_data"),
    ("model_outputs", dict | None, "model_outputs"),
    ("num_epochs", int, "num_epochs"),
    ("load_epoch", int | None, "load_epoch"),
    ("epoch", int | None, "load_epoch"),
    ("device", str | None, "device"),
    ("random_seed", int, "seed"),
    ("log_verbosity", int | list[int], "log_verbosity"),
    ("optimizer", dict | str | Function | None, "optimizer"),
    ("optimizer_epsilon", float, "optimizer.eps"),
    ("adam", bool, "optimizer"),
    ("nadam", bool, "optimizer"),
    ("rmsprop", bool, "optimizer"),
    ("adadelta", bool, "optimizer"),
    ("adagrad", bool, "optimizer"),
    ("momentum", float, "optimizer.momentum"),
    ("gradient_clip", float | None, "max_grad_value"),
    ("gradient_clip_global_norm", float | None, "max_grad_norm"),
    ("gradient_clip_norm", float | None, "max_norm_per_tensor"),
    ("gradient_noise", float | None, "gradient_noise"),
    ("accum_grad_multiple_step", int | Function, "grad_accum_steps"),
    ("torch_amp", str | dict | None, "amp"),
    ("torch_compile", bool, "compile (no key of RETURNN's): the model of a training, by torch.compile"),
    ("torch_amp_options", dict | None, "amp (MiniReturnn's name)"),
    ("num_workers_per_gpu", int, "datasets.*.num_workers (MiniReturnn's name)"),
    ("learning_rate", float, "learning_rate"),
    ("learning_rates", list[float] | dict | None, "learning_rate_control.learning_rates"),
    ("learning_rate_control", str, "learning_rate_control"),
    ("learning_rate_control_error_measure", str | list[str] | None, "score"),
    ("learning_rate_control_min_num_epochs_per_new_lr", int, "learning_rate_control.min_epochs_per_rate"),
    ("learning_rate_control_relative_error_relative_lr", bool, "learning_rate_control.relative_to_rate"),
    ("learning_rate_decay", float | Function, "learning_rate_control.decay"),
    ("learning_rate_growth", float | Function, "learning_rate_control.growth"),
    ("newbob_learning_rate_decay", float, "learning_rate_control.decay"),
    ("newbob_learning_rate_growth", float, "learning_rate_control.growth"),
    ("newbob_relative_error_threshold", float, "learning_rate_control.threshold"),
    ("newbob_relative_error_grow_threshold", float, "learning_rate_control.growth_threshold"),
    ("newbob_relative_error_div_by_old", bool, "learning_rate_control.change"),
    ("newbob_error_threshold", float, "learning_rate_control.threshold"),
    ("newbob_multi_num_epochs", int, "learning_rate_control.num_epochs"),
    ("newbob_multi_update_interval", int, "learning_rate_control.update_interval"),
    ("min_learning_rate", float, "learning_rate_control.min_learning_rate"),
    ("dynamic_learning_rate", Function | None, "learning_rate_control.schedule"),
    ("cleanup_old_models", bool | dict, "keep_last, keep_best, keep_epochs"),
    ("stop_on_nonfinite_train_score", bool, "on_nonfinite"),
    ("gradient_nan_inf_filter", bool, "on_nonfinite: such a batch is skipped (RETURNN sets the bad entries to 0)"),
    ("use_tensorboard", bool, "callbacks.tensorboard"),
    ("log_grad_norm", bool | int | float | None, "a score of the training, as RETURNN names it"),
    ("output_file", str | None, "output_file"),
    ("forward_batch_size", int | dict | None, "batch size of the forward task"),
)

_USED = _group(
    "used",
    ("network", dict | Function | None, "network"),
    ("get_network", Function, "network"),
    ("pretrain", str | bool | dict | None, "the network of every epoch"),
    ("pretrain_construction_algo", str | Function | None, "the network of every epoch"),
    ("pretrain_repetitions", int | list[int] | dict | None, "the network of every epoch"),
    ("pretrain_copy_output_layer", bool | str | None, "the network of every epoch"),
    ("use_learning_rate_control_always", bool, "the learning rate of pretraining epochs"),
    ("pretrain_learning_rate", float | None, "the learning rate of pretraining epochs"),
    ("get_model", Function, "frontend"),
    ("train_step", Function, "frontend"),
    ("forward_step", Function, "frontend"),
    ("forward_callback", Any, "frontend"),
    ("model", str, "the place of the checkpoints"),
    ("load", str | None, "the checkpoint to start from"),
    ("start_epoch", int | str, "which checkpoint training goes on from"),
    ("import_model_train_epoch1", str | None, "the checkpoint to start from"),
    ("preload_from_files", dict, "the checkpoints to start from"),
    ("load_ignore_missing_vars", bool, "loading checkpoints"),
    ("allow_random_model_init", bool, "loading checkpoints"),
    ("load_model_post_hooks", list, "loading checkpoints"),
    ("learning_rate_file", str | None, "the learning-rate file"),
    ("log", str | list[str] | None, "the log"),
    ("behavior_version", int, "a warning where the meaning of a used feature has changed"),
    ("target", str | list | None, "network"),
    ("calculate_exp_loss", bool, "scores"),
    ("forward_output_layer", str | None, "network"),
    ("forward_override_hdf_output", bool, "forward"),
    ("forward_use_search", bool, "forward"),
    ("search_output_file", str | None, "search"),
    ("search_output_layer", str | list | None, "search"),
    ("search_train_network_layers", list[str] | None, "network"),
    ("search_output_file_format", str, "search"),
    ("epoch_start", Function | None, "callbacks"),
    ("epoch_end", Function | None, "callbacks"),
    ("startup_callback", Function | None, "callbacks"),
    ("torch_dataloader_opts", dict | None, "num_workers"),
    ("torch_distributed", dict | None, "distributed"),
    ("decouple_constraints", bool, "a check: weight decay is decoupled with torch, part of the loss in a network dict"),
    (
        "use_last_best_model",
        dict | bool | None,
        "the first parameters of an epoch, with a network dict; no effect with functions, as in RETURNN",
    ),
    ("sort_dataset", bool | int, "the order of the sequences in forward"),
    ("eval_output_file", str | None, "the file with the scores of task=eval"),
    ("rf_att_dropout_broadcast", bool | None, "frontend"),
    ("rf_conformer_conv_norm_use_mask", bool | None, "frontend"),
    ("rf_dropout_broadcast", bool | None, "frontend"),
    ("rf_module_output_keep_dtype", bool | None, "frontend"),
    ("rf_moments_float32", bool | None, "frontend"),
    ("rf_moments_use_fixed_masking", bool | None, "frontend"),
    ("rf_scatter_use_fixed_masking", bool | None, "frontend"),
    ("rf_specaugment_num_masks_per_seq", bool | None, "frontend"),
    ("rf_use_consistent_same_padding", bool | None, "frontend"),
    ("rf_use_mask", bool | None, "frontend"),
    ("default_float_dtype", str | None, "frontend: the dtype of parameters and of float streams"),
)

_TF_ONLY = "only concerns TensorFlow's memory, sessions or debugging"
_JAX = "belongs to RETURNN's JAX backend"
_OLD = "has had no effect since RETURNN's Theano years"
_DEBUG = "a debugging aid of RETURNN; see debug= here"
_IDLE = _group(
    "idle",
    ("cache_size", Any, "data is read when it is needed, and the operating system caches it"),
    ("update_on_device", bool, _OLD),
    ("backend", str | None, "everything runs on torch, a network dict, too", (None, "torch")),
    ("use_tensorflow", bool, "everything runs on torch, a network dict, too", (True, False)),
    ("grad_scaler", dict | None, "losses are scaled with float16 only, by torch's defaults"),
    ("search_do_eval", bool, "task=search writes what it finds; task=eval gives the losses"),
    ("default_input", str | None, "steps take their streams by name"),
    ("tensorboard_opts", dict | None, "scores are written after every epoch"),
    ("decouple_constraints_factor", float, "only concerns decouple_constraints of a network dict"),
    ("tf_profiler_logdir", str | None, _TF_ONLY),
    ("tf_profile_step", Any, _TF_ONLY),
    ("tf_jit", Any, _TF_ONLY),
    ("tf_data_provider_capacity", Any, _TF_ONLY),
    ("tf_cudnn_autotune", Any, _TF_ONLY),
    ("jax_jit", Any, _JAX),
    ("jax_time_buckets", Any, _JAX),
    ("jax_static_shapes", Any, _JAX),
    ("jax_default_matmul_precision", Any, _JAX),
    ("jax_data_prefetch", Any, _JAX),
    ("jax_compilation_cache_dir", Any, _JAX),
    ("optimize_move_layers_out", bool, "layers of a loop that need not be in it are always moved out"),
    ("debug_runtime_sanity_checks", bool, _DEBUG),
    ("debug_print_layer_output", bool, _DEBUG),
    ("debug_print_layer_output_shape", bool, _DEBUG),
    ("debug_rec_layer", Any, _DEBUG),
    ("debug_shell_in_runner_step", Any, _DEBUG),
    ("debug_objective_loss_summaries", bool, _DEBUG),
    ("debug_unnormalized_loss_summaries", bool, _DEBUG),
    ("update_batch_size", Any, _OLD),
    ("eval_batch_size", Any, _OLD + "; see batch_size_dev"),
    ("shuffle_batches", Any, _OLD + "; see online_shuffle_batches"),
    ("chunk_eval", Any, _OLD),
    ("data_key", Any, "belongs to tools of RETURNN"),
    ("analyze_dataset", Any, "belongs to tools of RETURNN"),
    ("sil_label_idx", Any, "belongs to tools of RETURNN"),
    ("horovod_scale_lr", bool, "see use_horovod"),
    ("horovod_avg_grad", bool, "see use_horovod"),
    ("forward_auto_split_batch_on_oom", bool, "a batch that does not fit into memory is always split in forward"),
    ("flat_net_construction", bool, "deep networks need no other construction here"),
    ("debug_print_layer_output_template", bool, _DEBUG),
    ("debug_add_check_numerics_on_output", bool, _DEBUG),
    ("debug_add_check_numerics_ops", bool, _DEBUG),
    ("debug_grad_summaries", bool, _DEBUG),
    ("tf_log_memory_usage", bool, _TF_ONLY),
    ("tf_session_opts", dict, _TF_ONLY),
    ("tf_log_dir", str | None, "TensorBoard files are in the run's folder"),
    ("tf_static_shapes", bool, _TF_ONLY),
    ("store_metadata_mod_step", int | bool, _TF_ONLY),
    ("log_batch_size", bool, "log_verbosity 5 shows every batch's size"),
    ("torch_log_memory_usage", bool, "memory is in the statistics of every epoch"),
    ("watch_memory", bool, "memory is in the statistics of every epoch"),
    ("use_lovely_tensors", bool, _DEBUG),
    ("use_train_proc_manager", bool, "a run that was stopped goes on when it is started again"),
    ("stop_for_resubmission_when_low_time_left", Any, "see stop_after= and signals here"),
    ("reset_dev_memory_caches", bool, "torch's own allocator settings do this"),
    ("PYTORCH_CUDA_ALLOC_CONF", str, "is an environment variable; set it before the start"),
    ("patch_atfork", bool, "processes are not forked from inside libraries here"),
    ("need_data", bool, "data is only opened where a task needs it"),
    ("torch_cuda_graph", Any, "a matter of speed only; see torch_compile"),
    ("packed_tensors", Any, "a matter of speed only"),
    ("conv_pad_seq_len_to_power", Any, "a matter of speed only"),
    ("activation", Any, _OLD),
    ("hidden_size", Any, _OLD),
    ("hidden_type", Any, _OLD),
    ("dropout", Any, _OLD + " outside of layers"),
    ("L2", Any, _OLD + " outside of layers; see optimizer.weight_decay"),
    ("loss", Any, _OLD + " outside of layers"),
    ("momentum2", Any, _OLD),
    ("start_batch", Any, "a resumed run goes on at the batch where it stopped"),
    ("save_interval", Any, "every epoch is saved; see cleanup_old_models and checkpoint_every"),
    ("use_horovod", bool, "torch.distributed takes its place: start with torchrun"),
    ("horovod_dataset_distribution", str, "see use_horovod"),
    ("horovod_param_sync_time_diff", Any, "see use_horovod"),
    ("horovod_param_sync_step", Any, "see use_horovod"),
    ("horovod_reduce_type", str, "see use_horovod"),
    ("distributed_tf", Any, "see use_horovod"),
    ("torch_profile", Any, "use torch.profiler; see benchmarks/"),
    ("torch_watch_stall", Any, "a debugging aid of RETURNN; ranks wait distributed_timeout seconds"),
    ("torch_dataloader_shard_workers", bool, "workers share the sequences in any case"),
    ("wandb_opts", dict | None, "see callbacks/ for where scores can go"),
    ("rf_native_opt", Any, "a matter of speed only"),
    ("rf_packed_att_fast_paths", Any, "a matter of speed only"),
    ("rf_packed_warn_regap", Any, "a matter of speed only"),
    ("packed_fallback_allowed", Any, "a matter of speed only"),
    ("gpu_local_cpu_affinity", Any, "a matter of speed only"),
    ("use_hot_reloading", bool, _DEBUG),
    ("ipython", bool, _DEBUG),
    ("debug_shell_before_train_loop", bool, _DEBUG),
    ("debug_shell_in_runner", bool, _DEBUG),
    ("debug_save_updater_vars", bool, _DEBUG),
    ("store_tf_profile", bool, _TF_ONLY),
    ("tf_run_options", Any, _TF_ONLY),
    ("optimizer_use_locking", bool, _TF_ONLY),
    ("check_unsupported_device", bool, _TF_ONLY),
    ("file_cache_opts", dict | None, "files are read where they are"),
    ("log_format", str, "log lines have one form here"),
    ("web_server_port", Any, "there is no server"),
    ("stop_for_resubmission_safety_factor", Any, "see stop_for_resubmission_when_low_time_left"),
    ("apply_cleanup_old_models_to_optim_states", bool, "they are cleaned up together in any case"),
    ("allow_skipping_seqs_in_forward", bool, "forward reads every sequence"),
    ("save_epoch1_initial_model", bool, "see task=initialize_model"),
    ("share_batches", Any, _OLD),
    ("max_pad_size", Any, _OLD),
    ("statistics_save_prefix", str, "belongs to task=analyze_data"),
    ("statistics_dtype", str, "belongs to task=analyze_data"),
    ("propagate_behavior_version_to_subprocs", bool, "workers know it in any case"),
)

_NOTHING: tuple[Any, ...] = (None, False, 0, {}, [])
_REFUSED = _group(
    "refused",
    ("window", int, "windows of frames are not made from the data; use a 'window' layer or rf.window", (1, 0)),
    ("context_window", int | dict, "windows of frames are not made from the data; use a 'window' layer", (1, 0)),
    ("truncation", int, "truncated backpropagation is not supported; use chunking", (-1, 0)),
    ("train_in_eval", bool, "evaluations do not train", _NOTHING),
    ("param_dropout", Any, "not supported; use dropout or param_dropout of layers", _NOTHING),
    ("param_variational_noise", Any, "not supported; use param_variational_noise of layers", _NOTHING),
    ("enforce_min_len1", bool, "sequences without frames are an error or kept as they are", _NOTHING),
    ("hyper_param_tuning", Any, "see docs: sweeps with python run.py -m", _NOTHING),
    ("reinit_network_each_epoch", bool, "see get_network", _NOTHING),
    ("tf_amp", Any, "see torch_amp", _NOTHING),
    ("grad_clip", Any, "RETURNN knows no such key; did you mean gradient_clip?", (None, 0)),
    ("grad_noise", Any, "RETURNN knows no such key; did you mean gradient_noise?", (None, 0)),
    ("gradient_clip_avg_norm", Any, "not supported; use gradient_clip_global_norm", (None, 0)),
    ("grad_norm_to_clip_to_zero", Any, "not supported; use gradient_clip_global_norm", (None, 0)),
    ("adasecant", bool, "there is no such optimizer in torch", (False,)),
    ("mean_normalized_sgd", bool, "there is no such optimizer in torch", (False,)),
    ("sprint_interface_dataset_opts", Any, "RASR (Sprint) is not called; dump its data to HDF first", (None,)),
    ("use_dummy_datasets", bool, "write the data set that you want", _NOTHING),
    ("dry_run", bool, "see task=nop_init_net_train", _NOTHING),
    ("torch_optimizer_step", Any, "the optimizer's own step is used; give optimizer a class of your own", _NOTHING),
    ("eval_output_file_per_seq", Any, "use forward with mark_as_output of the losses", _NOTHING),
    ("dataset_random_seed_offset", int, "use random_seed, or fixed_random_seed of the data set", _NOTHING),
    ("chunking_variance", Any, "chunks have a fixed size", _NOTHING),
    ("shuffle_frames_of_nseqs", int, "frames are not shuffled between sequences", _NOTHING),
    ("packed_batch_cost", Any, "batches are padded; use batch_size", (None,)),
    ("rf_batch_norm_distributed", bool, "every rank normalises its own batch", _NOTHING),
    ("global_norm_tag", Any, "not supported; use gradient_clip_global_norm", _NOTHING),
    ("gradient_clip_global_norm_tag", Any, "not supported; use gradient_clip_global_norm", _NOTHING),
    ("maximize_grad_norm", Any, "not supported", _NOTHING),
    ("extra_updates", Any, "not supported", _NOTHING),
    ("reset_updater_vars_mod_step", Any, "not supported", _NOTHING),
    ("init_new_network_callback", Any, "not supported; see startup_callback and epoch_start", _NOTHING),
    ("init_train_epoch_posthook", Any, "texts are not evaluated; see epoch_start", _NOTHING),
    ("dataset_pipeline", Any, "data sets are read by the loaders", _NOTHING),
    ("eval_use_train_flag", bool, "evaluations run without dropout", _NOTHING),
    ("inc_seq_length", Any, "not supported; use a function as max_seqs or batch_size, or epoch_wise_filter", _NOTHING),
    ("seq_drop", Any, "not supported", _NOTHING),
    ("seq_drop_freq", Any, "not supported", (None, 10)),
    ("sprint_trainer_exec_path", Any, "RASR (Sprint) is not called; dump its data to HDF first", (None,)),
)

KEYS: dict[str, Key] = {**_TRANSLATED, **_USED, **_IDLE, **_REFUSED}
"""Every known key."""


def declared_types() -> dict[str, Any]:
    """Key to type, for `load_returnn_config(declared=...)`."""
    return {name: key.kind for name, key in KEYS.items()}


@dataclass
class KeyReport:
    """What a user should be told of a configuration's keys."""

    notes: list[str] = field(default_factory=list)
    """Keys without an effect here, and why."""
    warnings: list[str] = field(default_factory=list)
    """Keys that are surely typos, or unknown."""


def check_keys(config: ReturnnConfig, strict: bool = False) -> KeyReport:
    """Types of all known keys, and what becomes of every key.

    A whole number given as an int where a float is wanted (`learning_rate = 1`) is made a float.
    A Python file may have helpers of any name: there, a name is a warning if it looks like a known key, or has a plain
    value that nothing in the config's files reads.

    Args:
        strict: unknown keys are an error.

    Raises:
        ConfigError: values of a wrong type, refused keys, with `strict` unknown ones; all of them in one message.
    """
    report = KeyReport()
    errors = []
    words = _words(config)
    for name, value in config.to_dict().items():
        key = KEYS.get(name)
        if key is None:
            if warning := _unknown(name, value, words if name in config.python_names else None):
                report.warnings.append(warning)
        elif not fits(value, key.kind):
            errors.append(f"{name}={value!r}: expected {describe(key.kind)}")
        elif key.fate in ("refused", "idle") and any(value == harmless for harmless in key.harmless):
            continue
        elif key.fate == "refused":
            errors.append(f"{name}={value!r}: {key.ours}")
        elif key.fate == "idle":
            report.notes.append(f"{name} has no effect: {key.ours}")
        elif key.kind is float and isinstance(value, int):
            config.set(name, float(value))
    if strict:
        errors += report.warnings
    if errors:
        raise ConfigError("\n".join(errors))
    return report


def _words(config: ReturnnConfig) -> Counter[str]:
    """How often every name occurs in the config's files, as a name or in a text."""
    texts = [Path(file).read_text(encoding="utf-8") for file in config.files if Path(file).is_file()]
    return Counter(word for text in texts for word in re.findall(r"\w+", text))


def _unknown(name: str, value: Any, words: Counter[str] | None) -> str:
    """The warning for a name that is no known key, or an empty text for a helper of a Python file.

    Args:
        words: those of the config's files, for a name that a Python file defines.
    """
    if words is None or get_close_matches(name, KEYS, 1, cutoff=0.85):
        is_helper = words is not None and (callable(value) or name.startswith("_"))
        return "" if is_helper else f"unknown key '{name}'{nearest(name, KEYS)}"
    if not name.startswith("_") and words[name] == 1 and isinstance(value, PLAIN):
        return f"unknown key '{name}': nothing in the config's files reads it either"
    return ""


def table() -> str:
    """All keys as a Markdown table, for the documentation."""
    rows = ["| key | type | what becomes of it |", "|---|---|---|"]
    words: Mapping[str, str] = {"translated": "is", "used": "used by:", "idle": "no effect:", "refused": "error:"}
    for name in sorted(KEYS):
        key = KEYS[name]
        kind = "anything" if key.kind is Any else describe(key.kind)
        rows.append(f"| `{name}` | {kind} | {words[key.fate]} {key.ours} |")
    return "\n".join(rows) + "\n"
