"""What README.md and docs/ tell people to type: each command is one, each name of Python exists.

docs/tutorial.md runs in test_tutorial.py, the family of docs/models.md with its own tests.
"""

import ast
import inspect
import json
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from conftest import make_model, make_pictures
from helpers import run
from PIL import Image

import gradindex
from gradindex.cli.audit import AUDITS_TRIED
from gradindex.cli.main import main
from gradindex.cli.query import GROUPS_TRIED, PARTS_TRIED
from gradindex.search.query import QueryOptions
from gradindex.search.results import Results

ROOT = Path(__file__).parents[1]
DEFAULT_SCORE = "ReTrac, whitened"
PAGES = {
    page.relative_to(ROOT).as_posix(): page.read_text("utf-8")
    for page in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *sorted((ROOT / "docs").glob("*.md")),
    )
    if page.name != "changelog.md"
}
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
# What the snippets call an object, and its class.
OBJECTS = {"index": gradindex.Index, "recorder": gradindex.TrainingRecorder, "results": Results}


def blocks(page: str, *languages: str) -> list[str]:
    return [code for language, code in BLOCK.findall(PAGES[page]) if language in languages]


def spans(page: str) -> Iterator[str]:
    """The code inside of sentences."""
    for span in INLINE.findall(BLOCK.sub("", PAGES[page])):
        yield " ".join(span.split())


def commands(text: str) -> Iterator[list[str]]:
    """The commands of a shell text, as words."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars="|&;")
        lexer.whitespace_split = True
        words: list[str] = []
        try:
            for word in lexer:
                if {*word} <= {*"|&;"}:
                    yield words
                    words = []
                else:
                    words.append(word)
        except ValueError:  # what a command printed
            continue
        yield words


def ours(text: str) -> list[list[str]]:
    """The words after `gradindex` in each of its commands; variables may stand before it."""
    found = []
    for words in commands(text):
        while words and re.match(r"[A-Z_]+=", words[0]):
            del words[0]
        if words[:1] == ["gradindex"] and len(words) > 1:
            found.append(words[1:])
    return found


def leaves(group: click.Group) -> Iterator[click.Command]:
    for command in group.commands.values():
        yield from leaves(command) if isinstance(command, click.Group) else [command]


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which commands are parsed and do nothing."""
    for command in leaves(main):
        monkeypatch.setattr(command, "callback", lambda **values: None)
    (tmp_path / "exclude.txt").touch()
    return tmp_path


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_commands(page: str, typed: Path) -> None:
    for code in blocks(page, "sh", "bash", "text"):
        for words in ours(code):
            assert run(*words, cwd=typed).stderr == "", shlex.join(words)


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_sentences_have_their_options(page: str, typed: Path) -> None:
    """They may leave out what is not spoken of."""
    for span in spans(page):
        for words in ours(span) if span.startswith("gradindex ") else []:
            said = [word for last, word in pairwise(["", *words]) if word != "…" or last[:1] == "-"]
            done = run(*said, cwd=typed)
            assert not re.search("Error: (?!Missing )", done.stderr), span


def test_there_are_commands() -> None:
    assert sum(len(ours(code)) for page in PAGES for code in blocks(page, "sh", "bash")) > 30
    assert ours("A=1 gradindex ids i 'a b' | sort\n$ gradindex info i  # x") == [
        ["ids", "i", "a b"],
        ["info", "i"],
    ]


@pytest.mark.parametrize(
    "wrong", ["biuld i", "query i a.png --best 3", "query i a.png --method trak", "build i"]
)
def test_a_wrong_command_is_found(wrong: str, typed: Path) -> None:
    assert run(*wrong.split(), cwd=typed).returncode == 2


def test_tools_and_extras_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for page, text in PAGES.items():
        for tool in re.findall(r"\btools/[\w/]+(?:\.\w+)?", text):
            assert (ROOT / tool).exists(), (page, tool)
        for extras in re.findall(r"(?:gradindex|'\.)\[([\w,]+)\]", text):
            assert {*extras.split(",")} <= {*project["optional-dependencies"]}, (page, extras)
    (others,) = re.findall(r"The other extras: (.*?)\.$", PAGES["docs/index.md"], re.M | re.S)
    named = {*re.findall(r"`(\w+)`\s\(", others)}
    assert named == {*project["optional-dependencies"]} - {"cpu", "gpu", "text"}


