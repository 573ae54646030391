"""Two layers of z, the lower one a grid of 2x2, and everything linear in what is above but the encoder."""

import math

import jax
import jax.numpy as jnp

from vae_jax.hierarchy import Hierarchy

TOP, LOW = 2, 4


def ladder(options, shapes):
    (height, width, channels), outputs = shapes.image_shape, shapes.outputs
    pixels, hidden = math.prod(shapes.image_shape), 8

    def init(key):
        keys = iter(jax.random.split(key, 6))

        def normal(scale, *shape):
            return scale * jax.random.normal(next(keys), shape)

        return {
            "encoder": {"hidden": normal(pixels**-0.5, pixels, hidden)},
            "heads": {"top": normal(0.1, hidden, 2 * TOP), "low": normal(0.1, hidden, 2 * LOW)},
            "decoder": {
                "low": normal(0.5, TOP, LOW),
                "log_var": jnp.full((1, 2, 2), -0.5),
                "top_pixels": normal(0.1, TOP, pixels * outputs),
                "pixels": normal(0.1, LOW, pixels * outputs),
                "bias": jnp.full((1, pixels * outputs), 0.5),
            },
        }

    def encode(params, images):
        return {"hidden": jnp.tanh(images.reshape(len(images), -1) @ params["encoder"]["hidden"])}

    def split(params, activations, layer, *shape):
        mu, log_var = jnp.split(activations["hidden"] @ params["heads"][layer], 2, -1)
        return {"mu": mu.reshape(-1, *shape), "log_var": log_var.reshape(-1, *shape)}

    def top_down(params, latent, activations):
        decoder, zeros = params["decoder"], jnp.zeros((1, TOP))
        posterior = None if activations is None else split(params, activations, "top", TOP)
        top = latent({"mu": zeros, "log_var": zeros}, posterior)
        prior = {"mu": (top @ decoder["low"]).reshape(-1, 2, 2), "log_var": decoder["log_var"]}
        if activations is not None:
            posterior = split(params, activations, "low", 2, 2)
            posterior["mu"] = posterior["mu"] + prior["mu"]
        low = latent(prior, posterior).reshape(-1, LOW)
        result = top @ decoder["top_pixels"] + low @ decoder["pixels"]
        return (result + decoder["bias"]).reshape(-1, height, width, outputs * channels)

    return Hierarchy(init, encode, top_down)
