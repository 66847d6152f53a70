"""Where a model runs, and in which precision."""

import torch

from gradindex.errors import CallError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(device: str) -> str:
    """Return the device, with `auto` replaced by cuda where there is a GPU, else by cpu.

    Raises:
        CallError: the device is of another type, or a GPU that torch cannot use.

    >>> resolve_device("cpu")
    'cpu'
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise CallError(f"device = {device!r}: allowed are 'auto', 'cpu', 'cuda'")
    if device != "cpu" and not torch.cuda.is_available():
        raise CallError(f"device = {device!r}: this machine has no CUDA GPU that torch can use")
    return device
