"""Builds of adapters: exact scores, several checkpoints in one base, and what the index keeps."""

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import oracles
import pytest
import torch
from conftest import make_pictures
from diffusers import FluxTransformer2DModel, StableDiffusionPipeline, UNet2DConditionModel
from helpers import run
from models.adapter_makers import (
    FLUX_RANK,
    Layers,
    change_magnitudes,
    kohya_flux,
    make_flux,
    make_unet,
    merge,
    random_lora,
    save,
    save_ai_toolkit,
    save_kohya,
    with_peft,
)
from models.families.tiny_pipelines import SIDE, flux, stable_diffusion
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file
from transformers import T5EncoderModel

import gradindex
from gradindex.cli.main import main
from gradindex.cli.messages import flags_of, with_flags
from gradindex.errors import CallError, ModelError, RecipeMismatch
from gradindex.gradients.capture import Capture
from gradindex.gradients.projection import Exact
from gradindex.models import adapter_checkpoints
from gradindex.models.adapter_checkpoints import AdapterCheckpoints
from gradindex.models.adapter_files import read_adapter
from gradindex.models.adapters import exchange_adapter, inject_adapter
from gradindex.models.examples import Pictures
from gradindex.models.loading import load_denoiser
from gradindex.report.info import describe

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TIMESTEPS = [200, 700]
CAPTION = "a red dog"
PARAMS = r"\.to_q\."  # so few that folded rows are all of them, side by side


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stable_diffusion(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six colour pictures of the size that the base takes."""
    return make_pictures(tmp_path_factory.mktemp("colours"), 6, size=SIDE, mode="RGB")


@pytest.fixture(scope="module")
def unet(base: Path) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(base / "unet")


def lora_file(unet: Any, file: Path, seed: int = 0, alpha: float = 6.0, **metadata: str) -> Path:
    """A LoRA of the base's attention and some convolutions, as kohya's scripts write it."""
    return save_kohya(random_lora(unet, *ATTENTION, "conv1", seed=seed), file, alpha, **metadata)


def text_lora(base: Path, seed: int) -> Layers:
    """A LoRA of the base's text encoder."""
    text_encoder = StableDiffusionPipeline.from_pretrained(base).text_encoder
    return random_lora(text_encoder, "q_proj", "k_proj", "v_proj", "fc1", seed=seed)


def text_lora_file(base: Path, unet: Any, file: Path, seed: int) -> Path:
    """A LoRA of the denoiser and of the text encoder, as kohya's scripts write it."""
    named = {f"text_model.{path}": layer for path, layer in text_lora(base, seed).items()}
    of_text = save_kohya(named, file.with_suffix(".text.safetensors"), 6.0, prefix="lora_te_")
    weights = {**load_file(lora_file(unet, file, seed)), **load_file(of_text)}
    return save(weights, file)


def build(path: Path, base: Path, data: Path, adapters: Any, **options: Any) -> gradindex.Index:
    """An exact index over the pictures."""
    settings: dict[str, Any] = {
        "projection": "none",
        "timesteps": TIMESTEPS,
        "caption": CAPTION,
        "params": PARAMS,
        "device": "cpu",
    }
    settings |= options
    return gradindex.build(path, model=base, data=data, adapters=adapters, **settings)


def oracle_rows(
    base: Path, adapter: Path, files: Sequence[Path], caption: str, text: Layers
) -> np.ndarray:
    """Each picture's gradients, [files, T, parameters], by plain autograd and diffusers' loader.

    Args:
        text: the LoRA of the text encoder, which is merged by hand: with today's transformers
            diffusers drops the attention's part of it.
    """
    pipeline = StableDiffusionPipeline.from_pretrained(base)
    pipeline.load_lora_weights(adapter)
    merge(pipeline.text_encoder, text, 6.0 / 3)
    unet = pipeline.unet.eval()
    named = unet.named_parameters()
    parameters = [p for name, p in named if "lora_" in name and re.search(PARAMS, name)]
    assert parameters
    table = []
    for file in files:
        pixels = np.array(Image.open(file).convert("RGB"), np.float32).transpose(2, 0, 1)
        with torch.no_grad():
            latents = pipeline.vae.encode(torch.tensor(pixels)[None] / 127.5 - 1).latent_dist.mode()
            x = latents * pipeline.vae.config.scaling_factor
            states, _ = pipeline.encode_prompt(caption, "cpu", 1, False)
        rows = []
        for t in TIMESTEPS:
            epsilon = torch.tensor(gradindex.noise(0, None, t, 0, tuple(x.shape[1:])))[None]
            time = torch.tensor([t])
            output = unet(pipeline.scheduler.add_noise(x, epsilon, time), time, states).sample
            gradients = torch.autograd.grad((output - epsilon).square().mean(), parameters)
            rows.append(torch.cat([g.flatten() for g in gradients]).double().numpy())
        table.append(np.stack(rows))
    return np.stack(table)


def expected_scores(
    base: Path,
    adapters: Mapping[Path, Layers],
    data: Path,
    weights: Sequence[float],
    method: str,
) -> np.ndarray:
    """Exact scores of the first picture as a query, [1, N].

    Args:
        adapters: {file: its LoRA of the text encoder}.
    """
    files = sorted(data.glob("*.png"))
    training, queries = [], []
    for adapter, text in adapters.items():
        training.append(oracle_rows(base, adapter, files, CAPTION, text))
        queries.append(oracle_rows(base, adapter, files[:1], "dog", text))
    return oracles.score(training, queries, weights, method, "matched")


@pytest.mark.parametrize("rows", ["full", "folded"])
def test_scores_are_those_of_plain_autograd(
    base: Path, unet: Any, colours: Path, tmp_path: Path, rows: str
) -> None:
    """Two checkpoints with weights; diffusers' own loader reads the same files for the oracle."""
    adapters = [lora_file(unet, tmp_path / f"{n}.safetensors", seed=n) for n in range(2)]
    weighted = dict(zip(map(str, adapters), (0.5, 2.0), strict=True))
    index = build(tmp_path / "index", base, colours, weighted, rows=rows)
    for method in ("tracin", "retrac"):
        scores = index.scores(sorted(colours.glob("*.png"))[:1], method, prompt="dog", whiten=False)
        expected = expected_scores(
            base, {file: {} for file in adapters}, colours, [0.5, 2.0], method
        )
        np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4 * abs(expected).max())


