"""Adapters of each trainer: loaded, they change the model's output as a merge by hand does."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers
from models.adapter_makers import (
    change_magnitudes,
    flux_output,
    kohya_flux,
    layers_of,
    make_flux,
    make_unet,
    merge,
    product,
    random_lora,
    save,
    save_ai_toolkit,
    save_kohya,
    unet_output,
    with_peft,
)
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from torch import Tensor

from gradindex.models.adapter_files import read_adapter
from gradindex.models.adapter_names import original_unet_name
from gradindex.models.adapters import exchange_adapter, inject_adapter

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
RANK, ALPHA = 3, 7.0


def adapted(model: Any, path: Path) -> Any:
    """A model with an adapter."""
    adapter = read_adapter(path)
    inject_adapter(model, adapter, adapter.denoiser)
    return model.eval()


def assert_same(output: Tensor, expected: Tensor, plain: Tensor) -> None:
    """The outputs agree to 1e-5, and the adapter has changed them."""
    assert (expected - plain).norm() > 1e-2 * plain.norm()
    assert (output - expected).norm() <= 1e-5 * expected.norm()


def trainable(model: Any) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


# --- one test for each format


def test_kohya(tmp_path: Path) -> None:
    """sd-scripts' LoRA of SD: attention, feed-forward and the 1×1 convolutions around them."""
    ends = (*ATTENTION, "net.0.proj", "net.2", "proj_in", "proj_out")
    lora = random_lora(make_unet(), *ends, rank=RANK)
    file = save_kohya(lora, tmp_path / "dog-000004.safetensors", ALPHA)
    expected = merge(make_unet(), lora, ALPHA / RANK)
    unet = adapted(make_unet(), file)
    assert_same(unet_output(unet), unet_output(expected), unet_output(make_unet()))
    assert len(trainable(unet)) == 2 * len(lora)


def test_kohya_locon(tmp_path: Path) -> None:
    """LoCon: all convolutions and time embeddings too, at a rank and alpha of their own."""
    unet = make_unet()
    convolutions = (
        *("conv_in", "conv_out", "conv1", "conv2", "conv_shortcut", "downsamplers.0.conv"),
        *("upsamplers.0.conv", "time_emb_proj", "linear_1", "linear_2"),
    )
    attention = random_lora(unet, *ATTENTION, rank=RANK)
    convs = random_lora(unet, *convolutions, rank=2, seed=1)
    assert {down.dim() for down, _ in convs.values()} == {2, 4}
    first = save_kohya(attention, tmp_path / "a.safetensors", ALPHA)
    second = save_kohya(convs, tmp_path / "b.safetensors", 1.0)
    from safetensors.torch import load_file

    file = save({**load_file(first), **load_file(second)}, tmp_path / "locon.safetensors")
    scales = dict.fromkeys(attention, ALPHA / RANK) | dict.fromkeys(convs, 1.0 / 2)
    expected = unet_output(merge(make_unet(), attention | convs, scales))
    assert_same(unet_output(adapted(make_unet(), file)), expected, unet_output(make_unet()))


