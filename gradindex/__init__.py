"""Which training pictures shaped this generated picture?

>>> import gradindex
>>> index = gradindex.build("idx", model="ckpt/", data="pictures/", timesteps=10)
>>> index = gradindex.open("idx")
>>> results = index.query(["gen.png"], k=10, method="retrac")
>>> results[0].ids, results[0].scores

Names are loaded when they are first used, so that `import gradindex` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradindex.builder import build
    from gradindex.dataset import Columns
    from gradindex.errors import GradindexError
    from gradindex.gradients.noise import noise
    from gradindex.recorder import TrainingRecorder
    from gradindex.results import Hit, Result
    from gradindex.search import Index, open

__version__ = "0.1.0"
__all__ = ["Columns", "GradindexError", "Hit", "Index", "Result", "TrainingRecorder", "build", "noise", "open"]

_HOMES = {
    "Columns": "dataset",
    "GradindexError": "errors",
    "Hit": "results",
    "Index": "search",
    "Result": "results",
    "TrainingRecorder": "recorder",
    "build": "builder",
    "noise": "gradients.noise",
    "open": "search",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gradindex' has no attribute {name!r}")
    return getattr(import_module(f"gradindex.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
