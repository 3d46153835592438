"""The package as a whole: its public names, and a foreign package named ``agents``."""

from __future__ import annotations

import importlib
import subprocess
import sys
import zipfile
from pathlib import Path

import gymnasium as gym
import pytest

import lr_env

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", ["lr_env", "lr_env.tasks", "lr_env.training", "lr_env.mdp", "agents"])
def test_public_names_exist_and_are_sorted(name: str) -> None:
    module = importlib.import_module(name)
    assert all(hasattr(module, public) for public in module.__all__)
    assert len(set(module.__all__)) == len(module.__all__)


def test_public_objects_have_docstrings() -> None:
    for name in lr_env.__all__:
        documented = getattr(lr_env, name)
        assert documented.__doc__, name


def test_environment_is_registered() -> None:
    assert gym.spec("LearningRate-v0").entry_point == "lr_env.env:LearningRateEnv"


def test_shadowed_agents_are_reported(tmp_path: Path) -> None:
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "__init__.py").write_text("foreign = True\n")
    program = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; import lr_env"
    completed = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "shadowed by another distribution" in completed.stderr
    assert str(tmp_path) in completed.stderr


@pytest.mark.parametrize("kind", ["of Latin 1", "in an archive", "made by hand"])
def test_other_agents_do_not_stop_the_import(kind: str, tmp_path: Path) -> None:
    found, before = tmp_path, ""
    if kind == "of Latin 1":
        (tmp_path / "agents.py").write_bytes("# -*- coding: latin-1 -*-\nname = 'é'\n".encode("latin-1"))
    elif kind == "in an archive":
        found = tmp_path / "agents.zip"
        with zipfile.ZipFile(found, "w") as archive:
            archive.writestr("agents/__init__.py", "")
    else:
        before = "import types; sys.modules['agents'] = types.ModuleType('agents'); "
    program = f"import sys; sys.path[:0] = [{str(found)!r}, {str(ROOT)!r}]; {before}import lr_env"
    completed = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert ("shadowed by another distribution" in completed.stderr) == (kind == "of Latin 1")


def test_lr_env_imports_neither_agents_nor_sb3() -> None:
    program = "import sys, lr_env; assert not {'agents', 'benchmarks', 'stable_baselines3'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
