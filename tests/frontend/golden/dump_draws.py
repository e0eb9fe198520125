"""What random functions and modules give for a seed, by whatever `import returnn.frontend` is.

With the real RETURNN installed, `python dump_draws.py FILE` writes the golden file; the test calls `draws`.
"""

import json
import sys

INITS = ["Normal(0.1)", "Normal(0.2, truncated=False)", "Glorot()", "He()", "VarianceScaling(2.0, 'fan_avg')"]


def rounded(values):
    return [round(float(value), 5) for value in values]


def draws():
    """Name to numbers; after each, the next number of torch's generator."""
    import returnn.frontend as rf
    import torch
    from returnn.tensor import Dim, Tensor

    rf.select_backend_torch()
    rf.init_train_step_run_ctx(train_flag=True, step=5, epoch=1)
    found = {}
    for number, lengths in enumerate(([33, 9, 31, 17], [5, 4, 3, 5], [7, 14, 21, 25])):
        batch = Dim(4, name="batch")
        raw = torch.tensor(lengths, dtype=torch.int32)
        time = Dim(Tensor("time", dims=[batch], dtype="int32", raw_tensor=raw), name="time")
        feature = Dim(8, name="feature")
        ones = torch.ones(4, max(lengths), 8)
        x = Tensor("x", dims=[batch, time, feature], dtype="float32", feature_dim=feature, raw_tensor=ones)
        mask = {"max_consecutive_spatial_dims": 3, "max_consecutive_feature_dims": 2, "num_spatial_mask_factor": 4}
        options = {"spatial_dim": time, "feature_dim": feature, "steps": (number, 4, 8), **mask}
        functions = {
            "specaugment": lambda: rf.audio.specaugment(x, **options),
            "dropout": lambda: rf.dropout(x, 0.5),
            "dropout_of_features": lambda: rf.dropout(x, 0.5, axis=feature),
            "uniform": lambda: rf.random_uniform([batch, feature], minval=-1.0, maxval=2.0),
            "normal": lambda: rf.random_normal([batch, feature]),
            "truncated_normal": lambda: rf.random_truncated_normal([batch, feature], stddev=2.0),
            "integers": lambda: rf.random_uniform([batch, feature], minval=0, maxval=7, dtype="int32"),
        }
        for name, function in functions.items():
            torch.manual_seed(number)
            raw = function().raw_tensor.double()
            weights = torch.arange(raw.numel(), dtype=torch.float64).reshape(raw.shape)
            found[f"{name} {number}"] = rounded([raw.sum(), (raw * weights).sum() / raw.numel(), torch.rand(1)])
    out, steps = Dim(4, name="out"), Dim(3, name="steps")
    for init in INITS:
        rf.set_random_seed(5)
        parameter = rf.Parameter([feature, out])
        parameter.initial = eval(f"rf.init.{init}", {"rf": rf})
        found[init] = rounded(parameter.raw_tensor.detach().flatten()[:4])
    rf.set_random_seed(1)
    lstm = rf.ZoneoutLSTM(feature, out, zoneout_factor_cell=0.4, zoneout_factor_output=0.3)
    inputs = Tensor("x", dims=[batch, steps, feature], dtype="float32", feature_dim=feature,
                    raw_tensor=torch.ones(4, 3, 8))  # fmt: skip
    torch.manual_seed(3)
    y, _ = lstm(inputs, state=lstm.default_initial_state(batch_dims=[batch]), spatial_dim=steps)
    found["ZoneoutLSTM"] = rounded(y.copy_compatible_to_dims_raw([batch, steps, out])[1].detach().flatten())
    return found


if __name__ == "__main__":
    with open(sys.argv[1], "w") as file:
        json.dump(draws(), file, indent=0)
