"""A diffusers model on disk becomes a denoiser: a model with a loss per sample.

- `folder` finds configuration and weight files; `loading` makes the model of them.
- `configuration` checks config.json, `weights` the weights; `refusals` says what else it may be.
- `schedules` reads the noise schedule that lies beside them.
- `denoiser` holds both and computes the loss, and describes them for a `Recipe`.
- `checkpoints` are the denoisers of one training run.

A new family of models (a latent UNet, SD3, …) goes into three places: its class into
`loading.MODEL_CLASSES`; what it is called with, and what its loss compares, into `denoiser`; its
noise schedule into `schedules`.
"""
