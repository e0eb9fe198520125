"""No `_target_` outside the list is ever resolved, whatever it is called and wherever it stands."""

import importlib
import platform
import sys

import pytest

from returnn_hydra.build import Builder
from returnn_hydra.config.errors import ConfigError

HOSTILE = """
os.system os.remove os.rename os.execv os.popen os.kill os.makedirs posix.system subprocess.run subprocess.Popen
subprocess.check_output builtins.eval builtins.exec builtins.open builtins.__import__ builtins.compile builtins.getattr
builtins.print io.open codecs.open pathlib.Path.unlink pathlib.Path.write_text shutil.rmtree shutil.copy shutil.move
pickle.loads pickle.load marshal.loads shelve.open yaml.load yaml.unsafe_load importlib.import_module runpy.run_path
functools.partial functools.reduce operator.methodcaller operator.attrgetter types.FunctionType types.CodeType
ctypes.CDLL socket.socket urllib.request.urlopen http.client.HTTPConnection smtplib.SMTP ftplib.FTP webbrowser.open
multiprocessing.Process threading.Thread asyncio.run signal.signal gc.get_objects inspect.getsource code.interact
torch.load torch.save torch.jit.load torch.hub.load torch.utils.cpp_extension.load torch.package.PackageImporter
torch.distributed.checkpoint.load torch.serialization.load torch.nn.functional.torch.load
torch.nn.modules.module.torch.load torch.optim.optimizer.torch.load
torch.optim.lr_scheduler.math.exp torch.nn.utils.parametrize.torch.load
numpy.load numpy.memmap numpy.save numpy.ctypeslib.load_library h5py.File sympy.sympify setuptools.Extension
distutils.spawn.spawn test.support.script_helper.spawn_python hydra.utils.call hydra.utils.instantiate
omegaconf.OmegaConf.register_new_resolver logging.os.system logging.config.dictConfig
returnn_hydra.build.importlib.import_module returnn_hydra.build.Builder returnn_hydra.cli.main
returnn_hydra.cli.os.system returnn_hydra.engine.files.remove
returnn_hydra.engine.files.os.remove returnn_hydra.data.files.pickle.loads
returnn_hydra.data.hdf.h5py.File returnn_hydra.data.hdf.os.remove returnn_hydra.config.returnn_config.load_file
returnn_hydra.callbacks.text.json.dumps returnn_hydra.models.blstm.torch.load returnn_hydra.optim.schedules.math.exp
returnn_hydra.models.blstm.BLSTM.__init__ returnn_hydra.models.blstm.BLSTM.__class__ torch.nn.Linear.__init__
""".split()

WHERE = {
    "plain": lambda target: {"_target_": target},
    "partial": lambda target: {"_target_": target, "_partial_": True},
    "positional": lambda target: {"_target_": target, "_args_": ["echo hacked"]},
    "nested": lambda target: {"_target_": "returnn_hydra.models.chain.Chain", "parts": [{"_target_": target}]},
    "in a list": lambda target: [{"_target_": target}],
    "below plain keys": lambda target: {"a": {"b": {"_target_": target}}},
}


@pytest.fixture(scope="module")
def ran():
    """What an audit hook saw while the hostile nodes were looked at."""
    importlib.import_module("returnn_hydra.data.hdf")  # h5py asks `uname` who we are
    platform.processor()
    seen = []
    active = [True]

    def hook(event, arguments):
        if active[0] and event in (
            "os.system",
            "subprocess.Popen",
            "os.exec",
            "os.remove",
            "socket.connect",
            "shutil.rmtree",
        ):
            seen.append((event, arguments))

    sys.addaudithook(hook)
    yield seen
    active[0] = False


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("target", HOSTILE)
def test_refused_and_not_run(target, where, ran):
    node = WHERE[where](target)
    builder = Builder()
    with pytest.raises(ConfigError) as checked:
        builder.check(node, "model")
    with pytest.raises(ConfigError):
        builder.build(node, "model")
    assert target in str(checked.value)
    assert ran == []


def test_there_are_at_least_a_hundred():
    assert len(HOSTILE) * len(WHERE) >= 100


def test_users_own_prefix_opens_only_itself():
    builder = Builder(["json."])
    assert builder.resolve("json.dumps", "x")
    with pytest.raises(ConfigError):
        builder.resolve("os.system", "x")


def test_a_saved_config_opens_no_doors(command, capsys):
    """`allow_targets` counts on the command line only."""
    from pathlib import Path

    assert command("task=train", "model.hidden_dim=4", "num_epochs=1", "name=old", "allow_targets=[os.]") == 0
    for file in ("composed.yaml", "config.yaml"):
        path = Path("outputs/old") / file
        path.write_text(path.read_text().replace("returnn_hydra.models.blstm.BLSTM", "os.system"))
    assert command("task=evaluate", "run=outputs/old") == 2
    assert "os.system: not on the list" in capsys.readouterr().err
