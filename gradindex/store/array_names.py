"""What the arrays of a store are called, and how many ids a file of theirs holds."""

ROW_ARRAYS = ("normalized", "unnormalized", "norm", "timestep")
WIDE = ROW_ARRAYS[:2]  # [C, N, T, D]; the others are [C, N, T]
IDS = "sample_ids"
CHUNK_IDS = 4096
