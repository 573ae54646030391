"""The page of a model's latent space: a map of the test images, and the decoder itself."""

import base64
import io
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from PIL import Image

from vae_jax.config import Config
from vae_jax.data import Dataset
from vae_jax.data.split import Split
from vae_jax.device.platforms import Platform
from vae_jax.errors import UserError, counted
from vae_jax.evaluation.latents import use_of_dimensions
from vae_jax.keys import diagnostics_key, make_keys, showing_key
from vae_jax.model.build import build
from vae_jax.model.composition import Composition
from vae_jax.model.model import Model
from vae_jax.objectives import BoundModel
from vae_jax.pages.page import escaped, page, resource
from vae_jax.pages.program import Program, program_of
from vae_jax.spec import NOT_IMAGE
from vae_jax.training.checks import labels_for
from vae_jax.training.state import Trained
from vae_jax.variables import Variables

Report = Callable[[str], None]

POINTS = 2000  # images on the map
LATENTS = 1 << 19  # numbers of all points' z in a page
THUMBNAIL = 32  # pixels of a small picture's longer side
TOLERANCE, COARSE = 1e-4, 0.05  # of a picture that the page decodes; COARSE where the model computes in fewer bits
DRAWN = 64  # z of a prior that are drawn here, for each temperature
TEMPERATURES = (0.5, 0.75, 1.0)  # of a prior over codes
PLACES = 1024  # most codes of an image that can be edited
DIRECT = 512  # dimensions up to which principal axes are computed from the covariances
MOST = 1 << 27  # characters of a page


def explore(
    title: str, trained: Trained, model: Model, data: Dataset, points: int = POINTS, report: Report = lambda line: None
) -> str:
    """The page, as HTML.

    Args:
        title: of the page.
        trained: a run of images.
        model: of the run, in use.
        data: of the run, whose test images are on the map.
        points: at most so many of them.
        report: called with a line on what is left out.

    Raises:
        UserError: if a page cannot compute the decoder, or would be too large, or see `check`.
    """
    check(trained)
    content = {"title": title, **content_of(trained, model, data, points, report)}
    body = resource("explore.html").replace("{title}", escaped(title))
    made = page(f"{title}: latent space", body, ["page.js", "program.js", "map.js", "explore.js"], content)
    if len(made) > MOST:
        raise UserError(f"RUN: expected a model that fits into a page of {MOST >> 20} MB; found {len(made) >> 20} MB")
    return made


def check(trained: Trained) -> None:
    """Refuses a run of which there is no page.

    Raises:
        UserError: if its examples are no images, or their codes are too many to edit.
    """
    if trained.config.data.kind in NOT_IMAGE:
        raise UserError(f"RUN: expected a model of images; found data of kind {trained.config.data.kind}")
    codes = build(trained.config, trained.image_shape).composition.posterior.codes
    if codes and math.prod(codes.shape) > PLACES:
        raise UserError(f"RUN: expected at most {PLACES:,} codes an image; found {math.prod(codes.shape):,}")


