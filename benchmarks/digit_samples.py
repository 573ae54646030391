"""Whether a run's samples look like digits, of a run on scikit-learn's: what a classifier trained on the real ones
makes of them.

    vae-jax train --config handwriting --out runs/handwriting
    python benchmarks/digit_samples.py runs/handwriting [-n 500] [--seed 0]

Prints how many of the samples from the prior the classifier is confident of, with a probability of at least 0.9, and
how many of these are of every class; the same of the real test images; and how far both lie from the nearest training
image, which is close to nothing where a model repeats the training images.
"""

import argparse
from pathlib import Path

import jax
import numpy as np
from judge import accuracy, judged, nearest, trained_on

import vae_jax

EPOCHS = 100  # of 1,437 images: the classifier is right on about 97% of the test images then


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("-n", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    trained = vae_jax.load_run(options.run)
    real = vae_jax.load_data(trained.config.data)
    train, test = real.train.images / 255, real.test.images / 255
    classifier = trained_on(train, real.train.labels, EPOCHS)
    samples = np.asarray(vae_jax.use(trained).sample(jax.random.key(options.seed), options.n))
    print(f"the classifier is right on {accuracy(classifier, test, real.test.labels):.1%} of the real test images")
    for name, images in ((f"{len(test):,} real test images", test), (f"{options.n:,} samples", samples)):
        share, counts = judged(classifier, images)
        print(
            f"{name}: confident of {share:.1%}, of {(counts > 0).sum()} classes {counts.tolist()}; "
            f"{np.median(nearest(images, train)):.3f} from the nearest training image (median)"
        )


if __name__ == "__main__":
    main()
