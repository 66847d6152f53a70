"""A diffusers model on disk becomes a denoiser: a model with a loss per sample.

- `folder` finds configuration and weight files; `loading` makes the model of them, `adapters` adds
  a LoRA. `configuration` checks config.json, `weights` the weights; `refusals` says what else a
  file may be.
- `families` knows how each class of models is called, `processes` how noise is mixed in and what
  is predicted (`schedules` reads the scheduler beside the model).
- `denoiser` holds all that, computes the loss, and describes it for a `Recipe`. `custom` is a
  denoiser of the user's own. `checkpoints` are the denoisers of one training run.
- `pipeline` makes `examples` of pictures: VAE and text encoders.
"""
