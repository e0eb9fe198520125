"""Overrides in Python: `python run.py task=train overrides=docs/examples/my_experiment.py name=mine`.

Names of configuration keys replace their values; a callable may stand where the configuration has a node. The command
line wins over this file.
"""

num_epochs = 3
batch_size = 500
model = {"hidden_dim": 32}


def train_step(model, batch):
    """The mean of two losses: cross entropy, and a penalty on large logits."""
    from returnn_hydra.batch import Loss
    from returnn_hydra.steps.cross_entropy import CrossEntropy

    logits, _ = model(batch["data"], batch.lengths["data"])
    return {**CrossEntropy()(model, batch), "size": Loss(logits.square().sum(), logits.numel(), scale=0.01)}
