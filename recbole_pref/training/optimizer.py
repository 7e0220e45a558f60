"""Optimizers of torch without ``torch._dynamo``, whose import takes as long as that of torch itself."""

import inspect
import sys
from collections.abc import Callable

import torch
from torch.optim import Optimizer


def without_dynamo(build: Callable[[], Optimizer]) -> Optimizer:
    """Return the optimizer that ``build()`` makes, with the same results but without importing ``torch._dynamo``.

    torch wraps the methods of its optimizers so that ``torch.compile`` leaves them alone, and the wrappers import
    ``torch._dynamo`` on their first call. A model may be compiled; a compiled function must not contain this
    optimizer's step.

    Args:
        build: makes an optimizer of ``torch.optim``.
    """
    if "torch._dynamo" in sys.modules:
        return build()
    for name in ("add_param_group", "load_state_dict", "state_dict", "zero_grad"):
        method = inspect.unwrap(getattr(Optimizer, name))
        method.__dynamo_disable = method  # where torch keeps the wrapped method after the first call
    optimizer = build()
    cls = type(optimizer)
    step = torch.no_grad()(inspect.unwrap(cls.step))
    optimizer.__class__ = type(cls.__name__, (cls,), {"step": step, "__module__": cls.__module__})
    return optimizer
