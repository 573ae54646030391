"""Whether a run's samples look like digits: what a classifier trained on the real ones makes of them.

    vae-jax train --config vq --out runs/vq && vae-jax train-prior runs/vq
    python benchmarks/code_samples.py runs/vq [--temperature 1] [-n 1000]

Prints how many of the samples the classifier (a perceptron of 256 hidden units) is confident of, with a probability of
at least 0.9, how many classes they are of, and the same of the real test images.
"""

import argparse
from pathlib import Path

import jax
import numpy as np
from sklearn.neural_network import MLPClassifier

from vae_jax import data
from vae_jax.runs.folder import PRIOR
from vae_jax.runs.reading import load, use

CONFIDENT = 0.9


def judged(classifier: MLPClassifier, images: np.ndarray) -> tuple[float, np.ndarray]:
    """The part of images that the classifier is confident of, and how many of these are of every class."""
    probabilities = classifier.predict_proba(images.reshape(len(images), -1))
    sure = probabilities.max(1) >= CONFIDENT
    return float(sure.mean()), np.bincount(probabilities.argmax(1)[sure], minlength=probabilities.shape[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("-n", type=int, default=1000)
    parser.add_argument("--temperature", type=float, default=None)
    options = parser.parse_args()
    folder = options.run / PRIOR if (options.run / PRIOR).is_dir() else options.run
    trained = load(folder)
    real = data.load(trained.config.data)
    classifier = MLPClassifier((256,), batch_size=256, max_iter=10, random_state=0)
    flat = (real.train.images / 255).reshape(len(real.train), -1)
    classifier.fit(flat, real.train.labels)
    test = real.test.images / 255
    accuracy = classifier.score(test.reshape(len(test), -1), real.test.labels)
    how = {} if options.temperature is None else {"temperature": options.temperature}
    samples = np.asarray(use(trained).sample(jax.random.key(0), options.n, **how))
    print(f"the classifier is right on {accuracy:.2%} of the real test images")
    for name, images in (("real test images", test), (f"{options.n:,} samples", samples)):
        share, counts = judged(classifier, images)
        print(f"{name}: confident of {share:.1%}, of {(counts > 0).sum()} classes {counts.tolist()}")


if __name__ == "__main__":
    main()
