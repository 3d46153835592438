"""ControllerTrainer in real trainings of Transformers, beside plain loops with ControllerLR."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lr_env import MDP, BoundController, ControllerLR
from tests.test_scheduler import ALL_OF_A_LOOP, Case, bind

transformers = pytest.importorskip("transformers")

from accelerate.state import AcceleratorState  # noqa: E402
from transformers import GPT2Config, GPT2LMHeadModel, TrainerCallback, TrainingArguments  # noqa: E402

from lr_env.integrations.hugging_face import ControllerTrainer, _unscaled  # noqa: E402

STEPS = 10


def controller() -> BoundController:
    return bind(MDP(optimizer="adamw", features=ALL_OF_A_LOOP, lr_max=0.1))


class Classifier(nn.Module):
    """A model that is not given the number of labels in a step."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.network(inputs)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def language_model() -> Any:
    sizes = {"vocab_size": 16, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(**sizes, **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)))


def make(kind: str) -> tuple[nn.Module, list[dict[str, Tensor]]]:
    """A model and its data."""
    torch.manual_seed(0)
    if kind == "classifier":
        return Classifier(), [{"inputs": torch.randn(4), "labels": torch.randint(3, ())} for _ in range(64)]
    examples = [torch.randint(16, (8,)) for _ in range(64)]
    # Some labels count only, so that micro-batches have unequal numbers of them; the first, which is no label, never.
    counts = torch.rand(64, 8) < torch.tensor([0.0, *[0.5] * 7])
    return language_model(), [{"input_ids": each, "labels": each.where(which, -100)} for each, which in zip(examples, counts, strict=True)]


class Rates(TrainerCallback):  # type: ignore[misc]
    """Those that the optimizer stepped with."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self.rates.append(given["optimizer"].param_groups[0]["lr"])


class Run:
    """A training with a ControllerTrainer, and what its model was given."""

    def __init__(
        self, folder: Path, kind: str = "classifier", trainer_class: Any = ControllerTrainer, trainer_options: Any = None, **options: Any
    ) -> None:
        self.model, data = make(kind)
        defaults = {"max_steps": STEPS, "learning_rate": 1e-2, "save_strategy": "no", "max_grad_norm": 0.0, "per_device_train_batch_size": 4}
        quiet = {"report_to": "none", "disable_tqdm": True, "use_cpu": True}
        self.arguments = TrainingArguments(str(folder), **{**quiet, **defaults, **options})
        self.callback, self.given = Rates(), []
        given = {"controller": controller(), **(trainer_options or {})}
        self.trainer = trainer_class(self.model, self.arguments, train_dataset=data, callbacks=[self.callback], **given)

    def train(self, checkpoint: Path | None = None) -> list[float]:
        self.model.register_forward_pre_hook(lambda _, __, inputs: self.given.append(inputs), with_kwargs=True)
        self.trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        return self.callback.rates

    def plain(self, kind: str = "classifier", dtype: torch.dtype | None = None, scaler: Any = None) -> tuple[list[float], nn.Module]:
        """The same training without the trainer: rates and model."""
        arguments, clip_norm = self.arguments, self.arguments.max_grad_norm or None
        model, _ = make(kind)
        optimizer = ControllerTrainer(model, arguments, controller=controller()).create_optimizer()
        controller_lr = ControllerLR(optimizer, controller(), total_steps=STEPS, clip_norm=clip_norm, scaler=scaler)
        scaler, rates = scaler or torch.amp.GradScaler("cpu", enabled=False), []
        accumulate = arguments.gradient_accumulation_steps
        for step in range(STEPS):
            optimizer.zero_grad()
            total = torch.zeros(())
            window = self.given[step * accumulate : (step + 1) * accumulate]
            for inputs in window:
                with torch.autocast("cpu", dtype, enabled=dtype is not None):
                    loss = model(**inputs)["loss"] / (1 if kind == "language model" else accumulate)
                scaler.scale(loss).backward()
                total += loss.detach()
            torch.testing.assert_close(total, mean_loss(model, window, dtype), rtol=1e-4 if dtype is None else 2e-2, atol=0)
            controller_lr.step(total)
            if clip_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
            rates.append(optimizer.param_groups[0]["lr"])
            scaler.step(optimizer)
            scaler.update()
        return rates, model


def mean_loss(model: nn.Module, window: list[dict[str, Any]], dtype: torch.dtype | None) -> Tensor:
    """The mean over all labels of a step."""
    losses = []
    with torch.no_grad():
        for inputs in window:
            logits, labels = model(**inputs)["logits"], inputs["labels"]
            if logits.ndim == 3:
                logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
            losses.append(nn.functional.cross_entropy(logits, labels, reduction="none")[labels != -100])
    return torch.cat(losses).mean()


def assert_same(rates: list[float], model: nn.Module, expected: tuple[list[float], nn.Module]) -> None:
    assert rates == expected[0]
    assert len(set(rates)) > len(rates) // 2
    for one, other in zip(model.parameters(), expected[1].parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", ["classifier", "language model"])
@pytest.mark.parametrize(
    ("options", "loop"),
    [
        ({}, {}),
        ({"gradient_accumulation_steps": 2, "max_grad_norm": 0.05, "weight_decay": 0.1}, {}),
        ({"bf16": True, "max_grad_norm": 0.05}, {"dtype": torch.bfloat16}),
    ],
    ids=["plain", "accumulated and clipped", "bfloat16"],
)
def test_the_bits_of_a_plain_loop(kind: str, options: dict[str, Any], loop: dict[str, Any], tmp_path: Path) -> None:
    run = Run(tmp_path, kind, **options)
    assert_same(run.train(), run.model, run.plain(kind, **loop))
    assert run.trainer.controller_lr.last_epoch == run.trainer.controller_lr.total_steps == STEPS
    assert run.trainer.lr_scheduler is run.trainer.controller_lr


def test_a_scaler_s_gradients_are_seen_unscaled_and_unclipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer takes fp16 on accelerators only, so its accelerator is told here."""

    def scaler() -> torch.amp.GradScaler:
        return torch.amp.GradScaler("cpu", init_scale=2.0**21)  # the first steps overflow

    run = Run(tmp_path, max_grad_norm=0.05, gradient_accumulation_steps=2)
    run.trainer.accelerator.scaler, run.trainer.accelerator.native_amp = scaler(), True
    with monkeypatch.context() as patches:
        patches.setattr(AcceleratorState, "mixed_precision", "fp16")
        rates = run.train()
    assert run.trainer.accelerator.scaler.get_scale() < 2.0**21
    assert rates[0] == 1e-2  # not observed
    assert_same(rates, run.model, run.plain(dtype=torch.float16, scaler=scaler()))


