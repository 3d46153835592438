"""The integrations in two processes, which set the rates of one."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed
import torch.multiprocessing

pytest.importorskip("lightning.pytorch")
pytest.importorskip("transformers")

from tests import test_hugging_face, test_lightning


def lightning(folder: Path, size: int, **options: Any) -> list[float]:
    rates, *_ = test_lightning.fit(size=size, accumulate_grad_batches=2, gradient_clip_val=0.05, max_epochs=1, **options)
    return rates


def hugging_face(folder: Path, size: int) -> list[float]:
    """Where labels are counted over all processes."""
    options = {
        "gradient_accumulation_steps": 2,
        "max_grad_norm": 0.05,
        "max_steps": 4,
        "per_device_train_batch_size": size,
        "train_sampling_strategy": "sequential",
    }
    return test_hugging_face.Run(folder, "language model", **options).train()


def _train(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", GROUP_RANK="0", TORCHELASTIC_RUN_ID="none")
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    rates = {"lightning": lightning(Path(folder), 8, strategy="ddp", devices=2), "hugging_face": hugging_face(Path(folder), 4)}
    torch.save(rates, f"{folder}/{rank}.pt")


@test_lightning.pytestmark
def test_two_processes_set_the_rates_of_one(tmp_path: Path) -> None:
    multiprocessing.set_forkserver_preload([__name__])
    torch.multiprocessing.start_processes(_train, (str(tmp_path),), nprocs=2, start_method="forkserver")
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first == second
    alone = {"lightning": lightning(tmp_path, 16), "hugging_face": hugging_face(tmp_path, 8)}
    for library, rates in alone.items():
        assert len(set(rates)) == len(rates) == 4
        np.testing.assert_allclose(first[library], rates, rtol=2e-3)