def content_of(trained: Trained, model: Model, data: Dataset, points: int, report: Report) -> dict[str, Any]:
    """What the page shows, as JSON takes it; `explore.js` reads it."""
    composition = build(trained.config, trained.image_shape).composition
    codes, latent = composition.posterior.codes, math.prod(composition.latent_shape)
    count = min(points, len(data.test), len(data.test) if codes else max(1, LATENTS // latent))
    numbers = Split(data.test.images, np.arange(len(data.test)), data.test.kind).spread(count).labels
    assert numbers is not None
    images = data.test.take(numbers)
    if count < len(data.test):
        report(f"on the map: {count:,} of {counted(len(data.test), 'test image')}, spread over them")
    labels = labels_for(trained.config, images)
    encoded = {name: np.asarray(head) for name, head in model.encode(images.images, labels).items()}
    z = encoded["mu"].reshape(count, -1).astype(np.float32)
    if not np.isfinite(z).all():
        raise UserError("RUN: expected a model that encodes images to finite numbers; found NaN or infinities")
    inputs = encoded["codes"].reshape(count, -1).astype(np.int32) if codes else z
    middle, axes, shares = principal_axes(z)
    program = decoder_program(trained.config, trained.image_shape, trained.variables)
    if program.coarse:
        report("the page decodes with 32 bits, the model with fewer: its pictures differ by the model's rounding")
    return {
        "shape": trained.image_shape,
        "classes": composition.classes,
        "names": list(data.class_names or ()),
        "program": program.as_json(),
        "latent": latent,
        "codes": {"values": codes.values, "shape": codes.shape} if codes else None,
        "points": {
            "count": count,
            "all": len(data.test),
            "numbers": numbers.tolist(),
            "labels": None if images.labels is None else images.labels.tolist(),
            "xy": packed((z - middle) @ axes.T),
            "inputs": packed(inputs),
            "thumbnails": thumbnails(images.images),
        },
        "middle": None if codes else packed(middle),
        "axes": None if codes else packed(axes),
        "shares": shares.tolist(),
        "dimensions": None if codes else dimensions(trained, composition, images, z),
        "prior": prior_of(trained, composition, model),
        "check": _check(model, inputs, labels, composition),
        "tolerance": COARSE if program.coarse else TOLERANCE,
    }


def decoder_program(config: Config, image_shape: tuple[int, ...], variables: Variables) -> Program:
    """The decoder: z or codes, (1, size), and the label (1,) if the model gets one -> the picture's numbers.

    Args:
        config: of the model.
        image_shape: (height, width, channels).
        variables: trained.

    Raises:
        UserError: naming an operation that a page cannot compute.
    """
    composition = build(config, image_shape, Platform("native")).composition
    codes, shape = composition.posterior.codes, composition.latent_shape
    size, number = (math.prod(codes.shape), jnp.int32) if codes else (math.prod(shape), jnp.float32)
    arguments = {"z": jax.ShapeDtypeStruct((1, size), number)}
    if composition.classes:
        arguments["label"] = jax.ShapeDtypeStruct((1,), jnp.int32)

    def decode(z: Any, label: Any = None) -> Any:
        def look(model: BoundModel) -> Any:
            if codes and model.vectors:
                return model.mean(model.decode(model.vectors(z.reshape(1, *codes.shape))))
            return model.mean(model.decode(z.reshape(1, *shape)))

        return composition.apply(variables, look, labels=label)[0].astype(jnp.float32)

    return program_of(decode, arguments)


def principal_axes(z: Float[np.ndarray, "points latent"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean of z, its two principal axes (2, latent), and their shares of the variance; 0 for axes that it lacks."""
    middle = z.mean(0, dtype=np.float64)
    centred = z - middle
    total, latent = np.square(centred).sum(), z.shape[1]
    axes, variances = np.zeros((2, latent)), np.zeros(2)
    if latent <= DIRECT:
        values, vectors = np.linalg.eigh(centred.T @ centred)
        directions, squares = vectors.T[::-1][:2], values[::-1][:2]
    elif total == 0:
        directions, squares = axes, variances
    elif len(z) < 4:
        _, singular, rows = np.linalg.svd(centred, full_matrices=False)
        directions, squares = rows[:2], np.square(singular[:2])
    else:
        from scipy.sparse.linalg import svds

        # A start at random, since columns of centred numbers sum to 0: of ones nothing is left.
        _, singular, rows = svds(centred, 2, v0=np.random.default_rng(0).standard_normal(min(centred.shape)))
        directions, squares = np.asarray(rows)[::-1], np.square(singular)[::-1]
    axes[: len(directions)], variances[: len(squares)] = directions, squares
    signs = np.sign(axes[np.arange(2), np.abs(axes).argmax(1)])  # so that the largest number of an axis is positive
    shares = np.maximum(variances, 0) / total if total > 0 else np.zeros(2)
    return middle.astype(np.float32), (axes * signs[:, None]).astype(np.float32), shares


def dimensions(trained: Trained, composition: Composition, images: Split, z: np.ndarray) -> dict[str, Any]:
    """How much each dimension is used, in falling order, and the interval of its slider.

    Returns:
        "by", "order", "use", "inert": see `vae_jax.evaluation.latents.Use`.
        "low", "high": by number.
    """
    key, labels = diagnostics_key(make_keys(trained.config.seed).evaluate), labels_for(trained.config, images)
    use = use_of_dimensions(composition, trained.variables, key, images.images, labels)
    around = 4.0 if composition.prior.kind == "standard_normal" and use.by == "KL" else 0.0
    low, high = z.min(0), z.max(0)
    margin = np.maximum(0.25 * (high - low), 1e-3)
    return {
        "by": use.by,
        "order": use.order.tolist(),
        "use": use.use.tolist(),
        "inert": use.inert.tolist(),
        "low": np.minimum(low - margin, -around).round(3).tolist(),
        "high": np.maximum(high + margin, around).round(3).tolist(),
    }


def prior_of(trained: Trained, composition: Composition, model: Model) -> dict[str, Any]:
    """How the page draws new z: by itself from N(0, I), otherwise from those that are drawn here.

    Returns:
        "kind": "normal", "drawn" or "none"; of drawn ones "temperatures", None for the prior's own alone, their
        "labels" if the model gets them, and "inputs", (temperatures, drawn, size).
    """
    if model.draw is None:
        return {"kind": "none", "why": f"objective {trained.config.objective.name} has no prior"}
    if composition.prior.kind == "standard_normal" and not composition.posterior.codes:
        return {"kind": "normal"}
    count, labels = DRAWN, None
    if composition.classes:
        labels = np.arange(max(DRAWN, composition.classes)) % composition.classes
        count = len(labels)
    ways = [{"temperature": one} for one in TEMPERATURES] if "temperature" in composition.prior.how else [{}]
    drawn = [model.draw(showing_key(), count, labels, **way) for way in ways]
    codes = composition.posterior.codes

    def codes_of(z: Any) -> Any:
        return composition.apply(trained.variables, lambda model: model.codes and model.codes(z), labels=labels)[0]

    inputs = np.stack([np.asarray(codes_of(z) if codes else z).reshape(count, -1) for z in drawn])
    return {
        "kind": "drawn",
        "name": trained.config.prior.name,
        "temperatures": list(TEMPERATURES) if ways[0] else None,
        "labels": None if labels is None else labels.tolist(),
        "count": count,
        "inputs": packed(inputs.astype(np.int32 if codes else np.float32)),
    }


def _check(model: Model, inputs: np.ndarray, labels: Any, composition: Composition) -> dict[str, Any]:
    """Two z or codes and what the model decodes them to, with which the page compares its own arithmetic."""
    chosen = inputs[[0, -1]]
    codes = composition.posterior.codes
    given = None if labels is None else labels[[0, -1]]
    pictures = model.decode(chosen.reshape(2, *(codes.shape if codes else composition.latent_shape)), given)
    return {
        "inputs": packed(chosen),
        "labels": None if given is None else given.tolist(),
        "pictures": packed(np.asarray(pictures, np.float32)),
    }


def thumbnails(images: np.ndarray) -> dict[str, Any]:
    """Small copies of images (n, height, width, channels), in rows on one picture.

    Grey ones are kept without loss, colours as JPEG.
    """
    count, height, width, channels = images.shape
    scale = min(1.0, THUMBNAIL / max(height, width))
    tall, wide = max(1, round(height * scale)), max(1, round(width * scale))
    columns = math.ceil(math.sqrt(count))
    sheet = Image.new("L" if channels == 1 else "RGB", (columns * wide, math.ceil(count / columns) * tall))
    for number, image in enumerate(images):
        small = Image.fromarray(image[..., 0] if channels == 1 else image)
        small = small if scale == 1 else small.resize((wide, tall), Image.Resampling.BOX)
        sheet.paste(small, (number % columns * wide, number // columns * tall))
    form, more = ("PNG", {"optimize": True}) if channels == 1 else ("JPEG", {"quality": 85})
    sheet.save(file := io.BytesIO(), form, **more)
    picture = f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
    return {"picture": picture, "columns": columns, "height": tall, "width": wide}


def packed(array: np.ndarray) -> str:
    """The array's numbers in base64: float32 of floats, int32 of whole numbers."""
    kept = "<f4" if array.dtype.kind == "f" else "<i4"
    return base64.b64encode(np.ascontiguousarray(array, kept).tobytes()).decode()
