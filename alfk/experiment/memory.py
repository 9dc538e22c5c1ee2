"""Peak memory of an AL iteration: of the GPU if one is used, else of the process."""

import contextlib
import resource
from pathlib import Path

import torch


def reset_peak(device: torch.device) -> None:
    """Reset the peak. Where that is not supported (other systems than Linux), earlier peaks still count."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_mib(device: torch.device) -> int:
    """Peak in MiB since `reset_peak`: allocated by torch on a GPU, else resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) // 2**20
    with contextlib.suppress(OSError, StopIteration):
        status = Path("/proc/self/status").read_text().splitlines()
        # VmHWM counts this process alone; ru_maxrss would start at the parent's peak.
        return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) // 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**10
