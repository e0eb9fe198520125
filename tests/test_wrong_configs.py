"""Wrong configurations: one short error with path, value and the nearest right name; exit code 2; no checkpoint."""

import pytest

WRONG = [
    # unknown keys
    ("bach_size=100", "'bach_size'", "did you mean 'batch_size'?"),
    ("lerning_rate=0.1", "'lerning_rate'", "did you mean 'learning_rate'?"),
    ("num_epoch=3", "'num_epoch'", "did you mean 'num_epochs'?"),
    ("max_seq=3", "'max_seq'", "did you mean 'max_seqs'?"),
    ("optimzer=adam", "'optimzer'", "did you mean 'optimizer'?"),
    ("+batchsize=7", "'batchsize'", "did you mean 'batch_size'?"),
    ("+anything=7", "'anything'", "unknown key"),
    ("datasets.train.seq_orderin=random", "datasets.train.seq_orderin", "did you mean 'seq_ordering'?"),
    ("datasets.trian.batch_size=3", "datasets.trian", "did you mean 'train'?"),
    ("datasets.train.source.prt=dev", "datasets.train.source.prt", "did you mean 'part'?"),
    ("extern_data.data.dmi=3", "extern_data.data.dmi", "did you mean 'dim'?"),
    ("model.hiden_dim=3", "model.hiden_dim", "did you mean 'hidden_dim'?"),
    ("+model.hiden_dim=3", "model.hiden_dim", "did you mean 'hidden_dim'?"),
    ("optimizer.amsgrad=true", "'optimizer.amsgrad'", "is added with a plus: +optimizer.amsgrad=..."),
    ("optimizer.beta=[0.9,0.9]", "optimizer.beta", "did you mean 'betas'?"),
    ("+optimizer.wd=0.1", "optimizer.wd", "Adam has no argument 'wd'"),
    ("+train_step.label_smooting=0.1", "train_step.label_smooting", "did you mean 'label_smoothing'?"),
    ("+forward_callback.fil=x", "forward_callback.fil", "did you mean 'file'?"),
    ("checkpoint_every.step=3", "checkpoint_every.step", "did you mean 'steps'?"),
    ("+train_step.target_key=classes", "has 'train_step.target_key' already", "leave the plus out: train_step.target"),
    ("hydra/launcher=joblyb", "hydra/launcher=joblyb", "there is: basic"),
    ("hydra/launcher=submitit", "hydra/launcher=submitit", "pip install hydra-submitit-launcher brings it"),
    # unknown choices
    ("model=blstmm", "model=blstmm", "did you mean 'blstm'?"),
    ("task=trian", "task=trian", "did you mean 'train'?"),
    ("optimizer=adamm", "optimizer=adamm", "did you mean 'adam'?"),
    ("datasets=japanese_vowel", "datasets=japanese_vowel", "did you mean 'japanese_vowels'?"),
    ("forward_callback=hdff", "forward_callback=hdff", "did you mean 'hdf'?"),
    ("learning_rate_control=newbop", "learning_rate_control=newbop", "did you mean 'newbob'?"),
    ("device=gpuu", "device='gpuu'", "expected auto, cpu"),
    ("device=cuda:77", "device=cuda:77", "not on this machine"),
    ("amp=bf16", "amp='bf16'", "did you mean 'bfloat16'?"),
    ("on_nonfinite=ignore", "on_nonfinite='ignore'", "stop, skip, rollback"),
    ("datasets.train.seq_ordering=laplace.100", "laplace.100", "did you mean laplace:.100?"),
    ("datasets.train.seq_ordering=shuffle", "datasets.train: seq_ordering='shuffle'", "unknown mode"),
    ("datasets.train.source.part=test", "part='test'", "train, dev, eval"),
    # wrong types
    ("num_epochs=many", "num_epochs", "'many'"),
    ("num_epochs=2.5", "num_epochs", "2.5"),
    ("learning_rate=fast", "learning_rate", "'fast'"),
    ("max_seqs=[1]", "max_seqs=[1]", "a number of sequences"),
    ("datasets.train=[1]", "datasets.train", ""),
    ("model.hidden_dim=abc", "model.hidden_dim='abc'", "expected int"),
    ("model.hidden_dim=1.5", "model.hidden_dim=1.5", "expected int"),
    ("model.dropout=high", "model.dropout='high'", "expected float"),
    ("train_step.target_key=3", "train_step.target_key=3", "expected str"),
    ("extern_data.data.sparse=perhaps", "extern_data.data.sparse", "'perhaps'"),
    ("batch_size=a", "batch_size='a'", "frames"),
    ("batch_size=0", "batch_size=0", "at least 1"),
    ("batch_size.data=-1", "batch_size", ""),
    ("num_epochs=0", "num_epochs=0", "at least 1"),
    ("num_epochs=-1", "num_epochs=-1", "at least 1"),
    ("learning_rate=-0.1", "learning_rate=-0.1", "at least 0"),
    ("load_epoch=newest", "load_epoch='newest'", "last, or best"),
    ("datasets.train.partition_epoch=0", "partition_epoch=0", "at least 1"),
    # streams
    ("+extern_data.clases={dim: 3}", "extern_data.clases", "did you mean 'classes'?"),
    ("extern_data.data.dim=13", "extern_data.data", "dim=12"),
    ("+extern_data.data.shape=[null,7]", "extern_data.data", "contradicts"),
    ("datasets.train=null", "datasets.train", "needs it"),
    # targets
    ("model._target_=os.system", "model._target_=os.system", "not on the list"),
    ("model._target_=returnn_hydra.models.blstm.BLST", "blstm.BLST", "did you mean 'BLSTM'?"),
    ("model._target_=returnn_hydra.models.blstmm.BLSTM", "'blstmm'", "did you mean 'blstm'?"),
    ("model._target_=torch.nn.functional.torch.load", "torch.nn.functional.torch.load", "not on the list"),
    ("model._target_=returnn_hydra.callbacks.text.json.dumps", "json.dumps", "not on the list"),
    ("model._target_=3", "model._target_=3", "dotted name"),
    ("optimizer._target_=torch.optim.Adamm", "torch.optim.Adamm", "did you mean 'Adam'?"),
    ("~model.input_dim", "model", "needs 'input_dim'"),
    # files and syntax
    ("run=outputs/nothing", "run=outputs/nothing", "no run's folder"),
    ("overrides=nothing.py", "overrides=nothing.py", "no such file"),
    ("name=../../elsewhere", "name='../../elsewhere'", "below"),
    ("num_epochs=[", "num_epochs=[", "cannot read the override"),
    (
        "datasets.train.source.dataset=3",
        "datasets.train.source.dataset",
        "added with a plus: +datasets.train.source.dat",
    ),
    ("name=a/ü", "name=a/ü", """'name="a/ü"'"""),
    ("train", "override 'train'", "did you mean 'task=train'?"),
    ("conformer", "override 'conformer'", "did you mean 'model=conformer'?"),
    ("nothing", "override 'nothing'", "expected KEY=VALUE"),
    ("model=blstm,conformer", "model=blstm,conformer", "add -m"),
    ("model=null", "model=", "can't be null"),
    ("seq_ordering=random", "seq_ordering", "did you mean 'datasets.train.seq_ordering'?"),
    ("hidden_dim=3", "hidden_dim", "did you mean 'model.hidden_dim'?"),
]


@pytest.mark.parametrize(("word", "where", "hint"), WRONG, ids=[word for word, _, _ in WRONG])
def test_wrong_config(word, where, hint, command, capsys, tmp_path):
    assert command("task=train", word) == 2
    message = capsys.readouterr().err
    assert where in message
    assert hint in message
    assert "Traceback" not in message
    assert len(message.strip().splitlines()) == 1
    assert not list(tmp_path.rglob("*.pt"))


def test_there_are_many_cases():
    assert len(WRONG) >= 40


def test_full_traceback_on_demand(command, capsys, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert command("model.hidden_dim=abc") == 2
    assert "Traceback" in capsys.readouterr().err
