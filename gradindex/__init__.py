"""Which training pictures shaped this generated picture?

    import gradindex

    index = gradindex.build("idx", model="ckpt/", data="pictures/")
    index = gradindex.open("idx")
    results = index.query(["gen.png"], k=10, method="retrac")
    results[0].ids, results[0].scores

Names are loaded when they are first used, so `import gradindex` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradindex.builder.build import build
    from gradindex.data.dataset import Columns
    from gradindex.data.recorder import TrainingRecorder
    from gradindex.errors import GradindexError
    from gradindex.random_numbers import noise
    from gradindex.search.index import Index, open
    from gradindex.search.results import Group, Hit, Result

__version__ = "0.1.0"
__all__ = [
    "Columns",
    "GradindexError",
    "Group",
    "Hit",
    "Index",
    "Result",
    "TrainingRecorder",
    "build",
    "noise",
    "open",
]

# {public name: the module that defines it}
_MODULES = {
    "Columns": "data.dataset",
    "GradindexError": "errors",
    "Group": "search.results",
    "Hit": "search.results",
    "Index": "search.index",
    "Result": "search.results",
    "TrainingRecorder": "data.recorder",
    "build": "builder.build",
    "noise": "random_numbers",
    "open": "search.index",
}


def __getattr__(name: str) -> Any:
    """Return a public name, from its module, when it is first used."""
    if name == "evaluate":  # `gradindex.evaluate.lds`: a module of public functions
        return import_module("gradindex.report.evaluate")
    if name not in _MODULES:
        raise AttributeError(f"module 'gradindex' has no attribute {name!r}")
    return getattr(import_module(f"gradindex.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    """Return the names of this module, public ones included that are not loaded yet."""
    return sorted([*globals(), *__all__])
