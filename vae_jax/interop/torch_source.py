"""The Python file beside a model's weights: classes of PyTorch's, and the settings of this model. Works without torch.

The classes are those of torch_networks.py, whose text is the file's.
"""

import keyword
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from vae_jax.config import ModelConfig
from vae_jax.errors import UserError, argument, listed
from vae_jax.model.build import build
from vae_jax.model.composition import Composition
from vae_jax.networks.convolutional import plan as convolutional_plan
from vae_jax.networks.residual import plan as residual_plan
from vae_jax.spec import Spec
from vae_jax.training.state import Trained
from vae_jax.variables import Variables
from vae_jax.version import __version__

MARK = "# Written by vae-jax export"  # first in every such file: no other file is written over
# Modules that a file of their name would hide from what runs beside it; Python's own too.
MODULES = sys.stdlib_module_names | {"torch", "safetensors", "numpy", "jax", "vae_jax", "__init__", "__main__"}
MODULES |= {"sitecustomize", "usercustomize", "conftest", "setup"}  # run by themselves, or by tools
# Options without a part in what PyTorch computes: jax's way of computing, and what training alone keeps.
UNUSED = ("convolution", "unbiased_running_variance")


class TorchNetwork(NamedTuple):
    """A network that there is in PyTorch too.

    Attributes:
        name: of its class in torch_networks.py; the class of its options has this name with "Options" after it.
        flat: whether the names of its layers alone name PyTorch's tensors, as in the article's state_dict. If not, the
            whole path does.
        sizes: (options, image_shape) -> the options that PyTorch's class has in place of the rules that give them.
    """

    name: str
    flat: bool
    sizes: Callable[[Any, tuple[int, ...]], dict[str, Any]]


def _convolutional_sizes(options: Any, image_shape: tuple[int, ...]) -> dict[str, Any]:
    plan = convolutional_plan(options, image_shape)
    return {"sizes": plan.sizes, "strides": plan.strides, "paddings": plan.paddings}


NETWORKS = {
    "convolutional": TorchNetwork("Convolutional", True, _convolutional_sizes),
    "mlp": TorchNetwork("MLP", False, lambda options, image_shape: {}),
    "residual": TorchNetwork("Residual", False, lambda options, shape: {"sizes": residual_plan(options, shape)}),
}
# The names of torch_networks.py for `vae_jax.links`, and for the means of likelihoods of examples of a support.
LINKS = {"levels": "sigmoid", "reals": "identity", "categories": "softmax"}
MEANS: dict[str, Callable[[str], str]] = {
    "bernoulli": lambda support: "sigmoid",
    "continuous_bernoulli": lambda support: "continuous_bernoulli",
    "gaussian": lambda support: LINKS[support],
    "discretized_logistic": lambda support: "logistic",
    "discretized_logistic_mixture": lambda support: "logistic_mixture",
    "categorical": lambda support: "softmax",
}
INPUTS = {"levels": "floats in [0, 1]", "reals": "floats", "categories": "floats, one-hot along the second axis"}


class Settings(NamedTuple):
    """A model in PyTorch.

    Attributes:
        network: which class.
        spec: of its examples, as the networks here take them.
        description: arguments of torch_networks.Description.
        options: arguments of the class's options.
    """

    network: TorchNetwork
    spec: Spec
    description: dict[str, Any]
    options: dict[str, Any]


def network_of(config: ModelConfig, hint: str = "") -> TorchNetwork:
    """The configured network in PyTorch.

    Raises:
        UserError: naming those that there are, if it is none of them; `hint` is added.
    """
    if config.network not in NETWORKS:
        wanted = f"one of {listed(NETWORKS)}, which have names and layers in PyTorch"
        raise UserError(f"model.network: expected {wanted}; found {config.network}{hint}")
    return NETWORKS[config.network]


def settings_of(
    config: ModelConfig, spec: Spec, heads: Mapping[str, int], outputs: int = 1, mean: str = "identity"
) -> Settings:
    """The settings of a network in PyTorch.

    Args:
        config: of the model.
        spec: of its examples.
        heads: of the posterior.
        outputs: of the decoder, for each channel of a pixel.
        mean: of the likelihood, by its name in torch_networks.py.

    Raises:
        UserError: if PyTorch does not have the network, or its sizes do not fit.
    """
    network, options = network_of(config), config.options
    *axes, channels = spec.shape
    description = {
        "image_shape": (channels, *axes),
        "latent": config.latent,
        "heads": dict(heads),
        "outputs": outputs,
        "mean": mean,
        "classes": config.classes,
    }
    kept = {name: value for name, value in asdict(options).items() if name not in UNUSED}
    return Settings(network, spec, description, {**kept, **network.sizes(options, spec.shape)})


