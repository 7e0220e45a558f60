"""Learning-rate schedules: linear warm-up, then a constant rate, or linear or cosine decay to zero."""

import math


def _warmed(decay):
    def factor(step, warmup, total):
        if step < warmup:
            return (step + 1) / warmup
        return decay(min(1.0, (step - warmup) / max(1, total - warmup)))

    return factor


# Name of ``lr_scheduler`` to ``(step, warmup steps, total steps) -> factor`` of the learning rate.
SCHEDULES = {
    "none": _warmed(lambda progress: 1.0),
    "linear": _warmed(lambda progress: 1.0 - progress),
    "cosine": _warmed(lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress))),
}
