"""The training command: every algorithm trains, repeats itself, resumes exactly after a kill, and stops cleanly."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from agents import ONLINE_ENVIRONMENT
from agents.actor_critic import OnlineLearner
from agents.evaluation import _scores
from agents.online_training import OnlineTraining
from agents.train import Training, main
from agents.training_options import TrainingOptions, environment_arguments
from lr_env import ControllerLR, FamilySpecification, RecurrentPolicy, TaskFamily, load_controller, register_task, save_controller
from lr_env.controllers import BoundController
from lr_env.mdp import MDP
from lr_env.seeding import Role, role_seeds
from lr_env.tasks import task_names
from tests.rollouts import tiny_task

ALGORITHMS = ("a2c", "actor-critic", "ddpg", "dpi", "dqn", "ppo", "sac", "td3")
OFF_POLICY = ("learning_starts=64", "batch_size=32", "buffer_size=2000")
HYPERPARAMETERS = {
    "a2c": (),
    "actor-critic": ("actor_starts=5", "truncation=3"),
    "ddpg": ("learning_starts=64", "batch_size=32", "actor_starts=10", "memory_size=2000", "hidden=[16]"),
    "dpi": ("actions=[-0.5, 0, 0.25, 0.5]", "updates=20", "batch_size=16", "hidden=[8]"),
    "ppo": ("n_epochs=2",),
    "dqn": OFF_POLICY,
    **dict.fromkeys(("sac", "td3"), (*OFF_POLICY, 'policy_kwargs={"actor_starts": 3}')),
}
FAMILY = "tiny-family-of-the-training-command"

if FAMILY not in task_names():
    register_task(FAMILY, lambda: TaskFamily(FAMILY, lambda generator: tiny_task(horizon=int(generator.integers(4, 12))), num_variants=2))


def options(folder: Path, algorithm: Any = "ppo", **changes: Any) -> TrainingOptions:
    defaults: dict[str, Any] = {
        "task": "digits-logreg",
        "horizon": 10,
        "num_envs": 8,
        "steps": 400,
        "evaluation_interval": 200,
        "evaluation_trainings": 4,
        "checkpoint_interval": 100,
        "hyperparameters": HYPERPARAMETERS[algorithm],
    }
    return TrainingOptions(algorithm=algorithm, output=folder, **{**defaults, **changes})


class KilledError(Exception):
    """Stands for a kill."""


class KilledTraining(Training):
    """Dies right after its third checkpoint, which is the second between evaluations."""

    saves = 0

    def _save(self) -> None:
        super()._save()
        self.saves += 1
        if self.saves == 3:
            raise KilledError


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_trains_and_resumes_exactly_after_a_kill(algorithm: str, tmp_path: Path) -> None:
    whole = Training(options(tmp_path / "whole", algorithm))
    summary = whole.run()
    assert summary.startswith("Finished")
    with pytest.raises(KilledError):
        KilledTraining(options(tmp_path / "killed", algorithm)).run()
    torch.manual_seed(99)
    np.random.seed(99)
    before = (tmp_path / "killed" / "training.json").read_text()
    resumed = Training(options(tmp_path / "killed", algorithm, resume=True))
    assert 0 < resumed.agent.num_steps_taken < 400
    resumed.run()
    assert resumed.controller_path.read_bytes() == whole.controller_path.read_bytes()
    expected, actual = (json.loads(training.record_path.read_text()) for training in (whole, resumed))
    assert [(entry["steps"], entry["score"]) for entry in actual["history"]] == [(entry["steps"], entry["score"]) for entry in expected["history"]]
    assert len(actual["history"]) >= 2
    assert actual["trainings"] == expected["trainings"]
    assert all(actual[name] > json.loads(before)[name] > 0 for name in ("seconds", "cpu_seconds"))
    last = [training.agent.bind().controller for training in (whole, resumed)]
    assert isinstance(last[0], torch.nn.Module) and isinstance(last[1], torch.nn.Module)
    for first, second in zip(last[0].parameters(), last[1].parameters(), strict=True):
        assert first.equal(second)


def test_other_seeds_give_other_controllers(tmp_path: Path) -> None:
    paths = []
    for seed in (0, 1):
        training = Training(options(tmp_path / str(seed), seed=seed, steps=200))
        training.run()
        paths.append(training.controller_path)
    assert paths[0].read_bytes() != paths[1].read_bytes()


def test_the_result_is_the_best_controller_with_a_record(tmp_path: Path) -> None:
    training = Training(options(tmp_path, algorithm="a2c", steps=800))
    summary = training.run()
    record = json.loads((tmp_path / "training.json").read_text())
    evaluation, best = Training(options(tmp_path / "other", algorithm="a2c", steps=800)).evaluation, load_controller(training.controller_path)
    assert evaluation.run(best).mean == pytest.approx(min(entry["score"] for entry in record["history"]))
    # What is reported is none of what the best was chosen by.
    fresh = evaluation.run(best, Role.REPORT).values
    assert record["trainings"]["controller"] == fresh.tolist() and not set(fresh).intersection(evaluation.run(best).values)
    assert f"by which nothing was chosen: {fresh.mean():+.3f}; that constant rate: {np.mean(record['trainings']['reference']):+.3f}" in summary
    assert record["is_finished"]
    assert record["seconds"] > 0
    assert record["versions"]["torch"] == torch.__version__.split("+")[0] or record["versions"]["torch"] == torch.__version__
    assert MDP(**record["mdp"]) == load_controller(tmp_path / "controller.safetensors").mdp


def test_scores_are_final_losses(tmp_path: Path) -> None:
    """Against a plain loop, with a training that diverges."""
    training = Training(options(tmp_path))
    environment = training.evaluation._environment(MDP(features=["progress"], action="absolute", lr_max=1e6, initial_rate=0.1), 3)
    actions = np.array([[-0.5], [-0.2], [1.0]], np.float32)

    class Fixed:
        def predict(self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> Any:
            return actions, state

    scores = _scores(environment, Fixed(), [5, 6, 7], 0.01)
    environment.reset(seed=[5, 6, 7])
    first = environment.evaluate("train").losses
    for _ in range(10):
        environment.step(actions)
    assert scores.diverged.tolist() == [False, False, True]
    losses = environment.evaluate("train").losses
    np.testing.assert_allclose(scores.values[:2], np.log10(losses[:2] + 0.01 * first[:2]), rtol=1e-6)
    assert scores.values[2] == pytest.approx(np.log10(10.01 * first[2]))


def test_reference_is_the_best_of_the_grid(tmp_path: Path) -> None:
    training = Training(options(tmp_path))
    reference = training.evaluation.tune_reference()
    factors, means = np.array(reference["tuning"]).T
    assert reference["factor"] == pytest.approx(factors[means.argmin()])
    assert factors[4] == pytest.approx(1.0)
    assert factors[[0, -1]] == pytest.approx([0.01, 100])


@pytest.mark.parametrize("changes", [{}, {"paired": True, "num_variants": 3, "num_envs": 6}], ids=["alone", "paired"])
def test_families_are_mixed_in_every_rollout(changes: dict[str, Any], tmp_path: Path) -> None:
    given = options(tmp_path, task=None, family=FAMILY, horizon=None, scale_rewards=True, hyperparameters=(), evaluation_trainings=5)
    given = dataclasses.replace(given, **changes)
    training = Training(given)
    assert len(set(training.environment.episodes.horizons.tolist())) > 1
    mdp = training.environment.mdp
    assert (mdp.action, mdp.reward_on, mdp.reward) == ("residual", "reference", {"kind": "log_loss", "loss_floor": 0.01})
    assert training.evaluation.count == 6  # a multiple of the variants
    training.run()
    whole = training.controller_path.read_bytes()
    with pytest.raises(KilledError):
        KilledTraining(TrainingOptions(**{**vars(given), "output": tmp_path / "killed"})).run()
    resumed = Training(TrainingOptions(**{**vars(given), "output": tmp_path / "killed", "resume": True}))
    resumed.run()
    assert resumed.controller_path.read_bytes() == whole


def test_families_are_given_as_data(tmp_path: Path) -> None:
    specification = {"name": "mine", "data_sets": ["wine"], "width": [4, 8], "batch_size": [4, 16], "horizon": [4, 12], "num_variants": 2}
    given = options(tmp_path, task=None, family=json.dumps(specification), horizon=None, hyperparameters=(), num_envs=4)
    training = Training(given)
    variants = FamilySpecification.from_dict(specification).family().variants
    assert set(training.environment.episodes.horizons) == {task.horizon for task in variants}
    training.run()
    assert json.loads(training.record_path.read_text())["options"]["family"] == given.family
    with pytest.raises(ValueError, match="family="):
        Training(dataclasses.replace(given, family="small", num_envs=None, resume=True))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"kind": "log_loss", "loss_floor": 0.01}),
        ({"loss_floor": 0.1}, {"kind": "log_loss", "loss_floor": 0.1}),
        ({"reward": '{"interval": 4}'}, {"kind": "log_loss", "interval": 4, "loss_floor": 0.01}),
        ({"reward": '{"kind": "log_loss", "loss_floor": 0.2}'}, {"kind": "log_loss", "loss_floor": 0.2}),
        ({"reward": "loss"}, "loss"),
        ({"family": None}, "log_loss"),
    ],
)
def test_families_have_a_floor(changes: dict[str, Any], expected: object) -> None:
    assert environment_arguments(TrainingOptions(**{"family": FAMILY, **changes}))["reward"] == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ("relative", "next_batch")),
        ({"algorithm": "dqn"}, ("discrete", "next_batch")),
        ({"algorithm": "actor-critic"}, ("rate", "same_batch")),
        ({"algorithm": "actor-critic", "family": FAMILY}, ("rate", "same_batch")),
        *(({"algorithm": name}, ("residual", "reference")) for name in ("ddpg", "sac", "td3")),
        ({"algorithm": "td3", "action": "relative", "reward_on": "next_batch"}, ("relative", "next_batch")),
        ({"family": FAMILY}, ("residual", "reference")),
        ({"family": FAMILY, "algorithm": "dqn"}, ("discrete", "reference")),
    ],
)
def test_process_suits_the_algorithm(changes: dict[str, Any], expected: tuple[str, str]) -> None:
    arguments = environment_arguments(TrainingOptions(**changes))
    assert (arguments["action"], arguments["reward_on"]) == expected


def test_hyperparameters_are_overridden(tmp_path: Path) -> None:
    given = options(tmp_path, hyperparameters=("learning_rate=5e-4", '{"n_steps": 5, "batch_size": 8}', 'policy_kwargs={"net_arch": [8]}'))
    training = Training(given)
    chosen = training.hyperparameters
    assert (chosen["learning_rate"], chosen["n_steps"], chosen["batch_size"], chosen["n_epochs"]) == (5e-4, 5, 8, 10)
    assert chosen["policy_kwargs"] == {"net_arch": [8], "log_std_init": -1.0}
    assert training.agent.bind().controller.hidden == (8,)  # type: ignore[attr-defined]


@pytest.mark.parametrize("environment", [("lr_groups=layer",), ("control_momentum=true",), ("horizon=7",)])
def test_what_is_evaluated_is_what_is_trained(environment: tuple[str, ...], tmp_path: Path) -> None:
    training = Training(
        options(tmp_path, steps=80, optimizer="momentum", environment=environment, horizon=None, hyperparameters=("n_steps=1e1", "batch_size=4e1"))
    )
    training.run()
    evaluated = {environment.episodes.horizons.max() for environment in training.evaluation._environments.values()}
    assert evaluated == {training.environment.episodes.horizons.max()}
    assert training.hyperparameters["n_steps"] == 10
    assert training.record["history"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": FAMILY}, "Either task or family"),
        ({"task": "digits-mpl"}, r"Unknown task 'digits-mpl'\. Did you mean 'digits-mlp'"),
        ({"task": FAMILY}, f"Pass --family {FAMILY}"),
        ({"task": None, "family": "digits-logreg"}, "Pass --task digits-logreg"),
        ({"task": None, "family": "{'width': [4, 8]}"}, "family must be JSON"),
        ({"task": None, "family": '{"widht": [4, 8]}'}, "Did you mean 'width'"),
        ({"task": None, "family": FAMILY, "num_envs": 1}, "num_envs must be at least 2"),
        ({"steps": 0}, "steps must be an integer >= 1"),
        ({"num_envs": -1}, "num_envs must be an integer >= 1"),
        ({"seed": -1}, "seed must be an integer >= 0"),
        ({"algorithm": "pppo"}, "Unknown algorithm 'pppo'. Did you mean 'ppo'"),
        ({"features": ("nonsense",)}, "nonsense"),
        ({"action": "discrete", "algorithm": "sac"}, "sac needs continuous actions"),
        ({"action": "relative", "algorithm": "dqn"}, "dqn needs discrete actions"),
        ({"action": "rate"}, r"needs actions in \[-1, 1\]"),
        ({"action": '{"kind": "residual", '}, "action must be JSON"),
        ({"optimizer": "sgdd"}, "Unknown optimizer 'sgdd'"),
        ({"loss_floor": -1.0}, "loss_floor"),
        ({"loss_floor": 0.1, "reward": "loss"}, "The reward 'loss' has no loss_floor, but 0.1 was given"),
        ({"hyperparameters": ("n_step=3",)}, "Unknown hyperparameter of ppo 'n_step'. Did you mean 'n_steps'"),
        ({"hyperparameters": ("n_steps",)}, "given as name=value"),
        ({"hyperparameters": ("discount=2",), "algorithm": "ddpg"}, "discount is out of range"),
        ({"hyperparameters": ("discount=x",), "algorithm": "ddpg"}, "wrong type"),
        ({"hyperparameters": ("discont=2",), "algorithm": "ddpg"}, "Did you mean 'discount'"),
        ({"environment": ("horizonn=3",)}, "Did you mean 'horizon'"),
        ({"environment": ("num_processes=2",)}, "environment can't hold 'num_processes': use the option --num-processes"),
        ({"hyperparameters": ("use_sde=true",)}, "can't be exported"),
        ({"hyperparameters": ("batch_size=1.5",)}, "batch_size must be a whole number, but 1.5"),
        ({"hyperparameters": ("batch_size=0.5",), "algorithm": "ddpg"}, "batch_size must be a whole number, but 0.5"),
        ({"scale_rewards": True, "algorithm": "ddpg", "hyperparameters": ()}, "reward_scale"),
        ({"scale_rewards": True, "algorithm": "actor-critic", "hyperparameters": ()}, "scale_rewards is for Stable-Baselines3"),
        ({"paired": True, "algorithm": "dqn", "hyperparameters": ()}, "paired is for a2c, ppo, sac and td3"),
        ({"num_variants": 3}, "num_variants=3 needs a family"),
        ({"task": None, "family": FAMILY, "num_variants": 3, "num_envs": 4, "paired": True}, "num_envs to be a multiple of the 3 variants"),
        ({"task": None, "family": FAMILY, "num_variants": 5, "num_envs": 4}, "num_envs must be at least 5"),
        ({"action": "relative", "algorithm": "actor-critic", "hyperparameters": ()}, 'action="rate"'),
        ({"hyperparameters": ("discont=0.5",), "algorithm": "actor-critic"}, "hyperparameter of actor-critic 'discont'. Did you mean 'discount'"),
        ({"hyperparameters": ("discount=x",), "algorithm": "actor-critic"}, "wrong type"),
        ({"hyperparameters": ("actions=0.5",), "algorithm": "dpi", "num_envs": None}, "actions must be a list such as .* but 0.5 was given"),
        ({"hyperparameters": ("actions=[0.5]",), "algorithm": "dpi"}, "actions is out of range"),
        ({"hyperparameters": (), "algorithm": "dpi", "num_envs": 8}, "multiple of actions times variants, 9, but 8"),
        ({"hyperparameters": (), "algorithm": "dpi", "num_envs": 9, "action": "relative"}, "must be absolute or residual"),
        ({"hyperparameters": (), "algorithm": "dpi", "num_envs": 9, "scale_rewards": True}, "scale_rewards is for Stable-Baselines3"),
    ],
)
def test_bad_options_are_refused_before_anything_begins(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    given = options(tmp_path / "output")
    with pytest.raises((ValueError, TypeError), match=message):
        Training(TrainingOptions(**{**vars(given), **changes}))
    assert not (tmp_path / "output").exists()


def test_another_training_is_neither_overwritten_nor_resumed(tmp_path: Path) -> None:
    Training(options(tmp_path, steps=80)).run()
    with pytest.raises(ValueError, match="Pass --resume"):
        Training(options(tmp_path))
    with pytest.raises(ValueError, match=r"begun with seed=0\. Resume it with the same"):
        Training(options(tmp_path, resume=True, seed=3))
    longer = Training(options(tmp_path, resume=True, steps=160))
    assert longer.agent.num_steps_taken == 80
    (tmp_path / "checkpoint.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="damaged"):
        Training(options(tmp_path, resume=True))
    (tmp_path / "checkpoint.safetensors").unlink()
    with pytest.raises(ValueError, match=r"training\.json is of a training before, which would be lost"):
        Training(options(tmp_path))


def test_wrong_command_lines_exit_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["--task", "nonsense", "--output", str(tmp_path)])
    assert raised.value.code == 2
    assert "lr-train: Unknown task 'nonsense'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as raised:
        main(["export", str(tmp_path / "missing.zip")])
    assert raised.value.code == 2
    assert "There is no file" in capsys.readouterr().err
    with pytest.raises(SystemExit) as raised:
        main(["export"])
    assert raised.value.code == 2
    assert "required" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_reported_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["--algorithm", "ddpg", "--task", "digits-mlp", "--device", "cuda", "--output", str(tmp_path)])
    assert raised.value.code == 2
    assert "PyTorch finds no GPU" in capsys.readouterr().err


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    Training(options(tmp_path, tensorboard=True, steps=200)).run()
    assert list((tmp_path / "tensorboard" / "evaluation").glob("events*"))
    assert list((tmp_path / "tensorboard").glob("ppo_*/events*"))


@contextmanager
def running(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A training that has written a checkpoint and would go on for minutes; it does not outlive the test."""
    base = ["--task", "digits-logreg", "--horizon", "10", "--num-envs", "8", "--evaluation-trainings", "4", "--evaluation-interval", "400"]
    program = [sys.executable, "-m", "agents.train", *base, "--steps", "400000", "--output", str(folder), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, start_new_session=True) as process:
        try:
            deadline = time.monotonic() + 600
            while not (folder / "checkpoint.safetensors").exists() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_killed_process_resumes_to_the_same_bytes(algorithm: str, tmp_path: Path) -> None:
    # How much DQN explores depends on how many steps are planned, which are others here before and after the kill.
    of_algorithm = {"dqn": ("exploration_initial_eps=0.1", "exploration_final_eps=0.1"), "dpi": HYPERPARAMETERS["dpi"]}
    hyperparameters = of_algorithm.get(algorithm, ())
    with running(tmp_path / "killed", "--algorithm", algorithm, *(["--hyperparameters", *hyperparameters] if hyperparameters else [])) as process:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL, "the training ended by itself"
    plan: dict[str, Any] = {"evaluation_interval": 400, "hyperparameters": hyperparameters, "checkpoint_interval": 100_000}
    resumed = Training(options(tmp_path / "killed", algorithm, resume=True, steps=100, **plan))
    target = resumed.agent.num_steps_taken + 800
    resumed = Training(options(tmp_path / "killed", algorithm, resume=True, steps=target, **plan))
    resumed.run()
    whole = Training(options(tmp_path / "whole", algorithm, steps=target, **plan))
    whole.run()
    assert resumed.controller_path.read_bytes() == whole.controller_path.read_bytes()


