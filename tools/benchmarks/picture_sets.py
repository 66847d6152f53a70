"""The pictures that the benchmarks measure on, fetched once and kept in a work folder."""

import gzip
import io
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # where its Debian package has it
EMOJI = "emoji-datasource-google@16.0.0"  # of npm
EMOJI_FOLDER = "/img/google/64/"  # those of 64×64
EMOJI_LIST = "package/emoji.json"  # their names and categories


def fashion_mnist(work: Path) -> np.ndarray:
    """Return Fashion-MNIST's training pictures, padded, [60000, 1, 32, 32] float32 in [−1, 1]."""
    content = _fashion_file(work, "train-images-idx3-ubyte.gz")
    pixels = np.frombuffer(content, np.uint8, offset=16).reshape(-1, 1, 28, 28)
    padded = np.pad(pixels, ((0, 0), (0, 0), (2, 2), (2, 2)))
    return padded.astype(np.float32) / 127.5 - 1


def small_fashion_mnist(work: Path) -> np.ndarray:
    """Return the same pictures at half the size, [60000, 1, 16, 16] float32 in [−1, 1]."""
    return halved(fashion_mnist(work))


def fashion_labels(work: Path) -> np.ndarray:
    """Return the class labels of Fashion-MNIST's training pictures, [60000] uint8."""
    content = _fashion_file(work, "train-labels-idx1-ubyte.gz")
    return np.frombuffer(content, np.uint8, offset=8)


def _fashion_file(work: Path, name: str) -> bytes:
    """The unpacked content of one of the data set's files, from its Debian package."""
    folder = work / "deb"
    candidates = [FASHION_FOLDER / name, *folder.glob(f"**/{name}")]
    files = [file for file in candidates if file.is_file()]
    if not files:
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "dataset-fashion-mnist"], cwd=folder, check=True)
        package = next(folder.glob("*.deb"))
        subprocess.run(["dpkg-deb", "-x", str(package), str(folder)], check=True)
        files = [next(folder.glob(f"**/{name}"))]
    return gzip.decompress(files[0].read_bytes())


def emoji(work: Path) -> np.ndarray:
    """Return 3,600 colour emoji on white, [N, 3, 32, 32] float32 in [−1, 1].

    They are in a random order, which is always the same.
    """
    contents = emoji_files(work)
    names = sorted(name for name in contents if name.endswith(".png"))
    stack = np.stack([_small(on_white(contents[name])) for name in names])
    order = np.random.default_rng(0).permutation(len(stack))
    return stack[order].astype(np.float32) / 127.5 - 1


def small_emoji(work: Path) -> np.ndarray:
    """Return the same pictures at half the size, [N, 3, 16, 16] float32 in [−1, 1]."""
    return halved(emoji(work))


def emoji_files(work: Path) -> dict[str, bytes]:
    """Return the contents of all emoji of 64×64, and of `emoji.json`, by their places in npm's."""
    archive = work / f"{EMOJI.replace('@', '-')}.tgz"
    if not archive.exists():
        work.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", "--silent", EMOJI], cwd=work, check=True)
    contents = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            is_picture = EMOJI_FOLDER in member.name and member.name.endswith(".png")
            if is_picture or member.name == EMOJI_LIST:
                data = tar.extractfile(member)
                assert data is not None
                contents[member.name] = data.read()
    return contents


def on_white(content: bytes) -> Image.Image:
    """Return a PNG file's picture on a white ground, RGB."""
    picture = Image.open(io.BytesIO(content)).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


def _small(picture: Image.Image) -> np.ndarray:
    """A picture of half the size, [3, 32, 32] uint8."""
    return np.array(picture.resize((32, 32), Image.Resampling.BOX)).transpose(2, 0, 1)


def halved(pictures: np.ndarray) -> np.ndarray:
    """Return pictures at half their size, each pixel a mean of four.

    [N, channels, 32, 32] → [N, channels, 16, 16] float32.
    """
    blocks = pictures.reshape(*pictures.shape[:2], 16, 2, 16, 2)
    return blocks.mean((3, 5), dtype=np.float32)


def to_bytes(pictures: np.ndarray) -> np.ndarray:
    """Return pictures in [−1, 1] as 0 … 255 uint8, of the same shape.

    >>> to_bytes(np.array([-1.0, 0.0, 1.0]))
    array([  0, 128, 255], dtype=uint8)
    """
    return ((pictures + 1) * 127.5).round().astype(np.uint8)


def write_pictures(folder: Path, pictures: np.ndarray) -> Path:
    """Write pictures [N, channels, height, width] in [−1, 1] as PNG files; return the folder.

    Whatever was in the folder before is gone.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number, picture in enumerate(to_bytes(pictures)):
        image = Image.fromarray(picture.transpose(1, 2, 0).squeeze())
        image.save(folder / f"{number:05d}.png")
    return folder
