"""Adapters' files: what is refused, by one line that names it, and what a trainer notes."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from models.adapter_makers import (
    make_unet,
    metadata_of,
    random_lora,
    save,
    save_kohya,
    with_peft,
)
from models.families.tiny_pipelines import stable_diffusion
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file

from gradindex.errors import CallError, GradindexError, ModelError
from gradindex.models.adapter_files import LoraPart, read_adapter
from gradindex.models.adapters import inject_adapter
from gradindex.models.loading import load_denoiser
from gradindex.models.trainer_notes import DatasetFolder, TrainerNotes, read_trainer_notes


def put_in(path: Path) -> None:
    adapter = read_adapter(path)
    inject_adapter(make_unet(), adapter, adapter.denoiser)


def refusal(path: Path, kind: type[GradindexError] = ModelError) -> str:
    """The one line with which an adapter is refused, when it is read or put into a small UNet."""
    with pytest.raises(kind) as caught:
        put_in(path)
    text = str(caught.value)
    assert "\n" not in text
    return text


def kohya(tmp_path: Path, *ends: str, **options: Any) -> Path:
    lora = random_lora(make_unet(), *(ends or ("to_q",)), **options)
    return save_kohya(lora, tmp_path / "lora.safetensors", 1.0)


def changed(file: Path, **weights: Any) -> Path:
    """The file with other weights added, or left out where they are None."""
    merged = {**load_file(file), **weights}
    return save({name: value for name, value in merged.items() if value is not None}, file)


# --- another base


def test_an_adapter_of_a_wider_model(tmp_path: Path) -> None:
    """As SDXL's in SD 1.5: the layer has the same name and another width."""
    wide = make_unet(cross_attention_dim=24)
    file = save_kohya(random_lora(wide, "attn2.to_k"), tmp_path / "wide.safetensors", 1.0)
    text = refusal(file)
    assert "does not fit this UNet2DConditionModel" in text
    assert "attn2_to_k.lora_down.weight has the shape [3, 24], by the model it is [3, 16]" in text
    assert "give the base model that the adapter was trained on" in text


def test_an_adapter_of_a_deeper_model(tmp_path: Path) -> None:
    deep = make_unet(layers_per_block=2)
    file = save_kohya(random_lora(deep, "to_q"), tmp_path / "deep.safetensors", 1.0)
    text = refusal(file)
    assert "this UNet2DConditionModel has no layer for" in text
    assert "lora_unet_down_blocks_1_attentions_1_transformer_blocks_0_attn1_to_q.alpha" in text
    assert "(12 in all)" in text


def test_another_rank_in_a_peft_folder(tmp_path: Path) -> None:
    """A configuration that was edited: its layers are not those of the weights."""
    config = LoraConfig(r=4, target_modules=["to_q"])
    get_peft_model(make_unet(), config).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "r": 2}))
    assert "lora_A.weight has the shape [4, 16]" in refusal(tmp_path)
    file.write_text(json.dumps({**json.loads(file.read_text()), "target_modules": ["to_k"]}))
    assert "weights without a place" in refusal(tmp_path)


# --- keys


def test_no_key_is_dropped(tmp_path: Path) -> None:
    """One weight too many, too few or of an unknown role is an error that names it."""
    file = kohya(tmp_path)
    layer = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
    changed(file, **{"lora_unet_nowhere.lora_down.weight": torch.ones(1, 2)})
    assert "no layer for lora_unet_nowhere.lora_down.weight" in refusal(file)
    file = changed(kohya(tmp_path), **{f"{layer}.lora_down.weight": None})
    assert f"{layer}.alpha, {layer}.lora_up.weight: down and up are not both" in refusal(file)
    file = changed(kohya(tmp_path), **{f"{layer}.lora_sideways.weight": torch.ones(1)})
    text = refusal(file)
    assert f"role in an adapter is not known: {layer}.lora_sideways.weight" in text
    assert text.endswith("weights alone, such as pytorch_lora_weights.safetensors")
    file = changed(
        kohya(tmp_path), **{layer.replace("_attn1", ".attn1") + ".lora_up.weight": torch.ones(1, 2)}
    )
    refusal(file)


def test_a_layer_twice(tmp_path: Path) -> None:
    file = kohya(tmp_path)
    path = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    down, up = random_lora(make_unet(), path)[path]
    names = {f"unet.{path}.lora.down.weight": down, f"unet.{path}.lora.up.weight": up}
    assert "weights of the same layer twice" in refusal(changed(file, **names))


def test_a_dora_of_some_layers_only(tmp_path: Path) -> None:
    """Layers without a magnitude beside others with one have no place."""
    lora = random_lora(make_unet(), "to_q", "to_k")
    trained = with_peft(make_unet(), lora, r=3, use_dora=True)
    state = get_peft_model_state_dict(trained)
    name = next(key for key in state if key.endswith("to_k.lora_magnitude_vector"))
    weights = {f"unet.{key}": value for key, value in state.items() if key != name}
    file = save(weights, tmp_path / "pytorch_lora_weights.safetensors")
    assert re.search(f"no weights for .*{name}", refusal(file))


