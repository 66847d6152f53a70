"""The cosine in an embedding beside a score: by a vision model, or from files of vectors."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_model, required
from helpers import drawing, run
from PIL import Image
from vision_models import save_clip, save_dino, save_vit

import gradindex
from gradindex.builder.upkeep import compact, remove
from gradindex.errors import CallError, GradindexError, ModelError
from gradindex.models.vision import VisionModel
from gradindex.report.answers import answer
from gradindex.report.page import to_html
from gradindex.search import embeddings
from gradindex.search.embeddings import NAME_DIGITS
from gradindex.store import store
from gradindex.store.disk import Disk

transformers = required("transformers")

COUNT = 12


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of small vision models, and of one of texts."""
    folder = tmp_path_factory.mktemp("embeddings")
    save_clip(folder / "clip")
    save_dino(folder / "dino")
    save_vit(folder / "vit")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=100, intermediate_size=16, **small)
    transformers.BertModel(config).save_pretrained(folder / "bert")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embedded") / "data"
    folder.mkdir()
    for seed in range(COUNT):
        drawing(seed).resize((40, 30)).save(folder / f"{seed:02d}.png")
    return folder


@pytest.fixture(scope="module")
def built(data: Path) -> Path:
    """An index of three shards."""
    model = make_model(data.parent / "model", sample_size=32, in_channels=3, out_channels=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "SHARD_ROWS", 4)
        gradindex.build(data.parent / "idx", model=model, data=data, timesteps=[300], dim=8)
    return data.parent / "idx"


@pytest.fixture
def place(built: Path, tmp_path: Path) -> Path:
    """An index of the test's own."""
    shutil.copytree(built, tmp_path / "idx")
    return tmp_path / "idx"


def slow_vectors(folder: Path, pictures: list[Image.Image]) -> np.ndarray:
    """One picture after the other, as transformers' documentation does it."""
    kinds = {
        "clip": (transformers.CLIPModel, transformers.CLIPImageProcessorPil),
        "dino": (transformers.Dinov2Model, transformers.BitImageProcessorPil),
        "vit": (transformers.ViTModel, transformers.ViTImageProcessorPil),
    }
    kind, preparing = kinds[folder.name]
    model, processor = kind.from_pretrained(folder).eval(), preparing.from_pretrained(folder)
    vectors = []
    for picture in pictures:
        inputs = processor(images=picture, return_tensors="pt")
        with torch.no_grad():
            if folder.name == "clip":
                vector = model.get_image_features(**inputs).pooler_output[0]
            elif folder.name == "dino":
                vector = model(**inputs).pooler_output[0]
            else:
                vector = model(**inputs).last_hidden_state[0, 0]
        vectors.append(vector.numpy())
    return np.stack(vectors)


def slow_cosines(folder: Path, asked: list[Path], data: Path) -> np.ndarray:
    """Of each picture asked about and each training picture, [Q, N]."""
    training = [Image.open(file) for file in sorted(data.iterdir())]
    queries = slow_vectors(folder, [Image.open(file) for file in asked])
    vectors = slow_vectors(folder, training)
    of_all = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(vectors, axis=1)
    return queries @ vectors.T / of_all


@pytest.fixture(scope="module")
def asked(data: Path) -> list[Path]:
    files = [data.parent / "a.png", data.parent / "b.png"]
    for seed, file in enumerate(files, 100):
        drawing(seed).resize((50, 70)).save(file)
    return files


def assert_cosines(results: Any, expected: np.ndarray) -> None:
    """All hits, and none left out but those without a cosine in `expected`."""
    for result, own in zip(results, expected, strict=True):
        assert result.hits
        for hit in result.hits:
            if np.isnan(own[hit.row]):
                assert hit.embedding is None
            else:
                assert hit.embedding == pytest.approx(own[hit.row], abs=1e-5)


