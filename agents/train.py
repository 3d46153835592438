"""Trains a controller of the learning rate: ``python -m agents.train --algorithm ppo --task digits-mlp-scaled``, or ``lr-train``.

The folder ``--output`` receives ``controller.safetensors``, the controller that was best on fixed evaluation trainings, for
:func:`lr_env.load_controller`; ``training.json``, with configuration, versions, times and evaluations; and ``checkpoint.safetensors``, from
which ``--resume`` continues. Ctrl-C stops after the present rollout, with a checkpoint and the best controller so far; a second one
stops at once.

On one machine and the CPU, the same options give the same controller, byte for byte, also after a kill and ``--resume``. DQN's exploration and
hyperparameters such as ``learning_rate=lin_0.001`` follow ``--steps``: resuming with another number gives another result than planning it from
the start.

``lr-train export model.zip --algorithm ppo`` turns a model that Stable-Baselines3 saved into a controller.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from lr_env import __version__
from lr_env.checks import unknown_name
from lr_env.controllers import BoundController, load_controller, save_controller
from lr_env.mdp import MDP
from lr_env.tasks import TaskFamily
from lr_env.vector_env import LearningRateVectorEnv

from agents.actor_critic import ActorCriticConfig
from agents.ddpg import DDPG, DDPGConfig
from agents.evaluation import EvaluationTrainings, interrupts_ignored
from agents.online_training import OnlineTraining
from agents.policy_iteration import DirectPolicyIteration, PolicyIterationConfig

try:
    import tyro
    from tqdm import tqdm

    from agents.training_options import (
        ExportOptions,
        TrainingOptions,
        assignments,
        check_options,
        environment_arguments,
        find_task,
        process_arguments,
    )
except ImportError as error:
    raise ImportError("agents.train needs more packages: pip install 'lr-env[train]'.") from error


Configuration = TypeVar("Configuration")

_CONFIGURATIONS: Mapping[str, Callable[[], Any]] = {"actor-critic": ActorCriticConfig, "ddpg": DDPGConfig, "dpi": PolicyIterationConfig}
"""Of this package's own algorithms."""

_BAR_INTERVAL_OF_LOGS = 60.0
"""Seconds between lines of the progress bar where it is written to a file."""