@pytest.mark.parametrize(
    ("weight", "kind"),
    [
        ("lora_unet_x.hada_w1_a", "LoHa"),
        ("lora_unet_x.lokr_w1", "LoKr"),
        ("lora_unet_x.oft_blocks", "OFT"),
        ("lora_unet_x.lora_mid.weight", "Tucker"),
        ("lora_unet_x.dora_scale", "DoRA in LyCORIS' form"),
        ("lora_unet_x.diff", "differences of whole weights"),
        ("lora_unet_x.on_input", "IA3"),
        ("lora_unet_x.a1.weight", "GLoRA"),
    ],
)
def test_other_kinds_are_refused_by_name(tmp_path: Path, weight: str, kind: str) -> None:
    text = refusal(changed(kohya(tmp_path), **{weight: torch.ones(2, 2)}))
    assert kind in text
    assert weight in text


@pytest.mark.parametrize("name", ["emb_params", "clip_g", "<sks>"])
def test_embeddings_are_refused(tmp_path: Path, name: str) -> None:
    file = save({name: torch.ones(2, 8)}, tmp_path / "sks.safetensors")
    assert f"an embedding (textual inversion: {name}), not an adapter" in refusal(file)


def test_a_text_encoder_alone(tmp_path: Path) -> None:
    lora = {"text_model.encoder.layers.0.self_attn.q_proj": (torch.ones(1, 2), torch.ones(2, 1))}
    file = save_kohya(lora, tmp_path / "te.safetensors", 1.0, prefix="lora_te_")
    assert "changes text encoders alone (text_encoder)" in refusal(file)


def test_a_text_encoder_that_the_pipeline_lacks(tmp_path: Path) -> None:
    base = stable_diffusion(tmp_path / "base")
    file = kohya(tmp_path)
    name = "lora_te2_text_model_encoder_layers_0_mlp_fc1"
    weights = {"lora_down": torch.ones(1, 16), "lora_up": torch.ones(32, 1)}
    changed(file, **{f"{name}.{part}.weight": value for part, value in weights.items()})
    with pytest.raises(ModelError, match=r"changes the text_encoder_2, and .* has none"):
        load_denoiser(base, adapter=file)


def test_a_whole_model(tmp_path: Path) -> None:
    make_unet().save_pretrained(tmp_path)
    text = refusal(tmp_path / "diffusion_pytorch_model.safetensors")
    assert "no adapter's weights in it, but conv_in.bias" in text
    assert "no adapter here" in refusal(tmp_path)


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    file = kohya(tmp_path)
    name = next(iter(load_file(file)))
    broken = torch.full_like(load_file(file)[name], float("nan"))
    assert f"weights {name!r} hold NaN or infinity" in refusal(changed(file, **{name: broken}))


# --- files and folders


def test_paths(tmp_path: Path) -> None:
    assert "no such file or folder" in refusal(tmp_path / "nothing", CallError)
    assert "looked for adapter_config.json" in refusal(tmp_path)
    with pytest.raises(CallError, match="adapter = an object of class int"):
        read_adapter(3)  # type: ignore[arg-type]
    first = kohya(tmp_path)
    assert read_adapter(tmp_path).digest == read_adapter(first).digest
    first.rename(tmp_path / "a.safetensors")
    kohya(tmp_path)
    assert "2 safetensors files, such as a.safetensors; name each" in refusal(tmp_path)


def test_a_checkpoint_folder_of_a_trainer(tmp_path: Path) -> None:
    """Beside the adapter there are the optimizer's and the random numbers' states."""
    lora = random_lora(make_unet(), "to_q")
    weights = {f"unet.{path}.lora.down.weight": down for path, (down, _) in lora.items()}
    weights |= {f"unet.{path}.lora.up.weight": up for path, (_, up) in lora.items()}
    save(weights, tmp_path / "pytorch_lora_weights.safetensors")
    save({"x": torch.ones(1)}, tmp_path / "model.safetensors")
    (tmp_path / "optimizer.bin").write_bytes(b"")
    part = read_adapter(tmp_path).denoiser
    assert isinstance(part, LoraPart)
    assert len(part.weights) == 2 * len(lora)


def test_the_weights_of_a_peft_folder(tmp_path: Path) -> None:
    """The file alone does not say its alpha; in its folder it does."""
    get_peft_model(make_unet(), LoraConfig(r=4, target_modules=["to_q"])).save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    assert read_adapter(file).digest == read_adapter(tmp_path).digest
    (tmp_path / "adapter_config.json").unlink()
    assert "adapter_config.json is not beside it" in refusal(file)


def test_an_initialization_that_changes_the_base(tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules=["to_q"], init_lora_weights="pissa")
    get_peft_model(make_unet(), config).save_pretrained(tmp_path)
    assert "init_lora_weights = 'pissa' changes the base model's own weights" in refusal(tmp_path)