@pytest.mark.parametrize("rows", ["full", pytest.param("folded", marks=pytest.mark.slow)])
def test_text_encoders_of_an_adapter_encode_the_captions(
    base: Path, unet: Any, colours: Path, tmp_path: Path, rows: str
) -> None:
    """Each checkpoint has conditions of its own; gradients are of the denoiser's part alone."""
    adapters = [text_lora_file(base, unet, tmp_path / f"{n}.safetensors", n) for n in range(2)]
    without = [lora_file(unet, tmp_path / f"no-{n}.safetensors", seed=n) for n in range(2)]
    index = build(tmp_path / "index", base, colours, adapters, rows=rows)
    scores = index.scores(sorted(colours.glob("*.png"))[:1], "tracin", prompt="dog", whiten=False)
    texts = [text_lora(base, seed) for seed in range(2)]
    changed = dict(zip(without, texts, strict=True))
    expected = expected_scores(base, changed, colours, [0.5, 0.5], "tracin")
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4 * abs(expected).max())
    plain = expected_scores(base, {file: {} for file in without}, colours, [0.5, 0.5], "tracin")
    assert abs(plain - expected).max() > 1e-2 * abs(expected).max()


def test_t5_of_kohyas_flux_script(tmp_path: Path) -> None:
    """Its weights are called lora_te3_…, as in a file of SD3, and T5 is Flux' second encoder."""
    folder = flux(tmp_path / "flux")
    encoders = folder / "text_encoder_2"
    t5 = T5EncoderModel.from_pretrained(encoders)
    layers = random_lora(t5, "SelfAttention.q", "SelfAttention.v")
    width = FluxTransformer2DModel.from_pretrained(folder / "transformer").inner_dim
    single = {"single_blocks.0.linear2": (torch.ones(1, 5 * width), torch.ones(width, 1))}
    of_t5 = load_file(save_kohya(layers, tmp_path / "t5.safetensors", 6.0, "lora_te3_"))
    of_flux = load_file(save_kohya(single, tmp_path / "flux.safetensors", 1.0))
    file = save(of_t5 | of_flux, tmp_path / "both.safetensors")
    pictures = Pictures(np.zeros((1, 3, SIDE, SIDE), np.float32), ["a"], captions=[CAPTION])

    def hidden(**options: Any) -> np.ndarray:
        encoder = load_denoiser(folder, resolution=(SIDE, SIDE), **options).encoder
        return encoder.encode(pictures).conditions["encoder_hidden_states"][0]

    plain, adapted = hidden(), hidden(adapter=file)
    merge(t5, layers, 2.0).save_pretrained(encoders)
    np.testing.assert_allclose(adapted, hidden(), atol=1e-5)
    assert abs(adapted - plain).max() > 0.01


