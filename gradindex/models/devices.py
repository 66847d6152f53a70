"""Where a model runs, and in which precision."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from gradindex.errors import CallError
from gradindex.machine_memory import free_memory, machine_memory

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CPU = torch.device("cpu")


def resolve_device(device: str) -> str:
    """Return the device, with `auto` replaced by cuda where there is a GPU, else by cpu.

    Raises:
        CallError: the device is of another type, or a GPU that torch cannot use.

    >>> resolve_device("cpu")
    'cpu'
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, colon, number = device.partition(":")
    is_known = device == "cpu" or (kind == "cuda" and number.isdecimal() == bool(colon))
    if not is_known:
        raise CallError(
            f"device = {device!r}: allowed are 'auto', 'cpu', 'cuda', and 'cuda:1' for GPU number 1"
        )
    if device != "cpu" and not torch.cuda.is_available():
        raise CallError(f"device = {device!r}: this machine has no CUDA GPU that torch can use")
    if number and int(number) >= torch.cuda.device_count():
        numbers = ", ".join(f"'cuda:{gpu}'" for gpu in range(torch.cuda.device_count()))
        raise CallError(f"device = {device!r}: this machine has {numbers}")
    return device


def memory_of(device: torch.device) -> int:
    """Return the bytes of memory that a device has.

    >>> memory_of(CPU) == machine_memory()
    True
    """
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return machine_memory()


def free_memory_of(device: torch.device) -> int:
    """Return the bytes of memory that can still be had on a device.

    >>> 0 < free_memory_of(CPU) <= memory_of(CPU)
    True
    """
    if device.type == "cuda":
        kept_by_torch = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept_by_torch
    return free_memory()


@contextmanager
def plain_torch() -> Iterator[None]:
    """Have torch compute as it does unasked, whatever the caller of gradindex has switched on.

    Inside, inference mode and autocast are off, new tensors are float32 and on the CPU. Serves as a
    decorator too.

    >>> with torch.inference_mode(), torch.autocast("cpu"), plain_torch():
    ...     torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
    (False, False)
    """
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        for device_type in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device_type):
                stack.enter_context(torch.autocast(device_type, enabled=False))
        if torch.get_default_device() != CPU:
            stack.enter_context(CPU)
        default_dtype = torch.get_default_dtype()
        if default_dtype != torch.float32:
            torch.set_default_dtype(torch.float32)
            stack.callback(torch.set_default_dtype, default_dtype)
        yield