def test_alpha_in_the_header_is_a_number(tmp_path: Path) -> None:
    lora = random_lora(make_unet(), "to_q")
    trained = with_peft(make_unet(), lora, r=3)
    header = metadata_of(trained, "unet")["lora_adapter_metadata"]
    weights = {f"unet.{k}": v for k, v in get_peft_model_state_dict(trained).items()}
    for text, message in (
        (header.replace('"unet.lora_alpha": 8', '"unet.lora_alpha": "8"'), "lora_alpha = '8'"),
        ("{", "lora_adapter_metadata: not JSON"),
        ("[]", "a JSON object"),
    ):
        assert text != header
        file = save(weights, tmp_path / "a.safetensors", lora_adapter_metadata=text)
        assert message in refusal(file)


# --- notes


KOHYA_NOTES = {
    "ss_sd_model_name": "v1-5-pruned.safetensors",
    "ss_new_sd_model_hash": "6ce0161689",
    "ss_base_model_version": "sd_v1",
    "ss_resolution": "(512, 768)",
    "ss_enable_bucket": "True",
    "ss_bucket_info": '{"buckets": {"0": {"resolution": [576, 448], "count": 30}, "1":'
    ' {"resolution": [448, 576], "count": 170}}, "mean_img_ar_error": 0.02}',
    "ss_min_snr_gamma": "5.0",
    "ss_noise_offset": "0.0357",
    "ss_prior_loss_weight": "1.0",
    "ss_num_reg_images": "200",
    "ss_zero_terminal_snr": "False",
    "ss_debiased_estimation": "False",
    "ss_multires_noise_iterations": "None",
    "ss_ip_noise_gamma": "None",
    "ss_loss_type": "l2",
    "ss_clip_skip": "2",
    "ss_caption_dropout_rate": "0.1",
    "ss_dataset_dirs": '{"10_sks dog": {"n_repeats": 10, "img_count": 20}}',
}


def test_notes_of_kohyas_scripts(tmp_path: Path) -> None:
    file = save_kohya(
        random_lora(make_unet(), "to_q"), tmp_path / "a.safetensors", 1.0, **KOHYA_NOTES
    )
    notes = read_adapter(file).notes
    assert notes == TrainerNotes(
        resolution=(512, 768),
        buckets=True,
        loss="l2",
        min_snr_gamma=5.0,
        debiased=False,
        noise_offset=0.0357,
        prior_loss_weight=1.0,
        regularization_pictures=200,
        zero_terminal_snr=False,
        clip_skip=2,
        caption_dropout=0.1,
        base_name="v1-5-pruned.safetensors",
        base_hash="6ce0161689",
        base_version="sd_v1",
        folders=(DatasetFolder("10_sks dog", 20, 10),),
        bucket_sizes=((448, 576), (576, 448)),
    )
    assert notes.describe() == (
        "resolution 512x768, 2 buckets, loss l2, min_snr_gamma 5, noise_offset 0.0357,"
        " prior_loss_weight 1, clip_skip 2, folders 10_sks dog (20 × 10);"
        " base v1-5-pruned.safetensors sd_v1"
    )
    assert read_adapter(kohya(tmp_path)).notes is None


def test_a_resolution_in_the_list_of_data_sets() -> None:
    datasets = json.dumps([{"resolution": [1024, 1024], "is_dreambooth": True}])
    notes = read_trainer_notes({"ss_datasets": datasets, "modelspec.prediction_type": "v"})
    assert notes is not None
    assert notes.resolution == (1024, 1024)
    assert notes.prediction == "v_prediction"


def test_buckets_in_the_list_of_data_sets() -> None:
    info = {"buckets": {"0": {"resolution": [64, 32], "count": 3}}}
    datasets = json.dumps([{"enable_bucket": True, "bucket_info": info}])
    notes = read_trainer_notes({"ss_datasets": datasets})
    assert notes == TrainerNotes(buckets=True, bucket_sizes=((64, 32),))


@pytest.mark.parametrize(
    "info",
    [
        *({}, [], {"buckets": []}, {"buckets": {"0": 3}}, {"buckets": {"0": {"resolution": [1]}}}),
        *(
            {"buckets": {"0": {"resolution": [0, 64]}}},
            {"buckets": {"0": {"resolution": [64, 1e9]}}},
        ),
        {"buckets": {str(number): {"resolution": [64, 64]} for number in range(1001)}},
    ],
)
def test_buckets_that_cannot_be_read_are_none(info: Any) -> None:
    notes = read_trainer_notes({"ss_enable_bucket": "True", "ss_bucket_info": json.dumps(info)})
    assert notes == TrainerNotes(buckets=True)


@pytest.mark.parametrize("value", ["", "None", "nan", "x", "[", "(", "-1", "(1, 2, 3)", "null"])
def test_notes_that_cannot_be_read_are_none(value: str) -> None:
    """A header may hold anything."""
    names = {name: value for name in KOHYA_NOTES if name.startswith("ss_")}
    notes = read_trainer_notes(names)
    assert notes is not None
    texts = (notes.loss, notes.base_name, notes.base_hash, notes.base_version)
    assert {text or value for text in texts} == {value}
    assert replace_texts(notes) == TrainerNotes()


def replace_texts(notes: TrainerNotes) -> TrainerNotes:
    import msgspec

    texts = dict.fromkeys(("loss", "base_name", "base_hash", "base_version"))
    return msgspec.structs.replace(notes, **texts)
