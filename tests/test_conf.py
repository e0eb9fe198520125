"""Every choice in conf/ composes, its targets exist, and its arguments fit their signatures."""

from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from returnn_hydra.build import Builder
from returnn_hydra.config.compose import finish
from returnn_hydra.config.paths import config_dir
from returnn_hydra.config.schema import register
from returnn_hydra.tasks.context import RUNTIME_ARGUMENTS

CONF = Path(__file__).resolve().parents[1] / "conf"
CHOICES = sorted(
    (path.parent.relative_to(CONF).as_posix(), path.stem) for path in CONF.rglob("*.yaml") if path.parent != CONF
)


@pytest.fixture(scope="module", autouse=True)
def hydra():
    register()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        yield
    GlobalHydra.instance().clear()


def composed(*overrides):
    return finish(compose("config", overrides=list(overrides)), list(overrides)).values


@pytest.mark.parametrize(("group", "choice"), CHOICES, ids=[f"{group}={choice}" for group, choice in CHOICES])
def test_choice_composes_and_fits(group, choice):
    values = composed(f"{group}={choice}")
    builder = Builder()
    for key, given in RUNTIME_ARGUMENTS.items():
        builder.check(values[key], key, given)
    for name, node in values["callbacks"].items():
        builder.check(node, f"callbacks.{name}", ["folder"])
    for name, conf in {**values["datasets"], **values["datasets"]["extra"]}.items():
        if name != "extra" and conf is not None:
            builder.check(conf["source"], f"datasets.{name}.source")


def test_every_flat_key_of_the_yaml_is_in_the_schema():
    keys = set(yaml.safe_load((CONF / "config.yaml").read_text())) - {"defaults", "hydra"}
    schema = OmegaConf.structured(__import__("returnn_hydra.config.schema", fromlist=["Config"]).Config)
    assert keys <= set(schema)


def test_only_yaml_files_with_the_long_ending():
    assert not [path for path in CONF.rglob("*") if path.is_file() and path.suffix != ".yaml"]
