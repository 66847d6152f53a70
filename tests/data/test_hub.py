"""What `datasets` refuses is one line of ours: sets of the hub, damaged tables; no network."""

from pathlib import Path
from typing import Any

import datasets
import pytest
from huggingface_hub import HfApi
from huggingface_hub.utils import OfflineModeIsEnabled
from PIL import Image

from gradindex.data.opening import open_dataset
from gradindex.errors import CallError

WAY_OUT = (
    "; load with `datasets` the part that the model was trained on, save it with"
    " save_to_disk(FOLDER), and give that folder"
)


def hub(monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    """Have `datasets` give or raise this for any name on the hub."""

    def load(path: str, split: str) -> Any:
        assert (path, split) == ("owner/name", "train")
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(HfApi, "dataset_info", lambda *_, **options: None)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            ValueError("Unknown split \"train\". Should be one of ['test', 'extra']."),
            "Unknown split \"train\". Should be one of ['test', 'extra']." + WAY_OUT,
        ),
        (
            ValueError(
                "Config name is missing.\nPlease pick one among the available configs: ['a', 'b']\n"
                "Example of usage:\n\t`load_dataset('owner/name', 'a')`"
            ),
            "Config name is missing. Please pick one among the available configs: ['a', 'b']"
            " Example of usage: `load_dataset('owner/name', 'a')`" + WAY_OUT,
        ),
        (
            datasets.exceptions.DatasetNotFoundError(
                "Dataset 'owner/name' doesn't exist on the Hub or cannot be accessed.\nLog in."
            ),
            "neither a file or folder here nor a data set on the hub (Dataset 'owner/name' doesn't"
            " exist on the Hub or cannot be accessed.)",
        ),
        (
            RuntimeError("Dataset scripts are no longer supported, but found name.py"),
            "cannot be read (Dataset scripts are no longer supported, but found name.py)",
        ),
    ],
)
def test_a_set_of_the_hub_that_is_divided_otherwise_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    hub(monkeypatch, error)
    with pytest.raises(CallError) as caught:
        open_dataset("owner/name")
    assert str(caught.value) == f"data owner/name: {message}"


def test_a_set_of_the_hub_is_a_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    features = datasets.Features(image=datasets.Image())
    hub(monkeypatch, datasets.Dataset.from_dict({"image": [Image.new("L", (8, 8))]}, features))
    assert open_dataset("owner/name").sample_ids == ["0"]


def test_a_hub_that_does_not_answer_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where it must not be asked, `datasets` takes what was downloaded before."""
    monkeypatch.chdir(tmp_path)
    hub(monkeypatch, ConnectionError("Couldn't reach 'owner/name' on the Hub"))
    problem: list[Exception] = [OSError("Name or service not known")]

    def ask(*_: object, **options: float) -> None:
        assert options["timeout"] > 0
        raise problem[0]

    monkeypatch.setattr(HfApi, "dataset_info", ask)
    text = r"no such file or folder, and the Hugging Face hub does not answer \(Name or service"
    with pytest.raises(CallError, match=text):
        open_dataset("owner/name")
    problem[0] = OfflineModeIsEnabled("offline mode is enabled")
    with pytest.raises(CallError, match="neither a file or folder here nor a data set on the hub"):
        open_dataset("owner/name")


def test_what_looks_like_a_path_is_not_asked_for_on_the_hub(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    hub(monkeypatch, AssertionError("asked"))
    (tmp_path / "sets").mkdir()
    for name in ("sets/typo", "typo/a.png", "typo/table.parquet", "my set/typo", "a/b/c", "typo/"):
        with pytest.raises(CallError, match="no such file or folder"):
            open_dataset(name)


@pytest.mark.parametrize(
    ("start", "length", "reason"),
    [(4, 60, "Couldn't deserialize thrift"), (0, 0, "Parquet file size is 0 bytes")],
)
def test_a_damaged_table_is_one_line_with_its_reason(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], start: int, length: int, reason: str
) -> None:
    file = tmp_path / "t.parquet"
    features = datasets.Features(image=datasets.Image())
    pictures = [Image.new("L", (8, 8), grey) for grey in range(9)]
    datasets.Dataset.from_dict({"image": pictures}, features).to_parquet(file)
    content = file.read_bytes()
    file.write_bytes(content[:start] + b"\xff" * length + content[start + length :] * bool(length))
    capfd.readouterr()
    with pytest.raises(CallError) as caught:
        open_dataset(file)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
