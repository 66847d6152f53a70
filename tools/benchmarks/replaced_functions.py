"""Other functions in the place of gradindex's own, for a while."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock


@contextmanager
def replaced(function: Callable[..., Any], replacement: Callable[..., Any]) -> Iterator[None]:
    """Meanwhile, every module of gradindex that knows a function by its name has another.

    The modules must be loaded before: one that is loaded meanwhile keeps the replacement.
    """
    name = function.__name__
    modules = [module for path, module in sys.modules.items() if path.startswith("gradindex.")]
    with ExitStack() as stack:
        for module in modules:
            if vars(module).get(name) is function:
                stack.enter_context(mock.patch.object(module, name, replacement))
        yield