def sdxl_unet() -> UNet2DConditionModel:
    """A small UNet whose blocks are those of SDXL: the first without attention."""
    return make_unet(
        block_out_channels=(8, 16, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        use_linear_projection=True,
    )


def test_kohya_sdxl(tmp_path: Path) -> None:
    """For SDXL the scripts know the layers by the original code's names."""
    unet = sdxl_unet()
    ends = (*ATTENTION, "proj_in", "conv1", "conv2", "conv_shortcut", "time_emb_proj", "0.conv")
    lora = random_lora(unet, *ends, rank=RANK)
    named = {str(original_unet_name(path, 2)): weights for path, weights in lora.items()}
    assert len(named) == len(lora)
    assert "input_blocks.4.1.transformer_blocks.0.attn1.to_q" in named
    file = save_kohya(named, tmp_path / "xl.safetensors", ALPHA)
    expected = unet_output(merge(sdxl_unet(), lora, ALPHA / RANK))
    assert_same(unet_output(adapted(sdxl_unet(), file)), expected, unet_output(sdxl_unet()))


def test_original_names_are_those_that_diffusers_reads() -> None:
    """diffusers' own conversion finds the same layer by each original name."""
    unet = sdxl_unet()
    for path, module in layers_of(unet, "to_q", "proj_in", "conv1", "time_emb_proj", "0.conv"):
        name = "lora_unet_" + str(original_unet_name(path, 2)).replace(".", "_")
        weights = {
            f"{name}.lora_down.weight": module.weight[:1],
            f"{name}.lora_up.weight": module.weight[:, :1],
        }
        state, _ = StableDiffusionPipeline.lora_state_dict(weights, unet_config=unet.config)
        key = next(iter(state)).replace(".processor", "").replace("to_q_lora", "to_q.lora")
        assert key == f"unet.{path}.lora.down.weight"


@pytest.mark.parametrize("dora", [False, True])
def test_diffusers_unet(tmp_path: Path, dora: bool) -> None:
    """diffusers' Stable Diffusion scripts, whose alpha is the rank; with DoRA, too."""
    lora = random_lora(make_unet(), *ATTENTION, "conv1", rank=RANK)
    trained = with_peft(make_unet(), lora, r=RANK, lora_alpha=RANK, use_dora=dora)
    if dora:
        change_magnitudes(trained)
    state = convert_state_dict_to_diffusers(get_peft_model_state_dict(trained))
    StableDiffusionPipeline.save_lora_weights(tmp_path / "checkpoint-500", unet_lora_layers=state)
    unet = adapted(make_unet(), tmp_path / "checkpoint-500")
    if dora:
        expected = unet_output(merge_dora(make_unet(), trained, 1.0))
    else:
        expected = unet_output(merge(make_unet(), lora, 1.0))
    assert_same(unet_output(unet), expected, unet_output(make_unet()))
    assert trainable(unet) == trainable(trained)


def merge_dora(model: Any, trained: Any, scale: float) -> Any:
    """The model with m · V / ‖V‖ in place of each weight, V = W + scale · up · down.

    The norm is that of a row, one for each output (Liu et al. 2024, eq. 5).
    """
    for path, module in layers_of(model, *ATTENTION, "conv1"):
        layer = trained.get_submodule(path)
        down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        magnitude = layer.lora_magnitude_vector["default"].weight
        with torch.no_grad():
            direction = module.weight + scale * product(down, up)
            rows = direction.flatten(1)
            scaled = magnitude.view(-1, 1) * rows / rows.norm(dim=1, keepdim=True)
            module.weight.copy_(scaled.view_as(direction))
    return model


@pytest.mark.parametrize("old_form", ["processor", "lora_layer"])
def test_diffusers_unet_of_old(tmp_path: Path, old_form: str) -> None:
    """Files of diffusers before 0.22 name the attention's processor."""
    lora = random_lora(make_unet(), *ATTENTION, rank=RANK)
    weights = {}
    for path, (down, up) in lora.items():
        block, _, layer = path.removesuffix(".0").rpartition(".")
        name = f"unet.{path}.lora"
        if old_form == "processor":
            name = f"unet.{block}.processor.{layer}_lora"
        weights[f"{name}.down.weight"], weights[f"{name}.up.weight"] = down, up
    file = save(weights, tmp_path / "pytorch_lora_weights.safetensors")
    expected = unet_output(merge(make_unet(), lora, 1.0))
    assert_same(unet_output(adapted(make_unet(), file)), expected, unet_output(make_unet()))


@pytest.mark.parametrize("rslora", [False, True])
def test_diffusers_transformer(tmp_path: Path, rslora: bool) -> None:
    """The Flux scripts write alpha into the header alone; layers may have their own."""
    lora = random_lora(make_flux(), "to_q", "to_k", "to_out.0", "proj_mlp", rank=RANK)
    alphas = {"attn.to_k": 1.0}
    settings = {"lora_alpha": ALPHA, "alpha_pattern": alphas, "use_rslora": rslora}
    trained = with_peft(make_flux(), lora, r=RANK, **settings)
    FluxPipeline.save_lora_weights(
        tmp_path,
        transformer_lora_layers=get_peft_model_state_dict(trained),
        transformer_lora_adapter_metadata=plain_settings(trained),
    )
    rank = RANK**0.5 if rslora else RANK
    scales = {path: (1.0 if path.endswith("attn.to_k") else ALPHA) / rank for path in lora}
    expected = flux_output(merge(make_flux(), lora, scales))
    assert_same(flux_output(adapted(make_flux(), tmp_path)), expected, flux_output(make_flux()))


def plain_settings(model: Any) -> dict[str, Any]:
    """A model's LoraConfig as the scripts hand it over."""
    settings = model.peft_config["default"].to_dict()
    return {name: sorted(v) if isinstance(v, set) else v for name, v in settings.items()}


def test_ai_toolkit(tmp_path: Path) -> None:
    lora = random_lora(make_flux(), *ATTENTION, "proj_out", rank=RANK)
    file = save_ai_toolkit(lora, tmp_path / "dog_000000250.safetensors")
    expected = flux_output(merge(make_flux(), lora, 1.0))
    assert_same(flux_output(adapted(make_flux(), file)), expected, flux_output(make_flux()))


def test_kohya_flux(tmp_path: Path) -> None:
    """Layers that kohya's Flux has in one are three or four here: they share their down weight."""
    file, lora = kohya_flux(tmp_path)
    flux = adapted(make_flux(), file)
    expected = flux_output(merge(make_flux(), lora, ALPHA / RANK))
    assert_same(flux_output(flux), expected, flux_output(make_flux()))
    assert len([name for name in trainable(flux) if "lora_A" in name]) == 6


@pytest.mark.parametrize("kind", ["lora", "dora", "rslora", "patterns", "bias"])
def test_peft_folder(tmp_path: Path, kind: str) -> None:
    """A folder that PEFT saved: its configuration says how weights are scaled."""
    settings: dict[str, Any] = {
        "lora": {},
        "dora": {"use_dora": True},
        "rslora": {"use_rslora": True},
        "patterns": {"rank_pattern": {"to_k": 2}, "alpha_pattern": {"attn2.to_q": 1}},
        "bias": {"lora_bias": True},
    }[kind]
    layers = ["to_out.0", "net.2"] if kind == "bias" else ["to_q", "to_k"]  # those have biases
    config = LoraConfig(
        r=RANK, lora_alpha=ALPHA, lora_dropout=0.1, target_modules=layers, **settings
    )
    torch.manual_seed(4)
    trained = get_peft_model(make_unet(), config)
    randomize(trained)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft takes the biases of `lora_bias` for broken weights
        trained.save_pretrained(tmp_path)
    unet = adapted(make_unet(), tmp_path)
    merged = trained.eval().merge_and_unload()
    assert_same(unet_output(unet), unet_output(merged), unet_output(make_unet()))
    assert trainable(unet)


def randomize(model: Any) -> None:
    """Give all weights that are trained random values."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn(parameter.shape)


@pytest.mark.parametrize("config", [LoHaConfig, LoKrConfig])
def test_peft_folder_of_another_kind(tmp_path: Path, config: Callable[..., Any]) -> None:
    torch.manual_seed(4)
    options = {"r": 4, "alpha": 8, "target_modules": ["to_q", "conv1"]}
    trained = get_peft_model(make_unet(), config(**options))
    randomize(trained)
    trained.save_pretrained(tmp_path)
    unet = adapted(make_unet(), tmp_path)
    merged = trained.eval().merge_and_unload()
    assert_same(unet_output(unet), unet_output(merged), unet_output(make_unet()))
    assert all("default" in name for name in trainable(unet))


# --- what holds for all of them


def test_names_do_not_depend_on_the_format(tmp_path: Path) -> None:
    lora = random_lora(make_unet(), *ATTENTION, rank=RANK)
    trained = with_peft(make_unet(), lora, r=RANK, lora_alpha=RANK)
    state = convert_state_dict_to_diffusers(get_peft_model_state_dict(trained))
    StableDiffusionPipeline.save_lora_weights(tmp_path / "diffusers", unet_lora_layers=state)
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(lora))
    get_peft_model(make_unet(), config).save_pretrained(tmp_path / "peft")
    save_kohya(lora, tmp_path / "kohya.safetensors", float(RANK))
    names = {
        format: trainable(adapted(make_unet(), tmp_path / format))
        for format in ("diffusers", "peft", "kohya.safetensors")
    }
    assert names["diffusers"] == names["peft"] == names["kohya.safetensors"]
    assert names["peft"][0].endswith("to_q.lora_A.default.weight")


def test_gradients_agree_with_the_trained_space_of_a_fused_layer(tmp_path: Path) -> None:
    """The shared down weight's gradient is the sum over the layers that it was copied to."""
    file, lora = kohya_flux(tmp_path)
    flux = adapted(make_flux(), file)
    names = trainable(flux)
    parameters = [flux.get_parameter(name) for name in names]
    with torch.enable_grad():
        loss = flux_loss(flux)
        gradients = dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))
    plain = make_flux()
    ends = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    paths = [f"single_transformer_blocks.0.{end}" for end in ends]
    merge(plain, lora, ALPHA / RANK)
    weights = [plain.get_submodule(path).weight for path in paths]
    with torch.enable_grad():
        of_weights = torch.autograd.grad(flux_loss(plain), weights)
    expected = sum(
        ALPHA / RANK * lora[path][1].T @ gradient
        for path, gradient in zip(paths, of_weights, strict=True)
    )
    # A parameter that several layers share has the name of the model's first one.
    (name,) = {f"{path}.lora_A.default.weight" for path in paths} & gradients.keys()
    assert (gradients[name] - expected).norm() <= 1e-4 * expected.norm()