def test_gradients_of_a_return_are_scaled_again() -> None:
    case = Case(action=0.0, circuit_breaker=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(()))  # makes its scale
    for spoilt in (0.0, 0.0, 100.0):
        loss = case.loss()
        expected = [parameter.grad.clone() for parameter in case.model.parameters()]  # type: ignore[union-attr]
        for parameter in case.model.parameters():
            parameter.grad.mul_(1024)  # type: ignore[union-attr]
        with _unscaled(case.optimizer, scaler):
            case.controller.step(loss + spoilt)
    assert case.controller.returns == 1
    for parameter, gradient in zip(case.model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, 1024 * gradient)


def test_a_training_that_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    """From one in the middle of an epoch."""
    runs = [Run(tmp_path, "language model", save_strategy="steps", save_steps=3, gradient_accumulation_steps=2) for _ in range(2)]
    whole = runs[0].train()
    nn.init.zeros_(runs[1].model.transformer.wte.weight)  # type: ignore[union-attr, arg-type]
    rest = runs[1].train(tmp_path / "checkpoint-3")
    assert len(rest) == STEPS - 3
    assert_same(whole[:3] + rest, runs[1].model, (whole, runs[0].model))
    assert torch.load(tmp_path / "checkpoint-3" / "scheduler.pt", weights_only=True)["last_epoch"] == 3


def test_the_logged_rate_and_options_of_controller_lr(tmp_path: Path) -> None:
    run = Run(tmp_path, logging_steps=1, trainer_options={"controller_options": {"initial_rate": 0.05, "total_steps": 100}})
    rates = run.train()
    assert [entry["learning_rate"] for entry in run.trainer.state.log_history if "learning_rate" in entry] == rates
    assert run.trainer.controller_lr.total_steps == 100
    assert run.trainer.controller_lr.mdp.initial_rate == 0.05


def test_a_second_training_begins_at_the_first_rate(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.train()
    assert run.trainer.optimizer.param_groups[0]["lr"] != 1e-2
    run.trainer.train()
    assert run.trainer.controller_lr.mdp.initial_rate == 1e-2


def test_with_a_trainer_of_another_class_and_an_optimizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses: list[float] = []

    class Doubled(transformers.Trainer):  # type: ignore[misc, name-defined]
        def compute_loss(self, *args: Any, **kwargs: Any) -> Tensor:
            loss: Tensor = super().compute_loss(*args, **kwargs)
            losses.append(2 * loss.item())
            return 2 * loss

    class Controlled(ControllerTrainer, Doubled):
        pass

    seen: list[float] = []
    run = Run(tmp_path, trainer_class=Controlled)
    run.trainer.optimizer = torch.optim.AdamW(run.model.parameters(), 0.03)
    original = ControllerLR.step

    def step(self: ControllerLR, loss: Any = None) -> None:
        if loss is not None:
            seen.append(float(loss))
        original(self, loss)

    monkeypatch.setattr(ControllerLR, "step", step)
    run.train()
    assert seen == losses
    assert run.trainer.controller_lr.base_lrs == [0.03]


def test_a_scheduler_beside_it_is_refused(tmp_path: Path) -> None:
    model, _ = make("classifier")
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    with pytest.raises(ValueError, match=r"optimizers=\(optimizer, None\)"):
        Run(tmp_path, trainer_options={"optimizers": (optimizer, scheduler)})


@pytest.mark.parametrize("kind", ["fsdp", "deepspeed"])
def test_sharded_parameters_are_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create = transformers.Trainer.create_accelerator_and_postprocess

    def postprocess(self: Any) -> None:
        create(self)
        setattr(self, f"is_{kind}_enabled", True)

    monkeypatch.setattr(transformers.Trainer, "create_accelerator_and_postprocess", postprocess)
    with pytest.raises(ValueError, match="FSDP or DeepSpeed"):
        Run(tmp_path)


def test_without_transformers_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "lr_env.integrations.hugging_face")
    with pytest.raises(ImportError, match=r"pip install 'lr-env\[huggingface\]'"):
        importlib.import_module("lr_env.integrations.hugging_face")
