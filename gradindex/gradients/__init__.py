"""Per-sample gradients of a denoising loss, captured by hooks and projected at random.

- `events` says at which timesteps and noise gradients are taken, and `sampling` takes them:
  pictures in, rows out.
- `capture` runs a model under `layer_hooks`, put on its `captured_layers`; `layers` has a rule for
  each kind of layer, `convolution` the weight gradient of convolutions, `bare_parameters` what no
  hook sees, `by_autograd` the rest. `sample_count` and `sample_rows` tell the samples apart;
  `findings` are what the first passes showed.
- `projection` makes rows of D numbers of the gradients; `high_rank` finds the weights that it must
  shrink less.
- `parameters` picks what gradients are taken of: by names, or by `parts` of the model, which need
  the `parameter_order` of a forward pass.
- `self_check` compares `parameter_sketches` of the gradients with autograd's, `batch_size` measures
  how many fit into memory and `cost` how long one takes, all on a `random_batch`.
- `fold` makes one search vector of a picture's rows.

A new kind of layer goes into `layers`, a new projection into `projection`.
"""
