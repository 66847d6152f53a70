"""Denoisers in the original layout, in one file with the rest of their pipeline or alone.

Stability's and Black Forest Labs' own code names weights so, and A1111, ComfyUI and kohya's scripts
write such files. diffusers' functions give the weights the names that its own classes have.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from gradindex.errors import ModelError, first_line
from gradindex.models.quiet import quiet_libraries
from gradindex.models.refusals import LORA_ADVICE, LORA_NAME, original_advice
from gradindex.models.weights import listed

PREFIX = "model.diffusion_model."  # of the denoiser's weights, where a file holds more
BARE = ("input_blocks.", "joint_blocks.", "double_blocks.")  # in files of a denoiser alone
PARTS = ("first_stage_model.", "vae.", "cond_stage_model.", "conditioner.", "text_encoders.")
# Weights without a value that say how the model was trained, as ComfyUI and A1111 read them.
V_PREDICTION, ZERO_SNR = "v_pred", "ztsnr"
PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction"}  # of `modelspec.prediction_type`


def is_original(names: Collection[str]) -> bool:
    """Return whether weights are those of a denoiser in the original layout, by their names.

    >>> is_original(["model.diffusion_model.out.2.bias", "first_stage_model.quant_conv.bias"])
    True
    >>> is_original(["conv_in.weight"])
    False
    """
    return any(name.startswith((PREFIX, *BARE)) for name in names)


def to_diffusers(
    weights: Mapping[str, Tensor], model_class: Any, arguments: Mapping[str, Any], file: Path
) -> dict[str, Tensor]:
    """Return the denoiser's weights of a file in the original layout, as diffusers has them.

    Args:
        weights: all that the file holds; see `is_original`.
        model_class: of diffusers. arguments: of it, from config.json.
        file: for errors.

    Raises:
        ModelError: diffusers knows no original layout of this class; a weight of the denoiser is
            missing, or has no place in the model.
    """
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    if any(LORA_NAME.search(name) for name in weights):
        raise ModelError(f"{file}: {LORA_ADVICE}")
    name = model_class.__name__
    if name not in SINGLE_FILE_LOADABLE_CLASSES:
        raise ModelError(
            f"{file}: not the weights of this model, a {name}, but {original_advice(weights, file)}"
        )
    given = _denoiser_weights(weights)
    if name == "UNet2DConditionModel":  # whose function takes the prefix for granted
        given = {f"{PREFIX}{key}": weight for key, weight in given.items()}
    convert = SINGLE_FILE_LOADABLE_CLASSES[name]["checkpoint_mapping_fn"]
    try:
        with quiet_libraries():
            converted = convert(checkpoint=given, config=dict(arguments))
    except KeyError as error:
        raise _other_pipeline(file, f"weights are missing for {error.args[0]}") from error
    except Exception as error:  # of a dozen kinds, where the file is of a model of another size
        raise _other_pipeline(
            file, f"does not become a {name} of this config.json ({first_line(error)})"
        ) from error
    # The function takes weights out of `given`, or returns them as they are.
    placed = {id(weight) for weight in converted.values()}
    if left := [key for key, weight in given.items() if id(weight) not in placed]:
        raise _other_pipeline(
            file, f"holds weights that config.json has no place for: {listed(left)}"
        )
    return {key: weight for key, weight in converted.items() if weight is not None}


def check_prediction(
    names: Collection[str], header: Mapping[str, str], schedule: Mapping[str, Any], file: Path
) -> None:
    """Refuse a file that says of its training what the scheduler does not.

    Args:
        names: of all weights in the file. header: its texts, see `read_header`.
        schedule: of the scheduler, see `read_schedule`.

    Raises:
        ModelError: another prediction type, or zero terminal SNR where the scheduler has none.
    """
    said = PREDICTIONS.get(header.get("modelspec.prediction_type", ""))
    if V_PREDICTION in names:
        said = "v_prediction"
    if said not in (None, schedule["prediction_type"]):
        raise ModelError(
            f"{file}: trained with prediction type {said}, and the scheduler says"
            f" {schedule['prediction_type']}; give the scheduler of the training, as scheduler"
        )
    if ZERO_SNR in names and not schedule.get("rescale_betas_zero_snr"):
        raise ModelError(
            f"{file}: trained with zero terminal SNR, and the scheduler has no"
            " rescale_betas_zero_snr; give the scheduler of the training, as scheduler"
        )


def _denoiser_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the denoiser alone, by their names without the prefix."""
    if any(name.startswith(PREFIX) for name in weights):
        return {
            name.removeprefix(PREFIX): weight
            for name, weight in weights.items()
            if name.startswith(PREFIX)
        }
    return {name: weight for name, weight in weights.items() if not name.startswith(PARTS)}


def _other_pipeline(file: Path, message: str) -> ModelError:
    return ModelError(
        f"{file}: {message}; give as model the pipeline that this checkpoint was made from"
    )
