"""Text encoders that a training left beside its denoiser: `checkpoint-500/text_encoder`."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_pipelines
import transformers
from tiny_pipelines import SIDE

from gradindex.errors import ModelError
from gradindex.models.checkpoints import Checkpoints
from gradindex.models.examples import Pictures
from gradindex.models.loading import load_denoiser

TEXT = "encoder_hidden_states"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `train_dreambooth.py --train_text_encoder` leaves: a pipeline, with checkpoints in it.

    The text encoder of checkpoint-500 is another one, that of checkpoint-1000 the pipeline's.
    """
    out = tiny_pipelines.stable_diffusion(tmp_path_factory.mktemp("run") / "out")
    for step in (500, 1000):
        shutil.copytree(out / "unet", out / f"checkpoint-{step}" / "unet")
        shutil.copytree(out / "text_encoder", out / f"checkpoint-{step}" / "text_encoder")
    tiny_pipelines.clip(9).save_pretrained(out / "checkpoint-500" / "text_encoder")
    return out


def encoded(path: Path, **options: Any) -> Any:
    pictures = Pictures(np.zeros((1, 3, SIDE, SIDE), np.float32), ["a"], captions=["a cat"])
    return load_denoiser(path, **options).encoder.encode(pictures)


def test_the_text_encoder_of_a_checkpoint_encodes_its_captions(run: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(run, whole)
    shutil.rmtree(whole / "text_encoder")
    shutil.copytree(run / "checkpoint-500" / "text_encoder", whole / "text_encoder")
    truth, plain = (encoded(path).conditions[TEXT][0] for path in (whole, run))
    assert abs(truth - plain).max() > 0.1
    for path in (run / "checkpoint-500", run / "checkpoint-500" / "unet"):
        own = encoded(path, model=run)
        np.testing.assert_array_equal(own.conditions[TEXT][0], truth)
        np.testing.assert_array_equal(own.x[0], encoded(run).x[0])
    last = encoded(run / "checkpoint-1000").conditions[TEXT][0]
    np.testing.assert_array_equal(last, plain)


def test_each_checkpoint_has_its_own(run: Path) -> None:
    paths = [run / "checkpoint-500", run / "checkpoint-1000", run]
    checkpoints = Checkpoints(paths, run, None, "cpu", "float32")
    digests = checkpoints.recipe_fields()["checkpoints"]
    # The UNets are the same: what tells the checkpoints apart are the text encoders.
    assert len(set(digests)) == 3
    encoders = [checkpoints.encoder_of(number) for number in range(3)]
    # Equal content is encoded once: that of checkpoint-1000 is the pipeline's.
    assert encoders[0] is not encoders[1] is encoders[2]
    assert len({encoder.captions_key for encoder in encoders}) == 2
    assert len({encoder.latents_key for encoder in encoders}) == 1
    assert digests[2] == load_denoiser(run).digest


def test_one_of_another_kind_is_refused(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(run, out)
    own = out / "checkpoint-500" / "text_encoder"
    shutil.rmtree(own)
    config = transformers.CLIPTextConfig(vocab_size=54, hidden_size=8, num_attention_heads=2)
    transformers.CLIPTextModel(config).save_pretrained(own)
    with pytest.raises(ModelError, match="does not become the text_encoder of the pipeline"):
        encoded(out / "checkpoint-500")
