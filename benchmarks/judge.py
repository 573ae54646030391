"""What a classifier trained on a data set's real images makes of others, for the benchmarks of samples."""

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

CONFIDENT = 0.9


def trained_on(images: np.ndarray, labels: np.ndarray, epochs: int) -> MLPClassifier:
    """A perceptron of 256 hidden units.

    Args:
        images: (n, ...), in [0, 1].
        labels: (n,), whole numbers from 0 on.
        epochs: passes over the images.
    """
    classifier = MLPClassifier((256,), batch_size=min(256, len(images)), max_iter=epochs, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of epochs is a choice
        return classifier.fit(images.reshape(len(images), -1), labels)


def accuracy(classifier: MLPClassifier, images: np.ndarray, labels: np.ndarray) -> float:
    """The share of images, (n, ...), whose label the classifier finds."""
    return float(classifier.score(images.reshape(len(images), -1), labels))


def judged(classifier: MLPClassifier, images: np.ndarray) -> tuple[float, np.ndarray]:
    """The share of images, (n, ...), that the classifier is confident of, and how many of these are of every class."""
    probabilities = np.asarray(classifier.predict_proba(images.reshape(len(images), -1)))
    sure = probabilities.max(1) >= CONFIDENT
    return float(sure.mean()), np.bincount(probabilities.argmax(1)[sure], minlength=probabilities.shape[1])


def nearest(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The root mean square difference of every image, (n, ...), to the one of `others`, (m, ...), nearest to it."""
    a, b = _flat(images), _flat(others)
    squares = (a**2).sum(1)[:, None] - 2 * a @ b.T + (b**2).sum(1)
    return np.sqrt(squares.min(1).clip(0) / a.shape[1])


def _flat(images: np.ndarray) -> np.ndarray:
    return np.asarray(images, np.float64).reshape(len(images), -1)
