"""Each layer's captured gradient equals autograd's, one sample at a time."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import AuraFlowTransformer2DModel, PixArtTransformer2DModel, UNet2DConditionModel, UNet2DModel
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from torch import Tensor, nn

from gradindex.errors import ModelError
from gradindex.gradients import layers
from gradindex.gradients.capture import Capture
from gradindex.gradients.projection import CountSketch, Exact

fast = settings(max_examples=30, deadline=None)


def assert_equals_autograd(layer: nn.Module, *inputs: Tensor) -> None:
    """Captured rows = one backward pass per sample, for a loss that weighs every output differently."""
    layer = layer.double()
    chosen = {name: parameter for name, parameter in layer.named_parameters() if parameter.requires_grad}
    names = list(chosen)

    def losses(*batch: Tensor) -> Tensor:
        output = layer(*batch)
        return (output.flatten(1) * torch.linspace(-1, 1, output[0].numel()).double()).square().sum(1)

    expected = []
    for sample in zip(*inputs, strict=True):
        loss = losses(*(part[None] for part in sample)).sum()
        gradients = torch.autograd.grad(loss, list(chosen.values()), allow_unused=True, materialize_grads=True)
        expected.append(torch.cat([gradient.flatten() for gradient in gradients]))
    layer.requires_grad_(False)
    with Capture(layer, names, Exact({name: layer.get_parameter(name).numel() for name in names})) as capture:
        rows = capture.gradients(lambda: losses(*inputs))
    truth = torch.stack(expected)
    scale = max(1.0, float(truth.abs().max()))  # an element that nearly cancels has the rounding errors of its terms
    torch.testing.assert_close(rows.double(), truth, rtol=1e-5, atol=1e-6 * scale)


class Transpose(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mT


def randomized(layer: nn.Module) -> nn.Module:
    """A norm whose scale is not one and whose shift is not zero."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    return layer


@fast
@given(
    n=st.integers(1, 3),
    i=st.integers(1, 5),
    o=st.integers(1, 5),
    inner=st.lists(st.integers(1, 3), max_size=2),
    bias=st.booleans(),
)
def test_linear(n: int, i: int, o: int, inner: list[int], bias: bool) -> None:
    assert_equals_autograd(nn.Linear(i, o, bias=bias), torch.randn(n, *inner, i).double())


CONVOLUTIONS = {
    1: (nn.Conv1d, nn.ConvTranspose1d),
    2: (nn.Conv2d, nn.ConvTranspose2d),
    3: (nn.Conv3d, nn.ConvTranspose3d),
}
SIZES = (7, 6, 5)


@st.composite
def convolution(draw: st.DrawFn, *, transposed: bool) -> tuple[nn.Module, Tensor]:
    """A convolution over 1 to 3 axes with any settings that torch takes, and an input for it."""
    axes = draw(st.integers(1, 3))

    def each(low: int, high: int) -> tuple[int, ...]:
        return draw(st.tuples(*[st.integers(low, high)] * axes))

    groups, ins, outs = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    options: dict[str, Any] = {
        "stride": each(1, 3), "padding": each(0, 2), "dilation": each(1, 2), "bias": draw(st.booleans())
    }  # fmt: skip
    if transposed:
        limits = [max(s, d) for s, d in zip(options["stride"], options["dilation"], strict=True)]
        options["output_padding"] = tuple(draw(st.integers(0, limit - 1)) for limit in limits)
    else:
        options["padding_mode"] = draw(st.sampled_from(["zeros", "reflect", "circular", "replicate"]))
    kernel = each(2, 3) if transposed else each(1, 3)
    layer = CONVOLUTIONS[axes][transposed](groups * ins, groups * outs, kernel, groups=groups, **options)
    return layer, torch.randn(draw(st.integers(1, 3)), groups * ins, *SIZES[:axes]).double()


