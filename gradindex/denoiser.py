"""The only room that knows diffusers: a checkpoint on disk becomes a loss per sample."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradindex.errors import CallError, ModelError, first_line
from gradindex.recipe import MEAN_SQUARE

MODELS = ("UNet2DModel",)
SCHEDULE = ("beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PREDICTIONS = ("epsilon", "v_prediction", "sample")


class Denoiser:
    """A frozen diffusers model with its noise schedule.

    Attributes:
        model: the module, in eval mode, every parameter frozen.
        trainable: names of the parameters that training would change.
        digest: SHA-256 of the weight files.
        facts: the fields of a Recipe that the model and its scheduler decide.
    """

    def __init__(self, model: Any, schedule: dict[str, Any], digest: str, device: str, dtype: str) -> None:
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

        self.trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self.model = model.eval().requires_grad_(False).to(device, DTYPES[dtype])
        self.device = torch.device(device)
        self.digest = digest
        self.facts = {**_facts(model, schedule), "dtype": dtype}
        self.num_train_timesteps: int = schedule["num_train_timesteps"]
        try:
            alphas = DDPMScheduler.from_config(schedule).alphas_cumprod.to(device)
        except (NotImplementedError, ValueError, TypeError) as error:
            raise ModelError(f"the scheduler's config does not make a noise schedule ({error})") from error
        self._signal, self._noise = alphas.sqrt(), (1 - alphas).sqrt()

    @property
    def memory(self) -> int:
        """Bytes of memory that the device has."""
        if self.device.type == "cuda":
            return int(torch.cuda.get_device_properties(self.device).total_memory)
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    def losses(self, x: Tensor, t: Tensor, epsilon: Tensor, labels: Tensor | None, kind: str) -> Tensor:
        """The denoising loss of each sample, never reduced over the batch.

        `mean |model(x_t, t) − target|^p` over the picture's elements, with p = 2 for mse and 1 for l1 and
        `x_t = √ᾱ_t x + √(1 − ᾱ_t) ε` (Ho et al. 2020, eq. 4). For mean-square it is `mean model(x_t, t)²` (D-TRAK,
        Zheng et al. 2024).

        Args:
            x, epsilon: [B, channels, height, width] float32. t: [B] whole numbers. labels: [B] or None.
        """
        signal, sigma = self._signal[t].view(-1, 1, 1, 1), self._noise[t].view(-1, 1, 1, 1)
        keywords = {} if labels is None else {"class_labels": labels}
        noisy = (signal * x + sigma * epsilon).to(self.model.dtype)
        output = self.model(noisy, t, return_dict=False, **keywords)[0].float()
        if kind == MEAN_SQUARE:
            return output.flatten(1).square().mean(1)
        if self.facts["prediction_type"] == "epsilon":
            target = epsilon
        elif self.facts["prediction_type"] == "sample":
            target = x
        else:  # v (Salimans and Ho 2022)
            target = signal * epsilon - sigma * x
        error = (output - target).flatten(1)
        return (error.abs() if kind == "l1" else error.square()).mean(1)


def load_denoiser(
    path: str | Path,
    *,
    model: str | Path | None = None,
    scheduler: str | Path | None = None,
    device: str = "cpu",
    dtype: str = "float32",
) -> Denoiser:
    """Load a checkpoint: a pipeline folder, a model folder, a training checkpoint, or a weights file.

    Args:
        path: where the weights are. model: where the configuration is, when `path` is a bare weights file.
        scheduler: a scheduler folder or its JSON file; found beside the model when not given.
        dtype: float32, bfloat16 or float16, of the weights while gradients are taken.

    Raises:
        CallError: a path does not exist. ModelError: what is there cannot be used.
    """
    path = Path(path)
    if not path.exists():
        raise CallError(f"model {path}: no such file or folder")
    home = path if path.is_dir() else Path(model or path.parent)
    folder = _model_folder(home)
    config = _read_json(folder / "config.json")
    kind = config.get("_class_name")
    if kind not in MODELS:
        raise ModelError(f"{folder}: a model of class {kind!r}; gradindex knows {', '.join(MODELS)}")
    _require_pixels(home)
    schedule = _schedule(_scheduler_file(folder, scheduler, model))
    files = _weight_files(folder) if path.is_dir() else [path]
    network = _load_network(folder, config, files, bare=path.is_file())
    for name, value in network.state_dict().items():
        if not value.isfinite().all():
            raise ModelError(f"{path}: weights {name!r} hold NaN or infinity")
    return Denoiser(network, schedule, _digest(files), device, dtype)


class Checkpoints:
    """The checkpoints of one run, loaded when asked for, one of them in memory at a time."""

    def __init__(
        self, paths: Sequence[str | Path], model: str | Path, scheduler: str | Path | None, device: str, dtype: str
    ) -> None:
        self._paths = list(paths)
        self._places = {"model": model, "scheduler": scheduler, "device": device, "dtype": dtype}
        self._held: tuple[int, Denoiser] | None = None

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, number: int) -> Denoiser:
        if self._held is None or self._held[0] != number:
            self._held = None
            self._held = (number, load_denoiser(self._paths[number], **self._places))  # type: ignore[arg-type]
        return self._held[1]

    def facts(self) -> dict[str, Any]:
        """The fields of a Recipe that models and scheduler decide."""
        digests, facts = [], {}
        for number, path in enumerate(self._paths):
            denoiser = self[number]
            sizes = {name: denoiser.model.get_parameter(name).shape for name in denoiser.trainable}
            facts[path] = (denoiser.facts, sizes)
            if facts[path] != facts[self._paths[0]]:
                raise ModelError(f"checkpoint {path} is of another model or scheduler than {self._paths[0]}")
            digests.append(denoiser.digest)
        return {**facts[self._paths[0]][0], "checkpoints": tuple(digests)}


def resolve_device(device: str) -> str:
    """`auto` becomes cuda where there is a GPU, else cpu."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise CallError(f"device = {device!r}: allowed are 'auto', 'cpu', 'cuda'")
    if device != "cpu" and not torch.cuda.is_available():
        raise CallError(f"device = {device!r}: this machine has no CUDA GPU that torch can use")
    return device


