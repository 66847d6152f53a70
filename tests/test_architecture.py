"""The rule of the house: one foreign library, one room; imports go downward; the public names."""

import ast
import subprocess
import sys
from pathlib import Path

import gradindex

PACKAGE = Path(gradindex.__file__).parent

# Top of the house first: a room may import only rooms below it.
FLOORS = [
    "cli",
    "cli_evaluate",
    "flags",
    "demo",
    "diagnose",
    "evaluate",
    "verify",
    "info",
    "builder",
    "plan",
    "work",
    "upkeep",
    "training_log",
    "recorder",
    "search",
    "queries",
    "results",
    "ranking",
    "index",
    "search_index",
    "whiten",
    "factors",
    "scoring",
    "store",
    "distributed",
    "arrays",
    "manifest",
    "gradients.rows",
    "gradients.capture",
    "gradients.bare",
    "gradients.layers",
    "gradients.projection",
    "gradients.noise",
    "gradients",
    "denoiser",
    "dataset",
    "recipe",
    "place",
    "ahead",
    "memory",
    "errors",
]

# The only rooms that may import a library. `demo` plays the user, who trains and samples a model.
HOMES = {
    "click": {"cli", "cli_evaluate", "flags"},
    "diffusers": {"denoiser", "demo"},
    "safetensors": {"denoiser"},
    "datasets": {"dataset"},
    "zarr": {"arrays"},
    "google_crc32c": {"arrays"},
    "numcodecs": {"arrays"},
    "faiss": {"search_index"},
    "fsspec": {"place"},
    "sklearn": {"demo"},
    "PIL": {"dataset", "queries", "search", "results", "demo"},
    "pyarrow": {"dataset", "training_log"},
    "torch": {
        "denoiser",
        "recorder",
        "demo",
        "whiten",
        *(f"gradients.{room}" for room in ("rows", "capture", "bare", "layers", "projection")),
    },
    "matplotlib": {"diagnose"},
    "ray": {"distributed"},
    "tqdm": {"work", "demo", "diagnose", "index", "scoring", "search", "verify", "whiten"},
}


def rooms() -> dict[str, ast.Module]:
    files = {file.relative_to(PACKAGE).with_suffix(""): file for file in PACKAGE.rglob("*.py")}
    names = {".".join(path.parts).removesuffix(".__init__"): file for path, file in files.items()}
    return {name: ast.parse(file.read_text()) for name, file in names.items() if name != "__init__"}


def imports(tree: ast.Module) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_every_room_has_its_floor() -> None:
    assert set(rooms()) == set(FLOORS)


def test_imports_go_downward() -> None:
    for name, tree in rooms().items():
        inside = {i.removeprefix("gradindex.") for i in imports(tree) if i.startswith("gradindex.")} & set(FLOORS)
        above = [other for other in inside if FLOORS.index(other) <= FLOORS.index(name)]
        assert not above, f"{name} imports {above}"


def test_each_foreign_library_has_one_room() -> None:
    for name, tree in rooms().items():
        for library in {i.partition(".")[0] for i in imports(tree)} & set(HOMES):
            assert name in HOMES[library], f"{name} imports {library}"


def test_only_the_command_line_prints_or_exits() -> None:
    for name, tree in rooms().items():
        calls = {
            node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert name in ("cli", "cli_evaluate") or not calls & {"print", "exit"}, name


def test_no_room_is_larger_than_it_should_be() -> None:
    sizes = {file.name: len(file.read_text().splitlines()) for file in PACKAGE.rglob("*.py")}
    assert {name: size for name, size in sizes.items() if size > 350} == {}


def test_no_room_carries_the_name_of_a_public_function() -> None:
    assert not {name for name in rooms() if "." not in name} & set(gradindex.__all__)


def test_the_public_names_exist() -> None:
    assert gradindex.__all__ == sorted(gradindex.__all__)
    for name in gradindex.__all__:
        assert getattr(gradindex, name).__doc__


def test_searching_takes_no_torch() -> None:
    """A Ray worker that only searches starts in half the time."""
    code = "import gradindex.search_index, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
