"""A checkpoint on disk becomes a denoiser."""

from importlib import import_module
from pathlib import Path

from gradindex.data.buckets import Buckets
from gradindex.errors import CallError, ModelError
from gradindex.models.adapter_files import read_adapter
from gradindex.models.adapters import inject_adapter
from gradindex.models.configuration import (
    config_digest,
    own_arguments,
    require_kinds,
    require_pixels,
)
from gradindex.models.denoiser import Denoiser
from gradindex.models.devices import DTYPES, plain_torch
from gradindex.models.families import FAMILIES, class_of
from gradindex.models.families.family import Family
from gradindex.models.folder import (
    MODEL_FOLDERS,
    files_digest,
    find_latent_pipeline,
    find_model_folder,
    read_json,
    weight_files,
)
from gradindex.models.network import make_network
from gradindex.models.original_layout import check_prediction
from gradindex.models.pipeline import Encoder
from gradindex.models.refusals import (
    absent_model,
    foreign_weights,
    is_lora_folder,
    no_model,
    require_path,
    unknown_class,
)
from gradindex.models.schedules import find_scheduler, read_schedule
from gradindex.models.weights import read_header, weight_names
from gradindex.recipe import MEAN


@plain_torch()
def load_denoiser(
    path: str | Path,
    *,
    model: str | Path | None = None,
    scheduler: str | Path | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    resolution: tuple[int, int] | None = None,
    latents: str = MEAN,
    seed: int = 0,
    guidance: float | None = None,
    adapter: str | Path | None = None,
    buckets: Buckets | None = None,
    with_weights: bool = True,
) -> Denoiser:
    """Load a checkpoint: the folder of a pipeline, model or training checkpoint, or a weights file.

    Args:
        path: where the weights are.
        model: where the configuration is, when `path` is a bare weights file; its folder also
            serves for the scheduler, and for the pipeline around a model of latents.
        scheduler: a scheduler folder or its JSON file; found beside the model when not given.
        device: "cpu" or "cuda".
        dtype: a key of `DTYPES`, of the weights while gradients are taken.
        resolution: height and width of pictures; None: those that the model was made for.
        latents: "mean" or "sample", see `Encoder`.
        seed: of sampled latents.
        guidance: the scale that a model with guidance embedding was told in training; None: 3.5.
        adapter: a file or folder with the LoRA, or the like, that was trained on this model; its
            parameters are then the only trainable ones.
        buckets: see `Denoiser`.
        with_weights: False: all is checked, and the denoiser can only be described: its model has
            no weights.

    Raises:
        CallError: a path does not exist, or is none; resolution, buckets or guidance do not fit the
            model.
        ModelError: what is there cannot be used.
    """
    require_path("model", path)
    path = Path(path)
    if not path.exists():
        raise absent_model(path)
    root = path if path.is_dir() else _configured_folder(path, model)
    folder = find_model_folder(root)
    if folder is None:
        files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
        for file in [] if is_lora_folder(path) else files:
            if kind := foreign_weights(weight_names(file), file):
                raise ModelError(f"{file}: {kind}")
        raise no_model(root, None if path.is_dir() else path)
    config_file = folder / "config.json"
    config = read_json(config_file)
    class_name = class_of(config)
    if class_name not in list(FAMILIES):  # it may be anything JSON has
        raise unknown_class(folder, class_name, FAMILIES)
    family = FAMILIES[class_name]
    model_class = getattr(import_module(family.module), class_name)
    arguments = own_arguments(model_class, config)
    family.check(arguments, config_file)
    require_kinds(model_class, arguments, config_file)
    pipeline = _pipeline_around(family, folder, path, model)
    if pipeline is None:
        require_pixels(arguments["in_channels"], config_file)
        if latents != MEAN:
            raise CallError(f"latents = {latents!r}: the model takes pictures, not latents")
    schedule = read_schedule(find_scheduler(folder, scheduler, model))
    if path.is_file():
        check_prediction(weight_names(path), read_header(path), schedule, path)
    change = None if adapter is None else read_adapter(adapter)
    files = weight_files(folder) if path.is_dir() else [path]
    weights = files, DTYPES[dtype], path
    network = make_network(model_class, arguments, config_file, *weights, with_weights=with_weights)
    encoder = None
    if pipeline is not None:
        encoder = Encoder(
            pipeline,
            family,
            network.config,
            latents=latents,
            seed=seed,
            device=device,
            dtype=dtype,
            adapter=change,
            checkpoint=path if path.is_file() else _checkpoint_folder(folder, pipeline),
        )
        files += encoder.own_files
    digest, base = files_digest(files), None
    if change is not None:
        inject_adapter(network, change, change.denoiser)
        digest, base = change.digest, digest
    # How gradindex up to 0.1 made the digest: of all that config.json holds.
    former_config = config_digest({**config, **arguments})
    return Denoiser(
        network,
        schedule,
        digest,
        device,
        dtype,
        former_config,
        encoder=encoder,
        resolution=resolution,
        guidance=guidance,
        base=base,
        buckets=buckets,
    )


def _pipeline_around(
    family: Family, folder: Path, path: Path, model: str | Path | None
) -> Path | None:
    """The folder of the pipeline with a VAE that a model belongs to; None for a model of pixels.

    Raises:
        ModelError: the model works on latents, and none is found.
    """
    places = [folder]
    if path.is_file():
        places.append(path.parent)
    if model is not None:
        places.append(Path(model))
    for place in places:
        pipeline = find_latent_pipeline(place)
        if pipeline is not None:
            return pipeline
    if family.latent:
        raise ModelError(
            f"{folder}: a {family.model_class} works on latents, and no pipeline with a VAE is"
            " around it; give the pipeline's folder as model, and this one as checkpoint"
        )
    return None


def _checkpoint_folder(folder: Path, pipeline: Path) -> Path | None:
    """The folder around `checkpoint-500/unet`; None where that is the pipeline itself, or none."""
    around = folder.absolute().parent
    is_part = folder.name in MODEL_FOLDERS and around.resolve() != pipeline.resolve()
    return around if is_part else None


def _configured_folder(weights: Path, model: str | Path | None) -> Path:
    """Where the configuration of a bare weights file is: at the model, or else beside the file."""
    if model is None:
        return weights.parent
    model = Path(model)
    if not model.exists():
        raise absent_model(model)
    return model if model.is_dir() else model.parent
