"""diffusers and transformers without the bars and remarks that they show while they load."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Have diffusers and transformers show errors alone, and no progress; as before afterwards."""
    with ExitStack() as stack:
        for name in ("diffusers.utils.logging", "transformers.utils.logging"):
            try:
                library = import_module(name)
            except ImportError:
                continue
            stack.callback(library.set_verbosity, library.get_verbosity())
            library.set_verbosity_error()
            if library.is_progress_bar_enabled():
                stack.callback(library.enable_progress_bar)
                library.disable_progress_bar()
        yield
