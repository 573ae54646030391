"""Who takes part in the speed comparison: each a function (options, images) -> (run, more to report).

`run(steps)` trains so many steps of the article's model with the article's recipe and returns when they are done. All
have the images in the device's memory before they start, and shuffle by the same kind of permutation.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from vae_jax.model.build import build

SHAPE = (32, 32, 1)

Run = Callable[[int], None]


class Options(NamedTuple):
    """What a contender is to train.

    Attributes:
        batch: images in a batch.
        precision: model.precision of vae_jax; the others take the same. PyTorch takes "torch" as well, which is how it
            comes: on a GPU float32 products, but convolutions in TF32.
        variant: which of PyTorch's ways, for the contender that has several.
    """

    batch: int
    precision: str
    variant: tuple[str, ...] = ()


# --- (a) vae_jax, as `vae_jax.runs.fit.fit` runs it
# ---------------------------------------------------------------------


def vae_jax(options: Options, images: np.ndarray) -> Run:
    """The compiled loop of `vae_jax.training.state`, called for so many steps."""
    from vae_jax.config import Config

    config = Config()
    config = replace(
        config,
        train=replace(config.train, batch_size=options.batch),
        model=replace(config.model, precision=options.precision),
    )
    return loop_of(config, images)


def loop_of(config: Any, images: np.ndarray) -> Run:
    """The loop that training runs on this platform, of any configuration."""
    import jax
    import jax.numpy as jnp

    from vae_jax import optimizer
    from vae_jax.keys import make_keys
    from vae_jax.training.loop import compile_loop, make_packing
    from vae_jax.training.start import start
    from vae_jax.training.state import fixed_of
    from vae_jax.training.step import step_of

    shape, batch = images.shape[1:], config.train.batch_size
    steps_there_are = len(images) // batch
    network, objective = build(config, shape)
    transformation = optimizer.build(config, 1000)
    step = step_of(config, network, objective, 1000)
    pack, _ = make_packing(network.platform, transformation)
    state = jax.jit(pack)(start(config, shape, len(images)))
    resident, keys = jnp.asarray(images), make_keys(0)
    order = jax.random.permutation(keys.shuffle, jnp.arange(len(images), dtype=jnp.int32))
    zero = np.int32(0)
    place = resident, None, order, zero, fixed_of(config)
    arguments = state, *place, zero, zero
    loop = compile_loop(step, batch, batch, None, arguments, network.platform, steps_there_are)

    def run(steps: int) -> None:
        nonlocal state
        state = loop.run(state, *place, zero, np.int32(steps))
        jax.block_until_ready(state)

    return run


# --- (b), (c) PyTorch ------------------------------------------------------------------------------------------------


def torch_eager(options: Options, images: np.ndarray) -> Run:
    """PyTorch as the article's script has it: eager, Adam as it comes, the loss read at every step."""
    return torch_best(options, images)


