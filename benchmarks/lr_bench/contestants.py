"""Who takes part: the rivals that every benchmark has, and controllers that enter by name or path.

| Given as | what it is |
|---|---|
| `ppo=first.safetensors,second.safetensors` | files of `lr_env.save_controller` or `lr-train`, one for each training seed and optimizer |
| `model.zip` | a model of Stable-Baselines3; `model.mdp.json` beside it holds `{"algorithm": "ppo", "mdp": mdp.to_dict()}` |
| `my_module:MyController`, `path/to/file.py:MyController` | a class or function that gives a controller or a `BoundController` |

A plain controller has the decision process of its attribute `mdp`, or the default one; its optimizer is the track's. A class with `bind(optimizer)`
makes its own. Functions get `optimizer` and `horizon` where they have parameters of these names.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import json
import sys
import textwrap
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from modulefinder import ModuleFinder
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np

from agents import optimizers, schedules
from agents.rules import ArmijoLineSearch, GreedyBranching, HypergradientDescent, NormalisedGradient, StochasticPolyak
from benchmarks.baselines import GRID_POINTS, GRID_STEP, RandomController, SideBySide, rate_limits
from benchmarks.lr_bench import controls
from benchmarks.lr_bench.records import Point
from benchmarks.lr_bench.suites import Suite, SuiteTask
from benchmarks.lr_bench.summary import POLYAK, POLYAK_RIVAL
from benchmarks.runner import Runner
from lr_env.checks import unknown_name
from lr_env.controllers import BoundController, OnlineController, load_controller
from lr_env.episodes import Execution
from lr_env.mdp import MDP
from lr_env.seeding import Role, role_seeds
from lr_env.training import make_optimizer

GROWTH = 3
"""Points by which a grid is extended at a time."""

Tuning: TypeAlias = Literal["task", "shared", "pool"]
"""The best point of each task; the one point that is best on average over the tasks of a track; or no choice: all points are reported."""


def _constant(rate: float, horizon: int) -> schedules.Schedule:
    return schedules.constant(rate)


SHAPES: Mapping[str, Callable[[float, int], schedules.Schedule]] = {
    "constant": _constant,
    "linear": schedules.linear,
    "step": schedules.step_decay,
    "exponential": schedules.exponential,
    "cosine": schedules.cosine,
    "warm-up + cosine": schedules.warmup_cosine,
    "warm-up–stable–decay": schedules.warmup_stable_decay,
    "one-cycle": schedules.one_cycle,
    "reduce on plateau": schedules.reduce_on_plateau,
}
"""Schedules by name, each a function of the peak rate and the horizon."""

COSTLY_SHAPES = ("constant", "cosine", "warm-up–stable–decay")
"""Those that are tuned on costly tasks too."""

DEFAULT_RATES: Mapping[str, float] = {"sgd": 1e-3, "momentum": 1e-3, "adamw": 1e-3, "adagrad": 1e-2, "rmsprop": 1e-2, "nadamw": 2e-3}
"""Of ``torch.optim``."""

RATE_FREE: Mapping[str, Mapping[str, str]] = {
    "schedule-free": {"momentum": "schedule-free SGD", "adamw": "schedule-free AdamW"},
    "prodigy": {"momentum": "Prodigy", "adamw": "Prodigy"},
    "D-adaptation": {"momentum": "D-Adapt SGD", "adamw": "D-Adapt Adam"},
    "DoG": {"momentum": "DoG", "adamw": "DoG"},
    "DoG, averaged": {"momentum": "DoG, averaged", "adamw": "DoG, averaged"},
}
"""Optimizers that find their rate themselves, by track: names in :data:`agents.optimizers.RATE_FREE`."""

PACKAGES: Mapping[str, str] = {"schedule-free": "schedulefree", "prodigy": "prodigyopt", "D-adaptation": "dadaptation"}
"""What they need."""

CONTROLS = ("shuffled observations", "state-blind", "population replay", "same-instance replay")
"""What every controller that enters is compared with, as ``"NAME: state-blind"``."""

REPLAYS = CONTROLS[2:]
"""Those of controllers that see more than observations."""

NUM_OTHERS = 6
"""Trainings that controls learn from."""

REPLAY_FACTORS = tuple(float(10 ** (i / 6)) for i in range(-3, 4))
"""By which a replay's rates are multiplied; the best is chosen on other trainings."""