# --- by a model -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["clip", "dino", "vit"])
def test_a_model_compares_as_one_picture_after_the_other(
    models: Path, place: Path, data: Path, asked: list[Path], kind: str
) -> None:
    index = gradindex.open(place)
    expected = slow_cosines(models / kind, asked, data)
    results = index.query(asked, k=4, opponents=True, embedding=models / kind)
    assert_cosines(results, expected)
    assert results[0].opponents[0].embedding is not None  # type: ignore[index]
    assert_cosines(index.query(asked, k=COUNT, embedding=str(models / kind)), expected)


KINDS = {
    "bytes": Path.read_bytes,
    "Pillow": Image.open,
    "pixels": lambda file: np.asarray(Image.open(file)),
    "a tensor of pixels": lambda file: torch.from_numpy(np.array(Image.open(file))),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_of_any_kind_is_embedded_whole(
    models: Path, place: Path, data: Path, asked: list[Path], kind: str
) -> None:
    """Not as the model of the index takes it, which is smaller."""
    pictures = [KINDS[kind](file) for file in asked]
    results = gradindex.open(place).query(pictures, k=3, embedding=models / "clip")
    assert_cosines(results, slow_cosines(models / "clip", asked, data))


def test_a_tensor_is_embedded_as_it_is(models: Path, place: Path, data: Path) -> None:
    index = gradindex.open(place)
    tensor = index.read_pictures(data / "05.png")[0]
    pixels = Image.fromarray(np.round((tensor + 1) * 127.5).astype(np.uint8).transpose(1, 2, 0))
    pixels.save(data.parent / "small.png")
    expected = slow_cosines(models / "clip", [data.parent / "small.png"], data)
    assert_cosines(index.query(tensor, k=3, embedding=models / "clip"), expected)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures go through a model at each call."""
    counts: list[int] = []
    real = VisionModel.embed

    def embed(model: VisionModel, prepared: Any) -> np.ndarray:
        counts.append(len(prepared))
        return real(model, prepared)

    monkeypatch.setattr(VisionModel, "embed", embed)
    return counts


def test_the_index_keeps_what_a_model_made(
    models: Path, place: Path, data: Path, asked: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each training picture goes through it once, and only those that are hits."""
    counts = counted(monkeypatch)
    expected = slow_cosines(models / "clip", asked, data)
    gradindex.open(place).query(asked[0], k=3, embedding=models / "clip")
    assert sum(counts) == 1 + 3
    for opened in (gradindex.open(place), gradindex.open(place)):
        for k in (3, 3, COUNT):
            assert_cosines(opened.query(asked[0], k=k, embedding=models / "clip"), expected[:1])
    assert sum(counts) == 7 + COUNT  # once for every call, and once for each picture
    digest = VisionModel(str(models / "clip"), "cpu").digest[:NAME_DIGITS]
    names = {file.name for file in (place / "embeddings").iterdir()}
    assert names == {f"{digest}-s{number:06d}.f32" for number in range(3)}


def test_pictures_that_are_added_or_taken_out_keep_the_others_right(
    models: Path, place: Path, data: Path, asked: list[Path], tmp_path: Path
) -> None:
    model, clip = data.parent / "model", models / "clip"
    gradindex.open(place).query(asked, k=COUNT, embedding=clip)
    more = tmp_path / "more"
    shutil.copytree(data, more)
    drawing(50).save(more / "50.png")
    index = gradindex.build(place, model=model, data=more, timesteps=[300], dim=8)
    expected = slow_cosines(clip, asked, more)
    assert_cosines(index.query(asked, k=COUNT + 1, embedding=clip), expected)
    remove(place, ["03.png"])
    results = gradindex.open(place).query(asked, k=COUNT + 1, embedding=clip)
    assert "03.png" not in results[0].ids
    assert_cosines(results, expected)
    compact(place)
    results = gradindex.open(place).query(asked, k=COUNT + 1, embedding=clip)
    (more / "03.png").unlink()
    assert_cosines(results, slow_cosines(clip, asked, more))


def test_another_picture_in_its_place_has_no_cosine(
    models: Path, place: Path, data: Path, asked: list[Path], tmp_path: Path
) -> None:
    """Neither an exchanged nor a lost picture has that of the one that was there."""
    moved = tmp_path / "moved"
    shutil.copytree(data, moved)
    drawing(77).save(moved / "05.png")
    expected = slow_cosines(models / "clip", asked, data)
    expected[:, 5] = np.nan
    index = gradindex.open(place, data=moved)
    assert_cosines(index.query(asked, k=COUNT, embedding=models / "clip"), expected)
    # Where it is back, it has one, too.
    expected = slow_cosines(models / "clip", asked, data)
    index = gradindex.open(place)
    assert_cosines(index.query(asked, k=COUNT, embedding=models / "clip"), expected)


@pytest.mark.parametrize("damage", ["flipped", "cut", "of another model"])
def test_a_damaged_file_is_made_anew(
    models: Path, place: Path, data: Path, asked: list[Path], tmp_path: Path, damage: str
) -> None:
    clip = models / "clip"
    expected = slow_cosines(clip, asked, data)
    gradindex.open(place).query(asked, k=COUNT, embedding=clip)
    file, *_ = sorted((place / "embeddings").iterdir())
    whole = file.read_bytes()
    if damage == "of another model":
        save_clip(tmp_path / "other", seed=9)
        gradindex.open(place).query(asked, k=COUNT, embedding=tmp_path / "other")
        (other,) = {*(place / "embeddings").glob("*-s000000.f32")} - {file}
        file.write_bytes(other.read_bytes())
    else:
        changed = bytes([whole[-1] ^ 1])
        file.write_bytes(whole[:-1] + changed if damage == "flipped" else whole[:-4])
    assert_cosines(gradindex.open(place).query(asked, k=COUNT, embedding=clip), expected)
    assert file.read_bytes() == whole


def test_an_index_that_cannot_be_written_to_answers(
    models: Path, place: Path, data: Path, asked: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Disk, "publish", refuse)
    results = gradindex.open(place).query(asked, k=COUNT, embedding=models / "clip")
    assert_cosines(results, slow_cosines(models / "clip", asked, data))
    assert not (place / "embeddings").exists()


def test_batches_change_nothing(
    models: Path, place: Path, data: Path, asked: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embeddings, "BATCH", 3)
    counts = counted(monkeypatch)
    results = gradindex.open(place).query(asked, k=COUNT, embedding=models / "clip")
    assert_cosines(results, slow_cosines(models / "clip", asked, data))
    assert counts == [2, 3, 1, 3, 1, 3, 1]


def test_a_report_has_a_row_of_it(models: Path, place: Path, data: Path, asked: list[Path]) -> None:
    """Of all pictures, the nearest first; and hits of a method have their cosines."""
    expected = slow_cosines(models / "clip", asked, data)
    answers = answer(gradindex.open(place), asked, 5, embedding=models / "clip")
    measures = [listing.measure for listing in answers.listings]
    assert measures == ["retrac", "tracin", "pixels", "embedding"]
    for result, own in zip(answers.listings[3].results, expected, strict=True):
        assert [hit.row for hit in result.hits] == np.argsort(-own, kind="stable")[:5].tolist()
        np.testing.assert_allclose(result.scores, np.sort(own)[::-1][:5], atol=1e-5)
    for listing in answers.listings[:2]:
        assert_cosines(listing.results, expected)
        assert listing.results[0].hits[0].pixel is not None
    page = to_html(answers)
    assert page.count('aria-label="Nearest by embedding"') == 2
    assert "among the nearest by embedding" in page


def test_the_command_line_prints_nothing_besides(
    models: Path, place: Path, asked: list[Path]
) -> None:
    """No remark of transformers, which would stand among ours."""
    command = ("query", place, asked[0], "-k", 2, "--embedding")
    done = run(*command, models / "clip", "--format", "json")
    assert " s, loading included; gradients " in done.stderr
    assert len(done.stderr.splitlines()) == 1
    for hit in json.loads(done.stdout)["queries"][0]["hits"]:
        assert -1 <= hit["embedding"] <= 1
    assert "z, pixel, embedding)" in run(*command, models / "vit").stdout


# --- from files -----------------------------------------------------------------------------------


@pytest.fixture
def files(models: Path, data: Path, asked: list[Path], tmp_path: Path) -> tuple[Path, Path]:
    training = slow_vectors(models / "clip", [Image.open(file) for file in sorted(data.iterdir())])
    np.save(tmp_path / "training.npy", training.astype(np.float64))
    queries = slow_vectors(models / "clip", [Image.open(file) for file in asked])
    np.save(tmp_path / "queries.npy", queries)
    return tmp_path / "training.npy", tmp_path / "queries.npy"


def test_files_compare_as_their_model(
    models: Path, place: Path, data: Path, asked: list[Path], files: tuple[Path, Path]
) -> None:
    """Files, arrays and tensors alike; without the training pictures, too."""
    expected = slow_cosines(models / "clip", asked, data)
    index = gradindex.open(place, data=place / "nowhere")
    training, queries = files
    arrays = np.load(training), np.load(queries)
    tensors = tuple(map(torch.from_numpy, arrays))
    for one, other in (files, map(str, files), arrays, tensors):
        results = index.query(asked, k=COUNT, embedding=one, query_embedding=other)  # type: ignore[arg-type]
        assert_cosines(results, expected)
    assert not (place / "embeddings").exists()
    words = ("--embedding", training, "--query-embedding", queries, "--format", "csv")
    lines = run("query", place, *asked, "-k", 2, *words).stdout.splitlines()
    assert lines[1].split(",")[9] == str(results[0].hits[0].embedding)


def test_rows_of_files_are_those_of_ids(
    models: Path, place: Path, data: Path, asked: list[Path], files: tuple[Path, Path]
) -> None:
    """After a removal a file of all pictures still is right, and one of those that are left."""
    training, queries = files
    expected = slow_cosines(models / "clip", asked, data)
    remove(place, ["03.png"])
    index = gradindex.open(place)
    listed = run("ids", place).stdout.splitlines()
    assert len(listed) == COUNT - 1
    of_listed = np.load(training)[[int(name[:2]) for name in listed]]
    damaged = np.load(training)
    damaged[3] = np.nan  # of the picture that was removed
    for array in (np.load(training), damaged, of_listed):
        results = index.query(asked, k=COUNT, embedding=array, query_embedding=queries)
        assert len(results[0].hits) == COUNT - 1
        assert_cosines(results, expected)


# --- what does not fit ----------------------------------------------------------------------------


def fails(place: Path, asked: list[Path], **options: Any) -> GradindexError:
    with pytest.raises(GradindexError) as caught:
        gradindex.open(place).query(asked, **options)
    assert "\n" not in str(caught.value)
    return caught.value


BAD_ARRAYS = {
    "few rows": (np.ones((COUNT - 1, 3)), r"embedding: \[11, 3\]; give \[12, E\], a row for each"),
    "one axis": (np.ones(COUNT), r"float64 \[12\]; give floating point numbers \[pictures, E\]"),
    "whole numbers": (np.ones((COUNT, 3), int), r"int64 \[12, 3\]; give floating point numbers"),
    "words": (np.full((COUNT, 3), "a"), r"<U1 \[12, 3\]; give floating point numbers"),
    "not a number": (
        np.where(np.arange(COUNT)[:, None] == 7, np.nan, np.ones(3)),
        "embedding: row 7 is not finite; give numbers for every picture",
    ),
    "another width": (np.ones((COUNT, 4)), "query_embedding: vectors of 3 numbers, the training"),
}


@pytest.mark.parametrize("kind", BAD_ARRAYS)
def test_arrays_that_do_not_fit_are_refused(place: Path, asked: list[Path], kind: str) -> None:
    array, message = BAD_ARRAYS[kind]
    error = fails(place, asked, embedding=array, query_embedding=np.ones((2, 3)))
    assert isinstance(error, CallError)
    with pytest.raises(CallError, match=message):
        raise error


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        (None, "give those of the pictures that you ask about, too"),
        (np.ones((1, 3)), r"query_embedding: \[1, 3\]; give \[2, E\]"),
        (np.full((2, 3), np.inf), "query_embedding: row 0 is not finite"),
    ],
)
def test_vectors_of_queries_must_fit(
    place: Path, asked: list[Path], queries: Any, message: str
) -> None:
    error = fails(place, asked, embedding=np.ones((COUNT, 3)), query_embedding=queries)
    with pytest.raises(CallError, match=message):
        raise error


