"""Who takes part: rivals, files, code, and what makes them another contestant."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from agents import OnlineActorCritic
from benchmarks.lr_bench.contestants import (
    CONTROLS,
    GREEDY,
    REPLAYS,
    SHAPES,
    Grid,
    ScheduleMaker,
    comparable,
    enter,
    identities,
    rivals,
    split_names,
)
from benchmarks.lr_bench.engine import Work, compute
from benchmarks.lr_bench.records import Cell
from benchmarks.lr_bench.suites import QUICK, STANDARD, SuiteTask
from lr_env import MDP, BoundController, PolicyNetwork, save_controller
from tests.benchmark_runs import tiny_suite

SUITE = tiny_suite(1, tracks=("momentum", "adamw"))
TASK = SUITE.tasks[0]

MINE = """
import numpy as np
from lr_env import MDP

class Mine:
    mdp = MDP(features=["loss_trend"], action="relative")

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return np.where(observation > 0, -1.0, 0.1), state

def bound(optimizer):
    return Mine().mdp and __import__("agents").StochasticPolyak(0.3).bind(optimizer)

def only_adamw():
    from lr_env import BoundController
    return BoundController(Mine(), MDP(optimizer="adamw", features=["loss_trend"]))

instance = Mine()
number = 3
"""


def save(path: Path, optimizer: str = "momentum", seed: int = 0) -> Path:
    mdp = MDP(optimizer=optimizer, features=["log_rate"], action="relative", initial_rate_decades=1.0)
    save_controller(path, BoundController(PolicyNetwork(1, 1, (4,), seed), mdp))
    return path


@pytest.fixture
def code(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


def entered(given: list[str], **options: bool) -> dict:  # type: ignore[type-arg]
    return {contestant.name: contestant for contestant in enter(given, SUITE, **options) if contestant.is_entered}


def test_code_enters_by_path(code: Path) -> None:
    [(name, contestant)] = entered([f"{code}:Mine"]).items()
    assert (name, contestant.tracks) == ("Mine", ("momentum", "adamw"))
    bound = contestant.make("adamw", TASK, (1,), {})
    assert (bound.mdp.optimizer, bound.mdp.features) == ("adamw", ("loss_trend",))
    assert contestant.make("adamw", TASK, (1,), {}).controller is not bound.controller


def test_code_enters_as_function_instance_and_for_one_track(code: Path) -> None:
    found = entered([f"a={code}:bound,b={code}:instance", f"c={code}:only_adamw"])
    assert found["a"].make("momentum", TASK, (), {}).mdp.optimizer == "momentum"
    assert found["b"].make("adamw", TASK, (), {}).mdp.optimizer == "adamw"
    assert found["c"].tracks == ("adamw",)
    assert entered([f"c={code}:only_adamw"], replaces_optimizer=True)["c"].tracks == ("momentum", "adamw")


def test_files_enter_with_several_training_seeds(tmp_path: Path, code: Path) -> None:
    first, second = save(tmp_path / "first.safetensors"), save(tmp_path / "second.safetensors", seed=1)
    found = entered([f"ppo={first},{second},{code}:Mine", str(first)])
    assert list(found) == ["ppo", "Mine", "first"]
    ppo = found["ppo"]
    assert ppo.tracks == ("momentum",)
    assert ppo.points["momentum"] == ({"training_seed": 0}, {"training_seed": 1})
    identities = [ppo.make.identity(point) for point in ppo.points["momentum"]]
    assert identities[0] == found["first"].make.identity({"training_seed": 0}) != identities[1]


def test_files_for_several_optimizers_enter_each_in_its_track(tmp_path: Path) -> None:
    files = [save(tmp_path / f"{i}.safetensors", optimizer, i) for i, optimizer in enumerate(("momentum", "adamw", "momentum"))]
    ppo = entered([f"ppo={','.join(map(str, files))}"])["ppo"]
    assert ppo.points == {"momentum": ({"training_seed": 0}, {"training_seed": 2}), "adamw": ({"training_seed": 1},)}
    sgd = save(tmp_path / "sgd.safetensors", "sgd")
    with pytest.raises(ValueError, match="fits none of the tracks"):
        enter([f"ppo={files[0]},{sgd}"], SUITE)


def test_the_same_file_is_trained_once_whatever_its_contestant_is_called(tmp_path: Path) -> None:
    first, second = save(tmp_path / "first.safetensors"), save(tmp_path / "second.safetensors", seed=1)
    found = entered([f"ppo={first},{second}", f"best={second}"])

    def trainings(name: str, training_seed: int) -> str:
        point = {"training_seed": training_seed}
        return Cell("tiny-1", "momentum", TASK.name, TASK.setting, name, found[name].make.identity(point), "report", point, (1, 2)).trainings

    assert trainings("ppo", 1) == trainings("best", 0) != trainings("ppo", 0)


def test_a_model_of_stable_baselines_enters_with_its_decision_process(tmp_path: Path) -> None:
    sb3 = pytest.importorskip("stable_baselines3")
    from agents.sb3 import make_sb3_env

    mdp = MDP(optimizer="momentum", features=["log_rate"])
    env = make_sb3_env(2, task="wine-mlp", horizon=4, optimizer="momentum", features=["log_rate"])
    sb3.PPO("MlpPolicy", env, n_steps=4, batch_size=8, seed=0).save(tmp_path / "model.zip")
    with pytest.raises(FileNotFoundError, match=r"needs its decision process beside it: model\.mdp\.json"):
        enter([str(tmp_path / "model.zip")], SUITE)
    (tmp_path / "model.mdp.json").write_text(json.dumps({"algorithm": "ppo", "mdp": mdp.to_dict()}))
    model = entered([str(tmp_path / "model.zip")])["model"]
    assert model.tracks == ("momentum",)
    actions, _ = model.make("momentum", TASK, (1,), {"training_seed": 0}).controller.predict(np.zeros((3, 1), np.float32), deterministic=True)
    assert actions.shape == (3, 1)


def test_a_changed_file_is_another_contestant(tmp_path: Path, code: Path) -> None:
    make = entered([f"{code}:Mine"])["Mine"].make
    before = make.identity({})
    code.write_text(MINE.replace("-1.0", "-0.5"))
    assert make.identity({}) != before
    path = save(tmp_path / "first.safetensors")
    make = entered([str(path)])["first"].make
    before = make.identity({"training_seed": 0})
    save(path, seed=5)
    assert make.identity({"training_seed": 0}) != before


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("cosin (shared)", "Unknown contestant.*cosine"),
        ("missing.safetensors", "There is no file"),
        ("nothing.py:Mine", "There is no file"),
        ("{code}:Min", "Unknown object in .*Mine"),
        ("{code}:number", "not callable|no signature|callable"),
        ("no_such_module:Mine", "No module named"),
        ("{code}", r"mine\.py is a file: name one of its classes .*mine\.py:MyController"),
        ("SPS={code}:Mine", "'SPS' is taken"),
        ("a={code}:Mine,a={code}:Mine", "'a' is taken"),
        ("={code}:Mine", "lacks one of the two"),
        ("a=", "lacks one of the two"),
        ("a={code}:number", "Contestant 'a' can't be made: .*callable"),
        ("{sgd}", "fits none of the tracks momentum, adamw: .*--replace-optimizer"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, code: Path, given: str, message: str) -> None:
    sgd = save(tmp_path / "sgd.safetensors", "sgd")
    with pytest.raises((ValueError, FileNotFoundError, ImportError, TypeError), match=message):
        enter([given.format(code=code, sgd=sgd)], SUITE)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("class Mine(:", r"mine\.py can't be imported: SyntaxError: .*mine\.py, line 1"),
        ("x = 1 / 0", r"mine\.py can't be imported: ZeroDivisionError: division by zero \(.*mine\.py, line 1\)"),
        ("import no_such_module", r"mine\.py can't be imported: ModuleNotFoundError: No module named 'no_such_module' \(.*mine\.py, line 1\)"),
        ("raise SystemExit(3)", r"mine\.py can't be imported: SystemExit: 3"),
        ("class Mine:\n    def __init__(self):\n        raise RuntimeError('no')", r":Mine makes no controller: RuntimeError: no \(.*, line 3\)"),
        (
            "class Mine:\n    def bind(self, optimizer):\n        self.optimizer = optimizer",
            r"bind\(\) of .*:Mine must return a lr_env.BoundController",
        ),
        ("class Mine:\n    mdp = {'no': 1}\n    predict = None", "Contestant 'Mine' can't be made: .*unexpected keyword argument 'no'"),
        ("class Mine:\n    def bind(self, name):\n        raise KeyError('x')", r":Mine can't be bound to 'momentum': KeyError: 'x' \(.*, line 3\)"),
    ],
)
def test_what_a_users_code_raises_is_said(tmp_path: Path, source: str, message: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(source)
    with pytest.raises((ValueError, TypeError), match=message):
        enter([f"{path}:Mine"], SUITE)


@pytest.mark.parametrize("content", ["{", "[]", '{"algorithm": "ppo"}', '{"mdp": {}}', '{"algorithm": "ppo", "mdp": {"no": 1}}'])
def test_a_wrong_decision_process_of_a_model_is_said(tmp_path: Path, content: str) -> None:
    pytest.importorskip("stable_baselines3")
    (tmp_path / "model.zip").write_bytes(b"no model")
    (tmp_path / "model.mdp.json").write_text(content)
    with pytest.raises(ValueError, match=r'model\.mdp\.json must hold {"algorithm": "ppo", "mdp": mdp\.to_dict\(\)}, but'):
        enter([str(tmp_path / "model.zip")], SUITE)
    (tmp_path / "model.mdp.json").write_text(json.dumps({"algorithm": "ppo", "mdp": MDP().to_dict()}))
    with pytest.raises(ValueError, match=r"model\.zip can't be loaded as a model of ppo"):
        enter([str(tmp_path / "model.zip")], SUITE)


def test_names_of_rivals_may_be_given_and_the_order_is_kept(code: Path) -> None:
    found = enter([f"{code}:Mine,SPS,cosine (shared),first={code}:Mine"], SUITE)
    assert [contestant.name for contestant in found if contestant.is_entered] == ["Mine", "SPS", "cosine (shared)", "first"]
    assert len({contestant.name for contestant in found}) == len(found) == len(rivals(SUITE)) + 2 + 2 * len(CONTROLS)


def test_names_of_rivals_may_hold_commas(code: Path) -> None:
    found = enter([f"SPS, tuned per task,{code}:Mine", "SPS"], SUITE)
    assert [contestant.name for contestant in found if contestant.is_entered] == ["SPS, tuned per task", "Mine", "SPS"]
    assert split_names("SPS, DoG, averaged,b", ["SPS", "DoG", "DoG, averaged"]) == ["SPS", "DoG, averaged", "b"]


def test_identities_are_of_what_is_entered_and_its_controls(code: Path, tmp_path: Path) -> None:
    def found() -> dict[str, frozenset[str]]:
        file = save(tmp_path / "first.safetensors")
        return identities(enter([f"{code}:Mine,file={file}", "SPS"], SUITE), SUITE)

    before = found()
    assert set(before) == {f"{name}{kind}" for name in ("Mine", "file") for kind in ("", *(f": {kind}" for kind in CONTROLS))}
    code.write_text(MINE.replace("-1.0", "-0.5"))
    after = found()
    assert {name for name in before if before[name] != after[name]} == {name for name in before if name.startswith("Mine")}


@pytest.mark.parametrize("suite", [QUICK, STANDARD], ids=lambda suite: suite.name)
def test_all_rivals_make_controllers_at_all_their_points(suite) -> None:  # type: ignore[no-untyped-def]
    for contestant in rivals(suite):
        for track in contestant.tracks:
            points = contestant.grid[track].points(suite.tasks[0])[::14] if contestant.grid else contestant.points[track]
            for point in points:
                assert contestant.make.identity(point) == contestant.make.identity(point)
                assert isinstance(contestant.make(track, suite.tasks[0], (1,), point), BoundController)


def test_a_grid_has_15_points_a_third_of_a_decade_apart() -> None:
    grid = Grid("rate", -4, (1e-5, 1e1), choices=({"shape": "constant"},))
    rates = [point["rate"] for point in grid.points(TASK)]
    np.testing.assert_allclose(np.diff(np.log10(rates)), 1 / 3, atol=1e-5)
    assert (len(rates), rates[0]) == (15, 1e-4)


def test_a_grid_lies_about_the_centres_of_its_tasks_within_the_limits() -> None:
    grid = Grid("rate", -4, (1e-5, 1e1), "momentum")

    def ends(*centres: float) -> tuple[float, float]:
        tasks = [dataclasses.replace(TASK, centres={"momentum": centre, "adamw": -5.0}) for centre in centres]
        indices = grid.indices(tasks)
        assert indices == list(range(indices[0], indices[0] + 15))
        return tuple(np.log10(grid.point({}, indices[i])["rate"]).round(3) for i in (0, -1))  # type: ignore[return-value]

    assert ends(-2.0) == (-4.333, 0.333)
    assert ends(-4.666667) == (-5.0, -0.333)  # not below the lowest rate that controllers may choose
    assert ends(0.0) == (-3.667, 1.0)
    assert ends(-1.0, -2.0, 0.0) == ends(-1.0)
    assert grid.indices([TASK]) == list(range(15))


def test_a_grid_grows_at_its_edges_up_to_the_limits() -> None:
    grid = Grid("rate", -4, (1e-5, 1e1))
    scores = {index: float(index) for index in range(15)}
    assert grid.beyond(scores) == [-1, -2, -3]
    assert grid.beyond(scores | {-3: -1.0, -2: 0.0, -1: 0.0}) == []  # 1e-5 is the limit
    assert grid.beyond({index: -score for index, score in scores.items()}) == [15]
    assert grid.beyond(scores | {7: -1.0}) == []
    assert grid.beyond(dict.fromkeys(scores, np.inf)) == []


def test_contestants_of_the_same_schedule_share_their_trainings() -> None:
    point = {"shape": "cosine", "rate": 0.1}
    found = {contestant.name: contestant for contestant in rivals(SUITE)}
    assert found["tuned per task"].make.identity(point) == found["cosine (shared)"].make.identity(point)
    assert len({ScheduleMaker().identity({"shape": shape}) for shape in SHAPES}) == len(SHAPES)


def test_random_searches_draw_other_points_for_each_task_and_track() -> None:
    (search,) = (contestant for contestant in rivals(STANDARD) if contestant.name == "random search")
    tasks = [task for task in STANDARD.tasks if task.pool == 100]

    def indices(track: str, task: SuiteTask, seed: int = 0) -> tuple[int, ...]:
        points = [repr(point) for point in search.grid[track].points(task)]
        return tuple(points.index(repr(point)) for point in search.pool(track, task, seed))

    drawn = [indices(track, task) for track in STANDARD.tracks for task in tasks]
    assert all(len(set(own)) == 100 for own in drawn) and len(set(drawn)) == len(drawn)
    assert indices("adamw", tasks[0]) == indices("adamw", tasks[0]) != indices("adamw", tasks[0], 1)


def test_costly_tasks_have_smaller_grids() -> None:
    costly = dataclasses.replace(TASK, is_costly=True)
    found = {contestant.name: contestant for contestant in rivals(STANDARD)}
    assert len(found["tuned per task"].grid["momentum"].points(costly)) == 3 * 15
    assert len(found["SPS"].grid["momentum"].points(costly)) == 15
    assert found["normalised gradient"].grid["momentum"].points(costly) == []
    assert {name for name, contestant in found.items() if contestant.skips_costly} == {GREEDY}


def test_the_shared_and_the_tuned_polyak_rule_share_their_tuning() -> None:
    shared, tuned = (next(each for each in rivals(STANDARD) if each.name == name) for name in ("SPS", "SPS, tuned per task"))
    assert (shared.tuning, tuned.tuning, shared.grid) == ("shared", "task", tuned.grid)
    assert shared.make.identity({"constant": 0.1}) == tuned.make.identity({"constant": 0.1})


def test_controls_enter_beside_a_controller_and_run(tmp_path: Path) -> None:
    path = save(tmp_path / "first.safetensors")
    contestants = {contestant.name: contestant for contestant in enter([f"ppo={path}"], SUITE)}
    assert [name for name in contestants if name.startswith("ppo: ")] == [f"ppo: {kind}" for kind in CONTROLS]
    assert len(enter([f"ppo={path}"], SUITE, has_controls=False)) == len(contestants) - len(CONTROLS)
    makers = [contestants[f"ppo: {kind}"].make for kind in CONTROLS]
    assert len({make.identity({"training_seed": 0}) for make in makers}) == len(CONTROLS)
    for make in makers[::3]:
        cell = Cell("tiny-1", "momentum", TASK.name, TASK.setting, "ppo: x", "", "report", {"training_seed": 0}, (3, 4))
        [result] = compute(Work(TASK, 64, (cell,), (make,)))
        assert result.error is None
        assert np.isfinite(result.scores).all()


def test_what_a_file_imports_from_its_folder_is_part_of_its_identity(tmp_path: Path) -> None:
    def identity() -> str:
        found: str = entered([f"{tmp_path}/mine.py:Mine"])["Mine"].make.identity({})
        return found

    (tmp_path / "mine.py").write_text(MINE.replace("import numpy", "from helpers_of_mine import parts\nimport numpy"))
    (tmp_path / "helpers_of_mine").mkdir()
    (tmp_path / "helpers_of_mine" / "__init__.py").write_text("")
    part = tmp_path / "helpers_of_mine" / "parts.py"
    part.write_text("FACTOR = 1")
    (tmp_path / "another.py").write_text("1 / 0")
    first = identity()
    (tmp_path / "another.py").write_text("nobody imports it")
    assert identity() == first
    part.write_text("FACTOR = 2")
    assert identity() != first


def test_controllers_that_learn_online_are_paid_and_have_the_replays_alone() -> None:
    found = {contestant.name: contestant for contestant in enter(["agents.actor_critic:OnlineActorCritic"], SUITE)}
    name = "OnlineActorCritic"
    assert [own.removeprefix(f"{name}: ") for own in found if own.startswith(f"{name}: ")] == list(REPLAYS)
    assert len(REPLAYS) == 2
    for contestant in (name, f"{name}: population replay"):
        cell = Cell("tiny-1", "adamw", TASK.name, TASK.setting, contestant, "", "report", {}, (3, 4))
        [result] = compute(Work(TASK, 64, (cell,), (found[contestant].make,)))
        assert result.error is None
        assert result.rates is not None
        assert (result.rates[0, 0] == result.rates[0, 1]) == (contestant != name)
    bound = OnlineActorCritic().bind("adamw")
    assert comparable(bound) == bound.mdp
    own = dataclasses.replace(bound.mdp, reward={"kind": "loss", "interval": 2, "divergence": 5.0}, initial_rate_decades=1.0)
    assert comparable(dataclasses.replace(bound, mdp=own)) == dataclasses.replace(bound.mdp, reward={"kind": "loss", "interval": 2})
