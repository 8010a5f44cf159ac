"""Schedules are numbers computed from progress, never mutated configs."""

from __future__ import annotations

from saebench.config import SparsityConfig, TrainConfig

STAIRS = 8  # a schedule of k moves in at most this many steps


def lr_factor(cfg: TrainConfig, step: int, steps: int) -> float:
    """Factor of the learning rate at `step` of `steps`: rises linearly over cfg.warmup, falls linearly to 0 over cfg.decay."""
    rise, fall = cfg.warmup * steps, cfg.decay * steps
    up = (step + 1) / rise if step + 1 < rise else 1.0
    down = (steps - step) / fall if steps - step < fall else 1.0
    return min(up, down)


def sparsity_factor(cfg: SparsityConfig, step: int, steps: int) -> float:
    """Factor of the sparsity knob: from cfg.start to 1 over the first cfg.fraction of the steps, in at most STAIRS stairs."""
    length = cfg.fraction * steps
    if step >= length:
        return 1.0
    stair = int(step / length * STAIRS) / STAIRS
    return cfg.start + (1.0 - cfg.start) * stair
