"""Parts of models: which parameters each is in every family, its gradients, and what runs for it.

Each table says a part by a regular expression of its parameters' names, written by the eye.
"""

import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from models.adapter_makers import kohya_flux, random_lora, save_kohya
from models.families.tiny_pipelines import PIPELINES, SIDE, make, stable_diffusion
from torch import Tensor, nn

from gradindex.errors import CallError
from gradindex.gradients.capture import Capture
from gradindex.gradients.parameters import choose_parameters, places_text
from gradindex.gradients.parts import PARTS, part_names
from gradindex.gradients.projection import Exact
from gradindex.models.custom import CustomDenoiser
from gradindex.models.loading import load_denoiser

LEVELS = ["level-0", "level-1", "level-2"]
NONE = None  # the model has no parameters of that part

# --- the tables: {family: {part: regular expression of the whole names of its parameters}}

UNET: dict[str, str | None] = {
    "convolutions": r"conv_(in|out)\..*|.*\.(conv1|conv2|conv_shortcut|conv)\..*",
    "biases": r".*\.bias",
    "first": r"(conv_in|time_embedding)\..*",
    "middle": r"mid_block\..*",
    "second-half": r"(up_blocks|conv_norm_out|conv_out)\..*",
    "last-block": r"(up_blocks\.1|conv_norm_out|conv_out)\..*",
    "last-unit": r"(up_blocks\.1\.resnets\.1|conv_norm_out|conv_out)\..*",
    "last": r"(conv_norm_out|conv_out)\..*",
    "level-0": r"(down_blocks\.0|up_blocks\.1)\..*",
    "level-1": r"(down_blocks\.1|up_blocks\.0)\..*",
    "level-2": r"mid_block\..*",
}
CAPTIONED_UNET = {
    **UNET,
    "norms": r".*\.(norm|norm1|norm2|norm3)\.(weight|bias)|conv_norm_out\.(weight|bias)",
    "attention": r".*\.(attn1|attn2)\..*",
    "convolutions": UNET["convolutions"] + r"|.*\.(proj_in|proj_out)\..*",  # type: ignore[operator]
}
TRANSFORMER: dict[str, str | None] = {
    "norms": NONE,
    "attention": r"transformer_blocks\..\.(attn|attn1|attn2)\..*",
    "convolutions": r"pos_embed\.proj\..*",
    "biases": r".*\.bias",
    "middle": r"transformer_blocks\.1\..*",
    "level-0": r"transformer_blocks\..*",
    "level-1": NONE,
    "level-2": NONE,
}


def transformer(first: str, last: str, **others: str | None) -> dict[str, str | None]:
    """The table of a transformer with two blocks, of which the second is middle and last."""
    end = rf"transformer_blocks\.1\..*|{last}"
    after = {"second-half": end, "last-block": end, "last-unit": end}
    return {**TRANSFORMER, "first": first, "last": last, **after, **others}


