"""What people read.

- `rendering` shows the answers of a query as JSON or a table. `answers` asks for all that a report
  has; `page` makes it of a `view` of cards and rows, `shares`, `thumbnails`, `timestep_chart`s and
  templates/.
- `printable` escapes what would break a line; `info` describes an index.
- `diagnose` measures what an index is worth: `agreement` of noise seeds, `self_influence`, both
  with a `training_sample`; `diagnosis_text` shows it.
- `evaluate` has the linear datamodeling score, `counterfactual` trainings without pictures;
  `ranking` compares rankings.
- `demo` runs the whole job, on `drawn_pictures`.
"""