EXAMPLES_OF_FACTORS = 1024
"""That these are evaluated on."""


GREEDY = "greedy, one step ahead"
"""The branching rule, which knows more than a controller may."""

GREEDY_EXAMPLES = 256
"""Of the training split, that it looks at."""


class Maker(Protocol):
    """Makes a contestant's controllers; can be pickled."""

    def __call__(self, optimizer: str, task: SuiteTask, seeds: Sequence[int], point: Point) -> BoundController:
        """The controller at a point, for trainings of a task with these seeds; a fresh one in each call."""
        ...

    def identity(self, point: Point) -> str:
        """Digest of all that decides at this point, beside the point."""
        ...


@dataclass(frozen=True)
class Grid:
    """Points that are tried: each choice with each of 15 values, a third of a decade apart.

    Attributes:
        parameter: Name of the value.
        start: log10 of the lowest value.
        limits: Lowest and highest value that the grid may be extended to.
        optimizer: Whose centres on the tasks the values lie about; None where they begin at ``start``.
        choices: What else points hold.
        costly_choices: Those that are tried on costly tasks.
    """

    parameter: str
    start: float
    limits: tuple[float, float]
    optimizer: str | None = None
    choices: tuple[Point, ...] = ({},)
    costly_choices: tuple[Point, ...] = ()

    def choices_on(self, task: SuiteTask) -> tuple[Point, ...]:
        """The choices that are tried on a task."""
        return self.costly_choices if task.is_costly else self.choices

    def point(self, choice: Point, index: int) -> Point:
        """The choice with the value of this index: 0 for ``start``, one more for each step."""
        return {**choice, self.parameter: float(f"{10 ** (self.start + GRID_STEP * index):.6g}")}

    def points(self, task: SuiteTask) -> list[Point]:
        """All points of the grid on a task."""
        return [self.point(choice, index) for choice in self.choices_on(task) for index in self.indices([task])]

    def beyond(self, scores: Mapping[int, float]) -> list[int]:
        """The indices that the grid grows by, as the best lies on its edge: a decade, or up to the limits.

        Args:
            scores: Mean score by index, of one choice; lower is better.
        """
        best = min(sorted(scores), key=lambda index: scores[index])
        if not np.isfinite(scores[best]):
            return []
        further = range(1, GROWTH + 1)
        found = [best + i for i in further] if best == max(scores) else [best - i for i in further] if best == min(scores) else []
        return [index for index in found if self._is_allowed(index)]

    def indices(self, tasks: Sequence[SuiteTask]) -> list[int]:
        """Of the grid's values where these tasks share it: about the median of their centres, within the limits."""
        centres = [task.centres[self.optimizer] for task in tasks if self.optimizer is not None and self.optimizer in task.centres]
        lowest, highest = (round((np.log10(limit) - self.start) / GRID_STEP) for limit in self.limits)
        first = round((float(np.median(centres)) - self.start) / GRID_STEP) - GRID_POINTS // 2 if centres else 0
        first = max(lowest, min(first, highest - GRID_POINTS + 1))
        return [index for index in range(first, first + GRID_POINTS) if self._is_allowed(index)]

    def _is_allowed(self, index: int) -> bool:
        value = 10 ** (self.start + GRID_STEP * index)
        return self.limits[0] * 0.999 <= value <= self.limits[1] * 1.001


