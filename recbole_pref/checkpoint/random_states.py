"""The states of Python's, numpy's and torch's global random generators."""

import logging
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from recbole_pref.errors import PrefError

logger = logging.getLogger(__name__)


def rng_state() -> dict[str, Any]:
    """Return the states of Python's, numpy's and torch's global generators as plain data.

    Returns:
        dict: ``python`` {version, state [625] int64, gauss}, ``numpy`` {bit_generator, key [624]
        int64, pos, has_gauss, gauss}, ``torch`` uint8 tensor, ``cuda`` one uint8 tensor per device.

    Raises:
        PrefError: numpy's global generator is not MT19937.
    """
    version, state, gauss = random.getstate()
    name, key, pos, has_gauss, cached = _numpy_state()
    return {
        "python": {"version": version, "state": torch.tensor(state), "gauss": gauss},
        "numpy": {
            "bit_generator": name,
            "key": torch.from_numpy(key.astype(np.int64)),
            "pos": int(pos),
            "has_gauss": int(has_gauss),
            "gauss": float(cached),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _numpy_state() -> tuple[str, np.ndarray, int, int, float]:
    state = np.random.get_state(legacy=False)
    if state["bit_generator"] != "MT19937":
        raise PrefError(
            f"numpy's global generator is {state['bit_generator']}, whose state cannot be stored: "
            f"call np.random.set_bit_generator only with MT19937."
        )
    inner = state["state"]
    return "MT19937", inner["key"], inner["pos"], state["has_gauss"], state["gauss"]


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Continue all generators from ``state``, which :func:`rng_state` returned.

    States of CUDA devices are restored when the machine has the same number of them; otherwise a
    warning says that the run does not continue exactly.
    """
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["state"].tolist()), python["gauss"]))
    key = numpy["key"].cpu().numpy().astype(np.uint32)
    np.random.set_state((numpy["bit_generator"], key, numpy["pos"], numpy["has_gauss"], numpy["gauss"]))
    # map_location may have moved the states with the rest of the checkpoint.
    torch.set_rng_state(state["torch"].cpu())
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if devices != len(state["cuda"]):
        logger.warning(
            "The checkpoint holds the random states of %d CUDA devices and this machine has %d: "
            "the run continues with other random numbers on them.",
            len(state["cuda"]),
            devices,
        )
    elif devices:
        torch.cuda.set_rng_state_all([device.cpu() for device in state["cuda"]])