@pytest.fixture(scope="module", params=[{"cpu"}, set()], ids=["grouped convolution", "patches, as on a GPU"])
def both_ways(request: pytest.FixtureRequest) -> Iterator[None]:
    """Either way to convolve, on this CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "GROUPED", request.param)
        yield


@pytest.mark.usefixtures("both_ways")
@settings(max_examples=100, deadline=None)
@given(convolution(transposed=False))
def test_convolution(case: tuple[nn.Module, Tensor]) -> None:
    assert_equals_autograd(*case)


@pytest.mark.usefixtures("both_ways")
@settings(max_examples=100, deadline=None)
@given(convolution(transposed=True))
def test_transposed_convolution(case: tuple[nn.Module, Tensor]) -> None:
    assert_equals_autograd(*case)


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_conv2d_with_named_padding(padding: str) -> None:
    assert_equals_autograd(nn.Conv2d(2, 3, (3, 5), padding=padding), torch.randn(2, 2, 5, 6).double())


@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular", "replicate"])
def test_layers_below_get_their_gradient_though_inputs_are_let_go(mode: str) -> None:
    """What autograd holds of a layer's input is its shape alone; the values matter to nobody but us."""
    layers = [nn.Conv2d(2, 3, 3, padding=1, padding_mode=mode), nn.SiLU(), nn.Conv2d(3, 3, 3, padding=1, groups=3,
              padding_mode=mode), nn.SiLU(), nn.ConvTranspose2d(3, 2, 2, 2), nn.SiLU(), nn.Linear(8, 4), nn.SiLU(),
              nn.Linear(4, 2)]  # fmt: skip
    assert_equals_autograd(nn.Sequential(*layers), torch.randn(3, 2, 4, 4).double())


def test_inputs_of_layers_are_let_go() -> None:
    """Only what another operation needs, and what was projected, is kept."""
    model = nn.Sequential(nn.Conv2d(4, 64, 1), nn.Tanh(), nn.Conv2d(64, 64, 3, padding=1)).requires_grad_(False)
    kept: list[tuple[int, ...]] = []
    with Capture(model, ["0.weight", "2.weight"], CountSketch(8, 0, 4)) as capture:
        capture.watch = lambda tensor: kept.append(tuple(tensor.shape))
        capture.gradients(lambda: model(torch.randn(2, 4, 8, 8)).flatten(1).sum(1))
    pictures = [shape for shape in kept if shape[0] == 2]
    assert sorted(pictures) == [(2, 4, 8, 8), (2, 4, 8, 8), (2, 64, 8, 8)]  # to project, projected, the tanh's output


NORMS = {"group": lambda: nn.GroupNorm(1, 6), "layer": lambda: nn.LayerNorm(6), "rms": lambda: nn.RMSNorm(6)}


@settings(max_examples=60, deadline=None)
@given(
    case=st.one_of(convolution(transposed=False), convolution(transposed=True)),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    norm=st.sampled_from(sorted(NORMS)),
)
def test_rules_in_less_precision(case: tuple[nn.Module, Tensor], dtype: torch.dtype, norm: str) -> None:
    """Rows are float32, and no further from the gradient in float64 than autograd's own in that precision."""
    layer, x = case
    width = layer(x.float())[0].numel()
    model = nn.Sequential(layer, nn.Flatten(1), nn.Linear(width, 6), NORMS[norm](), nn.Linear(6, 2)).to(dtype)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    truth, reference = autograd_rows(model, x, torch.float64), autograd_rows(model, x, dtype)
    model.to(dtype).requires_grad_(False)
    with Capture(model, list(sizes), Exact(sizes)) as capture:
        found = capture.gradients(lambda: model(x.to(dtype)).square().sum(1))
    assert found.dtype == torch.float32
    error, allowed = ((rows - truth).norm(dim=1) / truth.norm(dim=1) for rows in (found, reference))
    assert (error <= 4 * allowed + 16 * torch.finfo(dtype).eps).all()


def autograd_rows(model: nn.Module, x: Tensor, dtype: torch.dtype) -> Tensor:
    """One sample at a time, in the given precision; float64."""
    model, rows = model.to(dtype), []
    for sample in x.to(dtype):
        gradients = torch.autograd.grad(model(sample[None]).square().sum(), list(model.parameters()))
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    return torch.stack(rows).double()


