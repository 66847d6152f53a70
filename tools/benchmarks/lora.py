"""What the gradients of a LoRA cost, beside a step of its training: `tools/bench lora`.

In one process, in units of a training step of the same LoRA on the same batch; and the memory of a
whole build beside that of a whole training, each in a process of its own.
"""

import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import record
import torch
from diffusers import StableDiffusionPipeline
from emoji_model import make_pipeline, untrained_text_encoder, untrained_vae
from emoji_pictures import clip_tokenizer, read_emoji, write_captioned
from gpu_models import Case, lora_case
from gradient_methods import median_ratio, peak_memory, time_in_turns
from memory import peak_memory as peak_of_command
from peft.utils import get_peft_model_state_dict

CHANNELS, WIDTH, SIZE = (96, 192, 384, 384), 768, 32  # of the UNet, its text and its latents
BATCH, ROUNDS = 4, 15
DTYPES = ("float32", "bfloat16")
PICTURES, STEPS = 32, 6  # of the build; of the training beside it
TRAINING = Path(__file__).with_name("lora_training.py")

STEP, FLOOR, OURS = "training step", "forward and backward to the input (the floor)", "auto"


def run(work: Path, device: str, only: list[str]) -> None:
    """Measure, print, and write docs/benchmarks/lora.json and .md."""
    part = record.resumable(work / f"lora-{device}")
    results: dict[str, Any] = {"batch": BATCH, "pictures": PICTURES}
    results |= part("sizes", sizes)
    results["step"] = [part(dtype, partial(measure, dtype, device)) for dtype in DTYPES]
    results["process"] = part("process", partial(measure_processes, work / "lora"))
    text = page(results)
    print(text)
    if not only:
        record.save("lora", device, "tools/bench lora", results, text)


def make_case(dtype: str, device: str) -> Case:
    """Return the UNet of Stable Diffusion 1 made small, with a LoRA of rank 16 on its attention."""
    torch.manual_seed(0)
    with torch.device(device):
        case = lora_case(SIZE, WIDTH, block_out_channels=CHANNELS, layers_per_block=1)
    torch.nn.Module.to(case.model, dtype=getattr(torch, dtype))
    return case


def sizes() -> dict[str, int]:
    """Return how many parameters the model has, and how many of them the LoRA."""
    case = make_case("float32", "cpu")
    trained = sum(case.model.get_parameter(name).numel() for name in case.names)
    return {"parameters": sum(p.numel() for p in case.model.parameters()), "trained": trained}


def measure(dtype: str, device: str) -> dict[str, Any]:
    """Return time and peak memory of each way, in training steps."""
    case = make_case(dtype, device)
    batch = case.batch(BATCH)
    capture = case.capture(case.strong_weights())

    def ours() -> None:
        with capture:
            capture.gradients(batch.losses)

    methods = {STEP: batch.training_step, FLOOR: batch.least, OURS: ours}
    seconds = time_in_turns(methods, ROUNDS, device)
    peaks = {name: peak_memory(method, device) for name, method in methods.items()}
    return {
        "dtype": dtype,
        "cost": {name: median_ratio(seconds, name, STEP) for name in methods},
        "memory": {name: peaks[name] / peaks[STEP] for name in methods},
    }


def measure_processes(folder: Path) -> dict[str, float]:
    """Return the most memory that a whole training and a whole build have at once, MiB."""
    shutil.rmtree(folder, ignore_errors=True)
    base, adapter, data = folder / "base", folder / "lora", folder / "data"
    _save_pipeline(folder.parent, base, adapter)
    write_captioned(data, read_emoji(folder.parent)[:PICTURES])
    command = [sys.executable, str(TRAINING), base, data, str(BATCH), str(STEPS)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    training = int(done.stderr.split("VmHWM:")[1].split()[0]) / 1024
    settings = {
        "model": base,
        "adapter": adapter,
        "data": data,
        "timesteps": 2,
        "batch-size": BATCH,
        "device": "cpu",
    }
    options = [str(text) for name, value in settings.items() for text in (f"--{name}", value)]
    return {
        "training": training,
        "build": peak_of_command(["build", str(folder / "index"), *options]),
    }


def _save_pipeline(work: Path, base: Path, adapter: Path) -> None:
    """Write a pipeline with random weights around the UNet, and the LoRA beside it."""
    case = make_case("float32", "cpu")
    tokenizer = clip_tokenizer(work)
    weights = get_peft_model_state_dict(case.model)
    StableDiffusionPipeline.save_lora_weights(adapter, unet_lora_layers=weights)
    case.model.unload_lora()
    text_encoder = untrained_text_encoder(len(tokenizer), WIDTH)
    make_pipeline(untrained_vae(), text_encoder, tokenizer, case.model).save_pretrained(base)


def page(results: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    rows = []
    for name in (STEP, FLOOR, OURS):
        cells: dict[str, Any] = {"way": name}
        for measured in results["step"]:
            cells[f"time, {measured['dtype']}"] = f"{measured['cost'][name]:.2f}"
            cells[f"memory, {measured['dtype']}"] = f"{measured['memory'][name]:.2f}"
        rows.append(cells)
    process = results["process"]
    return record.fill_page(
        "lora",
        millions=f"{results['parameters'] / 1e6:.1f}",
        thousands=f"{results['trained'] / 1e3:.0f}",
        batch=BATCH,
        pictures=PICTURES,
        table=record.table(rows),
        ratio=f"{process['build'] / process['training']:.2f}",
    )
