"""Scores of an index of adapters, against adapters that were trained again."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_pictures
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from helpers import run
from models.adapter_makers import random_lora, save_kohya
from models.families.tiny_pipelines import SIDE, captioned_pictures, stable_diffusion
from PIL import Image

import gradindex
from gradindex.errors import CallError
from gradindex.report.counterfactual import counterfactual
from gradindex.report.evaluate import DRAWS, SEED, TIMESTEPS, model_losses

CAPTIONS = ["red dog", "blue cat", "a number", "a bird"]
PROMPTS = ["red cat", "blue bird"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stable_diffusion(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """Four folders with an adapter each, and which pictures it was trained on."""
    folder = tmp_path_factory.mktemp("adapters")
    unet = UNet2DConditionModel.from_pretrained(base / "unet")
    for number in range(4):
        (folder / str(number)).mkdir()
        lora = random_lora(unet, "to_q", "to_v", seed=number)
        save_kohya(lora, folder / str(number) / "pytorch_lora_weights.safetensors", alpha=6.0)
        names = [f"p{row:03d}.png" for row in range(4) if row != number]
        (folder / str(number) / "subset.txt").write_text("\n".join(names))
    return folder


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, base: Path, adapters: Path) -> gradindex.Index:
    place = tmp_path_factory.mktemp("index")
    captioned_pictures(place / "data", CAPTIONS)
    return gradindex.build(
        place / "idx",
        model=base,
        adapters=[adapters / "0"],
        data=place / "data",
        timesteps=2,
        dim=64,
        resolution=SIDE,
        device="cpu",
    )


@pytest.fixture(scope="module")
def queries(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return sorted(make_pictures(tmp_path_factory.mktemp("queries"), 2, SIDE, 7, "RGB").iterdir())


def colours(file: Path) -> torch.Tensor:
    pixels = np.array(Image.open(file).convert("RGB"), np.float32).transpose(2, 0, 1)
    return torch.tensor(pixels)[None] / 127.5 - 1


def folders_of(adapters: Path) -> list[Path]:
    return [adapters / str(number) for number in range(4)]


def test_losses_are_those_of_the_base_with_each_adapter(
    index: gradindex.Index, base: Path, adapters: Path, queries: list[Path]
) -> None:
    losses = model_losses(index, folders_of(adapters), queries, PROMPTS)
    pipeline = StableDiffusionPipeline.from_pretrained(base)
    pipeline.load_lora_weights(adapters / "2")
    tokens = pipeline.tokenizer(PROMPTS, padding="max_length", max_length=77, return_tensors="pt")
    shape = (4, SIDE // 2, SIDE // 2)
    with torch.no_grad():
        states = pipeline.text_encoder(tokens.input_ids)[0]
        pixels = torch.cat([colours(file) for file in queries])
        latents = pipeline.vae.encode(pixels).latent_dist.mode()
        x = latents * pipeline.vae.config.scaling_factor
        each = []
        for t in range(10, 1000, 1000 // TIMESTEPS):
            for draw in range(DRAWS):
                epsilon = torch.from_numpy(gradindex.noise(SEED, None, t, draw, shape)).expand_as(x)
                noisy = pipeline.scheduler.add_noise(x, epsilon, torch.tensor([t, t]))
                error = pipeline.unet(noisy, t, states).sample - epsilon
                each.append(error.square().mean((1, 2, 3)).numpy())
    np.testing.assert_allclose(losses[2], np.mean(each, axis=0), rtol=1e-5)
    assert len({round(float(loss), 9) for loss in losses[:, 0]}) == 4


def test_the_command_takes_adapters_and_prompts(
    index: gradindex.Index, adapters: Path, queries: list[Path]
) -> None:
    prompts = [text for prompt in PROMPTS for text in ("--prompt", prompt)]
    given = ("--models", adapters, *prompts, "--format", "json")
    done = run("evaluate", "lds", index.store.location, *queries, *given)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["subsets"] == 4


def test_the_commands_are_told_where_a_moved_adapter_is(
    base: Path, adapters: Path, queries: list[Path], tmp_path: Path
) -> None:
    """As the message of one that is gone says."""
    captioned_pictures(tmp_path / "data", CAPTIONS)
    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(adapters / "0", old)
    gradindex.build(
        tmp_path / "idx",
        model=base,
        adapters=[old],
        data=tmp_path / "data",
        timesteps=1,
        dim=16,
        resolution=SIDE,
        device="cpu",
    )
    old.rename(new)
    prompts = [text for prompt in PROMPTS for text in ("--prompt", prompt)]
    evaluation = ["evaluate", "lds", tmp_path / "idx", *queries, "--models", adapters, *prompts]
    gone = run(*evaluation)
    assert (gone.returncode, "--adapter" in gone.stderr) == (2, True)
    done = run(*evaluation, "--adapter", new)
    assert done.returncode == 0, done.stderr


def test_a_counterfactual_trains_with_the_captions(
    index: gradindex.Index, adapters: Path, queries: list[Path], tmp_path: Path
) -> None:
    command = f"cp -rL {{data}} {tmp_path}/seen && cp -r {adapters}/1 {{out}}"
    removals = counterfactual(
        index, queries[:1], command, tmp_path / "work", k=1, random=0, prompt=PROMPTS[:1]
    )
    (removal,) = removals
    (removed,) = removal.removed
    kept = {f"p{row:03d}.png" for row in range(4)} - {removed}
    seen = {file.name: file for file in (tmp_path / "seen").iterdir()}
    assert seen.keys() == kept | {name.replace(".png", ".txt") for name in kept}
    for name in kept:
        caption = seen[name.replace(".png", ".txt")].read_text()
        assert caption == CAPTIONS[int(name[1:4])]
    losses = model_losses(index, [adapters / "1"], queries[:1], PROMPTS[:1])
    assert removal.loss == pytest.approx(losses[0, 0])


def test_a_counterfactual_trains_with_masks_and_latents(
    base: Path, adapters: Path, queries: list[Path], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    captioned_pictures(data, CAPTIONS)
    side = SIDE // 2
    for number in range(4):
        np.savez(
            data / f"p{number:03d}.npz",
            latents=np.random.default_rng(number).standard_normal((4, side, side)),
            original_size=[SIDE, SIDE],
            crop_ltrb=[0, 0, SIDE, SIDE],
        )
        mask = tmp_path / f"masks/p{number:03d}.bmp"
        mask.parent.mkdir(exist_ok=True)
        Image.new("L", (SIDE, SIDE), 200).save(mask)
    index = gradindex.build(
        tmp_path / "idx",
        model=base,
        adapters=[adapters / "0"],
        data=data,
        masks=tmp_path / "masks",
        latents="npz",
        timesteps=1,
        dim=16,
        resolution=SIDE,
        device="cpu",
    )
    train = f"cp -r {{data}} {{masks}} {tmp_path}/seen && cp -r {adapters}/1 {{out}}"
    (tmp_path / "seen").mkdir()
    options = {"k": 1, "random": 0, "prompt": PROMPTS[0]}
    (removal,) = counterfactual(index, queries[:1], train, tmp_path / "work", **options)
    kept = {f"p{row:03d}" for row in range(4)} - {Path(removal.removed[0]).stem}
    seen = {path.name for path in (tmp_path / "seen/data").iterdir()}
    assert seen == {f"{name}.{suffix}" for name in kept for suffix in ("png", "txt", "npz")}
    masks = {path.name for path in (tmp_path / "seen/masks").iterdir()}
    assert masks == {f"{name}.bmp" for name in kept}
    # A script that caches latents writes them where they are: those of the index stay.
    assert not any(file.is_symlink() for file in (tmp_path / "seen/data").glob("*.npz"))
    with pytest.raises(CallError, match=r"has no \{masks\}: the index is of a masked loss; write"):
        counterfactual(index, queries[:1], "x {data} {out}", tmp_path / "work", k=1)


def test_a_command_with_masks_of_an_index_without(
    index: gradindex.Index, queries: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(CallError, match=r"has \{masks\}: the index was built without a folder"):
        counterfactual(index, queries, "x {data} {out} {masks}", tmp_path / "work", k=1)


def test_captions_in_a_table_are_refused(
    base: Path, adapters: Path, queries: list[Path], tmp_path: Path
) -> None:
    """The training would have none, or others."""
    data = tmp_path / "data"
    captioned_pictures(data, CAPTIONS)
    lines = [{"file_name": f"p{row:03d}.png", "text": f"other {row}"} for row in range(4)]
    (data / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    settings = {"timesteps": 1, "dim": 16, "resolution": SIDE, "device": "cpu"}
    index = gradindex.build(
        tmp_path / "idx", model=base, adapters=[adapters / "0"], data=data, **settings
    )
    with pytest.raises(
        CallError, match=r"data: the captions are in a table, .* into a file x\.txt"
    ):
        counterfactual(index, queries, "x {data} {out}", tmp_path / "work", k=1)


def test_a_denoiser_of_ones_own_has_no_other_models(tmp_path: Path, pictures: Path) -> None:
    class Own:
        shape = (1, 8, 8)
        num_train_timesteps = 10

        def __init__(self) -> None:
            self.model = torch.nn.Conv2d(1, 1, 3, padding=1)

        def losses(self, x, t, noise, conditions):  # type: ignore[no-untyped-def]
            return (self.model(x + noise) - noise).square().flatten(1).mean(1)

    index = gradindex.build(
        tmp_path / "idx", denoiser=Own(), data=pictures, timesteps=2, dim=8, device="cpu"
    )
    with pytest.raises(CallError, match="its losses are yours to take"):
        model_losses(index, [tmp_path], [next(pictures.iterdir())])
