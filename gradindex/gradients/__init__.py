"""Per-sample gradients of a denoising loss, captured by hooks and projected at random."""
