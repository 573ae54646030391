"""Muon: momentum whose matrices are made orthogonal."""

from dataclasses import dataclass
from typing import Annotated

import jax
import optax
from jaxtyping import PyTree
from optax.contrib import MuonDimensionNumbers
from optax.contrib import muon as optax_muon

from vae_jax.optimizer.base import Optimizer, descend, is_kernel, of_optax
from vae_jax.options import TRACED

# Number of a kernel's axes -> those that are a matrix's rows and columns: of a dense layer, of a convolution.
MATRICES = {2: MuonDimensionNumbers(0, 1), 4: MuonDimensionNumbers((0, 1, 2), 3)}


@dataclass(frozen=True)
class MuonOptions:
    """Of muon.

    Attributes:
        beta: decay of the momentum of matrices.
        ns_steps: of Newton and Schulz's iteration, which makes a matrix nearly orthogonal.
        nesterov: look one step of the momentum ahead.
        b1: of Adam, for what is no matrix: decay of the first moment.
        b2: of Adam: decay of the second moment.
        eps: of Adam: added to the root of the second moment; and of the iteration, to a matrix's norm.
        weight_decay: of kernels; a step takes the learning rate times this of them.
    """

    beta: Annotated[float, "[0, 1)"] = 0.95
    ns_steps: Annotated[int, "[1, 100]"] = 5
    nesterov: bool = True
    b1: Annotated[float, "[0, 1)"] = 0.9
    b2: Annotated[float, "[0, 1)"] = 0.999
    eps: Annotated[float, "(0, inf)", TRACED] = 1e-8
    weight_decay: Annotated[float, "[0, inf)", TRACED] = 0.0


def muon(options: MuonOptions, learning_rate: optax.Schedule) -> Optimizer:
    """Muon (Jordan et al. 2024) for the kernels of dense layers and of two-dimensional convolutions, Adam for the rest.

    Several kernels in one array, as a flow's networks have them, count as the rest.
    """

    def matrices(params: PyTree) -> PyTree:
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: MATRICES.get(leaf.ndim) if is_kernel(path) else None, params
        )

    direction = optax_muon(
        -1.0,  # optax's steps go down; `descend` takes a direction that goes up
        ns_steps=options.ns_steps,
        beta=options.beta,
        eps=options.eps,
        nesterov=options.nesterov,
        adam_b1=options.b1,
        adam_b2=options.b2,
        muon_weight_dimension_numbers=matrices,
    )
    return of_optax(descend(direction, learning_rate, options.weight_decay))