@dataclass(frozen=True)
class Contestant:
    """What takes part.

    Attributes:
        name: What tables show.
        make: Makes its controllers.
        grid: Of points that are tried, by track; empty where nothing is tuned.
        tuning: What the grid is for.
        points: Where nothing is tuned, by track: what is reported.
        is_entered: Whether the benchmark is about it; else it is a rival or a control.
        skips_costly: Whether it does not run on costly tasks, where it would take longer than all others.
    """

    name: str
    make: Maker
    grid: Mapping[str, Grid] = field(default_factory=dict)
    tuning: Tuning | None = None
    points: Mapping[str, tuple[Point, ...]] = field(default_factory=dict)
    is_entered: bool = False
    skips_costly: bool = False

    @property
    def tracks(self) -> tuple[str, ...]:
        """Where it takes part."""
        return tuple(self.grid or self.points)

    def pool(self, track: str, task: SuiteTask, seed: int) -> list[Point]:
        """The points of a task that searches are drawn from, themselves drawn at random from the grid, for each track and task anew."""
        points = self.grid[track].points(task)
        generator = np.random.default_rng([seed, *f"{track}/{task.name}".encode()])
        drawn = generator.permutation(len(points))[: task.pool]
        return [points[index] for index in sorted(drawn)]


@dataclass(frozen=True)
class ScheduleMaker:
    """Schedules of ``torch.optim.lr_scheduler``, at points ``{"shape": "cosine", "rate": 0.1}``."""

    def __call__(self, optimizer: str, task: SuiteTask, seeds: Sequence[int], point: Point) -> BoundController:
        """See :class:`Maker`."""
        return SHAPES[point["shape"]](point["rate"], task.horizon).bind(optimizer)

    def identity(self, point: Point) -> str:
        """See :class:`Maker`."""
        return _code_digest(schedules.Schedule, SHAPES[point["shape"]])


@dataclass(frozen=True)
class RuleMaker:
    """State-feedback rules at points ``{"constant": 0.2}``.

    Attributes:
        kind: Its class.
        options: Of the class.
    """

    kind: type[Any]
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, optimizer: str, task: SuiteTask, seeds: Sequence[int], point: Point) -> BoundController:
        """See :class:`Maker`."""
        bound: BoundController = self.kind(**point, **self.options).bind(optimizer)
        return bound

    def identity(self, point: Point) -> str:
        """See :class:`Maker`."""
        return digest(_code_digest(*self.kind.__mro__[:-1]), dict(self.options))


@dataclass(frozen=True)
class RateFreeMaker:
    """Optimizers that find their rate themselves, at the rate that is their default.

    Attributes:
        names: In :data:`agents.optimizers.RATE_FREE`, by track.
    """

    names: Mapping[str, str]

    def __call__(self, optimizer: str, task: SuiteTask, seeds: Sequence[int], point: Point) -> BoundController:
        """See :class:`Maker`."""
        return optimizers.untouched(optimizers.RATE_FREE[self.names[optimizer]])

    def identity(self, point: Point) -> str:
        """See :class:`Maker`."""
        return digest(*(_code_digest(optimizers.RATE_FREE[name]) for name in self.names.values()))


@dataclass(frozen=True)
class RandomMaker:
    """Random actions in the default decision process."""

    def __call__(self, optimizer: str, task: SuiteTask, seeds: Sequence[int], point: Point) -> BoundController:
        """See :class:`Maker`."""
        return BoundController(RandomController(0), MDP(optimizer=optimizer))

    def identity(self, point: Point) -> str:
        """See :class:`Maker`."""
        return digest(_code_digest(RandomController), MDP().to_dict())


@dataclass(frozen=True)
class FileMaker:
    """Controllers from files, at points ``{"training_seed": i}``.

    Attributes:
        paths: One for each training seed.
        replaces_optimizer: Whether the track's optimizer takes the place of the controller's own.
    """

    paths: tuple[Path, ...]
    replaces_optimizer: bool = False

    def __call__(self, optimizer: str, task: SuiteTask, seeds: Sequence[int], point: Point) -> BoundController:
        """See :class:`Maker`."""
        path = self.paths[point["training_seed"]]
        bound = _load_sb3(path) if path.suffix == ".zip" else load_controller(path)
        return _in_track(bound, optimizer, self.replaces_optimizer)

    def identity(self, point: Point) -> str:
        """See :class:`Maker`."""
        path = self.paths[point["training_seed"]]
        files = [path, _sb3_process(path)] if path.suffix == ".zip" else [path]
        return digest(*(hashlib.sha256(file.read_bytes()).hexdigest() for file in files))


