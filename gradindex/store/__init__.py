"""The gradient store on a disk or in an object store; docs/format.md specifies it.

- `store` reads and writes it, shard by shard; `shard_list` says which shards are committed, and
  `shard_files` makes the files and the manifest entry of one.
- `manifest` has the sealed JSON files, `records` what is in them, `arrays` the rows.
- `location` is a `disk` or a `bucket` (anything that fsspec opens, S3 among them); `digests` are
  SHA-256.
- `prefetch`, `progress` and `memory` are for whoever walks through many rows.
"""