def flux_loss(flux: Any) -> Tensor:
    """The mean square of what a Flux makes of fixed examples, with a graph."""
    random = torch.Generator().manual_seed(1)
    tokens, text = (torch.randn((2, n, width), generator=random) for n, width in ((4, 4), (3, 12)))
    output = flux(
        tokens,
        encoder_hidden_states=text,
        pooled_projections=torch.randn((2, 10), generator=random),
        timestep=torch.tensor([0.1, 0.7]),
        img_ids=torch.zeros(4, 3),
        txt_ids=torch.zeros(3, 3),
        guidance=torch.full((2,), 3.5),
    ).sample
    return output.square().mean()


def test_only_the_adapter_is_trained_and_the_base_stays(tmp_path: Path) -> None:
    file = save_kohya(random_lora(make_unet(), "to_q"), tmp_path / "a.safetensors", 1.0)
    unet = adapted(make_unet(), file)
    assert trainable(unet)
    assert all(".lora_A.default." in n or ".lora_B.default." in n for n in trainable(unet))
    before = dict(make_unet().named_parameters())
    for name, parameter in unet.named_parameters():
        if not parameter.requires_grad:
            assert torch.equal(parameter, before[name.replace(".base_layer", "")])


def test_the_callers_random_numbers_stay(tmp_path: Path) -> None:
    file = save_kohya(random_lora(make_unet(), "to_q"), tmp_path / "a.safetensors", 1.0)
    unet = make_unet()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    adapted(unet, file)
    assert torch.equal(torch.rand(3), expected)


