"""ControllerCallback in real trainings of Lightning, beside plain loops with ControllerLR."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lr_env import MDP, BoundController, ControllerLR
from tests.test_scheduler import ALL_OF_A_LOOP, bind

pl = pytest.importorskip("lightning.pytorch")

from lightning.pytorch.plugins import MixedPrecision  # noqa: E402
from lightning.pytorch.strategies import SingleDeviceStrategy  # noqa: E402

from lr_env.integrations.lightning import ControllerCallback  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    "ignore:The '.*_dataloader' does not have many workers",
    "ignore:.*LeafSpec.* is deprecated:FutureWarning",
)
EPOCHS, BATCHES = 3, 8


def controller() -> BoundController:
    return bind(MDP(optimizer="adamw", features=ALL_OF_A_LOOP, lr_max=0.1))


class Module(pl.LightningModule):  # type: ignore[misc, name-defined]
    def __init__(self, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
        self.options = options

    def loss(self, batch: list[Tensor]) -> Tensor:
        inputs, targets = batch
        return nn.functional.cross_entropy(self.network(inputs), targets)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return self.loss(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-2, **self.options)


class Rates(pl.Callback):  # type: ignore[misc, name-defined]
    """Those that the optimizer stepped with."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_before_zero_grad(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step:
            self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_end(self, trainer: Any, *_: Any) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def batches(size: int = 16) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(1)
    inputs, targets = torch.randn(BATCHES * 16, 4, generator=generator), torch.randint(3, (BATCHES * 16,), generator=generator)
    dataset = TensorDataset(inputs, targets)
    # Lightning's own sampler would shuffle.
    sampler = DistributedSampler(dataset, shuffle=False) if torch.distributed.is_initialized() else None
    return DataLoader(dataset, size, sampler=sampler)


def trainer(callbacks: list[Any], **options: Any) -> Any:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return pl.Trainer(accelerator="cpu", callbacks=callbacks, **{"max_epochs": EPOCHS, **quiet, **options})


def fit(
    module: Module | None = None, callback: Any = None, checkpoint: Path | None = None, size: int = 16, **options: Any
) -> tuple[list[float], Module, Any]:
    """A training with the callback: rates, module and callback."""
    module, rates, callback = module or Module(), Rates(), callback or ControllerCallback(controller())
    trainer([rates, callback, *options.pop("callbacks", [])], **options).fit(module, batches(size), ckpt_path=checkpoint)
    return rates.rates, module, callback


def plain(accumulate: int = 1, clip_norm: float | None = None, dtype: torch.dtype | None = None, scaler: Any = None) -> tuple[list[float], Module]:
    """The same training without Lightning."""
    module = Module()
    optimizer = module.configure_optimizers()
    steps = EPOCHS * BATCHES // accumulate
    controller_lr = ControllerLR(optimizer, controller(), total_steps=steps, clip_norm=clip_norm, scaler=scaler)
    scaler, rates = scaler or torch.amp.GradScaler("cpu", enabled=False), []
    micro_batches = list(batches()) * EPOCHS
    for step in range(steps):
        optimizer.zero_grad()
        for batch in micro_batches[step * accumulate : (step + 1) * accumulate]:
            with torch.autocast("cpu", dtype, enabled=dtype is not None):
                loss = module.loss(batch)
            scaler.scale(loss / accumulate).backward()
            controller_lr.observe(loss)
        controller_lr.step()
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(module.parameters(), clip_norm)
        rates.append(optimizer.param_groups[0]["lr"])
        scaler.step(optimizer)
        scaler.update()
    return rates, module


def assert_same(found: tuple[list[float], Module], expected: tuple[list[float], Module]) -> None:
    assert found[0] == expected[0]
    assert len(set(found[0])) > len(found[0]) // 2
    for one, other in zip(found[1].parameters(), expected[1].parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("options", "loop"),
    [
        ({}, {}),
        ({"accumulate_grad_batches": 2}, {"accumulate": 2}),
        ({"gradient_clip_val": 0.05}, {"clip_norm": 0.05}),
        ({"precision": "bf16-mixed", "gradient_clip_val": 0.05}, {"dtype": torch.bfloat16, "clip_norm": 0.05}),
    ],
    ids=["plain", "accumulated", "clipped", "bfloat16"],
)
def test_the_bits_of_a_plain_loop(options: dict[str, Any], loop: dict[str, Any]) -> None:
    rates, module, callback = fit(**options)
    assert_same((rates, module), plain(**loop))
    assert callback.controller_lr.last_epoch == callback.controller_lr.total_steps == len(rates)