def torch_best(options: Options, images: np.ndarray) -> Run:
    """PyTorch in one of its faster ways, see `TORCH_VARIANTS`; the loss is read once, at the end."""
    import torch

    from vae_jax.config import Config
    from vae_jax.interop.torch_twin import TorchTwin

    variant, config = options.variant, Config()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = options.precision not in ("float32", "torch")
    torch.backends.cudnn.allow_tf32 = options.precision != "float32"
    torch.backends.cudnn.benchmark = bool(variant)
    twin = TorchTwin(config.model, SHAPE, ("mu", "log_var")).to(device).train()
    fused = {"fused": True} if "fused" in variant else {}
    if "step_graph" in variant:
        fused["capturable"] = True
    adam = torch.optim.Adam(twin.parameters(), config.train.learning_rate, **fused)
    resident = torch.tensor(images.transpose(0, 3, 1, 2) / np.float32(255)).to(device)
    if "channels_last" in variant:
        twin = twin.to(memory_format=torch.channels_last)
        resident = resident.contiguous(memory_format=torch.channels_last)
    order = torch.randperm(len(images)).to(device)

    def loss_of(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bfloat16"):
            return twin(x, config.objective)[0].sum()

    if "step_graph" in variant:
        return _graphed(loss_of, adam, resident, order, options.batch)
    if "cuda_graphs" in variant:
        loss_of = torch.compile(loss_of, mode="reduce-overhead")
    elif "compile" in variant:
        loss_of = torch.compile(loss_of)

    def run(steps: int) -> None:
        total: Any = 0.0
        for i in range(steps):
            x = resident[order[i * options.batch : (i + 1) * options.batch]]
            loss = loss_of(x)
            adam.zero_grad()
            loss.backward()
            adam.step()
            total += loss.detach().clone() if variant else loss.item()
        if variant:
            total.item()

    return run


def _graphed(loss_of: Any, adam: Any, resident: Any, order: Any, batch: int) -> Run:
    """The whole step, Adam included, as one CUDA graph, which is replayed on each batch."""
    import torch

    x, total = resident[:batch].clone(), torch.zeros((), device=resident.device)

    def step() -> None:
        loss = loss_of(x)
        loss.backward()
        adam.step()
        total.add_(loss.detach())

    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):  # what is made on first use must not be captured
            adam.zero_grad()
            step()
    torch.cuda.current_stream().wait_stream(aside)
    adam.zero_grad()  # to none: each replay writes the gradients again
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    def run(steps: int) -> None:
        total.zero_()
        for i in range(steps):
            torch.index_select(resident, 0, order[i * batch : (i + 1) * batch], out=x)
            graph.replay()
        total.item()

    return run


def torch_variants() -> list[tuple[str, ...]]:
    """The ways (c) is chosen from: all combinations of channels_last, fused Adam and a compiled loss."""
    import torch

    graphs = [("cuda_graphs",)] if torch.cuda.is_available() else []
    return [
        (*layout, *fused, *compiled)
        for layout in ((), ("channels_last",))
        for fused in ((), ("fused",))
        for compiled in ((), ("compile",), *graphs)
        if layout or fused or compiled
    ]


# --- (d), (e) Flax, written the usual way ----------------------------------------------------------------------------