def test_interrupt_stops_cleanly_with_a_result(tmp_path: Path) -> None:
    with running(tmp_path, "--num-processes", "2") as process:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors.decode()
    assert "Stopped; --resume continues" in output.decode()
    record = json.loads((tmp_path / "training.json").read_text())
    assert not record["is_finished"]
    assert record["steps"] > 0
    assert load_controller(tmp_path / "controller.safetensors").mdp == MDP()


def test_interrupted_before_the_first_evaluation(tmp_path: Path) -> None:
    """The present controller is the result, but does not count as evaluated."""
    training = Training(options(tmp_path, evaluation_interval=10_000))
    training._is_stopping = True
    training.run()
    expected = tmp_path / "expected.safetensors"
    save_controller(expected, training.agent.bind())
    assert training.controller_path.read_bytes() == expected.read_bytes()
    assert json.loads(training.record_path.read_text())["history"] == []
    resumed = Training(options(tmp_path, evaluation_interval=10_000, resume=True))
    resumed.run()
    assert len(resumed.record["history"]) == 1


def test_exported_model_acts_as_sb3_s(tmp_path: Path) -> None:
    training = Training(options(tmp_path, algorithm="sac", steps=120))
    training.run()
    model: Any = training.agent.model  # type: ignore[attr-defined]
    model.save(tmp_path / "model.zip")
    main(["export", str(tmp_path / "model.zip"), "--algorithm", "sac"])
    bound = load_controller(tmp_path / "model.safetensors")
    assert isinstance(bound, BoundController)
    observations = np.random.default_rng(0).uniform(-10, 10, (50, 10)).astype(np.float32)
    np.testing.assert_allclose(bound.controller.predict(observations)[0], model.predict(observations, deterministic=True)[0], atol=1e-6)
    with pytest.raises(SystemExit):
        main(["export", str(tmp_path / "model.zip"), "--algorithm", "sac", "--features", "absolute"])


