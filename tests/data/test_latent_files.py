"""Files of latents from anywhere: each fault is one clear line, and nothing is unpickled."""

import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gradindex.data.dataset import Columns
from gradindex.data.folder import open_folder
from gradindex.data.images import Geometry
from gradindex.data.latent_files import read_latent, with_latent_files
from gradindex.errors import CallError, DataError

SHAPES = [(4, 6, 10), (4, 8, 8)]
LATENT = np.random.default_rng(0).standard_normal((4, 6, 10)).astype(np.float32)
SOUND: Mapping[str, Any] = {
    "latents": LATENT,
    "original_size": np.array([300, 200]),
    "crop_ltrb": np.array([7.0, 5.0, 20.0, 12.0]),
}


class Armed:
    """An object that tells when it is unpickled."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("unpickled"),)


def npy(header: str, content: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    """An npy file with a header as given."""
    text = header.encode().ljust(118) + b"\n"
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text + content


def declared(shape: str, dtype: str = "'<f4'") -> str:
    return f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}}}"


def write(file: Path, arrays: Mapping[str, Any]) -> Path:
    """An npz file of arrays, or of the bytes of an npy."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            content = array
            if not isinstance(array, bytes):
                stream = io.BytesIO()
                np.save(stream, array, allow_pickle=True)
                content = stream.getvalue()
            archive.writestr(f"{name}.npy", content)
    return file


def fault(file: Path) -> str:
    """The one line that a file is refused with, from its name on."""
    with pytest.raises(DataError) as caught:
        read_latent(file, SHAPES)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{file}: ")
    assert len(line) < len(str(file)) + 500
    return line.removeprefix(f"{file}: ")


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_latent_and_where_it_came_from(tmp_path: Path, dtype: Any, order: Any) -> None:
    latent = np.asarray(LATENT.astype(dtype), order=order)
    file = write(tmp_path / "a.npz", {**SOUND, "latents": latent, "latents_flipped": -latent})
    read, geometry = read_latent(file, SHAPES)
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, latent.astype(np.float32))
    # Height and top first, where kohya's scripts have width and left first.
    assert geometry == Geometry(original=(200, 300), corner=(5, 7))