# --- Python


def python(page: str) -> list[str]:
    """The Python of a page: its blocks, and the calls in its sentences."""
    calls = [span.replace("…", "...") for span in spans(page) if re.match(r"[\w.]+\(.*\)$", span)]
    return blocks(page, "python") + [call for call in calls if "gradindex" in call or known(call)]


def known(call: str) -> bool:
    return call.partition(".")[0] in OBJECTS or call.partition("(")[0] in gradindex.__all__


def resolve(node: ast.expr) -> Any:
    """What an expression of ours names; None for what is not ours."""
    match node:
        case ast.Name(id="gradindex"):
            return gradindex
        case ast.Name(id=name) if name in OBJECTS:
            return OBJECTS[name]
        case ast.Name(id=name) if name in gradindex.__all__:
            return getattr(gradindex, name)
        case ast.Name(id="evaluate"):
            return gradindex.evaluate
        case ast.Attribute(value=value, attr=name) if (owner := resolve(value)) is not None:
            if inspect.isclass(owner) and name not in dir(owner):
                assert name in inspect.getsource(owner), f"{owner.__name__}.{name}"
                return None  # an attribute that is set when it is made
            return getattr(owner, name)
    return None


def check(code: str) -> int:
    """Check what of gradindex a code uses, and return how many calls of it there are."""
    count = 0
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gradindex"):
            module = __import__(node.module, fromlist=[alias.name for alias in node.names])
            assert all(hasattr(module, alias.name) for alias in node.names)
        if isinstance(node, ast.Attribute):
            resolve(node)
        if isinstance(node, ast.Call) and callable(called := resolve(node.func)):
            count += 1
            names = {*inspect.signature(called).parameters}
            if "options" in names:
                names |= {*QueryOptions.__annotations__}
            given = {keyword.arg for keyword in node.keywords if keyword.arg}
            assert given <= names, f"{ast.unparse(node)}: no {given - names}"
    return count


@pytest.mark.parametrize("page", PAGES)
def test_python_names_what_there_is(page: str) -> None:
    for code in python(page):
        check(code)


def test_wrong_python_is_found() -> None:
    assert sum(check(code) for page in PAGES for code in python(page)) > 20
    for wrong in (
        "gradindex.biuld('i')",
        "gradindex.open('i', modell='m')",
        "index.query('a', best=3)",
        "from gradindex import Indexes",
    ):
        with pytest.raises((AssertionError, AttributeError)):
            check(wrong)


# --- what runs


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """A folder with what the pages speak of: pictures in folders, an index of them, other ones."""
    place = tmp_path_factory.mktemp("documentation")
    for group in range(2):
        make_pictures(place / f"pictures/{group}", 9, seed=group)
    held_out = make_pictures(place / "held-out", 3, seed=6)
    gradindex.build(place / "idx", model=model, data=place / "pictures", timesteps=2, dim=16)
    make_pictures(place / "generated", 4, seed=5)
    for name in ("00", "03", "09"):
        shutil.copy(place / "generated/p003.png", place / f"generated/{name}.png")
    ids = [f"{group}/p{number:03d}.png" for group in range(2) for number in range(9)]
    lines = ["id,group", *(f"{name},thing {number % 3}" for number, name in enumerate(ids))]
    (place / "pictures/things.csv").write_text("\n".join(lines) + "\n")
    shutil.copy(place / "pictures/0/p000.png", place / "copy-of-a-training-picture.png")
    for number, name in enumerate(("gen.png", "other.png", "hat.png")):
        Image.open(held_out / f"p00{number}.png").resize((512, 512)).save(place / name)
    return place


def test_every_question_is_answered(place: Path) -> None:
    """All commands of docs/answers.md, but for those of models with captions or of embeddings."""
    asked = [words for code in blocks("docs/answers.md", "sh", "text") for words in ours(code)]
    for words in asked:
        if not {"--prompt", "--embedding"} & {*words}:
            done = run(*words, cwd=place)
            assert (done.returncode, bool(done.stdout)) == (0, "--output" not in words), done.stderr
    assert {words[0] for words in asked} == {"query", "duplicates", "audit"}
    assert (place / "copies.csv").read_text().startswith("id,group\n")