TABLES: dict[str, dict[str, str | None]] = {
    "ldm": {
        **UNET,
        "norms": r".*\.(norm1|norm2|group_norm)\.(weight|bias)|conv_norm_out\.(weight|bias)",
        "attention": r".*\.attentions\..\.(to_q|to_k|to_v|to_out\.0)\..*",
    },
    "sd": CAPTIONED_UNET,
    "inpainting": CAPTIONED_UNET,
    "sdxl": {**CAPTIONED_UNET, "first": r"(conv_in|time_embedding|add_embedding)\..*"},
    "dit": transformer(r"pos_embed\..*", r"proj_out_[12]\..*"),
    "pixart": transformer(
        r"(pos_embed|adaln_single|caption_projection)\..*", r"scale_shift_table|proj_out\..*"
    ),
    "sd3": transformer(
        r"(pos_embed|time_text_embed|context_embedder)\..*", r"(norm_out|proj_out)\..*"
    ),
    "flux": {
        "norms": r".*\.(norm_q|norm_k|norm_added_q|norm_added_k)\.weight",
        "attention": r".*\.attn\.(to_|add_).*",
        "convolutions": NONE,
        "biases": r".*\.bias",
        "first": r"(time_text_embed|context_embedder|x_embedder)\..*",
        "middle": r"single_transformer_blocks\.0\..*",
        "second-half": r"(single_transformer_blocks\.0|norm_out|proj_out)\..*",
        "last-block": r"(single_transformer_blocks\.0|norm_out|proj_out)\..*",
        "last-unit": r"(single_transformer_blocks\.0|norm_out|proj_out)\..*",
        "last": r"(norm_out|proj_out)\..*",
        "level-0": r"(single_)?transformer_blocks\.0\..*",
        "level-1": NONE,
        "level-2": NONE,
    },
    "sana": transformer(
        r"(patch_embed|time_embed|caption_projection|caption_norm)\..*",
        r"scale_shift_table|proj_out\..*",
        norms=r"caption_norm\.weight",
        convolutions=r"patch_embed\..*|.*\.conv_(inverted|depth|point)\..*",
    ),
    "qwen_image": transformer(
        r"(time_text_embed|txt_norm|img_in|txt_in)\..*",
        r"(norm_out|proj_out)\..*",
        norms=r"txt_norm\.weight|.*\.(norm_q|norm_k|norm_added_q|norm_added_k)\.weight",
        attention=r"transformer_blocks\..\.attn\.(to_|add_).*",
        convolutions=NONE,
    ),
}

# Flux with two double blocks and three single ones, so that no block is two things at once.
DEEP_FLUX: dict[str, str | None] = {
    **TABLES["flux"],
    "middle": r"single_transformer_blocks\.0\..*",
    "second-half": r"(single_transformer_blocks\.[12]|norm_out|proj_out)\..*",
    "last-block": r"(single_transformer_blocks\.2|norm_out|proj_out)\..*",
    "last-unit": r"(single_transformer_blocks\.2|norm_out|proj_out)\..*",
    "level-0": r"(transformer_blocks\.0|single_transformer_blocks\.2)\..*",
    "level-1": r"(transformer_blocks\.1|single_transformer_blocks\.1)\..*",
    "level-2": r"single_transformer_blocks\.0\..*",
}
# A LoRA of SD's attention and of one convolution in each residual layer. The last up block has two
# residual layers and no attention.
LORA: dict[str, str | None] = {
    "norms": NONE,
    "attention": r".*\.(attn1|attn2)\..*",
    "convolutions": r".*\.conv1\..*",
    "biases": NONE,
    "first": NONE,
    "middle": r"mid_block\..*",
    "second-half": r"up_blocks\..*",
    "last-block": r"up_blocks\.1\..*",
    "last-unit": r"up_blocks\.1\.resnets\.1\..*",
    "last": NONE,
    "level-0": r"(down_blocks\.0|up_blocks\.1)\..*",
    "level-1": r"(down_blocks\.1|up_blocks\.0)\..*",
    "level-2": r"mid_block\..*",
}
# One of attention alone: blocks without it do not count.
ATTENTION_LORA: dict[str, str | None] = {
    **LORA,
    "convolutions": NONE,
    "last-block": r"up_blocks\.0\..*",
    "second-half": r"up_blocks\.0\..*",
    "last-unit": r"up_blocks\.0\.attentions\.1\..*",
    "level-0": r"(down_blocks\.1|up_blocks\.0)\..*",
    "level-1": r"mid_block\..*",
    "level-2": NONE,
}
# Its two layers that one of kohya's is have one down weight, called as that of the first.
FLUX_LORA: dict[str, str | None] = {
    **TABLES["flux"],
    "norms": NONE,
    "biases": NONE,
    "attention": r".*\.attn\..*",
    "first": NONE,
    "last": NONE,
    "second-half": r"single_transformer_blocks\.0\..*",
    "last-block": r"single_transformer_blocks\.0\..*",
    "last-unit": r"single_transformer_blocks\.0\..*",
}


# --- the models