@dataclass(frozen=True)
class CodeMaker:
    """A user's class or function.

    Attributes:
        source: A module's name, or the path of a file.
        attribute: Its name there.
        replaces_optimizer: Whether the track's optimizer takes the place of a ``BoundController``'s own.
    """

    source: str
    attribute: str
    replaces_optimizer: bool = False

    def __call__(self, optimizer: str, task: SuiteTask, seeds: Sequence[int], point: Point) -> BoundController:
        """See :class:`Maker`."""
        made = found = _find(self.source, self.attribute)
        if not isinstance(found, BoundController):
            if isinstance(found, type) or not hasattr(found, "predict"):
                parameters = inspect.signature(found).parameters
                options = {name: value for name, value in (("optimizer", optimizer), ("horizon", task.horizon)) if name in parameters}
                with _failing_in_words(f"{self.source}:{self.attribute} makes no controller"):
                    made = found(**options)
            if hasattr(made, "bind"):
                with _failing_in_words(f"{self.source}:{self.attribute} can't be bound to {optimizer!r}"):
                    made = made.bind(optimizer)
                if not isinstance(made, BoundController):
                    raise TypeError(f"bind() of {self.source}:{self.attribute} must return a lr_env.BoundController, but gave {made!r}.")
            elif not isinstance(made, BoundController):
                if not hasattr(made, "predict"):
                    raise TypeError(f"{self.source}:{self.attribute} must give a controller, with a method predict, but gave {made!r}.")
                process = getattr(made, "mdp", MDP())
                process = process if isinstance(process, MDP) else MDP(**process)
                made = BoundController(made, dataclasses.replace(process, optimizer=optimizer))
        with _failing_in_words(f"{self.source}:{self.attribute} gives what can't be copied"):
            made = copy.deepcopy(made)
        return _in_track(made, optimizer, self.replaces_optimizer)

    def identity(self, point: Point) -> str:
        """See :class:`Maker`: the whole file counts, and of a file what it imports from its own folder; data that it reads don't."""
        path = inspect.getsourcefile(_module(self.source))
        own = None if path is None else hashlib.sha256(Path(path).read_bytes()).hexdigest()
        return digest(self.attribute, own, *(_neighbours(Path(self.source)) if Path(self.source).suffix == ".py" else ()))


