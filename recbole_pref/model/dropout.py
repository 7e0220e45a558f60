"""Dropout whose random bits cost an eighth on a CPU.

On the CPU PyTorch's dropout draws one number per element sequentially, which took a fifth of a SASRec epoch.
Here one 64-bit number serves four elements. On other devices and in evaluation PyTorch's dropout runs.
"""

from typing import Any

import torch
from torch import nn

_STEPS = 2**16  # a probability is rounded to this many steps: an error of at most 0.000008


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, keep: torch.Tensor, scale: float) -> torch.Tensor:
        ctx.save_for_backward(keep)
        ctx.scale = scale
        return (values * scale).mul_(keep)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (keep,) = ctx.saved_tensors
        return (grad * ctx.scale).mul_(keep), None, None


def drop(values: torch.Tensor, p: float) -> torch.Tensor:
    """Set each element to 0 with probability p and scale the others by 1 / (1 - p).

    Both use p rounded to a multiple of 2^-16, so the mean is preserved exactly.

    Args:
        values: any shape, on the CPU.
        p: in [0, 1).

    Returns:
        Tensor: like ``values``. The bits come from torch's global generator.
    """
    words = torch.empty(-(-values.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    bits = words.view(torch.int16)[: values.numel()].view(values.shape)  # uniform in [-2^15, 2^15)
    dropped = min(round(p * _STEPS), _STEPS - 1)
    return _Drop.apply(values, bits >= dropped - _STEPS // 2, _STEPS / (_STEPS - dropped))


class Dropout(nn.Dropout):
    """``torch.nn.Dropout`` that uses :func:`drop` when it is faster."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return ``values`` with elements dropped in training mode."""
        if not self.training or not 0 < self.p < 1 or values.device.type != "cpu":
            return super().forward(values)
        return drop(values, self.p)


def use_fast_dropout(model: nn.Module) -> None:
    """Replace every ``torch.nn.Dropout`` inside a model; dropout has no parameters, so checkpoints do not change.

    Args:
        model: changed in place.
    """
    for module in model.modules():
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, Dropout(child.p).train(child.training))