def test_a_scaler_s_gradients_are_seen_unscaled_and_unclipped_and_so_is_the_loss() -> None:
    def scaler() -> torch.amp.GradScaler:
        return torch.amp.GradScaler("cpu", init_scale=2.0**21)  # the first steps overflow

    options: dict[str, Any] = {"plugins": MixedPrecision("16-mixed", "cpu", scaler()), "gradient_clip_val": 0.05, "accumulate_grad_batches": 2}
    rates, module, _ = fit(**options)
    scaled = plain(dtype=torch.float16, scaler=scaler(), clip_norm=0.05, accumulate=2)
    assert_same((rates, module), scaled)
    assert scaled[0][0] == 1e-2  # not observed
    assert scaled[0] != plain(dtype=torch.float16, clip_norm=0.05, accumulate=2)[0]


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_training_that_goes_on_from_a_checkpoint(accumulate: int, tmp_path: Path) -> None:
    """From the end of an epoch, as loaders without a state begin at the first batch."""
    steps = BATCHES // accumulate

    def run(module: Module, checkpoint: Path | None = None) -> list[float]:
        saving = pl.callbacks.ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=steps, save_top_k=-1)
        return fit(module, None, checkpoint, callbacks=[saving], enable_checkpointing=True, accumulate_grad_batches=accumulate)[0]

    module, resumed = Module(), Module()
    nn.init.zeros_(resumed.network[0].weight)
    whole = run(module)
    rest = run(resumed, tmp_path / f"step={steps}.ckpt")
    assert len(rest) == len(whole) - steps + 1  # with that of the step before
    assert_same((whole[: steps - 1] + rest, resumed), (whole, module))
    saved = torch.load(tmp_path / f"step={steps}.ckpt", weights_only=True)["callbacks"]["ControllerCallback"]
    assert saved["last_epoch"] == steps


def test_a_second_training_starts_anew() -> None:
    module, callback = Module(), ControllerCallback(controller())
    counts = []
    for _ in range(2):
        trainer([callback], max_steps=3).fit(module, batches())
        counts.append((callback.controller_lr.last_epoch, callback.controller_lr.total_steps))  # type: ignore[union-attr]
    assert counts == [(3, 3)] * 2


@pytest.mark.filterwarnings("ignore:.*test_dataloader.*", "ignore:Checkpoint directory .* exists and is not empty")
def test_a_checkpoint_after_a_test_holds_the_controller(tmp_path: Path) -> None:
    class Tested(Module):
        def test_step(self, batch: list[Tensor], index: int) -> None:
            self.loss(batch)

    callback = ControllerCallback(controller(), total_steps=2 * BATCHES)
    first = trainer([callback], max_epochs=1)
    first.fit(module := Tested(), batches())
    first.test(module, batches(), verbose=False)
    first.save_checkpoint(tmp_path / "last.ckpt")
    second = ControllerCallback(controller(), total_steps=2 * BATCHES)
    trainer([second], max_epochs=2).fit(Tested(), batches(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert second.controller_lr.last_epoch == 2 * BATCHES  # type: ignore[union-attr]
    trainer([], max_epochs=1).fit(without := Tested(), batches())
    without.trainer.save_checkpoint(tmp_path / "without.ckpt")
    with pytest.warns(UserWarning, match="begins anew"):
        trainer([second], max_epochs=2).fit(Tested(), batches(), ckpt_path=tmp_path / "without.ckpt", weights_only=True)


def test_options_of_controller_lr() -> None:
    callback = fit(callback=ControllerCallback(controller(), initial_rate=0.05, total_steps=100))[2]
    assert callback.controller_lr.total_steps == 100
    assert callback.controller_lr.base_lrs == [1e-2]
    assert callback.controller_lr.mdp.initial_rate == 0.05


class Manual(Module):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class Scheduled(Module):
    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.ConstantLR(optimizer)]


class Sharded(SingleDeviceStrategy):
    """Stands for those that need several devices."""


@pytest.mark.parametrize(
    ("module", "options", "match"),
    [
        (Manual, {}, r"manual optimization.*step\(loss\) between manual_backward\(loss\) and optimizer.step"),
        (Scheduled, {}, "returned a scheduler"),
        (Module, {"gradient_clip_val": 1.0, "gradient_clip_algorithm": "value"}, "'value' was given"),
        (Module, {"max_epochs": -1}, "give max_steps"),
    ],
)
def test_what_can_t_be_controlled_is_refused(module: type[Module], options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        fit(module(), **options)


def test_a_fused_optimizer_with_a_scaler_is_refused() -> None:
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    with pytest.raises(ValueError, match="fused=False"):
        fit(Module(fused=True), plugins=plugin)


def test_sharded_parameters_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer([ControllerCallback(controller())])
    monkeypatch.setattr("lr_env.integrations.lightning.SingleDeviceStrategy", Sharded)
    with pytest.raises(ValueError, match=r"FSDP.*strategy='ddp'"):
        run.fit(Module(), batches())


def test_without_lightning_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    monkeypatch.delitem(sys.modules, "lr_env.integrations.lightning")
    with pytest.raises(ImportError, match=r"pip install 'lr-env\[lightning\]'"):
        importlib.import_module("lr_env.integrations.lightning")


def test_the_package_does_not_import_other_libraries() -> None:
    code = "import sys, lr_env, lr_env.integrations; sys.exit(bool({'lightning', 'transformers', 'accelerate'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)
