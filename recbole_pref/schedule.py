"""Learning-rate schedules: linear warm-up, then a constant rate, or linear or cosine decay to zero."""

import math
from collections.abc import Callable

Schedule = Callable[[int, int, int], float]


def _warmed(decay: Callable[[float], float]) -> Schedule:
    def factor(step: int, warmup: int, total: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return decay(min(1.0, (step - warmup) / max(1, total - warmup)))

    return factor


# Name of ``lr_scheduler`` to ``(step, warmup steps, total steps) -> factor`` of the learning rate.
SCHEDULES: dict[str, Schedule] = {
    "none": _warmed(lambda progress: 1.0),
    "linear": _warmed(lambda progress: 1.0 - progress),
    "cosine": _warmed(lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress))),
}