@dataclass(frozen=True)
class ControlMaker:
    """What is left of a controller that doesn't see its training; see :mod:`benchmarks.lr_bench.controls`.

    Attributes:
        base: Makes the controller.
        kind: One of :data:`CONTROLS`.
        seed: Of the other trainings that it learns from, which are those that rivals are tuned on.
    """

    base: Maker
    kind: str
    seed: int

    def __call__(self, optimizer: str, task: SuiteTask, seeds: Sequence[int], point: Point) -> BoundController:
        """See :class:`Maker`; trains on other seeds."""
        bound = self.base(optimizer, task, seeds, point)
        bound, family = BoundController(bound.controller, comparable(bound)), task.family()
        if self.kind == "shuffled observations":
            return controls.shuffled_observations(bound)
        others = role_seeds(self.seed, Role.TUNE, NUM_OTHERS)
        if self.kind == "same-instance replay":
            instances, further = others[: NUM_OTHERS // 2], others[NUM_OTHERS // 2 :]
            rates = controls.other_seeds_rates(bound, family, instances, further, task.horizon)
            replays = [controls.same_instance_replay(bound.mdp, rates, factor).controller for factor in REPLAY_FACTORS]
            mdp = controls.same_instance_replay(bound.mdp, rates).mdp
            runner = Runner(family, mdp, instances * len(replays), task.horizon, EXAMPLES_OF_FACTORS, False, execution(mdp))
            scores = runner.run(SideBySide(replays)).scores.reshape(len(replays), -1).mean(1)
            rates = controls.other_seeds_rates(bound, family, seeds, further, task.horizon)
            return controls.same_instance_replay(bound.mdp, rates, REPLAY_FACTORS[int(scores.argmin())])
        runner = Runner(family, bound.mdp, others, task.horizon, 1, False, execution(bound.mdp))
        if self.kind == "state-blind":
            return controls.state_blind(bound, controls.mean_observations(runner, bound.controller))
        return controls.population_replay(bound.mdp, runner.run(bound.controller).rates)

    def identity(self, point: Point) -> str:
        """See :class:`Maker`."""
        return digest(self.base.identity(point), self.kind, self.seed, NUM_OTHERS, REPLAY_FACTORS, _code_digest(controls))


def trainings_of_control(kind: str, num_seeds: int) -> int:
    """Trainings that a control of so many seeds runs before its own; 0 for what is none. See :class:`ControlMaker`."""
    half = NUM_OTHERS // 2
    if kind == "same-instance replay":
        return half * half + half * len(REPLAY_FACTORS) + num_seeds * (NUM_OTHERS - half)
    return NUM_OTHERS if kind in ("state-blind", "population replay") else 0


def comparable(bound: BoundController) -> MDP:
    """A controller's decision process with the same initial rate and the same rule of divergence in all trainings.

    Rewards mean nothing here, but to controllers that learn online.
    """
    mdp = dataclasses.replace(bound.mdp, initial_rate_decades=0.0)
    if not isinstance(bound.controller, OnlineController):
        return dataclasses.replace(mdp, reward="log_loss", reward_on="next_batch")
    reward = mdp.reward if isinstance(mdp.reward, str) else {name: value for name, value in mdp.reward.items() if name != "divergence"}
    return dataclasses.replace(mdp, reward=reward)


def execution(mdp: MDP) -> Execution:
    """One engine for any number of trainings, so that one training alone has the same bits; optimizers by function have a loop only."""
    return Execution(gradients="auto" if callable(mdp.optimizer) else "batched")


def rivals(suite: Suite) -> list[Contestant]:
    """The baselines that every benchmark runs, each tuned as hard as the others."""
    tracks, others = suite.tracks, suite.other_optimizers
    everywhere = (*tracks, *others)

    def tuned(name: str, shapes: Sequence[str], tuning: Tuning, optimizers: Sequence[str] = tracks) -> Contestant:
        return Contestant(name, ScheduleMaker(), {optimizer: _rate_grid(optimizer, shapes, optimizer in tracks) for optimizer in optimizers}, tuning)

    defaults: dict[str, tuple[Point, ...]] = {name: ({"shape": "constant", "rate": DEFAULT_RATES[name]},) for name in everywhere}
    found = [
        tuned("tuned per task", list(SHAPES), "task"),
        *(tuned(f"{shape} (shared)", [shape], "shared", everywhere if shape in ("constant", "cosine") else tracks) for shape in SHAPES),
        tuned("random search", list(SHAPES), "pool"),
        Contestant("default rate", ScheduleMaker(), points=defaults),
        _rule(POLYAK, tracks, RuleMaker(StochasticPolyak), -3.0, (2e-4, 5e3), is_tuned_on_costly=True),
        _rule(POLYAK_RIVAL, tracks, RuleMaker(StochasticPolyak), -3.0, (2e-4, 5e3), is_tuned_on_costly=True, tuning="task"),
        _rule("normalised gradient", tracks, RuleMaker(NormalisedGradient), -4.0, (1e-7, 1e3)),
        _rule("Armijo line search", tracks, RuleMaker(ArmijoLineSearch), -5.0, (1e-8, 0.99)),
        _rule("hypergradient, additive", tracks, RuleMaker(HypergradientDescent, {"is_multiplicative": False}), -6.0, (1e-10, 1e3)),
        _rule("hypergradient, multiplicative", tracks, RuleMaker(HypergradientDescent), -4.0, (1e-7, 1e2)),
        *(Contestant(name, RateFreeMaker(names), points=dict.fromkeys(names, ({},))) for name, names in RATE_FREE.items()),
        Contestant(GREEDY, RuleMaker(GreedyBranching, {"num_examples": GREEDY_EXAMPLES}), points=dict.fromkeys(tracks, ({},)), skips_costly=True),
        Contestant("random policy", RandomMaker(), points=dict.fromkeys(tracks, ({},))),
    ]
    without = {*suite.leaves_out, *left_out(suite)}
    return [contestant for contestant in found if contestant.name not in without]


def left_out(suite: Suite) -> dict[str, str]:
    """Rivals that can't take part, and why."""
    reason = "as its package {} is not installed: pip install 'lr-env[baselines]'."
    missing = {name: package for name, package in PACKAGES.items() if importlib.util.find_spec(package) is None and name not in suite.leaves_out}
    return {name: reason.format(package) for name, package in missing.items()}


def _rate_grid(optimizer: str, shapes: Sequence[str], is_tuned_on_costly: bool) -> Grid:
    """From one decade above the lowest rate that controllers may choose."""
    limits = rate_limits(optimizer)
    choices: list[Point] = [{"shape": shape} for shape in shapes]
    costly = tuple(choice for choice in choices if choice["shape"] in COSTLY_SHAPES and is_tuned_on_costly)
    return Grid("rate", round(float(np.log10(limits[0]))) + 1, limits, optimizer, tuple(choices), costly)


def _rule(
    name: str,
    tracks: Sequence[str],
    make: Maker,
    start: float,
    limits: tuple[float, float],
    is_tuned_on_costly: bool = False,
    tuning: Tuning = "shared",
) -> Contestant:
    grid = Grid("constant", start, limits, costly_choices=({},) if is_tuned_on_costly else ())
    return Contestant(name, make, dict.fromkeys(tracks, grid), tuning)


def enter(given: Sequence[str], suite: Suite, replaces_optimizer: bool = False, has_controls: bool = True) -> list[Contestant]:
    """The rivals of a suite, and the controllers that are given, in this order; names of rivals are allowed, as these take part anyhow.

    Args:
        given: See the module's table; several with commas between them.
        suite: For its tracks.
        replaces_optimizer: Whether controllers that were made for another optimizer run with each track's all the same.
        has_controls: Whether the controls of those that enter run too.

    Raises:
        FileNotFoundError: If a file is missing.
        ImportError: If a module is.
        ValueError: If a name is unknown or given twice, or a controller fits no track.
    """
    known = {contestant.name: contestant for contestant in rivals(suite)}
    entered: dict[str, Contestant] = {}
    for name, sources in _parse(given, known):
        if sources == [name] and name in known:
            entered[name] = dataclasses.replace(known[name], is_entered=True)
            continue
        if name in known or name in entered:
            raise ValueError(f"Contestants must have different names, but {name!r} is taken: give another one, NAME=PATH.")
        if Path(sources[0]).suffix == ".py":
            raise ValueError(f"{sources[0]} is a file: name one of its classes or functions too, as in {sources[0]}:MyController.")
        if ":" not in sources[0] and not _is_file(sources[0]):
            raise unknown_name("contestant", name, known)
        entered[name] = _enter(name, sources, suite, replaces_optimizer)
    controlled = [
        Contestant(f"{name}: {kind}", ControlMaker(contestant.make, kind, suite.seed), points=contestant.points)
        for name, contestant in entered.items()
        for kind in (_controls_of(contestant, suite) if has_controls and name not in known else ())
    ]
    return [*(contestant for name, contestant in known.items() if name not in entered), *entered.values(), *controlled]


def _controls_of(contestant: Contestant, suite: Suite) -> Sequence[str]:
    track = contestant.tracks[0]
    bound = contestant.make(track, suite.tasks[0], (), contestant.points[track][0])
    return CONTROLS if controls.only_observes(bound.controller) else REPLAYS


def identities(contestants: Sequence[Contestant], suite: Suite) -> dict[str, frozenset[str]]:
    """What those that are entered are at present, with the controls that they have or would have: digests by name."""
    found: dict[str, frozenset[str]] = {}
    for contestant in contestants:
        if contestant.is_entered and isinstance(contestant.make, FileMaker | CodeMaker):
            points = [point for chosen in contestant.points.values() for point in chosen]
            makers: dict[str, Maker] = {contestant.name: contestant.make}
            makers |= {f"{contestant.name}: {kind}": ControlMaker(contestant.make, kind, suite.seed) for kind in CONTROLS}
            found |= {name: frozenset(make.identity(point) for point in points) for name, make in makers.items()}
    return found


def _enter(name: str, sources: Sequence[str], suite: Suite, replaces_optimizer: bool) -> Contestant:
    make: FileMaker | CodeMaker
    if all(_is_file(source) for source in sources):
        for source in sources:
            if not Path(source).is_file():
                raise FileNotFoundError(f"There is no file {source} of contestant {name!r}.")
        make = FileMaker(tuple(Path(source).resolve() for source in sources), replaces_optimizer)
        points: list[Point] = [{"training_seed": i} for i in range(len(sources))]
    else:
        source, _, attribute = sources[0].rpartition(":")
        path = Path(source)
        make, points = CodeMaker(str(path.resolve()) if path.suffix == ".py" else source, attribute, replaces_optimizer), [{}]
    fitting: dict[str, tuple[Point, ...]] = {}
    refusals: dict[str, set[str]] = {}
    for track, point in product(suite.tracks, points):
        try:
            make(track, suite.tasks[0], (), point)
        except OptimizerMismatchError as error:
            refusals.setdefault(repr(point), set()).add(str(error))
        except (TypeError, ValueError) as error:
            raise ValueError(f"Contestant {name!r} can't be made: {error}") from error
        else:
            fitting[track] = (*fitting.get(track, ()), point)
    for refused in refusals.values():
        if len(refused) == len(suite.tracks):
            raise ValueError(
                f"Contestant {name!r} fits none of the tracks {', '.join(suite.tracks)}: {min(refused)} Or train one for a track, with "
                f"lr-train --optimizer {suite.tracks[0]}."
            )
    return Contestant(name, make, points=fitting, is_entered=True)


class OptimizerMismatchError(ValueError):
    """A controller was made for another optimizer than the track's."""


def _in_track(bound: BoundController, optimizer: str, replaces: bool) -> BoundController:
    if make_optimizer(bound.mdp.optimizer)[0] == make_optimizer(optimizer)[0]:
        return bound
    if not replaces:
        raise OptimizerMismatchError(
            f"it was made for optimizer {bound.mdp.optimizer!r}, not for {optimizer!r}. Pass --replace-optimizer to run it with that all the same."
        )
    return BoundController(bound.controller, dataclasses.replace(bound.mdp, optimizer=optimizer))


def split_names(text: str, known: Collection[str]) -> list[str]:
    """What stands between commas, but known names, which may hold some, as they are."""
    parts, found = [part.strip() for part in text.split(",")], []
    while parts:
        length = next((count for count in range(len(parts), 1, -1) if ", ".join(parts[:count]) in known), 1)
        found.append(", ".join(parts[:length]))
        parts = parts[length:]
    return list(filter(None, found))


def _parse(given: Sequence[str], known: Collection[str]) -> list[tuple[str, list[str]]]:
    """Names and sources of ``a,b,name=c.safetensors,d.safetensors``: files that follow a name belong to it."""
    parsed: list[tuple[str, list[str]]] = []
    for text in given:
        is_named = False
        for part in split_names(text, known):
            name, separator, source = part.partition("=")
            if not separator and is_named and _is_file(part):
                parsed[-1][1].append(part)
                continue
            is_named = bool(separator)
            if is_named and not (name and source):
                raise ValueError(f"A contestant is given as NAME=PATH, but {part!r} lacks one of the two.")
            parsed.append((name, [source]) if separator else (_own_name(part), [part]))
    return parsed


def _own_name(source: str) -> str:
    """What is not named is called after its file or its class."""
    return Path(source).stem if _is_file(source) else source.rpartition(":")[2]


def _is_file(source: str) -> bool:
    return Path(source).suffix in (".safetensors", ".zip")


def _sb3_process(path: Path) -> Path:
    return path.with_suffix(".mdp.json")


def _load_sb3(path: Path) -> BoundController:
    beside = _sb3_process(path)
    if not beside.is_file():
        raise FileNotFoundError(
            f'{path} needs its decision process beside it: {beside.name}, as {{"algorithm": "ppo", "mdp": mdp.to_dict()}}. '
            "`lr-train export` makes a file that needs nothing."
        )
    from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3

    algorithms = {kind.__name__.lower(): kind for kind in (A2C, DDPG, DQN, PPO, SAC, TD3)}
    try:
        data = json.loads(beside.read_text())
        algorithm, mdp = data["algorithm"], MDP(**data["mdp"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f'{beside} must hold {{"algorithm": "ppo", "mdp": mdp.to_dict()}}, but: {type(error).__name__}, {error}.') from error
    if algorithm not in algorithms:
        raise unknown_name("algorithm", algorithm, algorithms)
    with _failing_in_words(f"{path} can't be loaded as a model of {algorithm}"):
        model = algorithms[algorithm].load(path, device="cpu")
    return BoundController(model, mdp)


def _neighbours(path: Path) -> list[str]:
    """Digests of the modules that a file imports from its own folder, and these in turn."""
    finder = ModuleFinder([str(path.parent)])
    finder.run_script(str(path))  # reads it, and runs nothing
    files = {getattr(module, "__file__", None) for name, module in finder.modules.items() if name != "__main__"}
    return [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in sorted(filter(None, files))]


def _find(source: str, attribute: str) -> Any:
    module = _module(source)
    if not hasattr(module, attribute):
        raise unknown_name(f"object in {source}", attribute, [name for name in vars(module) if not name.startswith("_")])
    return getattr(module, attribute)


@cache
def _module(source: str) -> ModuleType:
    path = Path(source)
    if path.suffix != ".py":
        with _failing_in_words(f"{source} can't be imported"), _import_from(Path.cwd()):
            return importlib.import_module(source)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {source}.")
    specification = importlib.util.spec_from_file_location(f"_contestant_{path.stem}_{digest(source)[:8]}", path)
    assert specification is not None and specification.loader is not None
    module = sys.modules[specification.name] = importlib.util.module_from_spec(specification)
    with _failing_in_words(f"{source} can't be imported"), _import_from(path.parent):  # it may import its neighbours
        specification.loader.exec_module(module)
    return module


@contextmanager
def _import_from(folder: Path) -> Iterator[None]:
    """Modules of a folder can be imported, before others."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


@contextmanager
def _failing_in_words(problem: str) -> Iterator[None]:
    """Around the code of others: whatever it raises becomes an error that says what is wrong, and where."""
    try:
        yield
    except (Exception, SystemExit) as error:
        raise ValueError(f"{problem}: {in_words(error)}") from error


def in_words(error: BaseException) -> str:
    """An error's kind, its words, and the place in the code that raised it."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames and not isinstance(error, SyntaxError) else ""
    return f"{type(error).__name__}: {error}{place}"


def digest(*parts: Any) -> str:
    """Of JSON-ready data."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@cache
def _code_digest(*objects: Any) -> str:
    """Of the code of classes and functions, without comments and docstrings; what they call doesn't count."""
    trees = []
    for each in objects:
        tree = ast.parse(textwrap.dedent(inspect.getsource(each)))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list) and len(body) > 1 and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
                del body[0]
        trees.append(_as_data(tree))
    return digest(*trees)


def _as_data(node: Any) -> Any:
    """A syntax tree as JSON-ready data, the same in all versions of Python: what is empty, and what a newer one may have added so, is left out."""
    if isinstance(node, ast.AST):
        return [type(node).__name__, {name: _as_data(value) for name, value in ast.iter_fields(node) if value is not None and value != []}]
    return [_as_data(each) for each in node] if isinstance(node, list) else repr(node)
