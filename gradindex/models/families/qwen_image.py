"""QwenImageTransformer2DModel: Qwen-Image."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn.functional import pad

from gradindex.errors import ModelError
from gradindex.models.configuration import require_count
from gradindex.models.families.family import TEXT, TEXT_MASK, Encoded, Family
from gradindex.models.families.packed import SIDE, pack, require_axes, unpack

TOKENS = 512  # of a caption, at most
TOKENS_STEP = 64  # captions are padded to a multiple of it
LATENT_SIDE = 128  # of the pictures that Qwen-Image was made for; its config.json does not say
TIME_SCALE = 1000  # the model multiplies times in 0 … 1 with it, whatever the scheduler's number
VARIANTS = ("guidance_embeds", "zero_cond_t", "use_additional_t_cond", "use_layer3d_rope")


class QwenImage(Family):
    """diffusers' QwenImageTransformer2DModel (Wu et al. 2025), with the captions of Qwen2.5-VL.

    Latents are packed two by two into a sequence.
    """

    model_class = "QwenImageTransformer2DModel"
    module = "diffusers.models.transformers.transformer_qwenimage"
    flow = True

    def check(self, arguments: Mapping[str, Any], file: Path) -> None:
        """Refuse what makes no Qwen-Image, or an editing or layered one; see `Family.check`."""
        for name in ("in_channels", "joint_attention_dim"):
            require_count(arguments, name, file)
        require_axes(arguments, file)
        taken = arguments["in_channels"]
        given = (arguments["out_channels"] or taken) * SIDE**2
        if taken != given or arguments["patch_size"] != SIDE:
            raise ModelError(
                f"{file}: the model takes {taken} channels and gives {given}, with patches of"
                f" {arguments['patch_size']}: allowed are as many, and patches of {SIDE}"
            )
        for name in VARIANTS:
            if arguments[name]:
                raise ModelError(
                    f"{file}: {name} = true: a Qwen-Image that edits or has layers is not known;"
                    " the one that makes pictures of captions is"
                )

    def channels(self, config: Any) -> int:
        """Return how many channels latents have before they are packed."""
        return int(config.in_channels) // SIDE**2

    def size(self, config: Any) -> tuple[int, int]:
        """Return height and width of the latents that Qwen-Image was made for."""
        return LATENT_SIDE, LATENT_SIDE

    def condition_shapes(self, config: Any) -> dict[str, tuple[int, ...]]:
        """Return the shapes of a short caption's hidden states and mask."""
        return {TEXT: (TOKENS_STEP, config.joint_attention_dim), TEXT_MASK: (TOKENS_STEP,)}

    def text(self, pipeline: Any, captions: Sequence[str], config: Any) -> Encoded:
        """Return the captions' hidden states and masks, each padded to a length of its own.

        A caption's numbers thus do not depend on those that it is encoded with, and captions of
        about the same length make a batch.
        """
        hidden_states, masks = [], []
        for caption in captions:
            hidden, mask = pipeline.encode_prompt(
                [caption], device=pipeline.device, max_sequence_length=TOKENS
            )
            tokens = hidden.shape[1]
            padding = -tokens % TOKENS_STEP
            hidden_states.append(pad(hidden[0], (0, 0, 0, padding)))
            # The pipeline gives no mask where all tokens are the caption's.
            mask = hidden.new_ones(1, tokens).long() if mask is None else mask
            masks.append(pad(mask[0], (0, padding)))
        return {TEXT: hidden_states, TEXT_MASK: masks}

    def longest_caption(self, pipeline: Any) -> tuple[Any, int]:
        """Return the tokenizer of Qwen, and how many tokens are taken."""
        return pipeline.tokenizer, TOKENS

    def predict(
        self, model: Any, noisy: Tensor, t: Tensor, conditions: Mapping[str, Tensor]
    ) -> Tensor:
        """Return the velocity that the model predicts; see `Family.predict`."""
        height, width = noisy.shape[2:]
        output = model(
            pack(noisy),
            encoder_hidden_states=conditions[TEXT],
            encoder_hidden_states_mask=conditions[TEXT_MASK],
            timestep=t / TIME_SCALE,
            img_shapes=[[(1, height // SIDE, width // SIDE)]] * len(noisy),
            return_dict=False,
        )[0]
        return unpack(output, height, width)