class ScaledNorm(nn.GroupNorm):
    """A group norm that computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_a_group_norm_with_a_forward_of_its_own_is_refused() -> None:
    model = ScaledNorm(1, 2).requires_grad_(False)
    message = r"no gradient rule for: ScaledNorm \(the model itself: weight, used by group_norm\)"
    with (
        Capture(model, ["weight"], CountSketch(8, 0)) as capture,
        pytest.raises(ModelError, match=message),
    ):
        capture.gradients(lambda: model(torch.randn(3, 2, 4)).flatten(1).sum(1))


@fast
@given(
    n=st.integers(1, 3),
    groups=st.integers(1, 3),
    width=st.integers(1, 2),
    inner=st.lists(st.integers(2, 4), min_size=1, max_size=3),
    bias=st.booleans(),
)
def test_group_norm(n: int, groups: int, width: int, inner: list[int], bias: bool) -> None:
    layer = nn.GroupNorm(groups, groups * width)
    if not bias:
        layer.register_parameter("bias", None)
    assert_equals_autograd(randomized(layer), torch.randn(n, groups * width, *inner).double())


def test_group_norm_of_a_transposed_input() -> None:
    """As in an attention block of diffusers, which moves the channels for it."""
    layer = nn.Sequential(Transpose(), randomized(nn.GroupNorm(2, 4)), Transpose())
    assert_equals_autograd(layer, torch.randn(3, 6, 4).double())


@fast
@given(
    n=st.integers(1, 3),
    middle=st.lists(st.integers(1, 3), max_size=2),
    shape=st.lists(st.integers(2, 4), min_size=1, max_size=2),
    kind=st.sampled_from([nn.LayerNorm, nn.RMSNorm]),
)
def test_layer_norm_and_rms_norm(n: int, middle: list[int], shape: list[int], kind: Any) -> None:
    assert_equals_autograd(randomized(kind(shape)), torch.randn(n, *middle, *shape).double())


@fast
@given(n=st.integers(1, 3), axes=st.integers(1, 3), width=st.integers(1, 3))
def test_instance_norm_and_batch_norm_in_eval_mode(n: int, axes: int, width: int) -> None:
    x = torch.randn(n, width, *SIZES[:axes]).double()
    instance = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)[axes - 1](width, affine=True)
    batch = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[axes - 1](width)
    batch.running_mean.normal_()
    batch.running_var.uniform_(0.5, 2)
    assert_equals_autograd(randomized(instance), x)
    assert_equals_autograd(randomized(batch).eval(), x)


@fast
@given(n=st.integers(1, 3), length=st.integers(0, 3), padding_idx=st.sampled_from([None, 1]))
def test_embedding(n: int, length: int, padding_idx: int | None) -> None:
    shape = (n, length) if length else (n,)
    layer = nn.Embedding(4, 3, padding_idx=padding_idx)
    assert_equals_autograd(layer, torch.randint(4, shape))


class Twice(nn.Module):
    """One layer called twice, and its weight shared with a second layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.tied = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
        self.tied.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.tied(torch.tanh(self.first(torch.tanh(self.first(x)))))


def test_a_layer_called_twice_and_a_tied_weight_add_up() -> None:
    assert_equals_autograd(Twice(), torch.randn(3, 4).double())


class Bare(nn.Module):
    """Parameters used in every way that is followed: tables, gates, tokens, learned positions, in place, cast, cut."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(2, 4))
        self.gate = nn.Parameter(torch.randn(()))
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.positions = nn.Parameter(torch.randn(1, 4, 4))
        self.other = nn.Parameter(torch.randn(3, 4))

    def forward(self, x: Tensor) -> Tensor:  # [n, 3, 4]
        x = torch.cat([self.token.expand(len(x), -1, -1), x * torch.tanh(self.gate)], 1)
        x = x + self.positions[:, : x.shape[1]].to(x.dtype)
        scale, shift = (self.table[None] + x.mean(1, keepdim=True)).chunk(2, 1)
        x = x * (1 + scale) + shift
        first, rest = self.other.split([1, 2])
        x -= first.exp()
        return x * self.other.repeat(len(x), 1, 1)[:, :1] / (2 + rest.square().sum(0))


def test_bare_parameters() -> None:
    assert_equals_autograd(Bare(), torch.randn(5, 3, 4).double())


class Conditioned(nn.Module):
    """A diffusers model with its further inputs in the order of `keys`, and only its output."""

    def __init__(self, model: nn.Module, *keys: str, **fixed: Any) -> None:
        super().__init__()
        self.model, self.keys, self.fixed = model, keys, fixed

    def forward(self, x: Tensor, *inputs: Tensor) -> Tensor:
        return self.model(x, **dict(zip(self.keys, inputs, strict=True)), **self.fixed, return_dict=False)[0]


def shaken(model: nn.Module) -> nn.Module:
    """Gates and output layers that begin at zero would hide mistakes."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def test_a_pixart_transformer() -> None:
    """Attention, layer norms without weights, scale-shift tables in every block and at the end."""
    model = PixArtTransformer2DModel(
        sample_size=8, num_layers=2, num_attention_heads=2, attention_head_dim=4, in_channels=2, out_channels=4,
        cross_attention_dim=8, caption_channels=6, norm_num_groups=2,
    )  # fmt: skip
    fixed = {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}
    layer = Conditioned(shaken(model), "encoder_hidden_states", "timestep", **fixed)
    assert_equals_autograd(
        layer, torch.randn(3, 2, 8, 8).double(), torch.randn(3, 5, 6).double(), torch.tensor([5, 500, 900])
    )


