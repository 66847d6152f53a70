"""Kinds of bad input: the options of a build, and where its index shall be."""

import os
import sys

import pytest
import torch
from bad_inputs import Bad, file, pictures

BUILD = "build i --model {model} --data {pictures} "
RECORDED = BUILD + "--timesteps recorded --log log.csv"
TO = "build {place} --model {{model}} --data {{pictures}}"


def no_gpu(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(torch.cuda, "is_available", lambda: False)


def no_cluster(patch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX"):
        patch.delenv(name, raising=False)


def no_ray(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(sys.modules, "ray", None)


def read_only(patch: pytest.MonkeyPatch) -> None:
    """Have the file system refuse new folders, also to a user that may write anywhere."""

    def refuse(path: object, *rest: object) -> None:
        raise PermissionError(13, "Permission denied", path)

    patch.setattr(os, "mkdir", refuse)


OPTIONS = [
    Bad(
        "no model",
        "build i --data {pictures}",
        "Missing option '--model'; see `gradindex build --help`",
    ),
    Bad(
        "an option that there is not",
        BUILD + "--time-steps 5",
        "No such option '--time-steps'. Did you mean '--timesteps'?",
    ),
    Bad("a command that there is not", "biuld i", "No such command 'biuld'. Did you mean 'build'?"),
    Bad(
        "an argument too many",
        "info a b",
        "Got unexpected extra argument (b); see `gradindex info --help`",
    ),
    Bad(
        "a pattern that the shell fills in",
        BUILD + "--adapter out/checkpoint-1 out/checkpoint-2",
        "Got unexpected extra argument (out/checkpoint-2); write --adapter before each of its"
        " values; see `gradindex build --help`",
    ),
    Bad(
        "a pattern in quotes",
        BUILD + "--adapter out/checkpoint-*",
        "adapter out/checkpoint-*: no such file or folder; a pattern is not filled in: give each"
        " path by itself",
    ),
    Bad(
        "no timestep",
        BUILD + "--timesteps 0",
        "--timesteps 0: give 1 to 1000, as many as the scheduler has",
    ),
    Bad(
        "more timesteps than the scheduler has",
        BUILD + "--timesteps even:2000",
        "--timesteps 2000: give 1 to 1000, as many as the scheduler has",
    ),
    Bad(
        "more weighted timesteps than the scheduler has",
        BUILD + "--timesteps weighted:2000",
        "--timesteps 2000: give 1 to 1000, as many as the scheduler has",
    ),
    Bad(
        "no weighted timesteps",
        BUILD + "--timesteps weighted:0",
        "--timesteps 0: give 1 to 1000, as many as the scheduler has",
    ),
    Bad(
        "a timestep taken for a count",
        BUILD + "--timesteps 500",
        "--timesteps 500: that is 500 gradients of each picture; for the timestep 500 alone"
        " give [500], on the command line `--timesteps 500,`; for 500 evenly spaced ones give"
        " 'even:500'",
    ),
    Bad(
        "a timestep beyond the scheduler",
        BUILD + "--timesteps 500,2000",
        "--timesteps [500, 2000]: give distinct timesteps from 0 to 999 (the scheduler's range)",
    ),
    Bad(
        "a timestep twice",
        BUILD + "--timesteps 500,500",
        "--timesteps [500, 500]: give distinct timesteps from 0 to 999 (the scheduler's range)",
    ),
    Bad(
        "timesteps in words",
        BUILD + "--timesteps many",
        "Invalid value for '--timesteps': 'many': give a number, timesteps with commas"
        " between them, even:N, weighted:N, or recorded",
    ),
    *(
        Bad(
            f"empty timesteps, {text}",
            BUILD + f"--timesteps {text}",
            f"Invalid value for '--timesteps': '{text}': give a number, timesteps with commas"
            " between them, even:N, weighted:N, or recorded",
        )
        for text in (",", ",500", "500,,700", "500,,")
    ),
    *(
        Bad(
            f"empty buckets, {text}",
            BUILD + f"--buckets {text}",
            f"Invalid value for '--buckets': '{text}': give the step of their sides, such as 64, or"
            " WxH,WxH,…, such as 512x768,512x512",
        )
        for text in (",", "8x8,,", ",8x8", "8x", "64,")
    ),
    Bad(
        "recorded timesteps without a log",
        BUILD + "--timesteps recorded",
        "--timesteps recorded and --log go together: give both, or neither",
    ),
    Bad("no such log", RECORDED, "log log.csv: no such file or folder"),
    Bad(
        "a log of another kind",
        BUILD + "--timesteps recorded --log log.txt",
        "log log.txt: give a TrainingRecorder's folder, a .csv or a .parquet file",
        file("log.txt"),
    ),
    Bad(
        "a log without its columns",
        RECORDED,
        "log log.csv: no column sample_id, timestep; it has a, b",
        file("log.csv", "a,b\n1,2\n"),
    ),
    Bad(
        "a log of other pictures",
        RECORDED,
        "log log.csv: of another data set; it has ids like 'x.png', the data 'p000.png'",
        file("log.csv", "sample_id,step,timestep\nx.png,0,40\n"),
    ),
    Bad(
        "draws of recorded noise",
        RECORDED + " --draws 2",
        "--draws 2: the recorded noise of an event is one; choose --noise own for more",
    ),
    Bad("no draws", BUILD + "--draws 0", "--draws 0: give a whole number, 1 or more"),
    Bad(
        "a negative perturbation",
        BUILD + "--input-perturbation=-0.1",
        "--input-perturbation -0.1: give a number, 0 or more",
    ),
    Bad(
        "masks that are nowhere",
        BUILD + "--masks nowhere",
        "--masks nowhere: no such folder; give one with a mask of each picture, or 'alpha' for the"
        " pictures' alpha channels",
    ),
    Bad(
        "masks that are the pictures",
        BUILD + "--masks {pictures}",
        "--masks '{pictures}': the folder of the pictures themselves; give one with a mask of each,"
        " or 'alpha' for their alpha channels",
    ),
    Bad(
        "more pixels than there can be",
        BUILD + "--resolution 100000",
        "--resolution 100000: give a side, or width and height, of at most 65,536 pixels",
    ),
    Bad("rows of no numbers", BUILD + "--dim 0", "--dim 0: give a whole number, 1 or more"),
    Bad(
        "a width in words",
        BUILD + "--dim wide",
        "Invalid value for '--dim': 'wide' is not a valid integer",
    ),
    Bad("no batch", BUILD + "--batch-size 0", "--batch-size 0: give a whole number, 1 or more"),
    Bad(
        "a batch in words",
        BUILD + "--batch-size all",
        "Invalid value for '--batch-size': 'all': give a number, or auto",
    ),
    Bad(
        "an unknown projection",
        BUILD + "--projection gaussian",
        "Invalid value for '--projection': 'gaussian' is not one of 'auto', 'rademacher',"
        " 'sketch', 'none'",
    ),
    Bad(
        "an unknown precision",
        BUILD + "--dtype float64",
        "Invalid value for '--dtype': 'float64' is not one of 'float32', 'tf32', 'bfloat16',"
        " 'float16'",
    ),
    Bad(
        "an unknown device",
        BUILD + "--device tpu",
        "--device tpu: allowed are 'auto', 'cpu', 'cuda', and 'cuda:1' for GPU number 1",
    ),
    Bad(
        "CUDA without a GPU",
        BUILD + "--device cuda",
        "--device cuda: this machine has no CUDA GPU that torch can use",
        patch=no_gpu,
    ),
    Bad(
        "a part beyond all parts",
        BUILD + "--part 5/4",
        "Invalid value for '--part': '5/4': give I/N, such as 1/4 to 4/4, or slurm",
    ),
    Bad(
        "a Slurm part without Slurm",
        BUILD + "--part slurm",
        "Invalid value for '--part': 'slurm': SLURM_ARRAY_TASK_ID is ''; it works in tasks of"
        " `sbatch --array`, elsewhere give I/N",
        patch=no_cluster,
    ),
    Bad(
        "a Kubernetes part without Kubernetes",
        BUILD + "--part /4",
        "Invalid value for '--part': '/4': give I/N, such as 1/4 to 4/4; /N works in a"
        " Kubernetes indexed job",
        patch=no_cluster,
    ),
    Bad(
        "Ray and a part",
        BUILD + "--ray local --part 1/4",
        "--ray local and --part (1, 4): give one of them; Ray shares the work itself",
    ),
    Bad(
        "no regular expression",
        BUILD + "--params (",
        "--params '(': not a regular expression (missing ), unterminated subpattern at position 0)",
    ),
    Bad(
        "a checkpoint twice",
        BUILD + "--checkpoint x --checkpoint x=2",
        "Invalid value for '--checkpoint': 'x': given twice; give it once, with a weight",
    ),
    Bad(
        "a caption that the model does not take",
        BUILD + "--caption dog",
        "--caption dog: the model is given no captions",
    ),
    Bad(
        "latents of a model of pixels",
        BUILD + "--latents sample",
        "--latents sample: the model takes pictures, not latents",
    ),
    Bad(
        "parameters that there are not",
        BUILD + "--params lora",
        "--params lora: no part of a model, and found in none of the 144 parameters' names,"
        " such as 'conv_in.weight'; this UNet2DModel has all, norms, attention, convolutions,"
        " biases, first, middle, second-half, last-block, last-unit, last, level-0 … level-2",
    ),
    Bad(
        "no Ray",
        BUILD + "--ray local",
        "ray is not installed: pip install 'gradindex[ray]'",
        status=1,
        patch=no_ray,
    ),
    Bad(
        "a place of something else",
        TO.format(place="d"),
        "d: exists and is not a gradindex index; choose another place",
        pictures("a.png"),
    ),
    Bad(
        "a place that is a file",
        TO.format(place="d"),
        "d: exists and is not a gradindex index; choose another place",
        file("d"),
    ),
    Bad(
        "a place below a file",
        TO.format(place="d/i"),
        "d/i: {here}/d is a file; choose another place",
        file("d"),
    ),
    Bad(
        "a place without permission",
        BUILD,
        "i/manifest/copies/normalized: Permission denied; what was committed stays",
        status=1,
        patch=read_only,
    ),
    Bad(
        "a place of an unknown kind",
        TO.format(place="foo://bucket/i"),
        "foo://bucket/i: Protocol not known: foo; give a folder, or an address such as"
        " s3://bucket/index",
    ),
]