def test_files_of_something_else_are_refused(
    models: Path, place: Path, asked: list[Path], tmp_path: Path
) -> None:
    queries = np.ones((2, 3))
    text = tmp_path / "text.npy"
    text.write_text("1, 2, 3")
    objects = tmp_path / "objects.npy"
    np.save(objects, np.array([{}], dtype=object), allow_pickle=True)
    several = tmp_path / "several.npy"
    with several.open("wb") as stream:
        np.savez(stream, a=queries)
    for file in (text, objects, several, tmp_path / "absent.npy"):
        error = fails(place, asked, embedding=file, query_embedding=queries)
        assert isinstance(error, CallError)
        assert str(error).startswith(f"embedding {file}: ")
    for words in ({"query_embedding": queries}, {"embedding": models / "clip"}):
        assert isinstance(fails(place, asked, **{"query_embedding": queries, **words}), CallError)


def change(folder: Path, kind: str) -> None:
    if kind == "without a processor":
        (folder / "preprocessor_config.json").unlink()
    elif kind == "a pickle":
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    elif kind == "cut":
        content = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    elif kind == "of another kind":
        (folder / "config.json").write_text('{"model_type": "nothing-known"}')
    elif kind == "without a part":
        from safetensors.torch import load_file, save_file

        weights = load_file(folder / "model.safetensors")
        del weights["visual_projection.weight"]
        save_file(weights, folder / "model.safetensors", {"format": "pt"})