def test_a_transformer_with_learned_positions() -> None:
    model = AuraFlowTransformer2DModel(
        sample_size=8, in_channels=2, out_channels=2, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=4,
        num_attention_heads=2, joint_attention_dim=6, caption_projection_dim=8, pos_embed_max_size=16,
    )  # fmt: skip
    layer = Conditioned(shaken(model), "encoder_hidden_states", "timestep")
    assert_equals_autograd(
        layer, torch.randn(3, 2, 8, 8).double(), torch.randn(3, 5, 6).double(), torch.tensor([0.1, 0.5, 0.9]).double()
    )


def test_lora_layers_of_peft() -> None:
    """Linear and convolution adapters of a text-to-image UNet; nothing else is trained."""
    model = UNet2DConditionModel(
        sample_size=8, in_channels=2, out_channels=2, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=6, attention_head_dim=4,
    )  # fmt: skip
    model.requires_grad_(False)
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v", "to_out.0", "conv1"], init_lora_weights=False))
    layer = Conditioned(model.eval(), "timestep", "encoder_hidden_states")
    assert sum(parameter.requires_grad for parameter in layer.parameters()) > 20
    assert_equals_autograd(
        layer, torch.randn(3, 2, 8, 8).double(), torch.tensor([5, 500, 900]), torch.randn(3, 5, 6).double()
    )


def test_bare_parameters_are_put_back() -> None:
    model = Bare().requires_grad_(False)
    before = dict(model.named_parameters())
    with Capture(model, list(before), CountSketch(8, 0)) as capture:
        capture.gradients(lambda: model(torch.randn(2, 3, 4)).square().flatten(1).sum(1))
    after = dict(model.named_parameters())
    assert all(after[name] is before[name] for name in before)


def test_parameters_without_a_rule_are_listed_all_at_once() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.PReLU(), nn.Linear(2, 2), nn.PReLU()).requires_grad_(False)
    message = r"no gradient rule for: PReLU \(1: weight, used by prelu\); PReLU \(3: weight, used by prelu\); leave"
    with (
        Capture(model, [name for name, _ in model.named_parameters()], CountSketch(8, 0)) as capture,
        pytest.raises(ModelError, match=message),
    ):
        capture.gradients(lambda: model(torch.randn(3, 2)).sum(1))


def test_batch_norm_in_training_mode_is_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with pytest.raises(
        ModelError, match=r"batch norm in training mode mixes the samples of a batch \(1\): call model.ev"
    ):
        Capture(model, ["0.weight"], CountSketch(8, 0))


def test_gradient_checkpointing_is_refused() -> None:
    model = UNet2DModel(sample_size=8, block_out_channels=(8,), down_block_types=("DownBlock2D",),
                        up_block_types=("UpBlock2D",), norm_num_groups=4, layers_per_block=1)  # fmt: skip
    model.enable_gradient_checkpointing()
    with pytest.raises(ModelError, match=r"gradient checkpointing is on: call model\.disable_gradient_checkpointing"):
        Capture(model, ["conv_in.weight"], CountSketch(8, 0))


def test_only_the_chosen_layers_and_those_above_them_work() -> None:
    """No hook on the others, and the backward pass ends at the lowest chosen layer."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).requires_grad_(False)
    outputs: list[Tensor] = []
    with Capture(model, ["2.weight"], CountSketch(8, 0)) as capture:
        assert [len(layer._forward_hooks) for layer in model] == [0, 0, 1, 0, 0]
        handles = [layer.register_forward_hook(lambda layer, args, output: outputs.append(output)) for layer in model]
        capture.gradients(lambda: model(torch.randn(2, 3)).sum(1))
    assert [output.requires_grad for output in outputs] == [False, False, True, True, True]
    assert handles


class MixesSamples(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table(torch.tensor([1]))


def test_a_layer_that_sees_another_batch_is_refused() -> None:
    model = MixesSamples().requires_grad_(False)
    with (
        Capture(model, ["table.weight"], CountSketch(8, 0)) as capture,
        pytest.raises(ModelError, match="layer table sees a batch of 1 where 4 samples came in"),
    ):
        capture.gradients(lambda: model(torch.randn(4, 2)).square().sum(1))


def test_the_hooks_are_gone_after_the_block() -> None:
    model = nn.Linear(2, 2).requires_grad_(False)
    with Capture(model, ["weight"], CountSketch(8, 0)):
        assert model._forward_hooks
    assert not model._forward_hooks


def test_a_norm_has_its_own_forward_again_after_the_block() -> None:
    model = nn.GroupNorm(1, 2).requires_grad_(False)
    with Capture(model, ["weight", "bias"], CountSketch(8, 0)):
        assert "forward" in vars(model)
    assert "forward" not in vars(model)
