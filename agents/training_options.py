"""Options of the training command, and what they mean for the environment."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args

import tyro
from lr_env.checks import positive_integer, unknown_name
from lr_env.episodes import find_family
from lr_env.seeding import check_seed
from lr_env.tasks import TaskFamily, make_task

from agents.actor_critic import ONLINE_ENVIRONMENT

Algorithm: TypeAlias = Literal["a2c", "actor-critic", "ddpg", "dpi", "dqn", "ppo", "sac", "td3"]

RESIDUAL_ALGORITHMS = ("ddpg", "dpi", "sac", "td3")
"""They correct a rule's rate: with relative actions, whose effects add up, they get stuck at the lowest rate more easily."""

RECOGNITION_FEATURES = (
    "scale_free",
    "relative_loss_deviation",
    "loss_average_gap",
    "gradient_norm_change",
    "previous_action",
    "log_weight_norm",
    "log_gradient_norm",
    "log_loss",
)
"""For dpi, whose network recognises a training by how it goes under the action that is held: what is seen says little without that action."""


@dataclass(frozen=True)
class Process:
    """Options of the decision process. Where a mapping is possible, as in ``{"kind": "residual", "base": "cosine"}``, it is given as JSON."""

    optimizer: str = "sgd"
    """Name or mapping of the optimizer whose rate is controlled."""
    features: tuple[str, ...] | None = None
    """Names of features or sets of them. By default ``scale_free``; for dpi that and ``relative_loss_deviation``, ``loss_average_gap``,
    ``gradient_norm_change``, ``previous_action``, ``log_weight_norm``, ``log_gradient_norm`` and ``log_loss``; ``xu2017``, the loss, for
    actor-critic."""
    action: str | None = None
    """``relative``, ``absolute``, ``residual`` or ``discrete``, or a mapping. By default ``discrete`` for dqn, ``rate`` for
    actor-critic, ``residual`` for families and for ddpg, dpi, sac and td3, else ``relative``."""
    reward: str | None = None
    """``log_loss``, ``loss``, or a mapping. By default ``log_loss``; ``loss`` for actor-critic."""
    reward_on: str | None = None
    """Loss that is rewarded. By default ``same_batch`` for actor-critic, ``final`` for dpi, ``reference`` for families and for ddpg, sac and td3,
    else ``next_batch``."""
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
    """ddpg, dpi and actor-critic are this package's own, the others are Stable-Baselines3's. dpi, direct policy iteration, makes each training with
    several actions side by side, and learns which was worth most. actor-critic is the paper's, which learns online; here it goes on from training to
    training, and the result is its actor, frozen."""
    task: str | None = None
    """Registered name of a task; ``python -m lr_env.tasks`` lists them. By default digits-mlp-scaled."""
    family: str | None = None
    """Registered name of a family instead, or its specification as JSON, see ``lr_env.FamilySpecification``; its variants are mixed in every
    rollout."""
    num_variants: int | None = None
    """Number of variants that are drawn of the family for training: the more, the less an agent can learn them by heart. By default the
    family's own, on which it is evaluated in any case. dpi draws as many new ones for each of its rounds."""
    steps: int | None = None
    """Environment steps of all members together. By default 300,000; 200,000 for ddpg, sac and td3, which make more of each; 50,000 for
    actor-critic, one training at a time. dpi goes on to the end of a round."""
    num_envs: int | None = None
    """Trainings side by side. By default 64; for a family 256, or its variants if there are more; for actor-critic as few as possible, 1 or a
    family's variants; for dpi 64, or a family's variants, with each of its actions."""
    seed: int = 0
    """Seed of everything."""
    horizon: int | None = None
    """SGD steps of a training; by default the task's, or each variant's own."""
    hyperparameters: tuple[str, ...] = ()
    """Of the algorithm, as name=value with values in JSON, or one JSON mapping; they override the defaults. Of Stable-Baselines3's,
    learning_rate=lin_0.001 falls to 0 along a line."""
    scale_rewards: bool = False
    """Divide the rewards of each variant by their running scale; for Stable-Baselines3's algorithms."""
    paired: bool = False
    """Pay each training what it gained over its twin, the same training under the action 0: the schedule or rule that a residual action
    corrects. As many trainings more are made, but returns vary less. For a2c, ppo, sac and td3; dpi compares so in any case."""
    compile: bool = False
    """Compile the step of all trainings; takes seconds for each variant, and pays for long runs."""
    device: Literal["cpu", "cuda", "auto"] = "cpu"
    """Where the trainings are computed, and SB3's networks; pays for some thousand trainings side by side."""
    num_processes: int = 1
    """Processes over which the trainings are spread."""
    evaluation_interval: int = 25_000
    """Steps between evaluations; each writes a checkpoint too."""
    evaluation_trainings: int = 64
    """Fixed trainings on which controllers are evaluated; 24 others choose the reference. Rounded up to a multiple of the variants."""
    checkpoint_interval: int = 100_000
    """Steps between checkpoints."""
    tensorboard: bool = False
    """Write TensorBoard logs to the folder ``tensorboard`` of the output; needs the package ``tensorboard``."""
    output: Path = Path("results/train")
    """Folder of the results."""
    resume: bool = False
    """Continue from the checkpoint in the output; start where there is none."""

    @property
    def total_steps(self) -> int:
        """What ``steps`` says, or its default."""
        defaults = dict.fromkeys(("ddpg", "sac", "td3"), 200_000) | {"actor-critic": 50_000}
        return self.steps or defaults.get(self.algorithm, 300_000)