def loaded(folder: Path) -> Any:
    """The denoiser of a saved pipeline."""
    return load_denoiser(folder, resolution=(SIDE, SIDE))


def deep_flux(folder: Path) -> Any:
    PIPELINES["flux"](folder)
    config = diffusers.FluxTransformer2DModel.load_config(folder / "transformer")
    deeper = {**config, "num_layers": 2, "num_single_layers": 3}
    settings = {name: value for name, value in deeper.items() if not name.startswith("_")}
    make("FluxTransformer2DModel", **settings).save_pretrained(folder / "transformer")
    return loaded(folder)


def with_lora(folder: Path, *ends: str) -> Any:
    """SD with a LoRA of the layers whose paths end so."""
    base = stable_diffusion(folder)
    unet = diffusers.UNet2DConditionModel.from_pretrained(base / "unet")
    file = save_kohya(random_lora(unet, *ends), folder / "lora.safetensors", 3.0)
    return load_denoiser(base, adapter=file, resolution=(SIDE, SIDE))


ATTENTION_LAYERS = ("to_q", "to_k", "to_v", "to_out.0")
MAKERS: dict[str, Any] = {
    **{name: lambda folder, name=name: loaded(PIPELINES[name](folder)) for name in TABLES},
    "deep flux": deep_flux,
    "lora": lambda folder: with_lora(folder, *ATTENTION_LAYERS, "conv1"),
    "attention lora": lambda folder: with_lora(folder, *ATTENTION_LAYERS),
}
ALL_TABLES = {**TABLES, "deep flux": DEEP_FLUX, "lora": LORA, "attention lora": ATTENTION_LORA}


