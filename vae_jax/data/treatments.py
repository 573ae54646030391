"""Treatments of examples when they are used: pure functions (key, images) -> floats, of images in [0, 1]."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt, UInt8

from vae_jax.spec import Spec

Levels = UInt8[Array, "*shape"]
Treated = Float[Array, "*shape"]


def grey(key: Key[Array, ""] | None, images: Levels) -> Treated:
    """The grey levels as they are."""
    return images.astype(float) / 255


def dynamic(key: Key[Array, ""] | None, images: Levels) -> Treated:
    """Each pixel 1 with its grey level's probability, drawn afresh from the key (Burda et al. 2016, section 5)."""
    assert key is not None
    return (255 * jax.random.uniform(key, images.shape) < images).astype(float)


def dequantized(key: Key[Array, ""] | None, images: Levels) -> Treated:
    """(u + noise) / 256 with noise uniform in [0, 1) (Theis et al. 2016, section 3.1); below 1, as u + noise < 256."""
    assert key is not None
    treated = (images + jax.random.uniform(key, images.shape)) / 256
    return jnp.minimum(treated, 1 - jnp.finfo(treated.dtype).epsneg)  # the sum may have been rounded up to 256


# Static binarisation is done when the data are loaded; its 0 and 255 become 0 and 1 here.
TREATMENTS = {"grey": grey, "static": grey, "dynamic": dynamic, "dequantized": dequantized}


def one_hot(
    key: Key[Array, ""] | None, categories: UInt[Array, "*shape"], values: int
) -> Float[Array, "*shape {values}"]:
    """Categories as vectors of 0 and 1."""
    return jax.nn.one_hot(categories, values, dtype=float)


def as_it_is(key: Key[Array, ""] | None, numbers: Treated) -> Treated:
    """Real numbers."""
    return numbers.astype(float)


def treatment_of(spec: Spec, name: str = "grey") -> Callable[[Any, Any], Treated]:
    """The treatment of examples: of images the one named, of others the one that makes floats of them."""
    for_others = {"reals": as_it_is, "categories": partial(one_hot, values=spec.values)}
    return for_others.get(spec.support) or TREATMENTS[name]
