"""The retriever on a GPU gives what it gives on a CPU."""

import copy

import numpy as np
import pytest
import torch

from data.batch import Batch
from modeling.build import build_retriever
from modeling.settings import ModelSettings
from tests.test_modeling_encoder import ENCODERS, histories

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device on this machine")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("encoder", ENCODERS)
def test_loss_gradients_and_vectors_on_a_gpu_equal_those_on_a_cpu(encoder: object) -> None:
    torch.manual_seed(0)
    settings = ModelSettings(width=8, max_events=6, dropout=0.0, encoder=encoder, use_actions=True)  # type: ignore[arg-type]
    on_cpu = build_retriever(settings, num_rows=30, num_actions=3, train_counts=np.ones(30, np.int64))
    on_gpu = copy.deepcopy(on_cpu).cuda()
    batch = histories([6, 3, 5])
    batch["targets_BL"] = batch["items_BL"].clone()
    moved = Batch(**{name: value.cuda() for name, value in batch.items()})  # type: ignore[typeddict-item, attr-defined]
    # Negatives are drawn on the CPU, so that equal generators draw equal items on every device.
    losses = [
        model(given, torch.Generator().manual_seed(1))["loss"] for model, given in ((on_cpu, batch), (on_gpu, moved))
    ]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(losses[1].cpu(), losses[0], atol=1e-4, rtol=1e-4)
    for (name, here), there in zip(on_cpu.named_parameters(), on_gpu.parameters(), strict=True):
        assert here.grad is not None
        assert there.grad is not None
        torch.testing.assert_close(there.grad.cpu(), here.grad, atol=1e-3, rtol=1e-3, msg=name)
    torch.testing.assert_close(on_gpu.query_vectors(moved).cpu(), on_cpu.query_vectors(batch), atol=1e-4, rtol=1e-4)
