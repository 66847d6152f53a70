"""The hooks come and go, see every chosen parameter of a model, and refuse what they cannot do."""

import weakref

import pytest
import torch
from autograd_twin import Bare, Conditioned, Twice, assert_equals_autograd
from diffusers import (
    AuraFlowTransformer2DModel,
    PixArtTransformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
)
from peft import LoraConfig
from torch import Tensor, nn

from gradindex.errors import ModelError
from gradindex.gradients.capture import Capture
from gradindex.gradients.projection import CountSketch, Exact


def test_inputs_of_layers_are_let_go() -> None:
    """Only what another operation needs, and what was projected, is kept."""
    model = nn.Sequential(
        nn.Conv2d(4, 64, 1), nn.Tanh(), nn.Conv2d(64, 64, 3, padding=1)
    ).requires_grad_(False)
    kept: list[tuple[int, ...]] = []
    with Capture(model, ["0.weight", "2.weight"], CountSketch(8, 0, 4)) as capture:
        capture.watch = lambda tensor: kept.append(tuple(tensor.shape))
        capture.gradients(lambda: model(torch.randn(2, 4, 8, 8)).flatten(1).sum(1))
    pictures = [shape for shape in kept if shape[0] == 2]
    assert sorted(pictures) == [
        (2, 4, 8, 8),
        (2, 4, 8, 8),
        (2, 64, 8, 8),
    ]  # to project, projected, the tanh's output


def test_a_layer_called_twice_and_a_tied_weight_add_up() -> None:
    assert_equals_autograd(Twice(), torch.randn(3, 4).double())


def test_bare_parameters() -> None:
    assert_equals_autograd(Bare(), torch.randn(5, 3, 4).double())


def shaken(model: nn.Module) -> nn.Module:
    """Gates and output layers that begin at zero would hide mistakes."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def test_a_pixart_transformer() -> None:
    """Attention, layer norms without weights, scale-shift tables in every block and at the end."""
    model = PixArtTransformer2DModel(
        sample_size=8,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=2,
        out_channels=4,
        cross_attention_dim=8,
        caption_channels=6,
        norm_num_groups=2,
    )
    fixed = {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}
    layer = Conditioned(shaken(model), "encoder_hidden_states", "timestep", **fixed)
    assert_equals_autograd(
        layer,
        torch.randn(3, 2, 8, 8).double(),
        torch.randn(3, 5, 6).double(),
        torch.tensor([5, 500, 900]),
    )


def test_a_transformer_with_learned_positions() -> None:
    model = AuraFlowTransformer2DModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=4,
        num_attention_heads=2,
        joint_attention_dim=6,
        caption_projection_dim=8,
        pos_embed_max_size=16,
    )
    layer = Conditioned(shaken(model), "encoder_hidden_states", "timestep")
    assert_equals_autograd(
        layer,
        torch.randn(3, 2, 8, 8).double(),
        torch.randn(3, 5, 6).double(),
        torch.tensor([0.1, 0.5, 0.9]).double(),
    )


def test_lora_layers_of_peft() -> None:
    """Linear and convolution adapters of a text-to-image UNet; nothing else is trained."""
    model = UNet2DConditionModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=6,
        attention_head_dim=4,
    )
    model.requires_grad_(False)
    targets = ["to_q", "to_v", "to_out.0", "conv1"]
    model.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    layer = Conditioned(model.eval(), "timestep", "encoder_hidden_states")
    assert sum(parameter.requires_grad for parameter in layer.parameters()) > 20
    assert_equals_autograd(
        layer,
        torch.randn(3, 2, 8, 8).double(),
        torch.tensor([5, 500, 900]),
        torch.randn(3, 5, 6).double(),
    )


def test_bare_parameters_are_put_back() -> None:
    model = Bare().requires_grad_(False)
    before = dict(model.named_parameters())
    with Capture(model, list(before), CountSketch(8, 0)) as capture:
        capture.gradients(lambda: model(torch.randn(2, 3, 4)).square().flatten(1).sum(1))
    after = dict(model.named_parameters())
    assert all(after[name] is before[name] for name in before)


def test_batch_norm_in_training_mode_is_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with pytest.raises(
        ModelError,
        match=r"batch norm in training mode mixes the samples of a batch \(1\): call model.ev",
    ):
        Capture(model, ["0.weight"], CountSketch(8, 0))


def test_gradient_checkpointing_is_refused() -> None:
    model = UNet2DModel(
        sample_size=8,
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
        layers_per_block=1,
    )
    model.enable_gradient_checkpointing()
    with pytest.raises(
        ModelError,
        match=r"gradient checkpointing is on: call model\.disable_gradient_checkpointing",
    ):
        Capture(model, ["conv_in.weight"], CountSketch(8, 0))


def test_only_the_chosen_layers_and_those_above_them_work() -> None:
    """No hook on the others, and the backward pass ends at the lowest chosen layer."""
    model = nn.Sequential(
        nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)
    ).requires_grad_(False)
    outputs: list[Tensor] = []
    with Capture(model, ["2.weight"], CountSketch(8, 0)) as capture:
        assert [len(layer._forward_hooks) for layer in model] == [0, 0, 1, 0, 0]
        handles = [
            layer.register_forward_hook(lambda layer, args, output: outputs.append(output))
            for layer in model
        ]
        capture.gradients(lambda: model(torch.randn(2, 3)).sum(1))
    assert [output.requires_grad for output in outputs] == [False, False, True, True, True]
    assert handles


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


def test_a_forward_pass_that_fails_leaves_nothing_in_memory() -> None:
    """Without a backward pass nothing else would let go of what autograd keeps."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.Softmax(1))
    activations = []
    for layer in model:
        layer.register_forward_hook(lambda *call: activations.append(weakref.ref(call[2])))

    def losses() -> Tensor:
        model(torch.randn(2, 3))
        raise torch.OutOfMemoryError

    model.requires_grad_(False)
    with Capture(model, ["0.weight"], Exact({"0.weight": 9})) as capture:
        with pytest.raises(torch.OutOfMemoryError):
            capture.gradients(losses)
        assert [activation() for activation in activations] == [None] * 4
