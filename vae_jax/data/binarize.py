"""Static binarisation, done once, when the data are loaded; other treatments act when images are used.

(See vae_jax/data/treatments.py. Nothing here imports jax, since loading data does without it.)
"""

import numpy as np
from jaxtyping import UInt8

TREATMENTS = ("grey", "static", "dynamic", "dequantized")


def binarize(images: UInt8[np.ndarray, "*shape"], seed: int) -> UInt8[np.ndarray, "*shape"]:
    """Levels 0 and 255, 255 with the grey level's probability; the same for the same seed and images.

    (Salakhutdinov & Murray 2008, section 5: binarised once.)
    """
    drawn = np.random.default_rng(seed).integers(0, 255, images.shape, np.uint8)
    return np.where(images > drawn, np.uint8(255), np.uint8(0))
