"""Every part of a model as a user's own, each of whose functions raises what the variable RAISE asks for.

RAISE is a place, a space and what is raised there, one of RAISED.
"""

import os

import flax.linen as nn

from vae_jax import likelihoods, objectives, posteriors, priors
from vae_jax.config import LikelihoodConfig, ObjectiveConfig, PosteriorConfig, PriorConfig


class Mute(Exception):
    def __str__(self):
        raise ValueError("it cannot be said")


class Beyond(BaseException):
    pass


def deeper():
    deeper()


def raising(error):
    def do():
        raise error

    return do


RAISED = {
    "ValueError": raising(ValueError("os_error_code='24'\nin two lines")),
    "KeyError": raising(KeyError("ghost")),
    "AttributeError": raising(AttributeError("ghost")),
    "OSError": raising(OSError(5, "Input/output error", "checkpoints/7")),
    "FileNotFoundError": raising(FileNotFoundError(2, "No such file or directory", "checkpoint.json")),
    "BrokenPipeError": raising(BrokenPipeError(32, "Broken pipe")),
    "EOFError": raising(EOFError()),
    "MemoryError": raising(MemoryError()),
    "RuntimeError": raising(RuntimeError("RESOURCE_EXHAUSTED: damaged")),
    "StopIteration": raising(StopIteration()),
    "SystemExit": raising(SystemExit(0)),
    "RecursionError": deeper,
    "Mute": raising(Mute()),
    "Beyond": raising(Beyond("all")),
}
PLACES = (
    "import",
    "posterior",
    "transform",
    "prior",
    "log_prior",
    "likelihood",
    "log_prob",
    "objective",
    "network",
    "setup",
    "initializer",
    "encode",
    "decode",
)


def at(place):
    if os.environ.get("RAISE", "").partition(" ")[0] == place:
        RAISED[os.environ["RAISE"].partition(" ")[2]]()


def passing(place, function):
    def passed(*arguments):
        at(place)
        return function(*arguments)

    return passed


def posterior(options, shapes):
    at("posterior")
    own = posteriors.get(PosteriorConfig(), shapes)
    return own._replace(transform=passing("transform", own.transform))


def prior(options, shapes):
    at("prior")
    own = priors.get(PriorConfig(), shapes)
    return own._replace(log_prob=passing("log_prior", own.log_prob), kind="")


def likelihood(options, shapes):
    at("likelihood")
    own = likelihoods.get(LikelihoodConfig(), shapes)
    return own._replace(log_prob=passing("log_prob", own.log_prob))


def objective(key, model, images, options):
    at("objective")
    return objectives.get(ObjectiveConfig()).terms(key, model, images, ObjectiveConfig().options)


def bias(key, shape, dtype):
    at("initializer")
    return nn.initializers.zeros(key, shape, dtype)


class Net(nn.Module):
    options: object
    shapes: object

    def setup(self):
        at("setup")
        height, width, channels = self.shapes.image_shape
        self.shape = height, width, channels * self.shapes.outputs
        self.to_heads = {name: nn.Dense(size) for name, size in self.shapes.heads.items()}
        self.to_pixels = nn.Dense(height * width * channels * self.shapes.outputs, bias_init=bias)

    def encode(self, images, train):
        at("encode")
        return {name: head(images.reshape(len(images), -1)) for name, head in self.to_heads.items()}

    def decode(self, z, train):
        at("decode")
        return self.to_pixels(z).reshape(-1, *self.shape)


def network(options, shapes):
    at("network")
    return Net(options, shapes)


at("import")