def _flax(options: Options, images: np.ndarray) -> Any:
    """The article's model out of flax.linen's own layers: (step, state, resident images, order)."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import optax

    dtype = jnp.bfloat16 if options.precision == "bfloat16" else None
    precision = {"float32": "highest", "tensorfloat32": "tensorfloat32"}.get(options.precision)

    class VAE(nn.Module):
        @nn.compact
        def __call__(self, x, key):
            def norm(x):
                return nn.leaky_relu(nn.BatchNorm(use_running_average=False, momentum=0.9, dtype=dtype)(x))

            def dense(features, x):
                return nn.Dense(features, dtype=dtype, precision=precision)(x)

            def drop(x):
                return nn.Dropout(0.2, deterministic=False)(nn.leaky_relu(x))

            for features, padding in ((8, 1), (16, 1), (32, 1), (64, 0)):
                around = ((padding, padding), (padding, padding))
                x = norm(nn.Conv(features, (4, 4), 2, around, dtype=dtype, precision=precision)(x))
            x = dense(128, x.reshape(len(x), -1))
            mu, log_var = (drop(dense(20, x)).astype(jnp.float32) for _ in range(2))
            z = mu + jax.random.normal(key, mu.shape) * jnp.exp(log_var / 2)
            x = drop(dense(64, z)).reshape(-1, 1, 1, 64)
            for features, padding in ((64, "VALID"), (32, "SAME"), (16, "SAME")):
                x = norm(nn.ConvTranspose(features, (4, 4), (2, 2), padding, dtype=dtype, precision=precision)(x))
            x = nn.ConvTranspose(1, (4, 4), (2, 2), "SAME", dtype=dtype, precision=precision)(x)
            return x.astype(jnp.float32), mu, log_var

    model, adam = VAE(), optax.adam(1e-3)
    keys = dict(zip(("params", "dropout"), jax.random.split(jax.random.key(0)), strict=True))
    variables = jax.jit(model.init)(keys, jnp.zeros((options.batch, *SHAPE)), keys["params"])
    resident = jnp.asarray(images)
    order = jax.random.permutation(jax.random.key(1), len(images))
    state = variables["params"], variables["batch_stats"], jax.jit(adam.init)(variables["params"])

    def step(state, resident, order, i):
        params, stats, opt_state = state
        x = resident[jax.lax.dynamic_slice_in_dim(order, i * options.batch, options.batch)] / jnp.float32(255)
        noise, dropout = jax.random.split(jax.random.fold_in(jax.random.key(2), i))

        def loss(params):
            (logits, mu, log_var), updated = model.apply(
                {"params": params, "batch_stats": stats}, x, noise, rngs={"dropout": dropout}, mutable=["batch_stats"]
            )
            kl = -0.5 * (1 + log_var - mu**2 - jnp.exp(log_var)).sum()
            return optax.sigmoid_binary_cross_entropy(logits, x).sum() + kl, updated["batch_stats"]

        (value, stats), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        change, opt_state = adam.update(gradient, opt_state, params)
        return (optax.apply_updates(params, change), stats, opt_state), value

    return step, state, resident, order


def flax_loop(options: Options, images: np.ndarray) -> Run:
    """A Python loop over a jitted step. The batch is taken inside the step, which favours it."""
    import jax

    step, state, resident, order = _flax(options, images)
    step = jax.jit(step, donate_argnums=0)

    def run(steps: int) -> None:
        nonlocal state
        for i in range(steps):
            state, _ = step(state, resident, order, i)
        jax.block_until_ready(state)

    return run


def flax_scan(options: Options, images: np.ndarray) -> Run:
    """The same step in `lax.scan`; on a CPU, where it takes seconds, two steps a call, elsewhere 32."""
    import jax
    import jax.numpy as jnp

    length = 2 if jax.default_backend() == "cpu" else 32
    step, state, resident, order = _flax(options, images)

    @partial(jax.jit, donate_argnums=0)
    def scan(state, resident, order, first):
        return jax.lax.scan(lambda state, i: step(state, resident, order, i), state, first + jnp.arange(length))

    def run(steps: int) -> None:
        nonlocal state
        for first in range(0, steps, length):
            state, _ = scan(state, resident, order, first)
        jax.block_until_ready(state)

    return run


CONTENDERS: dict[str, Callable[[Options, np.ndarray], Run]] = {
    "vae_jax": vae_jax,
    "PyTorch eager": torch_eager,
    "PyTorch best": torch_best,
    "Flax loop": flax_loop,
    "Flax scan": flax_scan,
}


# --- The process a contender runs in ---------------------------------------------------------------------------------


def serve(connection: Any, name: str, options: Options, steps_there_are: int) -> None:
    """Runs a contender on request: receives a number of steps, sends the seconds they took; None ends it.

    Each has a process of its own, so that its memory is its own and none disturbs another's threads. Caches of
    compiled programs are turned off: the time to the first step is that of a first start.
    """
    import time

    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several processes share a GPU
    images = np.random.RandomState(0).randint(0, 256, (steps_there_are * options.batch, *SHAPE), np.uint8)
    _import(name)
    before = _peak_memory(name)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        try:
            began = time.perf_counter()
            run = CONTENDERS[name](options, images)
            run(1)
            connection.send(time.perf_counter() - began)
            while (steps := connection.recv()) is not None:
                began = time.perf_counter()
                run(steps)
                connection.send(time.perf_counter() - began)
            connection.send({where: mb - before[where] for where, mb in _peak_memory(name).items()})
        except Exception as error:  # a variant that does not work here is reported, not hidden
            connection.send(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")


def _import(name: str) -> None:
    """The libraries and the device, which are no part of the time to the first step."""
    if "PyTorch" in name:
        import torch

        import vae_jax.interop.torch_twin

        torch.zeros(1, device="cuda" if torch.cuda.is_available() else "cpu")
    else:
        import jax.numpy as jnp

        import vae_jax.training.state  # noqa: F401

        jnp.zeros(1).block_until_ready()


def _peak_memory(name: str) -> dict[str, float]:
    """Peak memory so far in MB: the process's, and the device's where it is another."""
    import resource

    found = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    if "PyTorch" in name:
        import torch

        if torch.cuda.is_available():
            found["device"] = torch.cuda.max_memory_allocated() / 2**20
    else:
        import jax

        statistics = jax.local_devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in statistics:
            found["device"] = statistics["peak_bytes_in_use"] / 2**20
    return found