class Agent(Protocol):
    """What learns: a class of :mod:`agents.ddpg`, :mod:`agents.policy_iteration`, :mod:`agents.online_training` or :mod:`agents.sb3`."""

    @property
    def num_steps_taken(self) -> int:
        """Transitions so far."""

    def learn(self, total_steps: int, callback: Callable[[Any], bool | None] | None = None) -> Any:
        """Trains until so many transitions were taken in all, or the callback returns False."""

    def bind(self) -> BoundController:
        """The present controller."""

    def save_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Writes everything that determines the rest of the training."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; exits with 2 and a message where the options are wrong.

    Args:
        arguments: Of the command line; None for the process's.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    torch.set_num_threads(1)  # networks of this size are slower on several
    try:
        if given[:1] == ["export"]:
            path, mdp = export(tyro.cli(ExportOptions, args=given[1:], prog="lr-train export", description=ExportOptions.__doc__))
            tqdm.write(f"Written: {path}")
            tqdm.write(
                f"It acts by action={mdp.action!r} on features={mdp.features!r} with optimizer={mdp.optimizer!r}: give options if it is not so."
            )
            return
        training = Training(tyro.cli(TrainingOptions, args=given, prog="lr-train", description=__doc__))
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        print(f"lr-train: {error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from error
    tqdm.write(training.run())


def export(options: ExportOptions) -> tuple[Path, MDP]:
    """Turns a model of SB3 into a controller's file; returns its path and the decision process that it is said to be for.

    Raises:
        FileNotFoundError: If there is no such model.
        ValueError: If it can't be exported or does not fit the decision process.
        ImportError: If SB3 is missing.
    """
    from agents.sb3 import export_policy, load_model

    mdp = MDP(**process_arguments(options, options.algorithm))
    path = options.model.with_suffix(".safetensors") if options.output is None else options.output
    save_controller(path, export_policy(load_model(options.algorithm, options.model), mdp))
    return path, mdp


class Training:
    """One training: everything that can be wrong with its options is found here, before it begins.

    Args:
        options: What to train.

    Attributes:
        agent: What learns.
        record: What ``training.json`` holds.
        num_envs: Trainings side by side, without twins.
        num_variants: On which the agent is trained.

    Raises:
        ValueError: If an option is wrong, or the output holds another training.
        TypeError: If an option has the wrong type.
        ImportError: If a package is missing.
    """

    def __init__(self, options: TrainingOptions) -> None:
        check_options(options)
        self.options = options
        family = find_task(options)
        trained = family if options.num_variants is None else dataclasses.replace(family, num_variants=options.num_variants)
        self.num_variants = trained.num_variants
        arguments = environment_arguments(options)
        self.num_envs = options.num_envs or self._default_num_envs()
        if options.paired and self.num_envs % self.num_variants:
            if options.num_envs:
                raise ValueError(f"Twins need num_envs to be a multiple of the {self.num_variants} variants, but {self.num_envs} was given.")
            self.num_envs += self.num_variants - self.num_envs % self.num_variants
        if self.num_envs < self.num_variants:
            raise ValueError(
                f"num_envs must be at least {self.num_variants}, one for each variant of {family.name!r}, but {self.num_envs} was given."
            )
        self.environment = self._make_environment(trained, arguments)
        self.hyperparameters = self._hyperparameters()
        self.agent = self._make_agent(trained, arguments)
        self.agent.bind()  # now, not after hours, an error that it can't be a controller
        self.evaluation = EvaluationTrainings(family, options, self.environment.mdp, arguments)
        self.record = self._new_record(arguments)
        if self.checkpoint_path.exists():
            self._resume()
        elif not options.resume and (found := [path for path in (self.record_path, self.controller_path) if path.exists()]):
            raise ValueError(f"{found[0]} is of a training before, which would be lost. Remove it, or choose another --output.")
        self._is_stopping = False
        self._bar: tqdm[Any] | None = None
        self._writer = _summary_writer(options.output / "tensorboard" / "evaluation") if options.tensorboard else None

    @property
    def controller_path(self) -> Path:
        """The best controller so far."""
        return self.options.output / "controller.safetensors"

    @property
    def checkpoint_path(self) -> Path:
        """State of the training."""
        return self.options.output / "checkpoint.safetensors"

    @property
    def record_path(self) -> Path:
        """Configuration and history."""
        return self.options.output / "training.json"

    def run(self) -> str:
        """Trains, evaluates, saves; returns a summary in words."""
        options, agent = self.options, self.agent
        options.output.mkdir(parents=True, exist_ok=True)
        self._clocks = {"seconds": time.perf_counter, "cpu_seconds": time.process_time}
        self._since = {name: clock() - self.record[name] for name, clock in self._clocks.items()}
        with self._stopping_on_signals():
            self._evaluated = self._saved = agent.num_steps_taken
            interval = 0.1 if sys.stderr.isatty() else _BAR_INTERVAL_OF_LOGS
            count: dict[str, Any] = {"total": options.total_steps, "initial": agent.num_steps_taken, "unit": " steps", "unit_scale": True}
            with tqdm(desc=options.algorithm, mininterval=interval, **count) as self._bar:
                agent.learn(options.total_steps, self._after_updates)
            self._save()
        history = self.record["history"]
        is_finished = agent.num_steps_taken >= options.total_steps
        if is_finished and (not history or history[-1]["steps"] < agent.num_steps_taken):
            self._evaluate()
        if not history:  # stopped early: there shall be a result, but what an uninterrupted training would not know must not decide
            save_controller(self.controller_path, agent.bind())
        self.record["is_finished"] = is_finished
        if is_finished:
            self.record["trainings"] = self.evaluation.compare(load_controller(self.controller_path), self.record["reference"])
        self._save()
        if self._writer is not None:
            self._writer.close()
        self.environment.close()
        self.evaluation.close()
        return self._summary()

    def _after_updates(self, agent: Any) -> bool:
        """Called by the agent where nothing is half done; False stops it."""
        steps, options = agent.num_steps_taken, self.options
        self._show_progress(steps)
        if steps // options.evaluation_interval > self._evaluated // options.evaluation_interval:
            self._evaluate()
            self._save()
        elif steps // options.checkpoint_interval > self._saved // options.checkpoint_interval:
            self._save()
        return not self._is_stopping

    def _show_progress(self, steps: int) -> None:
        if self._bar is not None:
            self._bar.update(steps - self._bar.n)

    def _evaluate(self) -> None:
        """Evaluates the present controller and keeps it if none was better."""
        bound, steps, history = self.agent.bind(), self.agent.num_steps_taken, self.record["history"]
        if self.record["reference"] is None:
            self.record["reference"] = self.evaluation.tune_reference()
        scores = self.evaluation.run(bound)
        entry = {"steps": steps, "score": scores.mean, "diverged": float(scores.diverged.mean()), "seconds": self._times()["seconds"]}
        if not history or scores.mean < min(earlier["score"] for earlier in history):
            save_controller(self.controller_path, bound)
        history.append(entry)
        self._evaluated = steps
        reference = self.record["reference"]["score"]
        if self._bar is not None:
            best = min(each["score"] for each in history)
            self._bar.set_postfix_str(f"log10 loss {scores.mean:+.3f}, best {best:+.3f}, constant {reference:+.3f}")
        if self._writer is not None:
            for name, value in {
                "log10_loss": scores.mean,
                "log10_loss_minus_constant": scores.mean - reference,
                "diverged": entry["diverged"],
            }.items():
                self._writer.add_scalar(f"evaluation/{name}", value, steps)

    def _save(self) -> None:
        # In this order: what the record knows beyond the checkpoint is forgotten on resuming.
        self.record |= {"steps": self.agent.num_steps_taken, **self._times()}
        self._write_record()
        self.agent.save_checkpoint(self.checkpoint_path)
        self._saved = self.agent.num_steps_taken

    def _write_record(self) -> None:
        beside = self.record_path.with_name(f"{self.record_path.name}.{os.getpid()}.partial")
        beside.write_text(json.dumps(self.record, indent=1, default=str) + "\n")
        beside.replace(self.record_path)

    def _times(self) -> dict[str, float]:
        """Seconds so far, by the wall's clock and of this process, with those before a resume."""
        return {name: clock() - self._since[name] for name, clock in self._clocks.items()}

    def _summary(self) -> str:
        history, reference = self.record["history"], self.record["reference"]
        state = "Finished" if self.record["is_finished"] else "Stopped; --resume continues"
        lines = [f"{state}: {self.agent.num_steps_taken:,} steps of {self.options.algorithm} in {self.record['seconds']:.0f} s."]
        if history:
            best = min(history, key=lambda entry: float(entry["score"]))
            constant = f"best constant rate, {reference['factor']:.3g} times the initial rate"
            lines.append(
                f"Mean log10 of the final training loss, {self.evaluation.count} trainings: {best['score']:+.3f} (best, after {best['steps']:,} "
                f"steps); {constant}: {reference['score']:+.3f}."
            )
        if "trainings" in self.record:
            scores, expected = (np.array(self.record["trainings"][name]) for name in ("controller", "reference"))
            error = (scores - expected).std(ddof=1) / np.sqrt(len(scores)) if len(scores) > 1 else np.nan
            lines.append(
                f"On {len(scores)} other trainings, by which nothing was chosen: {scores.mean():+.3f}; that constant rate: {expected.mean():+.3f}; "
                f"difference {(scores - expected).mean():+.3f} ± {error:.3f} (standard error)."
            )
        return "\n".join([*lines, f"Written: {self.controller_path}, {self.record_path.name}, {self.checkpoint_path.name}"])

    def _default_num_envs(self) -> int:
        options = self.options
        if options.algorithm == "dpi":
            actions = assignments("hyperparameters", options.hyperparameters).get("actions", PolicyIterationConfig().actions)
            if not isinstance(actions, list | tuple):
                raise ValueError(f"actions must be a list such as [-0.5, 0, 0.5], but {actions!r} was given.")
            return len(actions) * (self.num_variants if options.family else 64)
        return max(1 if options.algorithm == "actor-critic" else 256 if options.family else 64, self.num_variants)

    def _make_environment(self, family: TaskFamily, arguments: Mapping[str, Any]) -> LearningRateVectorEnv:
        options = self.options
        num_trainings = 2 * self.num_envs if options.paired else self.num_envs
        with interrupts_ignored():  # by the processes of an environment, which a terminal interrupts too
            execution: dict[str, Any] = {"compile": options.compile, "device": options.device, "num_processes": options.num_processes}
            return LearningRateVectorEnv(num_trainings, family, **arguments, **execution, autoreset_mode="SameStep")

    def _hyperparameters(self) -> dict[str, Any]:
        """The defaults, overridden by what was given."""
        options, environment = self.options, self.environment
        decisions = -(-int(environment.episodes.horizons.max()) // environment.mdp.steps_per_action)
        given = assignments("hyperparameters", options.hyperparameters)
        if options.algorithm in _CONFIGURATIONS:
            defaults = dataclasses.asdict(_CONFIGURATIONS[options.algorithm]())
            if options.algorithm == "ddpg":
                defaults["discount"] = 1 - 1 / (10 * decisions)
            for name in given:
                if name not in defaults:
                    raise unknown_name(f"hyperparameter of {options.algorithm}", name, defaults)
            return defaults | _integers(given, defaults)
        from agents.sb3 import default_hyperparameters

        defaults = default_hyperparameters(options.algorithm, self.num_envs, decisions, options.family is not None)
        policy = defaults["policy_kwargs"] | given.pop("policy_kwargs", {})
        return defaults | {"device": options.device} | _integers(given, defaults) | {"policy_kwargs": policy}

    def _make_agent(self, trained: TaskFamily, arguments: Mapping[str, Any]) -> Agent:
        options = self.options
        if options.algorithm == "ddpg":
            config = self._configuration(lambda hidden, **others: DDPGConfig(hidden=tuple(hidden), **others))
            return DDPG(self.environment, config, options.seed)
        if options.algorithm == "dpi":

            def next_environment(number: int) -> LearningRateVectorEnv:
                return self._make_environment(dataclasses.replace(trained, family_seed=trained.family_seed + number), arguments)

            of_variants = next_environment if self.num_variants > 1 else None
            of_agent = self._configuration(_policy_iteration_config)
            return DirectPolicyIteration(self.environment, of_agent, options.seed, of_variants, self._show_progress)
        if options.algorithm == "actor-critic":
            return OnlineTraining(self.environment, self._configuration(ActorCriticConfig), options.seed)
        from agents.sb3 import SB3Agent

        log = options.output / "tensorboard" if options.tensorboard else None
        num_variants = self.num_variants if options.scale_rewards else None
        return SB3Agent(options.algorithm, self.environment, self.hyperparameters, options.seed, log, num_variants, options.paired)

    def _configuration(self, kind: Callable[..., Configuration]) -> Configuration:
        try:
            return kind(**self.hyperparameters)
        except TypeError as error:
            name = self.options.algorithm
            raise ValueError(f"A hyperparameter of {name} has the wrong type: {error}. Given: {self.options.hyperparameters}.") from error

    def _new_record(self, arguments: dict[str, Any]) -> dict[str, Any]:
        return {
            "options": json.loads(json.dumps(dataclasses.asdict(self.options), default=str)),
            "environment": arguments | {"num_envs": self.num_envs},
            "hyperparameters": self.hyperparameters,
            "mdp": self.environment.mdp.to_dict(),
            "versions": _versions(),
            "steps": 0,
            "seconds": 0.0,
            "cpu_seconds": 0.0,
            "is_finished": False,
            "reference": None,
            "history": [],
        }

    def _resume(self) -> None:
        """Continues from the checkpoint.

        Raises:
            ValueError: If that was not asked for, or it is of a training with other options, or damaged.
        """
        if not self.options.resume:
            raise ValueError(f"{self.options.output} holds a training already. Pass --resume to continue it, or choose another --output.")
        earlier = json.loads(self.record_path.read_text())
        given, found = self.record["options"], earlier["options"]
        different = sorted(name for name in given if name not in _FREE_OPTIONS and given[name] != found.get(name, given[name]))
        if different:
            listing = ", ".join(f"{name}={found.get(name)!r}" for name in different)
            raise ValueError(f"The training in {self.options.output} was begun with {listing}. Resume it with the same, or choose another --output.")
        if isinstance(self.agent, DDPG):
            self.agent = DDPG.resume(self.checkpoint_path, self.environment)
        else:
            self.agent.restore(self.checkpoint_path)  # type: ignore[attr-defined]
        self.record |= {name: earlier[name] for name in ("steps", "seconds", "cpu_seconds", "reference")}
        if earlier["history"] and not self.controller_path.exists():
            raise ValueError(f"{self.controller_path}, the best controller so far, is missing. Put it back, or choose another --output.")
        self.record["history"] = [entry for entry in earlier["history"] if entry["steps"] <= self.agent.num_steps_taken]

    @contextmanager
    def _stopping_on_signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM stop the training after the present rollout; a second one acts as usual."""
        names = (signal.SIGINT, signal.SIGTERM)
        before = {name: signal.getsignal(name) for name in names}

        def stop(number: int, frame: FrameType | None) -> None:
            self._is_stopping = True
            tqdm.write("Stopping after this rollout; once more to stop at once.", file=sys.stderr)
            for name in names:
                signal.signal(name, before[name])

        for name in names:
            signal.signal(name, stop)
        try:
            yield
        finally:
            for name in names:
                signal.signal(name, before[name])


def _policy_iteration_config(**values: Any) -> PolicyIterationConfig:
    """The configuration, with tuples where JSON has lists."""
    given: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return PolicyIterationConfig(**given)


def _integers(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Hyperparameters with whole numbers in place of such as 1e5, where the default is one.

    Raises:
        ValueError: If another number was given.
    """
    values = dict(given)
    for name, value in given.items():
        if type(defaults.get(name)) is int and isinstance(value, float):
            if not value.is_integer():
                raise ValueError(f"{name} must be a whole number, but {value!r} was given.")
            values[name] = int(value)
    return values


def _summary_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("TensorBoard logs need the package tensorboard: pip install 'lr-env[train]', or leave --tensorboard out.") from error
    return SummaryWriter(folder)


def _versions() -> dict[str, str]:
    versions = {"lr_env": __version__, "python": platform.python_version()}
    for package in ("torch", "numpy", "gymnasium", "stable-baselines3"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


_FREE_OPTIONS = ("steps", "checkpoint_interval", "tensorboard", "output", "resume")
"""Options that may change on resuming."""


if __name__ == "__main__":
    main()
