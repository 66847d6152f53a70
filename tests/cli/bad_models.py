"""Kinds of bad input: the model and the checkpoints of a build."""

from pathlib import Path

import torch
from bad_inputs import (
    CONFIG,
    SCHEDULER,
    WEIGHTS,
    Bad,
    Shared,
    fields,
    file,
    model,
    shorter,
    weights,
)
from safetensors.torch import save_file

from gradindex.models.families import FAMILIES

BUILD = "build i --data {pictures} --timesteps 2 --dim 8 --model "
NAN = torch.full((8,), float("nan"))
LFS = "version https://git-lfs.github.com/spec/v1\n"


def lone_weights(place: Path, shared: Shared) -> None:
    save_file({"conv_in.weight": torch.zeros(8, 1, 3, 3)}, place / "w.safetensors")


def training_state(place: Path) -> None:
    (place / WEIGHTS).unlink()
    torch.save({"epoch": 3, "model": {}}, (place / WEIGHTS).with_suffix(".bin"))


MODELS = [
    Bad("no such folder", BUILD + "m", "model m: no such file or folder"),
    Bad(
        "a name on the hub",
        BUILD + "google/ddpm-cifar10-32",
        "model google/ddpm-cifar10-32: no such file or folder; if it is a name on the Hugging"
        " Face Hub, download it first (hf download google/ddpm-cifar10-32 --local-dir"
        " ddpm-cifar10-32, formerly huggingface-cli download), then give that folder",
    ),
    Bad(
        "an address",
        BUILD + "https://example.com/ddpm",
        "model https://example.com/ddpm: no such file or folder; download the model first and"
        " give its folder",
    ),
    Bad(
        "a folder without a model",
        BUILD + "{pictures}",
        "{pictures}: no model here (looked for config.json, unet/config.json,"
        " unet_ema/config.json and transformer/config.json)",
        status=1,
    ),
    Bad(
        "a file that holds no weights",
        BUILD + "a.txt",
        "a.txt: cannot be loaded (neither safetensors nor a pickle of weights alone); give"
        " the weights as safetensors, or as the model's state_dict()",
        file("a.txt", "weights"),
        1,
    ),
    Bad(
        "weights without a config",
        BUILD + "w.safetensors",
        "w.safetensors: a weights file needs its model's config.json, and . has none (looked"
        " for config.json, unet/config.json, unet_ema/config.json and transformer/config.json);"
        " give that model's folder as model, the file as checkpoint",
        lone_weights,
        1,
    ),
    Bad(
        "no weights",
        BUILD + "m",
        "m/unet: no weights (looked for diffusion_pytorch_model.safetensors and"
        " diffusion_pytorch_model.bin)",
        model(lambda place: (place / WEIGHTS).unlink()),
        1,
    ),
    Bad(
        "a pickled training state",
        BUILD + "m",
        "m/unet/diffusion_pytorch_model.bin: holds more than weights by their names (epoch,"
        " model); save the model's state_dict() alone",
        model(training_state),
        1,
    ),
    Bad(
        "half a file of weights",
        BUILD + "m",
        "m/unet/diffusion_pytorch_model.safetensors: cannot be loaded (Error while"
        " deserializing header: incomplete metadata, file not fully covered); if it was cut"
        " short, copy or download it again",
        model(shorter(WEIGHTS)),
        1,
    ),
    Bad(
        "a pointer of Git LFS",
        BUILD + "m",
        "m/unet/diffusion_pytorch_model.safetensors: a pointer of Git LFS in place of the"
        " weights; run `git lfs pull` there",
        model(lambda place: (place / WEIGHTS).write_text(LFS)),
        1,
    ),
    Bad(
        "a shard that is missing",
        BUILD + "m",
        "m/unet/diffusion_pytorch_model.safetensors.index.json: names part-2.safetensors,"
        " which is not there; copy all shards",
        model(
            lambda place: (place / f"{WEIGHTS}.index.json").write_text(
                '{"weight_map": {"a": "part-2.safetensors"}}'
            )
        ),
        1,
    ),
    Bad(
        "weights beyond the config",
        BUILD + "m",
        "m/unet/diffusion_pytorch_model.safetensors: holds weights that config.json has no"
        " place for: extra; give the config.json that was saved with them",
        model(weights(extra=torch.zeros(1))),
        1,
    ),
    Bad(
        "weights that are missing",
        BUILD + "m",
        "m/unet/diffusion_pytorch_model.safetensors: weights are missing for conv_in.bias;"
        " give the config.json that was saved with them",
        model(weights(conv_in__bias=None)),
        1,
    ),
    Bad(
        "weights of another shape",
        BUILD + "m",
        "m/unet/diffusion_pytorch_model.safetensors: weights 'conv_in.bias' have the shape"
        " [9], by config.json it is [8]",
        model(weights(conv_in__bias=torch.zeros(9))),
        1,
    ),
    Bad(
        "weights in whole numbers",
        BUILD + "m",
        "m/unet/diffusion_pytorch_model.safetensors: weights 'conv_in.bias' are int8: give"
        " floating point numbers",
        model(weights(conv_in__bias=torch.zeros(8, dtype=torch.int8))),
        1,
    ),
    Bad(
        "NaN among the weights",
        BUILD + "m",
        "m: weights 'conv_in.bias' hold NaN or infinity",
        model(weights(conv_in__bias=NAN)),
        1,
    ),
    Bad(
        "a config that is no JSON",
        BUILD + "m",
        "m/unet/config.json: not JSON (Expecting property name enclosed in double quotes:"
        " line 1 column 2 (char 1))",
        model(lambda place: (place / CONFIG).write_text("{")),
        1,
    ),
    Bad(
        "an unknown class",
        BUILD + "m",
        "m/unet: a model of class 'MyUNet' (of a DDPMPipeline); gradindex knows"
        f" {', '.join(FAMILIES)}; for another, give an object of your own that computes its loss"
        " (gradindex.build(…, denoiser=…), see docs/models.md)",
        model(fields(CONFIG, _class_name="MyUNet")),
        1,
    ),
    Bad(
        "no training size",
        BUILD + "m",
        'm/unet/config.json: has no "sample_size": write the training size there',
        model(fields(CONFIG, sample_size=None)),
        1,
    ),
    Bad(
        "a negative number of groups",
        BUILD + "m",
        "m/unet/config.json: norm_num_groups = -4: allowed is a whole number, 1 to 16384",
        model(fields(CONFIG, norm_num_groups=-4)),
        1,
    ),
    Bad(
        "a config that makes no model",
        BUILD + "m",
        "m/unet/config.json: does not make a model (Must provide the same number of"
        " `down_block_types` as `up_block_types`. `down_block_types`: ['DownBlock2D']."
        " `up_block_types`: ['AttnUpBlock2D', 'UpBlock2D'].)",
        model(fields(CONFIG, down_block_types=["DownBlock2D"])),
        1,
    ),
    Bad(
        "a model that is no denoiser",
        BUILD + "m",
        "m/unet/config.json: the model takes 1 channels and gives 3: not a denoiser",
        model(fields(CONFIG, out_channels=3)),
        1,
    ),
    Bad(
        "no scheduler",
        BUILD + "m",
        "m/unet: no scheduler_config.json found; name its folder with --scheduler",
        model(lambda place: (place / SCHEDULER).unlink()),
    ),
    Bad(
        "no such scheduler",
        BUILD + "{model} --scheduler s",
        "s: no scheduler_config.json found; name its folder with --scheduler",
    ),
    Bad(
        "a scheduler without betas",
        BUILD + "m",
        "{here}/m/scheduler/scheduler_config.json: scheduler 'KarrasVeScheduler' has no beta"
        " schedule; give a DDPM-like one, or one of flow matching",
        model(fields(SCHEDULER, _class_name="KarrasVeScheduler", beta_schedule=...)),
        1,
    ),
    Bad(
        "betas beyond one",
        BUILD + "m",
        "{here}/m/scheduler/scheduler_config.json: the scheduler's betas leave a share of the"
        " picture outside of 0 … 1; give the scheduler of the training",
        model(fields(SCHEDULER, beta_end=5.0)),
        1,
    ),
    Bad(
        "an unknown prediction",
        BUILD + "m",
        "{here}/m/scheduler/scheduler_config.json: prediction_type 'score': known are epsilon,"
        " v_prediction, sample",
        model(fields(SCHEDULER, prediction_type="score")),
        1,
    ),
    Bad(
        "checkpoints of two models",
        BUILD + "{model} --checkpoint {model} --checkpoint {labelled}",
        "checkpoint {labelled} is of another model or scheduler than {model}",
        status=1,
    ),
    Bad(
        "a checkpoint's weight in words",
        BUILD + "{model} --checkpoint {model}=high",
        "Invalid value for '--checkpoint': '{model}=high': no such path, and 'high' is not a"
        " weight",
    ),
    Bad(
        "no such checkpoint",
        BUILD + "{model} --checkpoint {model}/checkpoint-500",
        "model {model}/checkpoint-500: no such file or folder",
    ),
]