def _facts(model: Any, schedule: dict[str, Any]) -> dict[str, Any]:
    config = model.config
    size = config.sample_size
    if size is None:
        raise ModelError('the model\'s config.json has no "sample_size": write the training size there')
    if config.in_channels != config.out_channels:
        raise ModelError(
            f"the model takes {config.in_channels} channels and gives {config.out_channels}: not a denoiser"
        )
    if schedule["prediction_type"] not in PREDICTIONS:
        raise ModelError(f"prediction_type {schedule['prediction_type']!r}: known are {', '.join(PREDICTIONS)}")
    if config.class_embed_type is not None:
        raise ModelError(f"class_embed_type {config.class_embed_type!r}: only learned class embeddings are known")
    public = {name: value for name, value in config.items() if not name.startswith("_")}
    height, width = (size, size) if isinstance(size, int) else size
    kept = {name: schedule.get(name) for name in ("num_train_timesteps", *SCHEDULE)}
    return {
        "model": type(model).__name__,
        "config": hashlib.sha256(json.dumps(public, sort_keys=True).encode()).hexdigest(),
        "scheduler": json.dumps(kept, sort_keys=True),
        "prediction_type": schedule["prediction_type"],
        "image": (config.in_channels, height, width),
        "classes": config.num_class_embeds,
    }


def _model_folder(home: Path) -> Path:
    """The folder with the model's config.json: `home` itself, or its part that a pipeline or a trainer made."""
    for folder in (home, home / "unet", home / "unet_ema", home / "transformer"):
        if (folder / "config.json").is_file():
            return folder
    raise ModelError(f"{home}: no model here (looked for config.json, unet/config.json and unet_ema/config.json)")


def _require_pixels(home: Path) -> None:
    parts = _read_json(home / "model_index.json") if (home / "model_index.json").is_file() else {}
    if found := {"vae", "vqvae"} & parts.keys():
        raise ModelError(f"{home}: a latent pipeline (it has a {found.pop()}); gradindex knows models of pixels so far")


def _scheduler_file(folder: Path, given: str | Path | None, model: str | Path | None) -> Path:
    name = "scheduler_config.json"
    if given is not None:
        places = [Path(given), Path(given) / name, Path(given) / "scheduler" / name]
    else:
        homes = [folder, *list(folder.resolve().parents)[:2]]
        homes += [Path(model), Path(model).resolve().parent] if model else []  # a checkpoint takes the model's
        places = [place for home in homes for place in (home / name, home / "scheduler" / name)]
    for place in places:
        if place.is_file():
            return place
    raise CallError(f"{given or folder}: no {name} found; name its folder with --scheduler")


def _schedule(file: Path) -> dict[str, Any]:
    schedule = _read_json(file)
    if "beta_schedule" not in schedule or "num_train_timesteps" not in schedule:
        raise ModelError(
            f"{file}: scheduler {schedule.get('_class_name')!r} has no beta schedule; give a DDPM-like one"
        )
    return {**schedule, "prediction_type": schedule.get("prediction_type", "epsilon")}


def _weight_files(folder: Path) -> list[Path]:
    name = "diffusion_pytorch_model"
    for pattern in (f"{name}.safetensors", f"{name}-*.safetensors", f"{name}.bin", f"{name}-*.bin"):
        if files := sorted(folder.glob(pattern)):
            return files
    raise ModelError(f"{folder}: no weights (looked for {name}.safetensors and {name}.bin)")


def _load_network(folder: Path, config: dict[str, Any], files: list[Path], *, bare: bool) -> Any:
    from diffusers.models.unets.unet_2d import UNet2DModel
    from diffusers.utils import logging
    from safetensors.torch import load_file

    logging.set_verbosity_error()
    try:
        if not bare:  # diffusers unpickles nothing: safetensors, or torch.load(weights_only=True)
            safe = files[0].suffix == ".safetensors"
            network, info = UNet2DModel.from_pretrained(
                folder, use_safetensors=safe, low_cpu_mem_usage=False, local_files_only=True, output_loading_info=True
            )
            missing = info["missing_keys"]
        else:
            network = UNet2DModel.from_config(config)
            file = files[0]
            state = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
            missing = network.load_state_dict(state, strict=False).missing_keys
    except Exception as error:  # diffusers, safetensors and torch raise a dozen kinds
        raise ModelError(f"{files[0]}: cannot be loaded ({first_line(error)})") from error
    if missing:
        raise ModelError(f"{files[0]}: weights are missing for {', '.join(sorted(missing)[:5])} …")
    return network


def _digest(files: list[Path]) -> str:
    whole = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            whole.update(hashlib.file_digest(stream, "sha256").digest())
    return whole.hexdigest()


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise ModelError(f"{file}: not JSON ({error})") from error
