"""How much memory is free, for keys and values."""

from __future__ import annotations

from pathlib import Path

import torch

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")  # version 2: a container's own limit

# At worst growing buffers, the old ones and the prompt that is to be placed exist side by side, and are three times the
# bound. The rest is for activations.
KEY_VALUE_SHARE = 0.3


def key_value_bytes(device: torch.device, num_workers: int) -> int | None:
    """The share of the device's free memory that the keys and values of one of `num_workers` workers may take; `None`
    where nothing tells."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _free_host_bytes()
    return None if free is None else int(free * KEY_VALUE_SHARE / num_workers)


def _free_host_bytes() -> int | None:
    figures = [figure for figure in (_available(), _container_rest()) if figure is not None]
    return min(figures, default=None)


def _available() -> int | None:
    if not MEMINFO.exists():
        return None
    for line in MEMINFO.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _container_rest() -> int | None:
    limit, used = CGROUP / "memory.max", CGROUP / "memory.current"
    if not limit.exists() or not used.exists() or limit.read_text().strip() == "max":
        return None
    return int(limit.read_text()) - int(used.read_text())
