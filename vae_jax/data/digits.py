"""scikit-learn's 1,797 handwritten digits: 8x8 images, no download."""

import numpy as np

from vae_jax.config import DataConfig
from vae_jax.data.resize import Resizer
from vae_jax.data.source import Opened, Report, Splits
from vae_jax.data.split import Split


def digits(config: DataConfig, report: Report) -> Opened:
    """The bundled digits; not cached, since resizing them takes milliseconds."""

    def read(resizer: Resizer) -> Splits:
        from sklearn.datasets import load_digits

        levels, labels = load_digits(return_X_y=True)
        images = np.rint(levels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)  # levels 0 to 16
        split = Split(resizer.stack(images, len(images)), labels.astype(np.int64))
        return Splits(split, class_names=tuple("0123456789"))

    return Opened("digits", read)