def test_of_several_latents_the_one_of_the_build(tmp_path: Path) -> None:
    arrays = {f"{name}_6x10": array for name, array in SOUND.items()}
    arrays |= {"latents_3x5": np.zeros((4, 3, 5)), "latents_6x10_flipped": LATENT}
    file = write(tmp_path / "a.npz", arrays)
    np.testing.assert_array_equal(read_latent(file, SHAPES)[0], LATENT)
    more = {**arrays, "latents_8x8": np.zeros((4, 8, 8))}
    assert fault(write(tmp_path / "b.npz", more)) == (
        "holds latents of 6 × 10, 3 × 5, 8 × 8, of which 2 fit this build; give resolution or"
        " buckets that one fits"
    )


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "no latents": ({"latents": None}, "no array 'latents'"),
    "no size": ({"original_size": None}, "There is no item named 'original_size.npy' in the arch"),
    "no corner": ({"crop_ltrb": None}, "There is no item named 'crop_ltrb.npy' in the archive"),
    "channels": ({"latents": np.zeros((16, 6, 10))}, "has the shape (16, 6, 10), not (4, 6, 10)"),
    "two axes": ({"latents": np.zeros((6, 10))}, "no array of channels, height and width"),
    "another size": ({"latents": np.zeros((4, 6, 11))}, "latents of 6 × 11, of which none fit"),
    "NaN": ({"latents": np.where(LATENT > 1, np.nan, LATENT)}, "numbers that are not finite"),
    "infinity": ({"latents": np.full((4, 6, 10), 1e300)}, "numbers that are not finite"),
    "texts": ({"latents": np.full((4, 6, 10), "x")}, "latents holds no numbers, but <U1"),
    "complex": ({"latents": np.zeros((4, 6, 10), complex)}, "holds no numbers, but complex128"),
    "objects": ({"latents": np.full((4, 6, 10), Armed())}, "latents holds no numbers, but object"),
    "objects in sizes": ({"original_size": np.full(2, Armed())}, "holds no numbers, but object"),
    "a pickle": ({"latents": pickle.dumps(Armed())}, "the magic string is not correct"),
    "no number": ({"latents": npy(declared("(4, 10**9, 10)"))}, "malformed node or string"),
    "giant sides": ({"latents": npy(declared("(4, 1000000000, 10)"))}, "no array of channels"),
    "negative sides": ({"latents": npy(declared("(4, -6, 10)"))}, "no array of channels"),
    "too short": ({"latents": npy(declared("(4, 6, 10)"), bytes(8))}, "cannot reshape array"),
    "nested": ({"latents": npy(declared("(4, 6, 10)", "('<f4', (9999,))"))}, "holds no numbers"),
    "a later version": ({"latents": npy(declared("(4, 6, 10)"), version=b"\x09\x00")}, "npy of v"),
    "four sizes": ({"original_size": np.ones(4)}, "original_size has the shape (4,), not (2,)"),
    "no pixels": ({"original_size": np.array([0, 9])}, "0 × 9 pixels, cut at 7, 5"),
    "far away": ({"crop_ltrb": np.array([1e9, 0, 0, 0])}, "300 × 200 pixels, cut at 1e+09, 0"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    changes, message = FAULTS[kind]
    arrays = {name: array for name, array in {**SOUND, **changes}.items() if array is not None}
    assert message in fault(write(tmp_path / "a.npz", arrays))
    assert not (tmp_path / "unpickled").exists()


def test_files_that_are_no_npz(tmp_path: Path) -> None:
    file = write(tmp_path / "a.npz", SOUND)
    content = file.read_bytes()
    for damaged in (b"", b"text", content[: len(content) // 2], pickle.dumps(Armed())):
        file.write_bytes(damaged)
        assert fault(file).startswith("latents that cannot be read (")
    file.write_bytes(content.replace(content[60:70], bytes(10)))
    assert fault(file).startswith("latents that cannot be read (")
    file.unlink()
    assert "No such file or directory" in fault(file)


def test_which_file_is_whose(tmp_path: Path) -> None:
    for name in ("a", "a_0008x0008_sd", "b.c", "d", "e"):
        Image.new("L", (8, 8)).save(tmp_path / f"{name}.png")
    names = ["a.npz", "a_0300x0200_sdxl.npz", "b.c_12345x0200_sd.npz", "d_8x8_sd.npz"]
    names += ["d_sdxl_te_outputs.npz", "e_0300x0200_sd.npz", "a_0008x0008_sd.npz"]
    for name in names:
        (tmp_path / name).touch()
    dataset = with_latent_files(open_folder(tmp_path, Columns()), SHAPES)
    found = [file and file.name for file in dataset.latent_files]
    assert dict(zip(dataset.sample_ids, found, strict=True)) == {
        "a.png": "a.npz",
        "a_0008x0008_sd.png": "a_0008x0008_sd.npz",
        "b.c.png": "b.c_12345x0200_sd.npz",
        "d.png": None,
        "e.png": "e_0300x0200_sd.npz",
    }
    moved = dataset.in_order(["e.png", "gone.png"], np.array([4, -1]))
    assert [file and file.name for file in moved.latent_files] == ["e_0300x0200_sd.npz", None]
    assert moved.fingerprint(0) == dataset.fingerprint(4)
    assert moved.stats[0] == dataset.stats[4]
    (tmp_path / "e_0300x0200_sd.npz").write_bytes(b"longer")
    assert moved.fingerprint(0) != open_folder(tmp_path, Columns()).fingerprint(4)


def test_pictures_in_no_folder_have_none_beside_them(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    dataset = open_folder(tmp_path, Columns())
    vars(dataset)["source"] = "user/dataset"
    with pytest.raises(CallError, match="they lie beside pictures in a folder, and data user/dat"):
        with_latent_files(dataset, SHAPES)
