"""What may import what: packages downward, each library in its own modules; the public names."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import gradindex

PACKAGE = Path(gradindex.__file__).parent

# From the top down: a package imports only those after it. The modules beside them are the ground.
PACKAGES = ["cli", "serve", "report", "builder", "search", "store", "gradients", "models", "data"]
GROUND = ["recipe", "errors", "machine_memory", "random_numbers", "ray_connection", "wording"]

# The only packages and modules that import a library. `report.demo` plays the user, who trains.
LIBRARIES = {
    "click": ["cli"],
    "diffusers": ["models", "report.demo"],
    "safetensors": ["models"],
    "peft": ["models.adapters"],
    "datasets": ["data.table", "data.table_files"],
    "pyarrow": ["data.table", "data.table_files", "data.log_table", "search.results"],
    "PIL": ["data", "search", "report", "serve"],
    "fastapi": ["serve"],
    "starlette": ["serve.app", "serve.guard"],
    "pydantic": ["serve.options"],
    "uvicorn": ["serve.listening"],
    "zarr": ["store.arrays"],
    "google_crc32c": ["store.arrays"],
    "numcodecs": ["store.arrays"],
    "fsspec": ["store.bucket"],
    "faiss": ["search.ann_index"],
    "torch": [
        *(
            "models",
            "gradients",
            "search.factor_making",
            "search.row_whitening",
            "search.whitening",
            "search.gpu",
            "data.recorder",
        ),
        "report.demo",
    ],
    "matplotlib": ["report.diagnosis_text"],
    "tqdm": ["store.progress"],
    "jinja2": ["report.page"],
    "ray": ["ray_connection"],
}


@cache
def modules() -> dict[str, ast.Module]:
    files = {
        ".".join(file.relative_to(PACKAGE).with_suffix("").parts): file
        for file in PACKAGE.rglob("*.py")
    }
    return {name: ast.parse(file.read_text()) for name, file in files.items()}


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def inside(tree: ast.Module) -> set[str]:
    """The modules of gradindex that a module imports."""
    names = {
        name.removeprefix("gradindex.") for name in imported(tree) if name.startswith("gradindex.")
    }
    return {
        module
        for module in modules()
        for name in names
        if name == module or name.startswith(f"{module}.")
    }


def package(module: str) -> str:
    return module.partition(".")[0]


def is_in(module: str, places: list[str]) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places)


@pytest.mark.parametrize("module", [name for name in modules() if package(name) in PACKAGES])
def test_packages_import_downward(module: str) -> None:
    own = PACKAGES.index(package(module))
    allowed = [*PACKAGES[own:], *GROUND]
    assert [other for other in inside(modules()[module]) if package(other) not in allowed] == []


def test_modules_stand_in_a_package_or_on_the_ground() -> None:
    assert {package(name) for name in modules()} == {*PACKAGES, *GROUND, "__init__", "__main__"}
    for name in GROUND:
        assert {*map(package, inside(modules()[name]))} <= {*GROUND}, name


def test_no_modules_import_each_other_in_a_circle() -> None:
    TopologicalSorter(
        {name: inside(tree) for name, tree in modules().items() if name != "__init__"}
    ).prepare()


def test_each_foreign_library_has_its_modules() -> None:
    for name, tree in modules().items():
        libraries = {library.partition(".")[0] for library in imported(tree)}
        odd = [
            library for library in libraries & {*LIBRARIES} if not is_in(name, LIBRARIES[library])
        ]
        assert not odd, f"{name} imports {odd}"


def test_only_the_command_line_prints_or_exits() -> None:
    for name, tree in modules().items():
        calls = {
            node.func.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and hasattr(node.func, "id")
        }
        assert package(name) == "cli" or not calls & {"print", "exit"}, name


def test_no_file_is_larger_than_it_should_be() -> None:
    sizes = {file.name: len(file.read_text().splitlines()) for file in PACKAGE.rglob("*.py")}
    assert {name: size for name, size in sizes.items() if size > 350} == {}


def test_no_module_hides_a_public_function() -> None:
    """A module `gradindex.build` would be what `gradindex.build` is, once it is imported."""
    assert not {package(name) for name in modules()} & set(gradindex.__all__)


def test_the_public_names_exist() -> None:
    assert gradindex.__all__ == sorted(gradindex.__all__)
    for name in gradindex.__all__:
        assert getattr(gradindex, name).__doc__


def test_searching_takes_no_torch() -> None:
    """A Ray worker that only searches starts in half the time."""
    code = "import gradindex.search.ann_index, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_module_of_evaluations_is_public() -> None:
    assert gradindex.evaluate.lds.__doc__
