"""Writes a folder of colour photographs that needs no download: crops of those that scikit-learn and matplotlib ship.

    python benchmarks/photographs.py FOLDER
    vae-jax train --config colour64 --out runs/colour64 --data.path FOLDER

1,800 crops, 600 of a photograph, of 128 to 320 pixels a side, some mirrored. Crops of one photograph overlap, so test
images resemble training images more than those of a real collection: the figures show that a configuration learns, not
how well it generalises.
"""

import argparse
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image

PHOTOGRAPHS = (
    ("sklearn.datasets.images", "china.jpg"),
    ("sklearn.datasets.images", "flower.jpg"),
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
)
CROPS, SMALLEST, LARGEST, SIDE = 600, 128, 320, 64


def main(folder: Path) -> None:
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for package, name in PHOTOGRAPHS:
        with Image.open(files(package).joinpath(name).open("rb")) as opened:
            photograph = opened.convert("RGB")
        for number in range(CROPS):
            side = int(random.integers(SMALLEST, LARGEST))
            left, top = (int(random.integers(0, length - side + 1)) for length in photograph.size)
            crop = photograph.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            if random.random() < 0.5:
                crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            crop.save(folder / f"{Path(name).stem}_{number:03}.png")
    print(f"{folder}: {CROPS * len(PHOTOGRAPHS):,} images of {SIDE}x{SIDE}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="the folder to make")
    parsed = parser.parse_args()
    if parsed.folder.exists():
        sys.exit(f"{parsed.folder}: expected no folder yet; found one")
    main(parsed.folder)
