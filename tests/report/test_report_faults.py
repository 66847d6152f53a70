"""Faults of the field, in what people read: pages of pictures, trainings without pictures."""

import re
from pathlib import Path

import numpy as np
import pytest
from conftest import make_model, make_pictures
from helpers import run
from html_reading import pictures_in
from PIL import Image

import gradindex
from gradindex.errors import CallError, GradindexError
from gradindex.report import diagnose
from gradindex.report.counterfactual import counterfactual
from gradindex.report.evaluate import compare, read_models
from gradindex.report.rendering import to_table
from gradindex.search.results import Hit, Result

MEBIBYTE = 1 << 20


def photograph(seed: int, size: tuple[int, int] = (4000, 3000)) -> Image.Image:
    """A picture with noise, as a camera makes it, 12 megapixels unless said."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), np.int16)
    noise = random.integers(-10, 11, (300, size[0], 3), dtype=np.int16)
    noisy = smooth + np.tile(noise, (size[1] // 300 + 1, 1, 1))[: size[1]]
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


@pytest.mark.slow
def test_a_page_of_photographs_stays_small(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", sample_size=16, in_channels=3, out_channels=3)
    (tmp_path / "data").mkdir()
    for number in range(4):
        photograph(number).save(tmp_path / f"data/{number}.jpg", quality=90)
    build = ("build", tmp_path / "idx", "--model", model, "--data", tmp_path / "data")
    assert run(*build, "--timesteps", "500,", "--dim", 8).returncode == 0
    files = sorted((tmp_path / "data").iterdir())
    done = run("query", tmp_path / "idx", *files, "--output", tmp_path / "a.html", "--opponents")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.html").stat().st_size < 2 * MEBIBYTE
    shown = pictures_in((tmp_path / "a.html").read_text())
    assert [picture.size for picture in shown] == [(256, 192)] * 4


def test_a_table_shows_control_characters_escaped() -> None:
    hit = Hit(1, "a\r\n\x1b]0;b\u2028\udcff.png", 0, 0.5, None)
    table = to_table([Result("q\n.png", [hit])], "retrac").splitlines()
    assert len(table) == 2
    assert table[0].startswith(r"q\n.png: proponents")
    assert table[1].endswith(r"  a\r\n\x1b]0;b\u2028\udcff.png")


# --- trainings without pictures -------------------------------------------------------------------


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, model: Path, pictures: Path) -> gradindex.Index:
    place = tmp_path_factory.mktemp("faults") / "idx"
    return gradindex.build(place, model=model, data=pictures, timesteps=[500], dim=8, device="cpu")


def test_a_counterfactual_is_checked_when_it_is_called(
    index: gradindex.Index, queries: list[Path], tmp_path: Path
) -> None:
    """Not when its first result is asked for."""
    for command, more, message in [
        ("train", {}, "command 'train' has no {data} and no {out}"),
        ("train {out}", {}, "command 'train {out}' has no {data}"),
        ("train {data} {out}", {}, "k = 50: the index has 9 pictures, and some have to stay"),
        ("train {data} {out}", {"k": 9}, "k = 9: the index has 9 pictures"),
        ("train {data} {out}", {"k": 1, "random": -1}, "random = -1"),
    ]:
        with pytest.raises(CallError, match=re.escape(message)):
            counterfactual(index, queries, command, tmp_path, **more)  # type: ignore[arg-type]


def test_pictures_in_a_table_are_refused_before_the_work(model: Path, tmp_path: Path) -> None:
    import datasets

    files = sorted(make_pictures(tmp_path / "data", 3).iterdir())
    (tmp_path / "table").mkdir()
    rows = {"image": [str(file) for file in files]}
    table = datasets.Dataset.from_dict(rows, datasets.Features(image=datasets.Image()))
    table.to_parquet(tmp_path / "table/a.parquet")
    index = gradindex.build(
        tmp_path / "idx", model=model, data=tmp_path / "table", timesteps=[500], dim=8
    )
    with pytest.raises(CallError, match="can only be left out of a folder of pictures"):
        counterfactual(index, ["absent.png"], "train {data} {out}", tmp_path, k=1)


def test_a_command_that_saves_nothing_is_named_and_run_again(
    index: gradindex.Index, model: Path, queries: list[Path], tmp_path: Path
) -> None:
    work = tmp_path / "work"
    with pytest.raises(GradindexError, match=r"ended with status 0, but saved nothing in .*model"):
        list(counterfactual(index, queries[:1], ": {data} {out}", work, k=2, random=0))
    command = f": {{data}}; cp -r {model} {{out}}"
    (removal,) = counterfactual(index, queries[:1], command, work, k=2, random=0)
    assert removal.loss > 0


def test_what_the_command_prints_is_not_data(
    index: gradindex.Index, model: Path, queries: list[Path], tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    command = f"echo epoch 1: {{data}}; cp -r {model} {{out}}"
    list(counterfactual(index, queries[:1], command, tmp_path, k=2, random=0))
    captured = capfd.readouterr()
    assert (captured.out, "epoch 1" in captured.err) == ("", True)


def test_pictures_are_copied_where_there_are_no_links(
    index: gradindex.Index, model: Path, queries: list[Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def refuse(self: Path, target: Path) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    command = f": {{data}}; cp -r {model} {{out}}"
    list(counterfactual(index, queries[:1], command, tmp_path, k=2, random=0))
    copies = [*(tmp_path / "0/data").iterdir()]
    assert len(copies) == 7
    assert not any(copy.is_symlink() for copy in copies)


def test_a_subset_may_hold_any_name(
    model: Path, pictures: Path, tmp_path: Path, index: gradindex.Index
) -> None:
    """Notepad's mark, line ends of Windows, and characters at which Python would end a line."""
    data = make_pictures(tmp_path / "data", 4)
    (data / "p001.png").rename(data / "a\u2028b\x0c.png")
    odd = gradindex.build(tmp_path / "idx", model=model, data=data, timesteps=[500], dim=8)
    for number in range(3):
        (tmp_path / f"models/{number}").mkdir(parents=True)
        text = "\ufeffp000.png\r\na\u2028b\x0c.png\r\n"
        (tmp_path / f"models/{number}/subset.txt").write_bytes(text.encode())
    _, subsets = read_models(tmp_path / "models", odd)
    names = [name for name, there in zip(odd.store.sample_ids, subsets[0], strict=True) if there]
    assert sorted(names) == ["a\u2028b\x0c.png", "p000.png"]
    (tmp_path / "models/1/subset.txt").write_bytes(b"\xff.png\n")
    with pytest.raises(CallError, match="1 id is not in the index"):
        read_models(tmp_path / "models", odd)


def test_pictures_may_be_a_generator_or_one_alone(
    index: gradindex.Index, model: Path, queries: list[Path], tmp_path: Path
) -> None:
    """A counterfactual reads them several times: for the ranking, and for each model's losses."""
    command = f": {{data}}; cp -r {model} {{out}}"
    several = (file for file in queries)
    removals = list(counterfactual(index, several, command, tmp_path, k=2, random=1))
    assert [Path(one.picture).name for one in removals] == [file.name for file in queries] * 2
    report = diagnose.report(index, (file for file in queries), compared=0, outliers=False)
    assert report["queries"] == [str(file) for file in queries]
    report = diagnose.report(index, str(queries[0]), compared=0, outliers=False)
    assert report["queries"] == [str(queries[0])]
    subsets = np.random.default_rng(0).random((4, 9)) < 0.5
    losses = np.random.default_rng(1).random((4, 2))
    scores = compare(index, (file for file in queries), subsets, losses)
    assert scores["retrac"].per_picture.shape == (2,)
