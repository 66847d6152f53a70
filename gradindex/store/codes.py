"""Rows as codes of 8 bits: a row is a multiple of its scale, its largest number 127 times that.

A code is off by at most half a scale, about 1 % of a row's root mean square.
"""

import numpy as np

LARGEST = 127  # code; −128 stands for what was never written


def encode(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the codes of rows [B, T, D], int8, and their scales [B, T] float32.

    >>> encode(np.float32([[[254.0, -127.0, 1.0, 0.0]], [[0.0, 0.0, 0.0, 0.0]]]))
    (array([[[127, -64,   0,   0]],
    <BLANKLINE>
           [[  0,   0,   0,   0]]], dtype=int8), array([[2.],
           [0.]], dtype=float32))
    """
    scale = np.abs(rows).max(-1).astype(np.float32) / np.float32(LARGEST)
    # The smallest rows have a scale of 0, and are 0.
    codes = np.rint(rows / np.where(scale == 0, np.inf, scale)[..., None])
    return np.clip(codes, -LARGEST, LARGEST).astype(np.int8), scale


def decode(codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return the rows of codes [B, T, D] and scales [B, T], [B, T, D] float32."""
    return codes.astype(np.float32) * scale[..., None]
