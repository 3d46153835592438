"""Trains a controller of the learning rate: ``python -m agents.train --algorithm ppo --task digits-mlp-scaled``, or ``lr-train``.

The folder ``--output`` receives ``controller.safetensors``, the controller that was best on fixed evaluation trainings, for
:func:`lr_env.load_controller`; ``training.json``, with configuration, versions, times and evaluations; and ``checkpoint.safetensors``, from
which ``--resume`` continues. Ctrl-C stops after the present rollout, with a checkpoint and the best controller so far; a second one
stops at once.

On one machine and the CPU, the same options give the same controller, byte for byte, also after a kill and ``--resume``. DQN's exploration
follows ``--steps``: resuming with another number gives another result than planning it from the start.

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
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal, Protocol, TypeAlias, get_args

import numpy as np
import torch
from lr_env import __version__
from lr_env.checks import positive_integer, unknown_name
from lr_env.controllers import BoundController, Controller, load_controller, save_controller
from lr_env.episodes import find_family
from lr_env.mdp import MDP
from lr_env.seeding import Role, check_seed, role_seeds
from lr_env.tasks import TaskFamily, make_task
from lr_env.vector_env import LearningRateVectorEnv

from agents.ddpg import DDPG, DDPGConfig

try:
    import tyro
    from tqdm import tqdm
except ImportError as error:
    raise ImportError("agents.train needs more packages: pip install 'lr-env[train]'.") from error

Algorithm: TypeAlias = Literal["a2c", "ddpg", "dqn", "ppo", "sac", "td3"]

REFERENCE_DECADES = 2.0
REFERENCE_POINTS = 9
"""The reference is the best constant rate of so many, evenly spaced, so far either side of the initial rate; chosen on other trainings."""

TUNING_TRAININGS = 24
"""So many for each of these rates, or one for each variant of a family where these are more."""

DIVERGENCE_PENALTY = 1.0
"""Decades above its initial loss that a diverged training scores."""


@dataclass(frozen=True)
class Process:
    """Options of the decision process. Where a mapping is possible, as in ``{"kind": "residual", "base": "cosine"}``, it is given as JSON."""

    optimizer: str = "sgd"
    """Name or mapping of the optimizer whose rate is controlled."""
    features: tuple[str, ...] = ("scale_free",)
    """Names of features or sets of them."""
    action: str | None = None
    """``relative``, ``absolute``, ``residual`` or ``discrete``, or a mapping. By default ``residual`` for families and for ddpg, ``discrete``
    for dqn, else ``relative``."""
    reward: str = "log_loss"
    """``log_loss``, ``loss``, or a mapping."""
    reward_on: str | None = None
    """Loss that is rewarded. By default ``reference`` for families and for ddpg, else ``next_batch``."""
    loss_floor: float | None = None
    """Floor of the logarithm relative to the first loss. By default 0.01 for families, else 0."""
    lr_min: float | None = None
    """Lowest rate; by default the optimizer's."""
    lr_max: float | None = None
    """Highest rate; by default the optimizer's."""
    initial_rate: float | None = None
    """Rate before the first decision; by default the optimizer's."""
    initial_rate_decades: float = 0.0
    """Each training starts at random up to so many decades off the initial rate."""
    steps_per_action: int = 1
    """SGD steps that share one decision."""
    environment: tuple[str, ...] = ()
    """Further arguments of LearningRate-v0 as name=value, with values in JSON."""