BAD_MODELS = {
    "without a processor": r"has no image processor \(preprocessor_config.json\)",
    "a pickle": "no weights in safetensors",
    "cut": "cannot be loaded",
    "of another kind": "cannot be loaded",
    "without a part": "weights are missing for visual_projection.weight",
}


@pytest.mark.parametrize("kind", BAD_MODELS)
def test_models_that_cannot_be_used_are_refused(
    models: Path, place: Path, asked: list[Path], tmp_path: Path, kind: str
) -> None:
    shutil.copytree(models / "clip", tmp_path / "changed")
    change(tmp_path / "changed", kind)
    error = fails(place, asked, embedding=tmp_path / "changed")
    assert isinstance(error, ModelError)
    with pytest.raises(ModelError, match=BAD_MODELS[kind]):
        raise error


def test_a_model_of_texts_takes_no_pictures(models: Path, place: Path, asked: list[Path]) -> None:
    error = fails(place, asked, embedding=models / "bert")
    assert "a BertModel takes input_ids, no pictures; give a vision model" in str(error)


def test_what_is_neither_folder_nor_on_the_hub_is_refused(place: Path, asked: list[Path]) -> None:
    """The hub is not asked in tests."""
    error = fails(place, asked, embedding="someone/nothing")
    assert isinstance(error, CallError)
    assert str(error).startswith("embedding = 'someone/nothing': no folder, no .npy file, and no")


def test_a_model_needs_the_training_pictures(models: Path, place: Path, asked: list[Path]) -> None:
    with pytest.raises(CallError, match="nowhere"):
        gradindex.open(place, data="nowhere").query(asked, embedding=models / "clip")
