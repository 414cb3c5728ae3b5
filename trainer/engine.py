"""The DeepSpeed engine: its configuration, its start, and plain weights out of it."""

import argparse
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from modeling.retriever import Retriever
from trainer.ranks import Ranks
from trainer.settings import EngineSettings, OptimizerSettings

UNIVERSAL = "universal"


def deepspeed_config(settings: EngineSettings, *, universal: bool = False) -> dict[str, Any]:
    """DeepSpeed's configuration; every value that matters is written out, because defaults moved between releases.

    Args:
        universal: whether the engine is to load a checkpoint in DeepSpeed's universal form.
    """
    return {
        # Batches are cut by events, not rows; DeepSpeed only needs a number that is consistent.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": settings.gradient_accumulation,
        "gradient_clipping": settings.gradient_clipping,
        "zero_optimization": {"stage": settings.zero_stage},
        "bf16": {"enabled": settings.precision == "bf16"},
        "zero_allow_untested_optimizer": True,
        # Stage 0 has no shards: every rank has all, and any number of ranks can load it as it is.
        "checkpoint": {"load_universal": universal and settings.zero_stage > 0},
        "steps_per_print": 2**31 - 1,
        "wall_clock_breakdown": False,
    }


def learning_rate_factor(settings: OptimizerSettings, total_steps: int) -> Callable[[int], float]:
    """Share of the peak learning rate at each optimiser step, as a pure function of the step.

    Linear from 1/warmup_steps over the warm-up, then constant, or falling to `final_share` at
    `total_steps` along a line or half a cosine.
    """

    def factor(step: int) -> float:
        if step < settings.warmup_steps:
            return (step + 1) / settings.warmup_steps
        if settings.decay == "constant":
            return 1.0
        done = (step - settings.warmup_steps) / max(1, total_steps - settings.warmup_steps)
        done = min(1.0, max(0.0, done))
        left = 1 - done if settings.decay == "linear" else 0.5 * (1 + math.cos(math.pi * done))
        return settings.final_share + (1 - settings.final_share) * left

    return factor


def start_engine(
    retriever: Retriever,
    engine: EngineSettings,
    optimizer: OptimizerSettings,
    *,
    total_steps: int,
    universal: bool = False,
) -> Any:
    """Hand the retriever to DeepSpeed; needs the process group that Ray Train has set up.

    Args:
        universal: whether `load_engine` will load what another number of workers wrote.
    """
    deepspeed = _import_deepspeed(compiled_ops=engine.compiled_ops)
    adam = torch.optim.AdamW(
        [parameter for parameter in retriever.parameters() if parameter.requires_grad],
        lr=optimizer.learning_rate,
        betas=(optimizer.beta1, optimizer.beta2),
        weight_decay=optimizer.weight_decay,
        fused=True,  # one pass over the weights; a seventh of the time on a CPU
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, learning_rate_factor(optimizer, total_steps))
    started, _, _, _ = deepspeed.initialize(
        model=retriever, optimizer=adam, lr_scheduler=schedule, config=deepspeed_config(engine, universal=universal)
    )
    return started


def load_engine(engine: Any, directory: Path, tag: str, ranks: Ranks, *, written_by: int) -> None:
    """Load weights, optimiser and schedule from `directory / tag`. A collective.

    ZeRO's shards fit only as many workers as wrote them. For others rank 0 converts them to
    DeepSpeed's universal form, once, beside the shards: in the run's directory, which all nodes share.

    Args:
        written_by: workers that wrote it.
    """
    if written_by != ranks.world and engine.zero_optimization_stage():
        converted = directory / UNIVERSAL
        if ranks.rank == 0 and not converted.exists():
            _convert(directory / tag, converted / tag)
        ranks.all(True)  # it stands
        directory = converted
    engine.load_checkpoint(str(directory), tag=tag)


def _convert(shards: Path, universal: Path) -> None:
    """Write the universal form aside, then give it its name."""
    from deepspeed.checkpoint import ds_to_universal  # after `start_engine`, which sets what its import reads

    with tempfile.TemporaryDirectory(dir=shards.parent, prefix=f".{UNIVERSAL}-") as aside:
        ds_to_universal.main(
            argparse.Namespace(
                input_folder=str(shards),
                output_folder=str(Path(aside, UNIVERSAL, universal.name)),
                num_extract_workers=1,
                num_merge_workers=1,
                keep_temp_folder=False,
                strict=True,
                inject_missing_state=True,  # of a plain PyTorch model there are no notes for the conversion
            )
        )
        Path(aside, UNIVERSAL).rename(universal.parent)


def _import_deepspeed(*, compiled_ops: bool) -> Any:
    """DeepSpeed, told before its import which accelerator there is: it reads the environment then."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed  # after the environment is set
    from deepspeed.ops import __compatible_ops__

    if not compiled_ops:
        # Otherwise the first start compiles for a minute, and a killed build blocks all later ones.
        __compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.utils.logger.setLevel("WARNING")
    return deepspeed


def plain_weights(engine: Any) -> dict[str, torch.Tensor]:
    """The retriever's whole weights on every rank, as fp32 CPU copies. A collective under ZeRO-3.

    What is evaluated and exported is this copy, so both see the same numbers under every stage.
    """
    import deepspeed  # after `start_engine`, which sets what its import reads

    parameters = dict(engine.module.named_parameters())
    with deepspeed.zero.GatheredParameters(list(parameters.values()), enabled=engine.zero_optimization_stage() == 3):
        kept = {**parameters, **_saved_buffers(engine.module)}
        return {name: value.detach().to("cpu", torch.float32, copy=True) for name, value in kept.items()}


def _saved_buffers(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    saved = module.state_dict().keys()
    return {name: value for name, value in module.named_buffers() if name in saved}


def gradient_norm(engine: Any) -> float:
    """Global gradient norm before clipping; called between `engine.backward` and `engine.step`.

    ZeRO stages split gradients over ranks and keep the norm of the last optimiser step themselves;
    NaN before the first one.
    """
    if engine.zero_optimization_stage():
        kept = engine.get_global_grad_norm()
        return math.nan if kept is None else float(kept)
    gradients = [parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients))
