"""Dropout whose random bits cost an eighth on a CPU.

PyTorch's dropout draws one number per element on the CPU, one after another, which was a fifth of a SASRec
epoch. Here one 64-bit number serves four elements. On other devices, and in evaluation, PyTorch's own runs.
"""

import torch
from torch import nn

_STEPS = 2**16  # a probability is rounded to this many steps: an error of at most 0.000008


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, keep, scale):
        ctx.save_for_backward(keep)
        ctx.scale = scale
        return (values * scale).mul_(keep)

    @staticmethod
    def backward(ctx, grad):
        (keep,) = ctx.saved_tensors
        return (grad * ctx.scale).mul_(keep), None, None


def drop(values, p):
    """Set each element to 0 with probability p and scale the others by 1 / (1 - p).

    Both use p rounded to a multiple of 2^-16, so the mean is kept exactly.

    Args:
        values (Tensor): any shape, on the CPU.
        p (float): in [0, 1).

    Returns:
        Tensor: like ``values``. The bits come from torch's global generator.
    """
    words = torch.empty(-(-values.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    bits = words.view(torch.int16)[: values.numel()].view(values.shape)  # uniform in [-2^15, 2^15)
    dropped = min(round(p * _STEPS), _STEPS - 1)
    return _Drop.apply(values, bits >= dropped - _STEPS // 2, _STEPS / (_STEPS - dropped))


class Dropout(nn.Dropout):
    """``torch.nn.Dropout`` that takes :func:`drop` where it is faster."""

    def forward(self, values):
        """Return ``values`` with elements dropped in training mode."""
        if not self.training or not 0 < self.p < 1 or values.device.type != "cpu":
            return super().forward(values)
        return drop(values, self.p)


def use_fast_dropout(model):
    """Replace every ``torch.nn.Dropout`` inside a model; it has no parameters, so checkpoints stay as they are.

    Args:
        model (nn.Module): changed in place.
    """
    for module in model.modules():
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, Dropout(child.p).train(child.training))