def test_exchanged_in_place(tmp_path: Path) -> None:
    """Another checkpoint's weights and alpha come into the same model."""
    loras = [random_lora(make_unet(), *ATTENTION, "conv1", seed=seed) for seed in (0, 1)]
    files = [
        save_kohya(lora, tmp_path / f"{number}.safetensors", alpha)
        for number, (lora, alpha) in enumerate(zip(loras, (2.0, 5.0), strict=True))
    ]
    unet = adapted(make_unet(), files[0])
    storage = [parameter.data_ptr() for parameter in unet.parameters()]
    second = read_adapter(files[1])
    exchange_adapter(unet, second, second.denoiser)
    expected = unet_output(merge(make_unet(), loras[1], 5.0 / 3))
    assert_same(unet_output(unet), expected, unet_output(make_unet()))
    assert [parameter.data_ptr() for parameter in unet.parameters()] == storage


def test_linear_weights_of_a_1x1_convolution(tmp_path: Path) -> None:
    """Some programs write a 1×1 convolution's weights without its sides, a linear layer's with."""
    lora = random_lora(make_unet(), "proj_in", "attn1.to_q", rank=RANK)
    turned = {}
    for path, (down, up) in lora.items():
        if down.dim() == 4:
            turned[path] = down.flatten(1), up.flatten(1)
        else:
            turned[path] = down[..., None, None], up[..., None, None]
    file = save_kohya(turned, tmp_path / "a.safetensors", ALPHA)
    expected = unet_output(merge(make_unet(), lora, ALPHA / RANK))
    assert_same(unet_output(adapted(make_unet(), file)), expected, unet_output(make_unet()))
