"""A controller as a callback of Lightning."""

from __future__ import annotations

import os
import warnings
from typing import Any

import torch
from torch import Tensor

from lr_env.controllers import BoundController
from lr_env.scheduler import ControllerLR

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
    from lightning.pytorch.utilities import GradClipAlgorithmType
except ImportError as error:
    raise ImportError("lr_env.integrations.lightning needs Lightning: pip install 'lr-env[lightning]'.") from error


class ControllerCallback(Callback):
    """Sets the rates of the optimizer that ``configure_optimizers`` returns; see :class:`lr_env.ControllerLR`.

    As in::

        trainer = Trainer(max_epochs=10, callbacks=[ControllerCallback("controller.safetensors")])
        trainer.fit(module, loader)

    - **Gradient.** Of the whole step, as it is before clipping: micro-batches accumulated, ranks averaged, unscaled by the ``GradScaler``. The
      trainer's ``gradient_clip_val`` counts as ``clip_norm``; whoever overrides ``configure_gradient_clipping`` gives ``clip_norm`` here.
    - **Loss.** What ``training_step`` returns: not divided by ``accumulate_grad_batches``, not scaled, the mean over the step's micro-batches and
      over ranks.
    - **Checkpoints** of the trainer hold the controller's state; ``fit(ckpt_path=…)`` goes on from there.

    Args:
        controller: As ``ControllerLR`` takes it.
        **options: Further arguments of ``ControllerLR``. ``total_steps`` is the trainer's ``estimated_stepping_batches`` unless it is given.

    Attributes:
        controller_lr: The ``ControllerLR`` of the training; None before ``fit``.
    """

    def __init__(self, controller: BoundController | str | os.PathLike[str], **options: Any) -> None:
        self._controller, self._options = controller, options
        self._saved: dict[str, Any] | None = None
        self.controller_lr: ControllerLR | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forgets the last training; a checkpoint is loaded after this."""
        if stage == "fit":
            self._saved = self.controller_lr = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the optimizer.

        Raises:
            ValueError: If the training is one that can't be controlled, or ``ControllerLR`` refuses its arguments.
        """
        _refuse(trainer, pl_module)
        optimizer = trainer.optimizers[0]
        if self._scaler(trainer) is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            raise ValueError("ControllerCallback can't see the gradients that a fused optimizer unscales by itself: give fused=False, or bf16-mixed.")
        if trainer.gradient_clip_val and trainer.gradient_clip_algorithm == GradClipAlgorithmType.VALUE:
            raise ValueError("ControllerCallback knows gradient_clip_algorithm='norm' only, but 'value' was given.")
        options = {"clip_norm": trainer.gradient_clip_val or None, **self._options}
        if "total_steps" not in options:
            options["total_steps"] = trainer.estimated_stepping_batches
            if not 0 < options["total_steps"] < float("inf"):
                raise ValueError("The trainer does not know how many steps it will make: give max_steps to it, or total_steps to ControllerCallback.")
        self.controller_lr = ControllerLR(optimizer, self._controller, **options)
        if self._saved is not None:
            self.controller_lr.load_state_dict(self._saved)
        elif trainer.ckpt_path is not None:
            warnings.warn("The checkpoint holds no state of ControllerCallback: the controller begins anew.", UserWarning, stacklevel=2)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Takes in the loss of a micro-batch, which arrives divided and scaled."""
        assert self.controller_lr is not None
        scaler = self._scaler(trainer)
        undivided = loss.detach() * trainer.accumulate_grad_batches
        self.controller_lr.observe(undivided if scaler is None else undivided / scaler.get_scale())

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer) -> None:
        """Sets the rates; clipping follows."""
        assert self.controller_lr is not None
        self.controller_lr.step()

    def state_dict(self) -> dict[str, Any]:
        """The controller's, for the trainer's checkpoints."""
        return {} if self.controller_lr is None else self.controller_lr.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the state until the optimizer is there."""
        self._saved = state_dict

    def _scaler(self, trainer: Trainer) -> torch.amp.GradScaler | None:
        return getattr(trainer.precision_plugin, "scaler", None)


def _refuse(trainer: Trainer, module: LightningModule) -> None:
    if not isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):
        raise ValueError(
            f"ControllerCallback works on one device and with DistributedDataParallel, but the strategy is {type(trainer.strategy).__name__}. Where "
            "parameters are sharded (FSDP, DeepSpeed, model parallelism) each process sees only a part of the gradient: give strategy='ddp'."
        )
    if not module.automatic_optimization:
        raise ValueError(
            "ControllerCallback can't tell which loss and gradient belong to a step of manual optimization: make a lr_env.ControllerLR in "
            "configure_optimizers, and call its step(loss) between manual_backward(loss) and optimizer.step()."
        )
    if trainer.lr_scheduler_configs:
        raise ValueError(
            "configure_optimizers returned a scheduler, whose rates ControllerCallback would overwrite: return the optimizer alone, or leave "
            "ControllerCallback out."
        )