def settings_of_trained(trained: Trained) -> Settings:
    """The settings of a trained model.

    Raises:
        UserError: naming the option whose part is not translated to PyTorch.
    """
    config, variables = trained.config, trained.variables
    hint = f"; {argument('to', 'onnx')} and {argument('to', 'stablehlo')} take more models"
    network_of(config.model, hint)
    composition, objective = build(config, trained.image_shape)
    support, likelihood = composition.spec.support, config.likelihood.name
    if not _centred(composition, variables):
        wanted = "one whose z are vectors with the head mu as their centre, as Gaussians have"
        raise UserError(f"posterior.name: expected {wanted}; found {config.posterior.name}{hint}")
    if objective.generative and likelihood not in MEANS:
        raise UserError(f"likelihood.name: expected one of {listed(MEANS)}; found {likelihood}{hint}")
    mean = MEANS[likelihood](support) if objective.generative else LINKS[support]
    heads, outputs = composition.posterior.heads, composition.likelihood.outputs
    return settings_of(config.model, composition.spec, heads, outputs, mean)  # type: ignore[arg-type]


def _centred(composition: Composition, variables: Variables) -> bool:
    """Whether z are vectors, and the centre of q(z|x) is the encoder's head mu."""
    sizes = composition.posterior.heads
    if composition.posterior.codes or len(composition.latent_shape) > 1:
        return False
    if not all(isinstance(size, int) for size in sizes.values()):
        return False
    random = np.random.RandomState(0)
    heads = {name: jnp.asarray(random.randn(2, size), float) for name, size in sizes.items()}  # type: ignore[arg-type]
    return np.array_equal(composition.center(variables, heads)[0], heads["mu"])


def python_path(path: Path) -> Path:
    """The Python file beside a file of weights; its name is one that Python can import."""
    name = re.sub(r"\W", "_", path.stem, flags=re.ASCII)
    return path.with_name(f"{name if name.isidentifier() and not keyword.iskeyword(name) else f'model_{name}'}.py")


def check_path(path: Path) -> None:
    """Refuses a file of weights whose Python file would hide a module, or take the place of another file.

    Raises:
        UserError: naming the Python file.
    """
    python = python_path(path)
    if python.stem in MODULES or _is_elsewhere(python):
        raise UserError(f"{path}: expected a name other than a module's, which {python.name} beside it would hide")
    if python.exists() and not python.read_bytes().startswith(_mark(path).encode()):
        raise UserError(f"{python}: expected no file, or one that an export of {path.name} has written; found another")


def _is_elsewhere(python: Path) -> bool:
    """Whether a module of this file's name is installed."""
    with suppress(ImportError, ValueError):  # of a module without a description
        spec = find_spec(python.stem)
        return spec is not None and bool({"site-packages", "dist-packages"} & set(Path(spec.origin or "").parts))
    return False


def _mark(path: Path) -> str:
    """The first words of the Python file of a file of weights."""
    return f"{MARK}, of {path.name!r}, "


def source_of(settings: Settings, path: Path) -> str:
    """The text of the Python file; `path` is that of the weights."""
    name, shape = settings.network.name, settings.description["image_shape"]
    text = files("vae_jax.interop").joinpath("torch_networks.py").read_text(encoding="utf-8")
    classes = settings.description["classes"]
    labels = [f"    Labels are whole numbers from 0 to {classes - 1}, (batch,)."] if classes else []
    end = [
        "",
        "",
        f"# --- This model {'-' * 103}",
        "",
        "",
        f"def load(path: str | Path) -> {name}:",
        '    """The model with the weights of its file, to encode and decode.',
        "",
        f"    Its {settings.spec.noun}s are {INPUTS[settings.spec.support]}, {_batch(shape)}; its z are floats, "
        f"{_batch((settings.description['latent'],))}.",
        *labels,
        '    """',
        "    description = Description(",
        *(f"        {option}={value!r}," for option, value in settings.description.items()),
        "    )",
        f"    options = {name}Options(",
        *(f"        {option}={value!r}," for option, value in settings.options.items()),
        "    )",
        f"    return with_weights({name}(description, options), path)",
        "",
    ]
    return "\n".join([f"{_mark(path)}vae_jax {__version__}.", text.rstrip(), *end])


def loading(path: Path) -> tuple[str, str]:
    """The lines of Python that load a file of weights."""
    return f"from {python_path(path).stem} import load", f"model = load({path.name!r})"


def use_of(settings: Settings, path: Path) -> list[str]:
    """How the Python file is used, in lines of Python; `path` is that of the weights."""
    description = settings.description
    pictures, labels = _batch(description["image_shape"]), ", labels" if description["classes"] else ""
    first, second = loading(path)
    lines = [
        first,
        "",
        second,
        f"heads = model.encode(images{labels})  # {INPUTS[settings.spec.support]}, {pictures} -> "
        f"{', '.join(description['heads'])}",
        f"pictures = model.decode(z{labels})  # {_batch((description['latent'],))} -> {pictures}",
    ]
    if labels:
        lines.insert(3, f"# labels: whole numbers from 0 to {description['classes'] - 1}, (batch,)")
    return lines


def _batch(shape: tuple[int, ...]) -> str:
    return f"(batch, {listed(shape)})"