def test_the_online_actor_critic_goes_on_from_training_to_training(tmp_path: Path) -> None:
    """One training after another, as Algorithm 1 written out by a learner of one training; the result is the actor, and works in a loop."""
    training = Training(options(tmp_path, "actor-critic", num_envs=1, steps=25, evaluation_interval=25, evaluation_trainings=2))
    assert training.environment.num_envs == 1
    agent = training.agent
    assert isinstance(agent, OnlineTraining)
    environment = gym.make("LearningRate-v0", task="digits-logreg", horizon=10, **ONLINE_ENVIRONMENT)
    [seed] = role_seeds(0, Role.TRAIN, 1)
    alone = OnlineLearner(1, training.environment.mdp.rate_range(), agent.config, np.random.SeedSequence([0]))
    observation, info = environment.reset(seed=seed)
    is_first = True
    for _ in range(25):
        rate = alone.act_all(observation[None], np.array([is_first]))[0]
        loss = info["loss"]
        observation, reward, terminated, truncated, info = environment.step(np.array([rate]))
        is_first = terminated or truncated
        if is_first:
            observation, info = environment.reset()
        else:
            alone.learn(float(reward), np.array([loss - reward]), observation)
    training.run()
    for expected, found in zip(alone.actor.parameters(), agent.learner.actor.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    bound = load_controller(training.controller_path)
    assert isinstance(bound.controller, RecurrentPolicy)
    weights = torch.nn.Parameter(torch.ones(3))
    controller = ControllerLR(torch.optim.SGD([weights], 0.1), training.controller_path, total_steps=10)
    expected_rates, state = [], None
    for loss in (2.0, 1.5, 1.0):
        rate, state = bound.controller.predict(np.array([[loss]]), state)
        expected_rates.append(float(rate[0, 0]))
        weights.grad = torch.ones(3)
        controller.step(loss)
        assert controller.get_last_lr()[0] == pytest.approx(expected_rates[-1])


def test_actor_critics_of_a_family_share_one_actor(tmp_path: Path) -> None:
    given = options(tmp_path, "actor-critic", task=None, family=FAMILY, horizon=None, num_envs=None, evaluation_trainings=2)
    training = Training(given)
    assert training.environment.num_envs == 2
    training.run()
    assert isinstance(load_controller(training.controller_path).controller, RecurrentPolicy)