def test_forms_that_share_other_weights_are_not_exchanged(tmp_path: Path) -> None:
    """kohya's Flux has one down weight for query, key and value, ai-toolkit's has three."""
    kohya, layers = kohya_flux(tmp_path)
    others = random_lora(make_flux(), *layers, rank=FLUX_RANK, seed=4)
    plain = save_ai_toolkit({path: others[path] for path in layers}, tmp_path / "ai.safetensors")
    for first, second in ((kohya, plain), (plain, kohya)):
        model = make_flux()
        put_in, exchanged = read_adapter(first), read_adapter(second)
        inject_adapter(model, put_in, put_in.denoiser)
        exchange_adapter(model, put_in, put_in.denoiser)
        with pytest.raises(ModelError, match="other layers share a weight in it"):
            exchange_adapter(model, exchanged, exchanged.denoiser)


# --- one base


def test_checkpoints_share_one_base(base: Path, unet: Any, tmp_path: Path) -> None:
    adapters = [lora_file(unet, tmp_path / f"{n}.safetensors", seed=n) for n in range(3)]
    run_ = AdapterCheckpoints(adapters, base, None, "cpu", "float32")
    first, last = run_[0], run_[2]
    assert first.model is last.model
    assert first.digest != last.digest
    assert len({run_[n].digest for n in range(3)}) == 3
    fields = run_.recipe_fields()
    assert fields["base"] == load_denoiser(base).digest
    assert fields["checkpoints"] == tuple(run_[n].digest for n in range(3))


def test_an_adapter_is_read_once_and_stays_as_it_was_read(
    base: Path, unet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often they are exchanged, and whatever becomes of their files."""
    files = [lora_file(unet, tmp_path / f"{n}.safetensors", seed=n) for n in range(3)]
    run_ = AdapterCheckpoints(files, base, None, "cpu", "float32")
    first = [losses(run_[number]) for number in range(3)]
    for file in files:
        file.write_bytes(b"")
    monkeypatch.setattr(adapter_checkpoints, "read_adapter", None)
    for number in (1, 0, 2):
        assert torch.equal(losses(run_[number]), first[number])


def test_a_checkpoint_that_is_kept_has_its_own_weights(
    base: Path, unet: Any, tmp_path: Path
) -> None:
    """Whoever holds one checkpoint's denoiser gets its losses, whichever was asked for since."""
    adapters = [lora_file(unet, tmp_path / f"{n}.safetensors", seed=n) for n in range(2)]
    run_ = AdapterCheckpoints(adapters, base, None, "cpu", "float32")
    kept = run_[0]
    before = losses(kept)
    other = losses(run_[1])
    assert not torch.equal(before, other)
    assert torch.equal(losses(kept), before)
    alone = losses(load_denoiser(base, adapter=adapters[1]))
    assert torch.equal(other, alone)


def losses(denoiser: Any) -> torch.Tensor:
    x = torch.ones(2, 4, 8, 8)
    conditions = {"encoder_hidden_states": torch.ones(2, 77, 16)}
    with torch.no_grad():
        return denoiser.losses(x, torch.tensor([5, 600]), x.cos(), conditions, "mse")


def test_adapters_that_peft_scales_otherwise_are_refused(
    base: Path, unet: Any, tmp_path: Path
) -> None:
    # PEFT makes a scale of its configuration when an adapter is put in, not when it is exchanged.
    folders = [tmp_path / name for name in ("one", "two", "three")]
    for folder, alpha in zip(folders, (2, 2, 9), strict=True):
        config = LoraConfig(r=3, lora_alpha=alpha, target_modules=list(ATTENTION))
        model = get_peft_model(UNet2DConditionModel.from_pretrained(base / "unet"), config)
        model.save_pretrained(folder)
    layers = random_lora(unet, *ATTENTION)
    kohya = save_kohya(layers, tmp_path / "kohya.safetensors", alpha=2.0)

    def scales(*paths: Path) -> list[float]:
        run = AdapterCheckpoints(paths, base, None, "cpu", "float32")
        layer = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
        return [run[n].model.get_submodule(layer).scaling["default"] for n in range(len(paths))]

    assert scales(*folders[:2]) == [2 / 3] * 2
    assert scales(folders[2]) == [3.0]
    with pytest.raises(ModelError, match=r"three: .* says lora_alpha = 9, that of .*one 2"):
        scales(folders[0], folders[2])
    for mixed in ((folders[0], kohya), (kohya, folders[0])):
        with pytest.raises(ModelError, match=r"of another form than .* PEFT saved"):
            scales(*mixed)


def test_only_the_adapter_is_trainable(base: Path, unet: Any, tmp_path: Path) -> None:
    file = lora_file(unet, tmp_path / "a.safetensors")
    denoiser = load_denoiser(base, adapter=file, dtype="bfloat16")
    assert denoiser.trainable
    assert all("lora_" in name for name in denoiser.trainable)
    assert {parameter.dtype for parameter in denoiser.model.parameters()} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in denoiser.model.parameters())


