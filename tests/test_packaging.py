"""What is handed out: the wheel, the sdist, and what both say of the package."""

import ast
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

import gradindex

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "gradindex"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
NOT_SOURCES = shutil.ignore_patterns(
    *(".*_cache", ".git", ".venv", ".bench", ".hypothesis", ".whl", "*.egg-info", "__pycache__"),
    *("build", "dist", "site", "*-out"),
)
FOLDERS = (".ci", "docs", "gradindex", "tests", "tools")
TOP_FILES = (
    "CITATION.cff",
    "CONTRIBUTING.md",
    "LICENSE",
    "README.md",
    "mkdocs.yml",
    "pyproject.toml",
)


def name_of(requirement: str) -> str:
    """The name of the package in a requirement: "ray" in "ray[client]>=2.50"."""
    found = re.match(r"[\w.-]+", requirement)
    assert found
    return found[0].lower().replace("_", "-")


def imports(folder: Path) -> set[str]:
    """The foreign packages that the modules in a folder import."""
    names: set[str] = set()
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names.add(str(node.module).partition(".")[0])
    return names - {"gradindex", *sys.stdlib_module_names}


def test_what_is_imported_is_declared() -> None:
    """In the base or in an extra, whatever other package would bring it along."""
    extras = PROJECT["project"]["optional-dependencies"]
    requirements = [*PROJECT["project"]["dependencies"]]
    for extra in extras.values():
        requirements += extra
    declared = {name_of(requirement) for requirement in requirements}
    distributions = packages_distributions()
    found = imports(PACKAGE)
    assert {"pyarrow", "fsspec", "faiss"} < found
    missing = {
        name
        for name in found
        if not declared & {each.lower().replace("_", "-") for each in distributions[name]}
    }
    assert missing == set()


def test_development_tools_are_no_extra() -> None:
    public = {*PROJECT["project"]["optional-dependencies"]}
    assert not public & {"test", "dev", "lint", "docs"}
    groups = PROJECT["dependency-groups"]
    tools = {name_of(each) for each in [*groups["test"], *groups["lint"], *groups["docs"]]}
    assert {"pytest", "ruff", "mypy", "mkdocs"} < tools
    pinned = {
        name_of(line)
        for line in (ROOT / "tools/constraints.txt").read_text("utf-8").splitlines()
        if not line.startswith("#")
    }
    assert tools - pinned == set()


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == gradindex.__version__
    assert citation["license"] == PROJECT["project"]["license"]
    assert citation["authors"] == PROJECT["project"]["authors"]
    assert "Apache License" in (ROOT / "LICENSE").read_text("utf-8")
    page = (ROOT / "docs/cite.md").read_text("utf-8")
    (paper,) = citation["references"]
    said = [citation["title"], citation["version"], citation["license"], paper["title"]]
    said += [paper["journal"], str(paper["year"]), paper["url"]]
    said += [author["name"] for author in citation["authors"]]
    said += [f"{author['family-names']}, {author['given-names']}" for author in paper["authors"]]
    assert [text for text in said if f"{{{text}}}" not in page and text not in page] == []


@pytest.fixture(scope="module")
def handed_out(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A wheel and an unpacked sdist, made of a copy of the sources by the build backend."""
    place = tmp_path_factory.mktemp("packages")
    shutil.copytree(ROOT, place / "sources", ignore=NOT_SOURCES)
    code = (
        "from setuptools import build_meta; print(build_meta.build_sdist('../sdist'));"
        " print(build_meta.build_wheel('../wheel'))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=place / "sources", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (sdist,) = (place / "sdist").iterdir()
    with tarfile.open(sdist) as archive:
        archive.extractall(place / "unpacked", filter="data")
    (wheel,) = (place / "wheel").iterdir()
    (unpacked,) = (place / "unpacked").iterdir()
    return wheel, unpacked


def files(folder: Path) -> set[str]:
    """The files of the sources below a folder, by their path from it."""
    top = [path for name in FOLDERS for path in (folder / name).rglob("*")]
    kept = [path for path in top if path.is_file() and path.suffix != ".pyc"]
    return {path.relative_to(folder).as_posix() for path in kept}


@pytest.mark.slow
def test_the_sdist_is_the_whole_source_tree(handed_out: tuple[Path, Path]) -> None:
    _, unpacked = handed_out
    assert files(unpacked) == files(ROOT)
    for name in TOP_FILES:
        assert (unpacked / name).read_bytes() == (ROOT / name).read_bytes()


@pytest.mark.slow
def test_the_tests_of_the_sdist_pass(handed_out: tuple[Path, Path]) -> None:
    """Those that read what lies beside the package: stores, pages, tools."""
    _, unpacked = handed_out
    chosen = ["test_architecture.py", "store/test_golden.py", "fuzz/test_fuzz_counts.py"]
    chosen += ["models/families/test_family_documentation.py", "cli/test_messages.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += [f"tests/{name}" for name in chosen]
    environment = {"PYTHONPATH": str(unpacked), "OMP_NUM_THREADS": "1", "PATH": ""}
    done = subprocess.run(command, cwd=unpacked, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_the_wheel_is_the_package(handed_out: tuple[Path, Path]) -> None:
    wheel, _ = handed_out
    with zipfile.ZipFile(wheel) as archive:
        names = {*archive.namelist()}
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        text = archive.read(metadata).decode()
    packaged = {name for name in names if name.startswith("gradindex/")}
    assert packaged == {name for name in files(ROOT) if name.startswith("gradindex/")}
    assert "gradindex/py.typed" in packaged
    assert metadata.replace("METADATA", "licenses/LICENSE") in names
    assert f"\nVersion: {gradindex.__version__}\n" in text
    assert "\nLicense-Expression: Apache-2.0\n" in text