@dataclass(frozen=True, kw_only=True)
class ExportOptions(Process):
    """Options of an export.

    The decision process must be the one that the model was trained in: what is not given is what ``lr-train`` trains the algorithm in on a task.
    :func:`agents.sb3.make_sb3_env` has relative actions by default, for SAC, TD3 and DDPG too: give ``--action relative`` then.
    """

    model: Annotated[Path, tyro.conf.Positional]
    """File that SB3's ``model.save`` wrote. Loading it runs code: trust it first."""
    algorithm: Algorithm = "ppo"
    """Whose model it is."""
    output: Path | None = None
    """The controller's file; by default beside the model, as ``.safetensors``."""


def environment_arguments(options: TrainingOptions) -> dict[str, Any]:
    """Arguments of :class:`lr_env.LearningRateVectorEnv` for these options, beside the task and how it is computed.

    Raises:
        ValueError: If one is malformed.
    """
    return {"horizon": options.horizon} | process_arguments(options, options.algorithm, options.family is not None)


def process_arguments(options: Process, algorithm: Algorithm, is_family: bool = False) -> dict[str, Any]:
    """Arguments of the decision process, with the defaults that suit the algorithm.

    Raises:
        ValueError: If one is malformed, or has an option of its own.
    """
    further = assignments("environment", options.environment)
    if found := next((name for name in ("task", "num_envs", "compile", "device", "num_processes") if name in further), None):
        raise ValueError(f"environment can't hold {found!r}: use the option --{found.replace('_', '-')}.")
    on_reference = is_family or algorithm in RESIDUAL_ALGORITHMS
    names = ["scale_free", "residual" if on_reference else "relative", "log_loss", "reference" if on_reference else "next_batch"]
    defaults: dict[str, Any] = dict(zip(("features", "action", "reward", "reward_on"), names, strict=True))
    if algorithm == "actor-critic":
        defaults = ONLINE_ENVIRONMENT
    elif algorithm == "dqn":
        defaults["action"] = "discrete"
    elif algorithm == "dpi":
        defaults |= {"features": RECOGNITION_FEATURES, "reward_on": "final"}
    features: Any = options.features or defaults["features"]
    if not isinstance(features, str):
        features = features[0] if len(features) == 1 else list(features)
    given = _name_or_mapping("reward", options.reward or defaults["reward"])
    reward = {"kind": given} if isinstance(given, str) else {"kind": "log_loss"} | given
    if options.loss_floor is not None:
        reward["loss_floor"] = options.loss_floor
    elif is_family and reward["kind"] == "log_loss":
        reward.setdefault("loss_floor", 0.01)
    return {
        "optimizer": _name_or_mapping("optimizer", options.optimizer),
        "features": features,
        "action": _name_or_mapping("action", options.action or defaults["action"]),
        "reward": reward if len(reward) > 1 else reward["kind"],
        "reward_on": options.reward_on or defaults["reward_on"],
        "steps_per_action": options.steps_per_action,
        "lr_min": options.lr_min,
        "lr_max": options.lr_max,
        "initial_rate": options.initial_rate,
        "initial_rate_decades": options.initial_rate_decades,
    } | further


def check_options(options: TrainingOptions) -> None:
    """Refuses what would go wrong later.

    Raises:
        ValueError: If an option is wrong.
        TypeError: If an option has the wrong type.
    """
    if options.algorithm not in get_args(Algorithm):
        raise unknown_name("algorithm", options.algorithm, get_args(Algorithm))
    for name in ("evaluation_interval", "evaluation_trainings", "checkpoint_interval", "num_processes"):
        positive_integer(name, getattr(options, name))
    for name in ("steps", "num_envs", "num_variants"):
        if getattr(options, name) is not None:
            positive_integer(name, getattr(options, name))
    check_seed(options.seed)
    if options.scale_rewards and options.algorithm in ("actor-critic", "ddpg", "dpi"):
        raise ValueError("scale_rewards is for Stable-Baselines3's algorithms. Leave it out; ddpg has --hyperparameters reward_scale=....")
    if options.paired and options.algorithm in ("actor-critic", "ddpg", "dpi", "dqn"):
        raise ValueError(f"paired is for a2c, ppo, sac and td3, but algorithm={options.algorithm!r} was given. Leave it out.")
    if options.num_variants is not None and options.family is None:
        raise ValueError(f"num_variants={options.num_variants} needs a family. Pass --family small, for example, or leave it out.")
    if options.output.exists() and not options.output.is_dir():
        raise ValueError(f"output must be a folder, but {options.output} is a file.")


def find_task(options: TrainingOptions) -> TaskFamily:
    """What is trained on.

    Raises:
        ValueError: If it is unknown, or both a task and a family were given.
        TypeError: If a specification has an entry of the wrong type.
    """
    if options.task is not None and options.family is not None:
        raise ValueError(f"Either task or family can be given, but task={options.task!r} and family={options.family!r} were. Leave one out.")
    if options.family is not None:
        if options.family.endswith(".json"):
            raise ValueError(
                f"A family is a name or JSON itself, but {options.family!r} was given. Of a file give what it holds: "
                f'--family "$(cat {options.family})".'
            )
        given = _name_or_mapping("family", options.family)
        if isinstance(given, str) and not isinstance(make_task(given), TaskFamily):
            raise ValueError(f"{given!r} is a single task. Pass --task {given}.")
        return find_family(given)
    name = options.task or "digits-mlp-scaled"
    family = find_family(name)
    if family.num_variants > 1:
        raise ValueError(f"{name!r} is a family of {family.num_variants} variants. Pass --family {name}.")
    return family


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


def assignments(what: str, given: Sequence[str]) -> dict[str, Any]:
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