def test_adapters_of_another_rank_are_refused(base: Path, unet: Any, tmp_path: Path) -> None:
    first = lora_file(unet, tmp_path / "a.safetensors")
    other = random_lora(unet, *ATTENTION, "conv1", rank=2)
    second = save_kohya(other, tmp_path / "b.safetensors", 1.0)
    run_ = AdapterCheckpoints([first, second], base, None, "cpu", "float32")
    with pytest.raises(ModelError, match=r"b\.safetensors: .*; give .*adapters of one rank"):
        run_.recipe_fields()


# --- hooks


def assert_capture_is_autograd(model: Any, names: list[str], call: Any) -> None:
    """The captured gradient of each sample is autograd's, parameter by parameter, in float64."""
    sizes = {name: model.get_parameter(name).numel() for name in names}
    exact = Exact(sizes)
    model.requires_grad_(False)
    with Capture(model, names, exact) as capture:
        rows = capture.gradients(lambda: call(slice(None)))
    parameters = [model.get_parameter(name) for name in names]
    for parameter in parameters:
        parameter.requires_grad_()
    for sample in range(2):
        with torch.enable_grad():
            loss = call(slice(sample, sample + 1)).sum()
            gradients = torch.autograd.grad(loss, parameters)
        for name, gradient in zip(names, gradients, strict=True):
            captured = rows[sample][exact.slices[name]]
            error = (captured - gradient.flatten()).norm()
            assert error <= 1e-6 * gradient.norm(), name


def unet_losses(model: Any) -> Any:
    random = torch.Generator().manual_seed(3)
    x = torch.randn((2, 4, 8, 8), generator=random).double()
    text = torch.randn((2, 7, 16), generator=random).double()
    t = torch.tensor([20, 800])

    def call(samples: slice) -> torch.Tensor:
        output = model(x[samples], t[samples], text[samples], return_dict=False)[0]
        return output.square().flatten(1).mean(1)

    return call


@pytest.mark.parametrize("dora", [False, True])
def test_hooks_are_autograd(tmp_path: Path, dora: bool) -> None:
    """LoRA and LoCon, and DoRA with its magnitudes."""
    lora = random_lora(make_unet(), *ATTENTION, "conv1", "downsamplers.0.conv", "proj_in")
    unet = with_peft(make_unet(), lora, r=3, lora_alpha=7, use_dora=dora)
    if dora:
        change_magnitudes(unet)
    names = [name for name, parameter in unet.named_parameters() if parameter.requires_grad]
    assert any("magnitude" in name for name in names) == dora
    assert_capture_is_autograd(unet.eval().double(), names, unet_losses(unet))


