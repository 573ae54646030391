"""Trees of arrays as one vector a type of number, which a compiled loop carries instead of many small arrays.

Every leaf begins where a GPU's libraries can read it in place, so that it need not be copied out.

A GPU runs one kernel for each small array that a step updates; in a small model these kernels are most of a step.
Everything but a loop sees trees: networks, objectives, checkpoints.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PyTree

ALIGNMENT = 32  # numbers; XLA reads a product's operand in place if it begins at whole 128 bytes


class Layout(NamedTuple):
    """The places of a tree's leaves in vectors.

    Attributes:
        structure: of the tree.
        shapes: of its leaves.
        vectors: the leaves that a vector holds, in order, one entry a vector.
    """

    structure: Any
    shapes: tuple[tuple[int, ...], ...]
    vectors: tuple[tuple[int, ...], ...]


@jax.tree_util.register_pytree_node_class
class Packed:
    """A tree as vectors; itself a tree with these vectors as leaves.

    Attributes:
        vectors: one a type of number.
        layout: see `Layout`.
    """

    def __init__(self, vectors: Sequence[Any], layout: Layout):
        """Takes vectors and their layout."""
        self.vectors, self.layout = tuple(vectors), layout

    def tree_flatten(self) -> tuple[tuple[Any, ...], Layout]:
        """The vectors, and the layout, which is static; for jax."""
        return self.vectors, self.layout

    @classmethod
    def tree_unflatten(cls, layout: Layout, vectors: Sequence[Any]) -> "Packed":
        """The inverse of `tree_flatten`; for jax."""
        return cls(vectors, layout)

    def tree(self) -> PyTree:
        """The tree that was packed."""
        structure, shapes, vectors = self.layout
        leaves: list[Any] = [None] * len(shapes)
        for vector, chosen in zip(self.vectors, vectors, strict=True):
            # The gradient of a split is one concatenation; that of slices would be a sum of padded vectors.
            if _is_key(vector.dtype):
                leaves[chosen[0]] = vector
                continue
            sizes = [math.prod(shapes[i]) for i in chosen]
            for i, part in zip(chosen, lax.split(vector, [_whole(size) for size in sizes]), strict=True):
                leaves[i] = part[: math.prod(shapes[i])].reshape(shapes[i])
        return jax.tree.unflatten(structure, leaves)


def pack(tree: PyTree) -> Packed:
    """The tree as vectors."""
    leaves, structure = jax.tree.flatten(tree)
    leaves = [leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf) for leaf in leaves]  # a user's may be plain numbers
    of_type: dict[str, list[int]] = {}
    for i, leaf in enumerate(leaves):
        of_type.setdefault(f"{leaf.dtype} {i if _is_key(leaf.dtype) else ''}", []).append(i)
    vectors = [_join([leaves[i] for i in chosen]) for chosen in of_type.values()]
    shapes = tuple(tuple(leaf.shape) for leaf in leaves)
    return Packed(vectors, Layout(structure, shapes, tuple(map(tuple, of_type.values()))))


def _join(leaves: list[Array]) -> Array:
    if _is_key(leaves[0].dtype):
        return leaves[0]  # a key has a vector to itself
    return jnp.concatenate([jnp.pad(leaf.reshape(-1), (0, _whole(leaf.size) - leaf.size)) for leaf in leaves])


def _whole(size: int) -> int:
    """Numbers that a leaf of `size` takes up, with padding."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def _is_key(dtype: Any) -> bool:
    """Whether this is the type of random keys, which are not joined."""
    return jnp.issubdtype(dtype, jax.dtypes.extended)


def is_packed(tree: PyTree) -> bool:
    """Whether the tree is one `Packed`."""
    return isinstance(tree, Packed)


def unpack(tree: PyTree) -> PyTree:
    """The tree with every `Packed` in it unpacked."""
    return jax.tree.map(lambda part: part.tree() if is_packed(part) else part, tree, is_leaf=is_packed)


def pack_like(example: PyTree, tree: PyTree) -> PyTree:
    """The tree with those of its parts packed that are packed in the example."""
    return jax.tree.map(lambda shown, part: pack(part) if is_packed(shown) else part, example, tree, is_leaf=is_packed)
