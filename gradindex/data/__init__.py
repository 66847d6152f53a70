"""The training pictures, and what a training run drew.

Pictures: `opening` picks `folder` or `table`, which make a `dataset`; `images` decodes and resizes.
What is for training, and class folders: `splits`. Of tables: `metadata`, `table_columns`.
Their captions: `captions` settles those that `sidecars` or a table gives as a `caption_list`.
The prompt of a generated picture: `prompts`, which reads ComfyUI's with `comfy_graph`.
Training log, written: `recorder`, through `log_values`, `log_file` and `log_writer`.
Training log, read: `training_log`, from `log_folder` or `log_table`, as the arrays of `log_events`.
"""