def test_hooks_are_autograd_where_layers_share_a_weight(tmp_path: Path) -> None:
    """The layers of kohya's Flux that are several here share their down weight."""
    file, _ = kohya_flux(tmp_path)
    flux = make_flux()
    adapter = read_adapter(file)
    inject_adapter(flux, adapter, adapter.denoiser)
    names = [name for name, parameter in flux.named_parameters() if parameter.requires_grad]
    random = torch.Generator().manual_seed(1)
    shapes = ((2, 4, 4), (2, 3, 12), (2, 10))
    tokens, text, pooled = (torch.randn(s, generator=random).double() for s in shapes)
    times, guidance = torch.tensor([0.1, 0.7]), torch.full((2,), 3.5)

    def call(samples: slice) -> torch.Tensor:
        output = flux(
            tokens[samples],
            encoder_hidden_states=text[samples],
            pooled_projections=pooled[samples],
            timestep=times[samples],
            guidance=guidance[samples],
            img_ids=torch.zeros(4, 3),
            txt_ids=torch.zeros(3, 3),
            return_dict=False,
        )[0]
        return output.square().flatten(1).mean(1)

    assert_capture_is_autograd(flux.eval().double(), names, call)


# --- the index


def test_an_index_finds_model_and_adapters_that_were_moved(
    base: Path, unet: Any, colours: Path, tmp_path: Path
) -> None:
    adapters = [lora_file(unet, tmp_path / f"{n}.safetensors", seed=n) for n in range(2)]
    there = Path(shutil.copytree(base, tmp_path / "base"))
    index = build(tmp_path / "index", there, colours, adapters)
    picture = sorted(colours.glob("*.png"))[0]
    before = index.scores(picture, "tracin", prompt="dog", whiten=False)
    moved_base = there.rename(tmp_path / "elsewhere")
    with pytest.raises(CallError, match=r"model .*base: no such file .* with --model \(model=\)"):
        gradindex.open(tmp_path / "index").scores(picture, prompt="dog")
    moved = [file.rename(tmp_path / f"moved-{file.name}") for file in adapters]
    with pytest.raises(CallError, match=r"adapter .*0.safetensors: .*--adapter \(adapters=\)"):
        gradindex.open(tmp_path / "index", model=moved_base).scores(picture, prompt="dog")
    with pytest.raises(CallError, match=r"adapters: 1 given, .* from 2; give all of them"):
        gradindex.open(tmp_path / "index", adapters=moved[:1]).scores(picture, prompt="dog")
    index = gradindex.open(tmp_path / "index", model=moved_base, adapters=moved)
    after = index.scores(picture, "tracin", prompt="dog", whiten=False)
    assert np.array_equal(before, after)
    first, second = moved
    index = gradindex.open(tmp_path / "index", model=moved_base, adapters=[second, first])
    with pytest.raises(CallError) as caught:
        index.scores(picture, prompt="dog")
    assert str(caught.value) == (
        f"adapters: in another order than {tmp_path}/index was built from; give {first}, {second}"
    )
    for another in (lora_file(unet, tmp_path / "other.safetensors", seed=9), first):
        index = gradindex.open(tmp_path / "index", model=moved_base, adapters=[first, another])
        named = [another] if another != first else [first, first]
        message = f"adapters {', '.join(map(str, named))}: not those that it was built from: "
        with pytest.raises(RecipeMismatch, match=message):
            index.scores(picture, prompt="dog")


def test_a_build_goes_on_with_the_adapters_in_their_order(
    base: Path, unet: Any, colours: Path, tmp_path: Path
) -> None:
    """Otherwise its rows would be other ones: the axis C of the store has their order."""
    first, second = (lora_file(unet, tmp_path / f"{n}.safetensors", seed=n) for n in range(2))
    place = tmp_path / "index"
    build(place, base, colours, [first, second], timesteps=[500])
    with pytest.raises(CallError) as caught:
        build(place, base, colours, [second, first], timesteps=[500])
    assert str(caught.value) == (
        f"adapters: in another order than {place} was built from; give {first}, {second}"
    )


