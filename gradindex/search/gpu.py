"""A GPU's free memory, and FAISS's search there."""

import warnings
from types import ModuleType
from typing import Any

from gradindex.errors import first_line
from gradindex.machine_memory import free_memory


def is_gpu(device: str) -> bool:
    """Whether a device is a GPU.

    >>> is_gpu("cpu"), is_gpu("cuda"), is_gpu("cuda:1")
    (False, True, True)
    """
    return device.partition(":")[0] == "cuda"


def gpu_number(device: str) -> int:
    """The number of a GPU; of "cuda" that of torch's current one.

    >>> gpu_number("cuda:1")
    1
    """
    number = device.partition(":")[2]
    if number:
        return int(number)
    # torch takes seconds to import, and a Ray worker that only searches does without
    import torch

    return torch.cuda.current_device()


def free_memory_on(device: str) -> int:
    """Bytes that can still be had on a device: of the GPU's own memory, or of this machine's."""
    if not is_gpu(device):
        return free_memory()
    import torch

    return torch.cuda.mem_get_info(gpu_number(device))[0]


def faiss_resources(faiss: ModuleType, device: str, size: int) -> Any:
    """What FAISS needs to search vectors on a device; None where it has to search on the CPU.

    That is where the device is no GPU, FAISS has none, or the vectors do not fit into half of what
    is free on it, of which a warning tells.

    Args:
        size: bytes of all vectors.
    """
    if not (is_gpu(device) and hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus()):
        return None
    free = free_memory_on(device)
    if size > free // 2:
        _warn(device, f"they have {size >> 20:,} MiB, half of {free >> 20:,} MiB is allowed")
        return None
    return faiss.StandardGpuResources()


def copied_to_gpu(faiss: ModuleType, resources: Any, device: str, index: Any) -> Any:
    """A FAISS index copied to a GPU; the index itself, and a warning, where that fails."""
    try:
        return faiss.index_cpu_to_gpu(resources, gpu_number(device), index)
    except RuntimeError as error:  # others have taken the memory meanwhile
        _warn(device, first_line(error))
        return index


def is_on_gpu(index: Any) -> bool:
    """Whether a FAISS index lies on a GPU."""
    return hasattr(index, "getDevice")


def _warn(device: str, reason: str) -> None:
    warnings.warn(
        f"search vectors do not fit on {device} ({reason}); FAISS searches them on the CPU",
        stacklevel=3,
    )
