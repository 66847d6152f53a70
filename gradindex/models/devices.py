"""Where a model runs, and in which precision."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradindex.errors import CallError
from gradindex.machine_memory import free_memory, machine_memory

TF32 = "tf32"  # float32, of which a GPU rounds what it multiplies to 10 bits of mantissa
DTYPES = {
    "float32": torch.float32,
    TF32: torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
CPU = torch.device("cpu")
LAUNCHED = 2  # batches that wait on a GPU, or run, before another one is launched


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


def to_device(values: Any, device: torch.device | str) -> Tensor:
    """Return an array or tensor as a tensor on a device.

    A GPU gets it when it has done what was launched before; until then nobody waits.

    >>> to_device(np.arange(2), CPU)
    tensor([0, 1])
    """
    tensor = torch.as_tensor(values)
    if torch.device(device).type == "cuda" and tensor.device == CPU:
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def to_host(tensor: Tensor) -> Callable[[], np.ndarray]:
    """Return a function that waits until a tensor is in the host's memory, and returns it there.

    >>> to_host(torch.ones(2))()
    array([1., 1.], dtype=float32)
    """
    if tensor.device.type != "cuda":
        return tensor.numpy
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    copy.copy_(tensor, non_blocking=True)
    done = _recorded_event(tensor.device)

    def wait() -> np.ndarray:
        done.synchronize()
        return copy.numpy()

    return wait


class LaunchLimit:
    """Keeps a GPU's queue short: what waits in it holds memory of the host's."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._launched: deque[Any] = deque()

    def launched(self) -> None:
        """Wait, after a batch was launched, until at most `LAUNCHED` are not done."""
        if self._device.type != "cuda":
            return
        self._launched.append(_recorded_event(self._device))
        if len(self._launched) > LAUNCHED:
            self._launched.popleft().synchronize()


def _recorded_event(device: torch.device) -> Any:
    """An event that is over when a GPU has done what was launched before."""
    event = torch.cuda.Event(blocking=True)
    event.record(torch.cuda.current_stream(device))
    return event


@contextmanager
def products_in(dtype: str) -> Iterator[None]:
    """Have a GPU round what it multiplies in float32 to TF32 for "tf32", and else for nothing.

    That is one switch for matrix products and one for convolutions, where torch allows it unasked.
    A CPU rounds nothing, whatever was asked. Afterwards all is as it was, but that a switch which
    followed a more general one has its value for itself. Serves as a decorator too.

    >>> with products_in("tf32"):
    ...     torch.backends.cudnn.allow_tf32
    True
    """
    allowed = dtype == TF32
    with _restored_precisions() as (of_gpu, of_cpu), _by_older_names(allowed):
        for switch in of_gpu:
            switch.fp32_precision = "tf32" if allowed else "ieee"
        for switch in of_cpu:
            switch.fp32_precision = "ieee"
        yield


@contextmanager
def _restored_precisions() -> Iterator[tuple[list[Any], list[Any]]]:
    """Give the switches of GPUs and of CPUs that torch has since 2.9, and restore them at the end.

    What sets precisions by their older names sets some of these too, and does not set them back.
    """
    backends: Any = torch.backends
    if not hasattr(backends.cuda.matmul, "fp32_precision"):
        yield [], []
        return
    of_gpu = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn]
    of_cpu = [backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn]
    before = [(switch, switch.fp32_precision) for switch in of_gpu + of_cpu]
    try:
        yield of_gpu, of_cpu
    finally:
        for switch, precision in before:
            switch.fp32_precision = precision


@contextmanager
def _by_older_names(allowed: bool) -> Iterator[None]:
    """Allow TF32, or forbid it, by the names that torch has had since 1.12."""
    cudnn = torch.backends.cudnn
    try:
        before = torch.get_float32_matmul_precision(), cudnn.allow_tf32
    except RuntimeError:  # the caller used newer names as well: torch does not tell the older ones
        yield
        return
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        cudnn.allow_tf32 = before[1]


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