@dataclass(frozen=True)
class TrainingOptions(Process):
    """Options of a training."""

    algorithm: Algorithm = "ppo"
    """ddpg is this package's own, the others are Stable-Baselines3's."""
    task: str | None = None
    """Registered name of a task; ``python -m lr_env.tasks`` lists them. By default digits-mlp-scaled."""
    family: str | None = None
    """Registered name of a family instead; its variants are mixed in every rollout."""
    steps: int = 300_000
    """Environment steps of all members together."""
    num_envs: int | None = None
    """Trainings side by side. By default 64; for a family 256, or its variants if there are more."""
    seed: int = 0
    """Seed of everything."""
    horizon: int | None = None
    """SGD steps of a training; by default the task's, or each variant's own."""
    hyperparameters: tuple[str, ...] = ()
    """Of the algorithm, as name=value with values in JSON, or one JSON mapping; they override the published defaults."""
    scale_rewards: bool = False
    """Divide the rewards of each variant by their running scale; not for ddpg."""
    compile: bool = False
    """Compile the step of all trainings; takes seconds for each variant, and pays for long runs."""
    num_processes: int = 1
    """Processes over which the trainings are spread."""
    evaluation_interval: int = 50_000
    """Steps between evaluations; each writes a checkpoint too."""
    evaluation_trainings: int = 64
    """Fixed trainings on which controllers are evaluated; as many others choose the reference. Rounded up to a multiple of the variants."""
    checkpoint_interval: int = 100_000
    """Steps between checkpoints."""
    tensorboard: bool = False
    """Write TensorBoard logs to the folder ``tensorboard`` of the output; needs the package ``tensorboard``."""
    output: Path = Path("results/train")
    """Folder of the results."""
    resume: bool = False
    """Continue from the checkpoint in the output; start where there is none."""


@dataclass(frozen=True)
class ExportOptions(Process):
    """Options of an export. The decision process must be the one that the model was trained in."""

    model: Annotated[Path, tyro.conf.Positional] = Path("model.zip")
    """File that SB3's ``model.save`` wrote. Loading it runs code: trust it first."""
    algorithm: Algorithm = "ppo"
    """Whose model it is."""
    output: Path | None = None
    """The controller's file; by default beside the model, as ``.safetensors``."""


class Agent(Protocol):
    """What learns: :class:`agents.ddpg.DDPG` or :class:`agents.sb3.SB3Agent`."""

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
            path = export(tyro.cli(ExportOptions, args=given[1:], prog="lr-train export", description=ExportOptions.__doc__))
            tqdm.write(f"Written: {path}")
            return
        training = Training(tyro.cli(TrainingOptions, args=given, prog="lr-train", description=__doc__))
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"lr-train: {error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from error
    tqdm.write(training.run())


def export(options: ExportOptions) -> Path:
    """Turns a model of SB3 into a controller's file; returns its path.

    Raises:
        FileNotFoundError: If there is no such model.
        ValueError: If it can't be exported or does not fit the decision process.
        ImportError: If SB3 is missing.
    """
    from agents.sb3 import export_policy, load_model

    mdp = MDP(**_process_arguments(options, options.algorithm == "dqn", False))
    path = options.model.with_suffix(".safetensors") if options.output is None else options.output
    save_controller(path, export_policy(load_model(options.algorithm, options.model), mdp))
    return path