@pytest.fixture(scope="module", params=ALL_TABLES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The name of a table, and its denoiser."""
    return request.param, MAKERS[request.param](tmp_path_factory.mktemp("family"))


def parts_of(denoiser: Any) -> Iterator[tuple[str, list[str]]]:
    """The parts that a model has, and their parameters."""
    for part in [*PARTS, *LEVELS]:
        try:
            yield part, part_names(denoiser, part)
        except CallError:
            continue


# --- which parameters


def test_every_family_has_a_table() -> None:
    assert TABLES.keys() == PIPELINES.keys()


def test_parts_are_what_the_table_says(family: Any) -> None:
    name, denoiser = family
    table = {"all": ".*", **ALL_TABLES[name]}
    assert table.keys() == {*PARTS, *LEVELS}
    for part, pattern in table.items():
        if pattern is NONE:
            why = "is a norm's own" if part == "norms" else "belongs there"
            with pytest.raises(CallError, match=f"params = '{part}': of the .* none {why}"):
                part_names(denoiser, part)
            continue
        expected = [name for name in denoiser.trainable if re.fullmatch(pattern, name)]
        assert part_names(denoiser, part) == expected, part
        assert expected, part


def test_parts_that_exclude_each_other_are_disjoint(family: Any) -> None:
    """Kinds are, and places are; with both ends, blocks are all that a model has."""
    _, denoiser = family
    parts = {part: set(names) for part, names in parts_of(denoiser)}
    kinds = ["norms", "attention", "convolutions"]
    places = ["first", *LEVELS, "last"]
    for group in (kinds, places):
        for one, other in combinations([part for part in group if part in parts], 2):
            assert not parts[one] & parts[other], (one, other)
    assert set().union(*(parts.get(place, set()) for place in places)) == parts["all"]
    last = parts.get("last", set())
    assert last <= parts["last-unit"] <= parts["last-block"] <= parts["second-half"]
    if "level-1" in parts:  # three blocks or more
        assert not parts["middle"] & parts["second-half"]


def test_a_lora_whose_layers_share_a_weight(tmp_path: Path) -> None:
    """That of kohya's Flux script; what three layers share is called as the first one's."""
    from gradindex.models.adapter_files import read_adapter
    from gradindex.models.adapters import inject_adapter

    adapter = read_adapter(kohya_flux(tmp_path)[0])
    denoiser = loaded(PIPELINES["flux"](tmp_path / "flux"))
    model = diffusers.FluxTransformer2DModel.from_config(
        {**denoiser.model.config, "joint_attention_dim": 12}
    )
    inject_adapter(model, adapter, adapter.denoiser)
    denoiser.model = model.eval()
    denoiser.trainable = [n for n, parameter in model.named_parameters() if parameter.requires_grad]
    for part, pattern in FLUX_LORA.items():
        if pattern is not NONE:
            expected = [name for name in denoiser.trainable if re.fullmatch(pattern, name)]
            assert part_names(denoiser, part) == expected != [], part


# --- gradients


def loss_of(denoiser: Any) -> Any:
    """samples → the losses of these of two random examples."""
    random = torch.Generator().manual_seed(7)
    image = denoiser.description.image
    x, noise = (torch.randn((2, *image), generator=random) for _ in range(2))
    t = torch.tensor(denoiser.process.grid(2), dtype=torch.float32)
    if float(t[0]).is_integer() and float(t[1]).is_integer():
        t = t.long()
    conditions = denoiser.random_conditions(2, image)

    def losses(samples: slice) -> Tensor:
        given = {name: values[samples] for name, values in conditions.items()}
        return denoiser.losses(x[samples], t[samples], noise[samples], given, "mse")

    return losses


def test_rows_of_a_part_are_autograds(family: Any) -> None:
    """Rows of a part are these columns of the gradients that autograd takes one by one."""
    _, denoiser = family
    losses, model = loss_of(denoiser), denoiser.model
    parameters = {name: model.get_parameter(name) for name in denoiser.trainable}
    for parameter in parameters.values():
        parameter.requires_grad_()
    truth = [
        torch.autograd.grad(
            losses(slice(sample, sample + 1)).sum(),
            list(parameters.values()),
            allow_unused=True,
            materialize_grads=True,
        )
        for sample in range(2)
    ]
    model.requires_grad_(False)
    for part, names in parts_of(denoiser):
        exact = Exact({name: parameters[name].numel() for name in names})
        with Capture(model, names, exact) as capture:
            rows = capture.gradients(lambda: losses(slice(None)))
        for sample, gradients in enumerate(truth):
            of = dict(zip(parameters, gradients, strict=True))
            columns = torch.cat([of[name].flatten() for name in names])
            assert columns.norm() > 0, part
            assert (rows[sample] - columns).norm() <= 1e-5 * columns.norm(), part


def blocks_in_order(denoiser: Any) -> list[str]:
    """The paths of a model's blocks as a UNet or a transformer of diffusers runs them."""
    lists = ["down_blocks", "mid_block", "up_blocks"]
    lists += ["transformer_blocks", "single_transformer_blocks"]
    paths = []
    for name in lists:
        child = getattr(denoiser.model, name, None)
        if isinstance(child, nn.ModuleList):
            paths += [f"{name}.{number}" for number in range(len(child))]
        elif child is not None:
            paths.append(name)
    return paths


@pytest.mark.parametrize("part", ["last", "last-block", "middle"])
def test_no_backward_pass_runs_below_a_part(family: Any, part: str) -> None:
    """Outputs of blocks below have no graph, and autograd's graph is as small as the part."""
    name, denoiser = family
    parts = dict(parts_of(denoiser))
    if part not in parts:  # in a LoRA that leaves the output layers alone
        assert ALL_TABLES[name][part] is NONE
        return
    blocks = blocks_in_order(denoiser)
    chosen = [path for path in blocks if any(n.startswith(f"{path}.") for n in parts[part])]
    lowest = blocks.index(chosen[0]) if chosen else len(blocks)
    has_graph: dict[str, bool] = {}
    sizes = {}
    for asked in (part, "all"):
        names = parts[asked]
        exact = Exact({name: denoiser.model.get_parameter(name).numel() for name in names})
        losses, graph_sizes = loss_of(denoiser), []

        def counted(losses: Any = losses, graph_sizes: list[int] = graph_sizes) -> Tensor:
            loss = losses(slice(None))
            graph_sizes.append(graph_size(loss))
            return loss

        with Capture(denoiser.model, names, exact) as capture:
            handles = [
                denoiser.model.get_submodule(path).register_forward_hook(
                    lambda module, args, output, path=path: has_graph.update(
                        {path: any(value.requires_grad for value in tensors_in(output))}
                    )
                )
                for path in blocks
            ]
            capture.gradients(counted)
            for handle in handles:
                handle.remove()
        sizes[asked] = graph_sizes[-1]
        if asked == part:
            below = blocks[:lowest]
            assert [path for path in below if has_graph[path]] == []
            assert all(has_graph[path] for path in chosen)
    assert 0 < sizes[part] < sizes["all"]


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in what a block returns."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)


def graph_size(loss: Tensor) -> int:
    """How many operations a backward pass from the losses runs through."""
    nodes, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in nodes:
            nodes.add(node)
            waiting += [following for following, _ in node.next_functions]
    return len(nodes)


# --- a model of the user's own


class Layered(nn.Module):
    """Layers in a list, registered after the layer that follows them."""

    def __init__(self) -> None:
        super().__init__()
        self.after = nn.Conv2d(2, 1, 1)
        self.scale = nn.Parameter(torch.ones(1, 1, 1))
        self.layers = nn.ModuleList(nn.Conv2d(2, 2, 1) for _ in range(4))
        self.before = nn.Conv2d(1, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        assert self.after.weight.dtype == x.dtype  # no use of it
        x = self.before(x)
        for layer in self.layers:
            x = layer(x).tanh()
        return self.after(x) * self.scale


class Own:
    shape = (1, 4, 4)

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def losses(self, x: Tensor, t: Tensor, noise: Tensor, conditions: Any) -> Tensor:
        return (self.model(x + noise) - noise).square().flatten(1).mean(1)


@pytest.mark.parametrize("wrapped", [False, True])
def test_parts_of_a_model_of_ones_own(wrapped: bool) -> None:
    """Places are by execution; a wrapper around the model makes no difference."""
    model = nn.Sequential(Layered()) if wrapped else Layered()
    denoiser: Any = CustomDenoiser(Own(model), "cpu", "float32")
    start = "0." if wrapped else ""
    expected = {
        "first": ["before"],
        "last": ["scale", "after"],
        "middle": ["layers.2"],
        "second-half": ["scale", "after", "layers.2", "layers.3"],
        "level-0": ["layers.0", "layers.3"],
        "level-1": ["layers.1", "layers.2"],
    }
    for part, places in expected.items():
        pattern = rf"{re.escape(start)}({'|'.join(places)})(\.(weight|bias))?"
        names = [name for name in denoiser.trainable if re.fullmatch(pattern, name)]
        assert part_names(denoiser, part) == names, part


def test_a_model_without_blocks_says_what_it_has() -> None:
    denoiser: Any = CustomDenoiser(Own(nn.Conv2d(1, 1, 1)), "cpu", "float32")
    with pytest.raises(CallError) as caught:
        choose_parameters(denoiser, None, "middle")
    assert str(caught.value) == (
        "params = 'middle': of the 2 parameters none belongs there; this Conv2d has all,"
        " convolutions, biases"
    )


def test_places_of_many_parameters_are_told_in_short() -> None:
    names = [f"ups.{block}.{layer}.bias" for block in range(3) for layer in ("norm", "conv")]
    assert places_text(names, [name for name in names if "norm" in name]) == (
        "ups.0.norm, ups.1.norm, ups.2.norm"
    )
    more = [f"{place}.{name}" for place in ("down", "up") for name in names]
    assert places_text(more, [name for name in more if "norm" in name]) == (
        "down.ups.*.norm, up.ups.*.norm"
    )
    rest = [f"{letter}.{kind}" for letter in "abcdefg" for kind in ("bias", "weight")]
    assert places_text(rest, [*rest[:12], rest[12]]) == "a, b, c, d, and 3 more"
