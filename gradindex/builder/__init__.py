"""Training set in, gradient store and search files out.

- `build` is the public function: `options` checks the call, `plan` opens data and model and makes
  the recipe (`checkpoint_weights` the weights), `continuation` the store to fill: a new one, or
  one that was begun, whose pictures must be the same.
- `shards` fills it: pictures → gradients → store, for a `job`: pictures, recipe and events.
- `workers` hands shards to a Ray cluster.
- `upkeep` adds, removes and erases pictures; `verify` reads every byte.
"""