class Training:
    """One training: everything that can be wrong with its options is found here, before it begins.

    Args:
        options: What to train.

    Attributes:
        agent: What learns.
        record: What ``training.json`` holds.

    Raises:
        ValueError: If an option is wrong, or the output holds another training.
        TypeError: If an option has the wrong type.
        ImportError: If a package is missing.
    """

    def __init__(self, options: TrainingOptions) -> None:
        _check(options)
        self.options = options
        name, family = _family(options)
        self.num_variants = family.num_variants
        arguments = environment_arguments(options)
        num_envs = options.num_envs or (max(256, self.num_variants) if options.family else 64)
        if num_envs < self.num_variants:
            raise ValueError(
                f"num_envs must be at least {self.num_variants}, so that all variants of {name!r} are trained on, but {num_envs} was given."
            )
        with _interrupts_ignored():  # by the processes of an environment, which a terminal interrupts too
            self.environment = LearningRateVectorEnv(
                num_envs, name, **arguments, compile=options.compile, num_processes=options.num_processes, autoreset_mode="SameStep"
            )
        self.hyperparameters = self._hyperparameters()
        self.agent = self._make_agent()
        self.evaluation = EvaluationTrainings(name, self.num_variants, options, self.environment.mdp)
        self.record = self._new_record(arguments)
        if self.checkpoint_path.exists():
            self._resume()
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
        self._since, self._seconds_before = time.perf_counter(), float(self.record["seconds"])
        with self._stopping_on_signals():
            if self.record["reference"] is None:
                self.record["reference"] = self.evaluation.tune_reference()
                self._write_record()
            self._evaluated = self._saved = agent.num_steps_taken
            with tqdm(total=options.steps, initial=agent.num_steps_taken, desc=options.algorithm, unit=" steps", unit_scale=True) as self._bar:
                agent.learn(options.steps, self._after_updates)
        history = self.record["history"]
        is_finished = agent.num_steps_taken >= options.steps
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
        if self._bar is not None:
            self._bar.update(steps - self._bar.n)
        if steps // options.evaluation_interval > self._evaluated // options.evaluation_interval:
            self._evaluate()
            self._save()
        elif steps // options.checkpoint_interval > self._saved // options.checkpoint_interval:
            self._save()
        return not self._is_stopping

    def _evaluate(self) -> None:
        """Evaluates the present controller and keeps it if none was better."""
        bound, steps, history = self.agent.bind(), self.agent.num_steps_taken, self.record["history"]
        scores = self.evaluation.run(bound)
        entry = {"steps": steps, "score": scores.mean, "diverged": float(scores.diverged.mean()), "seconds": self._seconds()}
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
        self.record["steps"], self.record["seconds"] = self.agent.num_steps_taken, self._seconds()
        self._write_record()
        self.agent.save_checkpoint(self.checkpoint_path)
        self._saved = self.agent.num_steps_taken

    def _write_record(self) -> None:
        beside = self.record_path.with_name(f"{self.record_path.name}.{os.getpid()}.partial")
        beside.write_text(json.dumps(self.record, indent=1, default=str) + "\n")
        beside.replace(self.record_path)

    def _seconds(self) -> float:
        return self._seconds_before + time.perf_counter() - self._since

    def _summary(self) -> str:
        history, reference = self.record["history"], self.record["reference"]
        state = "Finished" if self.record["is_finished"] else "Stopped; --resume continues"
        lines = [f"{state}: {self.agent.num_steps_taken:,} steps of {self.options.algorithm} in {self.record['seconds']:.0f} s."]
        if history:
            best = min(history, key=lambda entry: float(entry["score"]))
            lines.append(
                f"Mean log10 of the final training loss, {self.evaluation.count} trainings: {best['score']:+.3f} (after {best['steps']:,} steps); "
                f"best constant rate, {reference['factor']:.3g} times the initial rate: {reference['score']:+.3f}."
            )
        return "\n".join([*lines, f"Written: {self.controller_path}, {self.record_path.name}, {self.checkpoint_path.name}"])

    def _hyperparameters(self) -> dict[str, Any]:
        """Published defaults, overridden by what was given."""
        options, environment = self.options, self.environment
        decisions = -(-int(environment.episodes.horizons.max()) // environment.mdp.steps_per_action)
        given = _assignments("hyperparameters", options.hyperparameters)
        if options.algorithm == "ddpg":
            defaults = dataclasses.asdict(DDPGConfig()) | {"discount": 1 - 1 / (10 * decisions)}
            for name in given:
                if name not in defaults:
                    raise unknown_name("hyperparameter of ddpg", name, defaults)
            return defaults | given
        from agents.sb3 import default_hyperparameters

        defaults = default_hyperparameters(options.algorithm, environment.num_envs, decisions, options.family is not None)
        policy = defaults["policy_kwargs"] | given.pop("policy_kwargs", {})
        return defaults | given | {"policy_kwargs": policy}

    def _make_agent(self) -> Agent:
        options = self.options
        if options.algorithm == "ddpg":
            return DDPG(self.environment, self._ddpg_config(), options.seed)
        from agents.sb3 import SB3Agent

        log = options.output / "tensorboard" if options.tensorboard else None
        num_variants = self.num_variants if options.scale_rewards else None
        return SB3Agent(options.algorithm, self.environment, self.hyperparameters, options.seed, log, num_variants)

    def _ddpg_config(self) -> DDPGConfig:
        try:
            return DDPGConfig(**{**self.hyperparameters, "hidden": tuple(self.hyperparameters["hidden"])})
        except TypeError as error:
            raise ValueError(f"A hyperparameter of ddpg has the wrong type: {error}. Given: {self.options.hyperparameters}.") from error

    def _new_record(self, arguments: dict[str, Any]) -> dict[str, Any]:
        return {
            "options": json.loads(json.dumps(dataclasses.asdict(self.options), default=str)),
            "environment": arguments | {"num_envs": self.environment.num_envs},
            "hyperparameters": self.hyperparameters,
            "mdp": self.environment.mdp.to_dict(),
            "versions": _versions(),
            "steps": 0,
            "seconds": 0.0,
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
        different = sorted(name for name in given if name not in _FREE_OPTIONS and given[name] != found.get(name))
        if different:
            listing = ", ".join(f"{name}={found.get(name)!r}" for name in different)
            raise ValueError(f"The training in {self.options.output} was begun with {listing}. Resume it with the same, or choose another --output.")
        if isinstance(self.agent, DDPG):
            self.agent = DDPG.resume(self.checkpoint_path, self.environment)
        else:
            self.agent.restore(self.checkpoint_path)  # type: ignore[attr-defined]
        self.record |= {name: earlier[name] for name in ("steps", "seconds", "reference")}
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


@dataclass(frozen=True)
class Scores:
    """What a controller achieved on N trainings.

    Attributes:
        values: log10 of the final loss above its bound on the training split, ``(N,)``, plus the reward's floor; one decade above the
            first loss for a diverged training.
        diverged: ``(N,)``.
    """

    values: np.ndarray
    diverged: np.ndarray

    @property
    def mean(self) -> float:
        """Of the values; lower is better."""
        return float(self.values.mean())


class EvaluationTrainings:
    """Fixed trainings, of seeds that are never trained on, with a reference: the best of a few constant rates.

    Args:
        task: Registered name.
        num_variants: Of the task; N is a multiple of them.
        options: Of the training.
        mdp: The decision process that is trained in.
    """

    def __init__(self, task: str, num_variants: int, options: TrainingOptions, mdp: MDP) -> None:
        self.task, self.num_variants, self.options = task, num_variants, options
        self.count = _multiple(options.evaluation_trainings, num_variants)
        self.seeds = role_seeds(options.seed, Role.EVALUATE, self.count)
        reward = mdp.to_dict()["reward"]
        self.loss_floor = reward.get("loss_floor", 0.0) if isinstance(reward, dict) and reward.get("kind", "log_loss") == "log_loss" else 0.0
        action = {"kind": "residual", "base": "constant", "decades": REFERENCE_DECADES}
        self.reference_mdp = dataclasses.replace(
            mdp, features=["progress"], action=action, initial_rate_decades=0.0, reward_on="final", steps_per_action=1
        )
        self._environments: dict[str, LearningRateVectorEnv] = {}

    def run(self, bound: BoundController) -> Scores:
        """Deterministic scores of a controller."""
        key = repr(bound.mdp)
        if key not in self._environments:
            self._environments[key] = self._environment(bound.mdp, self.count)
        return _scores(self._environments[key], bound.controller, self.seeds, self.loss_floor)

    def tune_reference(self) -> dict[str, Any]:
        """The best constant of the grid on other seeds, and its score on these: a JSON-ready mapping."""
        points, count = np.linspace(-1, 1, REFERENCE_POINTS), _multiple(min(TUNING_TRAININGS, self.count), self.num_variants)
        environment = self._environment(self.reference_mdp, count * REFERENCE_POINTS)  # all points side by side
        seeds = role_seeds(self.options.seed, Role.TUNE, count) * REFERENCE_POINTS
        scores = _scores(environment, ConstantAction(np.repeat(points, count)), seeds, self.loss_floor)
        environment.close()
        means = scores.values.reshape(REFERENCE_POINTS, count).mean(1)
        reference = {"action": float(points[means.argmin()])}
        result = self.run(self._reference(reference))
        grid = [[float(10 ** (REFERENCE_DECADES * point)), float(mean)] for point, mean in zip(points, means, strict=True)]
        return reference | {"factor": float(10 ** (REFERENCE_DECADES * reference["action"])), "score": result.mean, "tuning": grid}

    def compare(self, bound: BoundController, reference: Mapping[str, Any]) -> dict[str, Any]:
        """Scores of each training under the controller and under the reference: a JSON-ready mapping."""
        scores, expected = self.run(bound), self.run(self._reference(reference))
        return {"controller": scores.values.tolist(), "reference": expected.values.tolist(), "diverged": scores.diverged.tolist()}

    def close(self) -> None:
        """Ends other processes."""
        for environment in self._environments.values():
            environment.close()

    def _environment(self, mdp: MDP, count: int) -> LearningRateVectorEnv:
        with _interrupts_ignored():
            return LearningRateVectorEnv(count, self.task, self.options.horizon, **mdp.to_dict(), num_processes=self.options.num_processes)

    def _reference(self, reference: Mapping[str, Any]) -> BoundController:
        return BoundController(ConstantAction(np.full(self.count, reference["action"])), self.reference_mdp)


class ConstantAction:
    """The same action throughout, for each of N trainings: ``actions (N,)``."""

    def __init__(self, actions: np.ndarray) -> None:
        self.actions = actions.astype(np.float32)[:, None]

    def predict(self, observation: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> tuple[np.ndarray, Any]:
        """See :class:`lr_env.controllers.Controller`."""
        return self.actions, state


def _scores(environment: LearningRateVectorEnv, controller: Controller, seeds: Sequence[int], loss_floor: float) -> Scores:
    """Runs a controller on one training per seed; trainings that have ended cost nothing more."""
    episodes, members = environment.episodes, np.arange(environment.num_envs)
    episodes.restart(members, seeds)
    outcome = episodes.begin(members)
    first = episodes.evaluate("train").losses - episodes.lower_bounds
    running, diverged, starts, state = np.ones(len(members), bool), np.zeros(len(members), bool), np.ones(len(members), bool), None
    while running.any():
        actions, state = controller.predict(outcome.observations, state, starts, deterministic=True)
        outcome = episodes.step(episodes.parse_actions(actions), None if running.all() else np.flatnonzero(running))
        diverged |= running & outcome.diverged
        running &= ~outcome.ended
        starts = np.zeros(len(members), bool)
    last = episodes.evaluate("train").losses - episodes.lower_bounds
    last = np.where(diverged | ~np.isfinite(last), first * 10**DIVERGENCE_PENALTY, last)
    return Scores(np.log10(np.maximum(last + loss_floor * first, 1e-38)), diverged)


def _multiple(number: int, of: int) -> int:
    """The smallest multiple that is not below ``number``."""
    return -(-number // of) * of


def environment_arguments(options: TrainingOptions) -> dict[str, Any]:
    """Arguments of :class:`lr_env.LearningRateVectorEnv` for these options, beside the task and how it is computed.

    Raises:
        ValueError: If one is malformed.
    """
    is_family = options.family is not None
    arguments = _process_arguments(options, options.algorithm == "dqn", is_family, is_own=options.algorithm == "ddpg")
    return {"horizon": options.horizon} | arguments


def _process_arguments(options: Process, is_discrete: bool, is_family: bool, is_own: bool = False) -> dict[str, Any]:
    """Arguments of the decision process, with the defaults that suit the algorithm."""
    on_reference = is_family or is_own
    action = options.action or ("discrete" if is_discrete else "residual" if on_reference else "relative")
    given = _name_or_mapping("reward", options.reward)
    reward = {"kind": given} if isinstance(given, str) else {"kind": "log_loss"} | given
    if options.loss_floor is not None:
        reward["loss_floor"] = options.loss_floor
    elif is_family and reward["kind"] == "log_loss":
        reward.setdefault("loss_floor", 0.01)
    return {
        "optimizer": _name_or_mapping("optimizer", options.optimizer),
        "features": options.features[0] if len(options.features) == 1 else list(options.features),
        "action": _name_or_mapping("action", action),
        "reward": reward if len(reward) > 1 else reward["kind"],
        "reward_on": options.reward_on or ("reference" if on_reference else "next_batch"),
        "steps_per_action": options.steps_per_action,
        "lr_min": options.lr_min,
        "lr_max": options.lr_max,
        "initial_rate": options.initial_rate,
        "initial_rate_decades": options.initial_rate_decades,
    } | _assignments("environment", options.environment)


def _check(options: TrainingOptions) -> None:
    if options.algorithm not in get_args(Algorithm):
        raise unknown_name("algorithm", options.algorithm, get_args(Algorithm))
    for name in ("steps", "evaluation_interval", "evaluation_trainings", "checkpoint_interval", "num_processes"):
        positive_integer(name, getattr(options, name))
    if options.num_envs is not None:
        positive_integer("num_envs", options.num_envs)
    check_seed(options.seed)
    if options.scale_rewards and options.algorithm == "ddpg":
        raise ValueError("scale_rewards is for Stable-Baselines3's algorithms. Pass --hyperparameters reward_scale=... to ddpg.")
    if options.output.exists() and not options.output.is_dir():
        raise ValueError(f"output must be a folder, but {options.output} is a file.")


def _family(options: TrainingOptions) -> tuple[str, TaskFamily]:
    """Name and family of what is trained on."""
    if options.task is not None and options.family is not None:
        raise ValueError(f"Either task or family can be given, but task={options.task!r} and family={options.family!r} were. Leave one out.")
    name = options.family or options.task or "digits-mlp-scaled"
    family = find_family(name)
    if options.family is not None and not isinstance(make_task(name), TaskFamily):
        raise ValueError(f"{name!r} is a single task. Pass --task {name}.")
    if options.family is None and family.num_variants > 1:
        raise ValueError(f"{name!r} is a family of {family.num_variants} variants. Pass --family {name}.")
    return name, family


def _name_or_mapping(what: str, text: str) -> str | dict[str, Any]:
    """A name as it is, or the mapping that JSON describes."""
    return _json_mapping(what, text) if text.lstrip().startswith("{") else text


def _json_mapping(what: str, text: str) -> dict[str, Any]:
    try:
        mapping = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f'{what} must be JSON such as {{"name": 1}}, but {text!r} was given: {error}.') from error
    assert isinstance(mapping, dict)
    return mapping


def _assignments(what: str, given: Sequence[str]) -> dict[str, Any]:
    """Values by name of ``name=value`` and JSON mappings.

    Raises:
        ValueError: If one is neither.
    """
    values: dict[str, Any] = {}
    for text in given:
        name, separator, value = text.partition("=")
        if text.lstrip().startswith("{"):
            values |= _json_mapping(what, text)
        elif not separator or not name.isidentifier():
            raise ValueError(f"{what} are given as name=value, but {text!r} was given. Write for example: --{what} name=0.1 other=true.")
        else:
            try:
                values[name] = json.loads(value)
            except json.JSONDecodeError:
                values[name] = value  # a word
    return values


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Processes that begin here ignore Ctrl-C, which a terminal sends to all: the training must outlive it to be saved."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


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