def test_an_index_without_adapters_takes_none(base: Path, colours: Path, tmp_path: Path) -> None:
    index = build(tmp_path / "index", base, colours, None, timesteps=[500], params="conv_out.bias")
    file = lora_file(make_unet(), tmp_path / "a.safetensors")
    index = gradindex.open(tmp_path / "index", adapters=file)
    with pytest.raises(CallError, match=r"adapters: .* was built without one"):
        index.scores(sorted(colours.glob("*.png"))[0], prompt="dog")
    header = msgspec.to_builtins(index.store.header)
    assert "trainer" not in header
    assert "base" not in index.store.header.recipe


def test_adapters_and_checkpoints_exclude_each_other(base: Path, colours: Path) -> None:
    with pytest.raises(CallError, match="checkpoints and adapters: give one of them"):
        gradindex.build("idx", model=base, data=colours, adapters=["a"], checkpoints=["b"])


def test_an_adapter_whose_name_says_lcm(
    base: Path, unet: Any, colours: Path, tmp_path: Path
) -> None:
    """Its weights do not tell who the teacher was, so a build goes on; a dry run warns as well."""
    file = lora_file(unet, tmp_path / "lcm-lora-sdv1-5.safetensors")
    given = ["--model", base, "--adapter", file, "--data", colours, "--caption", CAPTION]
    given += ["--timesteps", 2, "--dim", 64, "--device", "cpu"]
    with pytest.warns(UserWarning, match=r"lcm-lora.*: by its name distilled from a teacher"):
        done = run("build", tmp_path / "index", *given, "--dry-run")
    assert done.returncode == 0, done.stderr
    # What a newcomer wants to know before an hour of gradients.
    assert "captions: 1 distinct" in done.stderr
    assert re.search(r"latents +4 × \d+ × \d+ of pictures of \d+x\d+, the VAE's mean", done.stdout)
    assert re.search(r"timesteps +250, 750\n", done.stdout)


def test_the_command_line(base: Path, unet: Any, colours: Path, tmp_path: Path) -> None:
    """A build with one adapter, its trainer's notes in `info`, and what they warn of."""
    notes = {
        "ss_min_snr_gamma": "5.0",
        "ss_noise_offset": "0.05",
        "ss_resolution": "(512, 512)",
        "ss_dataset_dirs": '{"10_dog": {"n_repeats": 10, "img_count": 6}}',
    }
    file = lora_file(unet, tmp_path / "dog.safetensors", **notes)
    given = ["--model", base, "--adapter", file, "--data", colours, "--caption", CAPTION]
    index = tmp_path / "index"
    with pytest.warns(UserWarning, match="the adapter's training") as caught:
        done = run("build", index, *given, "--timesteps", 2, "--dim", 64, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    # As the command line shows warnings.
    assert [with_flags(str(warning.message), flags_of(main)) for warning in caught] == [
        "the adapter's training weighted its loss (min-snr:5), this build does not; --weighting"
        " min-snr:5 does",
        "the adapter's training had a noise offset of 0.05, this build: 0; --noise-offset 0.05"
        " takes it",
    ]
    assert "dog.safetensors; gradients are of its parameters in the denoiser alone" in done.stderr
    text = describe(gradindex.open(index).store)
    assert re.search(r"trained +resolution 512x512, min_snr_gamma 5, noise_offset 0\.05", text)
    assert "folders 10_dog (6 × 10)" in text
    picture = sorted(colours.glob("*.png"))[2]
    asked = run("query", index, picture, "--prompt", CAPTION, "-k", 1, "--adapter", file)
    assert asked.returncode == 0, asked.stderr
    assert picture.name in asked.stdout


def test_a_lora_given_as_model(base: Path, unet: Any, colours: Path, tmp_path: Path) -> None:
    file = lora_file(unet, tmp_path / "dog.safetensors")
    done = run("build", tmp_path / "index", "--model", file, "--data", colours)
    assert done.returncode == 1
    assert "a LoRA adapter, not a model" in done.stderr
    assert "--model BASE --adapter FILE" in done.stderr