def test_the_python_of_the_readme_answers(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    (code,) = blocks("README.md", "python")
    names: dict[str, Any] = {}
    exec(code, names)
    assert len(names["results"][0].ids) == 10


def test_the_denoiser_of_ones_own_answers(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    code, _ = blocks("docs/models.md", "python")
    names: dict[str, Any] = {}
    exec(code.replace('"idx"', '"own"'), names)
    assert len(names["index"].query("gen.png", k=3)[0].hits) == 3


def test_the_datamodeling_score_is_computed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python of docs/trust.md."""
    monkeypatch.chdir(place)
    ids = gradindex.open("idx").ids
    for number in range(3):
        make_model(place / f"halves/{number}", seed=number)
        (place / f"halves/{number}/subset.txt").write_text("\n".join(ids[number::3]))
    (code,) = blocks("docs/trust.md", "python")
    found: list[gradindex.evaluate.LDS] = []
    lds = gradindex.evaluate.lds
    monkeypatch.setattr(gradindex.evaluate, "lds", lambda *given: found.append(lds(*given)))
    exec(code, {"pictures": sorted(Path("held-out").iterdir())})
    assert found[0].per_picture.shape == (3,)


def test_the_recorded_loop_is_indexed(
    place: Path, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop of docs/recipes.md trains, and the command below it builds from its log."""
    from accelerate import Accelerator
    from diffusers import DDPMScheduler, UNet2DModel

    monkeypatch.chdir(tmp_path)
    dataset = sorted(file.relative_to(place / "pictures").as_posix() for file in
                     (place / "pictures").rglob("*.png"))  # fmt: skip
    unet, scheduler = UNet2DModel.from_pretrained(model / "unet"), DDPMScheduler()
    scheduler.save_pretrained("scheduler")
    accelerator = Accelerator(cpu=True)
    names: dict[str, Any] = {
        "loader": [(dataset, torch.zeros(len(dataset), 1, 8, 8))] * 2,
        "model": accelerator.prepare(unet),
        "optimizer": accelerator.prepare(torch.optim.SGD(unet.parameters(), lr=1e-4)),
        "scheduler": scheduler,
        "accelerator": accelerator,
    }
    (code,) = blocks("docs/recipes.md", "python")
    exec(code, names)
    (words,) = [words for text in blocks("docs/recipes.md", "sh") for words in ours(text)
                if "--log" in words]  # fmt: skip
    shutil.copytree(place / "pictures", "pictures")
    done = run(*words, "--dim", 16, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert gradindex.open("idx").store.shape == (1, 18, 1, 16)


def test_what_a_query_says_of_trials_was_measured() -> None:
    """The shares in its texts are those of the benchmarks' pages."""
    folder = ROOT / "docs/benchmarks"
    rows = json.loads((folder / "regions.json").read_text())["rows"]
    keys = {"part": "a half", "pictures": "exact", "asked": "the part", "score": DEFAULT_SCORE}
    (row,) = (row for row in rows if keys.items() <= row.items())
    first, in_ten = (f"{100 * row[name][0]:.0f} %" for name in ("first", "in ten"))
    assert f"was first for {first}, among ten for {in_ten};" in PARTS_TRIED
    seeds = json.loads((folder / "groups.json").read_text())["seeds"]
    unseen, generated = (
        100 * np.mean([seed[kind]["scores"][DEFAULT_SCORE]["first"] for seed in seeds])
        for kind in ("validation", "generated")
    )
    audited = {
        (row["score"], row["held-out"]): row
        for row in json.loads((folder / "audit.json").read_text())["rows"]
    }
    usual, nearest = audited[DEFAULT_SCORE, 64], audited["labels of the nearest", None]
    wrong, damaged = (f"{np.mean(usual[name]):.2f}" for name in ("wrong label", "any damage"))
    without = f"{np.mean(nearest['wrong label']):.2f}"
    assert without == f"{np.mean(audited['pixel outliers', None]['any damage']):.2f}"
    assert f"with an AUC of {wrong}, damaged pictures with {damaged}," in AUDITS_TRIED
    assert f"without gradients with {without};" in AUDITS_TRIED
    assert f"for {unseen:.0f} % of unseen pictures, and for {generated:.0f} % of" in GROUPS_TRIED
