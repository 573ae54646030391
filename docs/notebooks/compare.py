# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The same model in PyTorch
#
# Is the model here the model there, and does it learn the same? This notebook asks one question after the other, each
# with less held equal than the one before. It does with functions what `vae-jax compare` does on the command line.
#
# It needs PyTorch (`pip install 'vae_jax[torch]'`), and without it says so and compares nothing. In full, on
# MNIST, it takes about three minutes on two free cores. `changes` are options by their dotted names;
# `data.manual_dir` is a folder with MNIST's four files, and where it is None tensorflow-datasets downloads them.
# `configuration = "digits"` needs no download.

# %% tags=["parameters"]
import os

configuration = "article"
changes = {"data.manual_dir": os.environ.get("VAE_JAX_MNIST_DIR")}
folder = "comparison"  # that the tables and figures are written to; an earlier comparison in it is replaced
steps = 200  # of one training, step by step
seeds = 3  # of independent runs, in both frameworks
epochs = None  # of an independent run on all images; None for a quick one, of two epochs of 12,800 images

# %%
from importlib.util import find_spec
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import vae_jax
from vae_jax.compare import compare
from vae_jax.compare.result import sentence

config = vae_jax.load_config(configuration, **changes)
data = vae_jax.load_data(config.data, report=print)
has_torch = find_spec("torch") is not None
if not has_torch:
    print("PyTorch is not installed, so nothing is compared below: pip install 'vae_jax[torch]'")

# %% [markdown]
# ## Four questions
#
# | level | the same in both | compared |
# |---|---|---|
# | function | weights, images | every layer's output in evaluation mode |
# | gradient | weights, batch, noise, dropout masks | every parameter's gradient |
# | trajectory | initial weights, order of the batches, noise, masks | the loss of every step |
# | result | the configuration alone | the test loss of independent runs |
#
# The first three are questions of arithmetic. PyTorch gets our initial weights and the random numbers that our training
# draws, so that rounding is the only difference left; in double precision there is next to none. The fourth is a
# question of statistics: the frameworks draw their own random numbers.


# %%
def say(name, level):
    """Prints a level's answer."""
    print(f"{name}: {level.verdict}\n    {level.summary}")


answers = {}
if has_torch:
    answers = compare(config, data, folder, steps=steps, seeds=seeds, epochs=epochs, on_level=say)

# %% [markdown]
# ## One function, one gradient
#
# On the left the largest difference of each layer's output, on the right the error of each parameter's gradient,
# as a share of the tensor's largest entry. float32 keeps about seven digits and float64 sixteen, so the second
# row of points lies far below the first. A mistake would not: BatchNorm's variance with n in place of n − 1
# differs as much in float64 as in float32.

# %%
if answers:
    _, panels = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    levels = (("function", "layers", "layer", "difference"), ("gradient", "tensors", "tensor", "relative"))
    for axes, (level, rows, name, figure) in zip(panels, levels, strict=True):
        for precision in ("float32", "float64"):
            table = answers[level].details[precision][rows]
            errors = np.maximum([row[figure] for row in table], 1e-17)  # 0 has no place on a logarithmic axis
            axes.semilogy([row[name] for row in table], errors, "o", label=precision)
        axes.tick_params("x", rotation=90, labelsize=7)
        axes.set_title(f"{level}: largest difference from PyTorch")
        axes.legend()

# %% [markdown]
# ## One training, step by step
#
# From the same weights, with the same batches and the same noise, the losses of both lie on one curve. Look at
# the gap. In float64 it stays at rounding. In float32 it starts there and grows, as in any chaotic system: Adam
# divides by the root of small numbers, and a difference in the last digit becomes one in the first. So two
# float32 runs that part are no sign of a mistake; two float64 runs that part are.

# %%
if "trajectory" in answers:
    details = answers["trajectory"].details
    _, (left, right) = plt.subplots(1, 2, figsize=(11, 3.5), layout="constrained")
    single = details["float32"]
    left.plot(single["vae_jax"], label="vae_jax", linewidth=3, alpha=0.5)
    left.plot(single["pytorch"], label="PyTorch", linewidth=1)
    left.set(title="Training loss, float32", xlabel="step", ylabel="nats per image")
    left.legend()
    for precision in ("float32", "float64"):
        gap = np.asarray(details[precision]["gap"])
        right.semilogy(np.maximum(gap, 1e-17), label=precision)  # 0 has no place on a logarithmic axis
    right.axhline(details["tolerance"], color="black", linestyle=":", label="allowed in float64")
    right.set(title="Relative gap of the losses", xlabel="step")
    right.legend()

# %% [markdown]
# ## Independent runs
#
# Every seed is trained once in either framework, in its own way and in a process of its own. Welch's t-test asks
# whether the mean losses after the last epoch differ.

# %%
if "result" in answers:
    details = answers["result"].details
    _, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    for number, entry in enumerate(details["results"]):
        for run in entry["runs"]:
            losses = [epoch["test_loss"] for epoch in run["epochs"]]
            axes.plot(range(1, len(losses) + 1), losses, f"C{number}o-", label=entry["framework"])
    lines = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))  # one of each framework
    axes.legend(lines.values(), lines.keys())
    axes.set(title="Test loss of independent runs", xlabel="epoch", ylabel="nats per image")
    axes.xaxis.get_major_locator().set_params(integer=True)
    for test in details["tests"]:
        print(sentence(test))

# %% [markdown]
# ## Reading the outcome
#
# - *agrees*: every figure is within its tolerance, in both precisions.
# - *agrees in float64*: the two compute the same function, and this network's float32 rounding is too coarse to see it.
# - *differs*: something is computed otherwise. The tables name the layer or the parameter.
# - *no difference found*: that is all a test can say. Three seeds find large differences only, of several nats;
#   so read the interval, which holds every difference that is compatible with the runs. A smaller one needs more
#   seeds.
#
# All figures are in the folder, as JSON and as tables:

# %%
for path in sorted(Path(folder).glob("comparison*")) if answers else []:
    print(path)

# %% [markdown]
# What the test can see, how weights travel both ways, and how a third framework joins: `docs/comparing.md`.
