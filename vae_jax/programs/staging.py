"""A compiled loop whose body, a traced program, does less in every turn.

A small model's step on a GPU takes as long as it has kernels, since a small array takes about as long as none. Values
that depend only on the number of a turn (the step's keys and all that is drawn with them, the batch's places and
images) are computed for all turns at once, before the loop. So are values of carried single numbers that depend only on
themselves, as an optimiser's count of its steps. Operations that only move numbers of a carried vector (a kernel in the
order in which a product takes it) are one gather a turn. The body of a loop, or a layer, need not know of it.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core
from jaxtyping import Array, Int, PyTree

from vae_jax.blocks.convolution import COMPUTED_BY
from vae_jax.programs.packing import ALIGNMENT
from vae_jax.programs.sizes import equations_in

# The largest array, for a turn, that is computed before the loop. Larger ones take as long inside it.
MOST_BYTES = 2**18
# Primitives that only call a program, and the name of the parameter that holds it.
CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "custom_jvp_call": "call_jaxpr"}

# Primitives that move numbers, or round them, and compute nothing.
MOVING = ("slice", "split", "reshape", "squeeze", "transpose", "rev", "pad", "convert_element_type", "broadcast_in_dim")
MOST_MOVED = 2**20  # numbers of a vector whose places are worth keeping as a constant of the program

THREEFRY = "key<fry>"  # the type of its keys

# What a value depends on: nothing that changes, the number of the turn, carried variables.
FREE, EARLY, LATE = range(3)


def loop(length: int, function: Callable[[Int[Array, ""], PyTree], PyTree], carried: PyTree) -> PyTree:
    """`lax.fori_loop(0, length, function, carried)`, with less work in every turn."""
    leaves, structure = jax.tree.flatten(carried)

    def on_leaves(number: Int[Array, ""], *leaves: Array) -> list[Array]:
        return jax.tree.leaves(function(number, jax.tree.unflatten(structure, leaves)))

    program = _flat(on_leaves, jnp.int32(0), *leaves)
    jaxpr = program.jaxpr
    consts = dict(zip(jaxpr.constvars, program.consts, strict=True))
    number, *state = jaxpr.invars
    after = dict(zip(state, jaxpr.outvars, strict=True))
    foreseen_variables = _foreseen(jaxpr.eqns, after)
    changing = [variable for variable in state if variable not in foreseen_variables]
    when = {number: EARLY, **dict.fromkeys(foreseen_variables, EARLY), **dict.fromkeys(changing, LATE)}
    equations: tuple[list[Any], list[Any], list[Any]] = ([], [], [])
    for equation in jaxpr.eqns:
        kind = max((when.get(variable, FREE) for variable in _variables(equation.invars)), default=FREE)
        large = sum(_bytes(variable.aval) for variable in equation.outvars) > MOST_BYTES
        if equation.effects or (kind == EARLY and (large or _draws_otherwise(equation))):
            kind = LATE
        when |= dict.fromkeys(equation.outvars, kind)
        equations[kind].append(equation)
    results = _variables([after[variable] for variable in changing])
    used = [variable for equation in equations[LATE] for variable in _variables(equation.invars)]
    wanted = [variable for variable in dict.fromkeys([*used, *results]) if when.get(variable) == EARLY]

    ahead = _needed(jaxpr.eqns, _variables([after[variable] for variable in foreseen_variables]))
    before = _needed(equations[FREE] + equations[EARLY], wanted)
    moves = _moves(equations[FREE] + equations[LATE], changing)
    inside = _needed(equations[FREE] + equations[LATE], results, moves, effects=True)

    def advance(values: list[Array], i: Int[Array, ""]) -> tuple[list[Array], list[Array]]:
        known = _run(ahead, {**consts, number: i, **dict(zip(foreseen_variables, values, strict=True))})
        return [_value(known, after[variable]) for variable in foreseen_variables], values

    def prepare(now: tuple[Int[Array, ""], list[Array]]) -> list[Array]:
        i, values = now
        known = _run(before, {**consts, number: i, **dict(zip(foreseen_variables, values, strict=True))})
        return [known[variable] for variable in wanted]

    def turn(state_now: list[Array], values: list[Array]) -> tuple[list[Array], None]:
        known = {**consts, **dict(zip(changing, state_now, strict=True)), **dict(zip(wanted, values, strict=True))}
        known |= _gathered(moves, known)
        known = _run(inside, known)
        return [_value(known, after[variable]) for variable in changing], None

    numbers = jnp.arange(length, dtype=jnp.int32)
    initial = dict(zip(state, leaves, strict=True))
    last, foreseen_values = [], []
    if foreseen_variables:  # few numbers: unrolled, their turns are one kernel
        last, foreseen_values = lax.scan(
            advance, [initial[variable] for variable in foreseen_variables], numbers, unroll=True
        )
    prepared = _for_all(prepare, (numbers, foreseen_values))
    rest, _ = lax.scan(turn, [initial[variable] for variable in changing], prepared, length)
    final = {**dict(zip(foreseen_variables, last, strict=True)), **dict(zip(changing, rest, strict=True))}
    return jax.tree.unflatten(structure, [final[variable] for variable in state])


def _foreseen(equations: Sequence[Any], after: Mapping[Any, Any]) -> list[Any]:
    """The carried single numbers that depend on nothing but themselves and the turn, as an optimiser's count of steps.

    They are known before the loop, and so are values computed from them.

    Args:
        equations: of the body.
        after: carried variable -> its value after a turn.
    """
    seen: dict[Any, set[Any]] = {variable: {variable} for variable in after}
    for equation in equations:
        inputs = [seen.get(variable, set()) for variable in _variables(equation.invars)]
        # Draws stay where they are, and an effect must not happen twice.
        looks = set(after) if equation.effects or _draws_otherwise(equation) else set().union(*inputs)
        seen |= dict.fromkeys(equation.outvars, looks)
    foreseen = [variable for variable in after if not variable.aval.shape and not _is_key(variable)]

    def depends_on(variable: Any) -> set[Any]:
        return set().union(*(seen.get(v, set()) for v in _variables([after[variable]])))

    while True:
        kept = [variable for variable in foreseen if depends_on(variable) <= {*foreseen}]
        if len(kept) == len(foreseen):
            return foreseen
        foreseen = kept


def _flat(function: Callable[..., Any], *arguments: Array) -> core.ClosedJaxpr:
    """The function traced, with all calls in it inlined but loops and branches."""
    called = jax.make_jaxpr(function)(*arguments)
    return jax.make_jaxpr(partial(_call, called))(*arguments)


def _call(program: core.ClosedJaxpr, *arguments: Any) -> list[Any]:
    """The results of a program of these arguments, with its calls inlined."""
    jaxpr = program.jaxpr
    known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*program.consts, *arguments), strict=True))
    known = _run(jaxpr.eqns, known)
    return [_value(known, variable) for variable in jaxpr.outvars]


def _run(equations: Sequence[Any], known: Mapping[Any, Any]) -> dict[Any, Any]:
    """The values of all variables after these equations."""
    known = dict(known)
    for equation in equations:
        inputs = [_value(known, variable) for variable in equation.invars]
        name, primitive = equation.primitive.name, equation.primitive
        where = str(equation.source_info.name_stack)  # so that a profile names a kernel's layer
        with equation.ctx.manager, jax.named_scope(where) if where else nullcontext():
            if name in CALLS:
                results = _call(equation.params[CALLS[name]], *inputs)
            elif compute := COMPUTED_BY.get(primitive):
                results = _call(jax.make_jaxpr(partial(compute, **equation.params))(*inputs), *inputs)
            else:
                results = primitive.bind(*inputs, **primitive.get_bind_params(equation.params))
                results = results if primitive.multiple_results else [results]
        known |= dict(zip(equation.outvars, results, strict=True))
    return known


def _draws_otherwise(equation: Any) -> bool:
    """Whether jax would draw other numbers for many turns at once than for one, as with all keys but Threefry's."""
    return any(
        inner.primitive.name == "rng_bit_generator"
        or any(_is_key(variable) and str(variable.aval.dtype) != THREEFRY for variable in _variables(inner.invars))
        for inner in equations_in(equation)
    )


def _for_all(function: Callable[[Any], Any], numbers: PyTree) -> Any:
    """`vmap`, or one number after the other if a part of the function has no rule for many, as a callback."""
    try:
        return jax.vmap(function)(numbers)
    except NotImplementedError:
        return lax.map(function, numbers)


def _is_key(variable: Any) -> bool:
    return jnp.issubdtype(variable.aval.dtype, jax.dtypes.prng_key)


class Move(NamedTuple):
    """A variable that has a carried vector's numbers in another order.

    Attributes:
        vector: the carried one.
        places: where its numbers are in the vector, or −1 for a zero.
    """

    vector: Any
    places: np.ndarray


def _moves(equations: Sequence[Any], state: Sequence[Any]) -> dict[Any, Move]:
    """The variables of moved numbers that a computation reads, but for those in the vector's own order."""
    moves = {
        variable: Move(variable, np.arange(variable.aval.size, dtype=np.int32))
        for variable in state
        if variable.aval.ndim == 1 and ALIGNMENT <= variable.aval.size <= MOST_MOVED and not _is_key(variable)
    }
    zeros, looked_at = set(), {}
    for equation in equations:
        inputs, name = _variables(equation.invars), equation.primitive.name
        if (
            name == "broadcast_in_dim"
            and not inputs
            and equation.invars[0].val == 0
            and equation.outvars[0].aval.size == 1
        ):
            zeros |= set(equation.outvars)
        moved = next(iter(inputs), None)
        if name in MOVING and moved is equation.invars[0] and moved in moves and _keeps_numbers(equation, moves[moved]):
            vector, places = moves[moved]
            sizes = sum(variable.aval.size for variable in equation.outvars)
            filling = equation.invars[1:]
            none = all(value in zeros if value in inputs else value.val == 0 for value in filling)
            if none and (name == "pad" or (not filling and sizes <= places.size)):
                results = zip(equation.outvars, _moved(equation, places), strict=True)
                moves |= {out: Move(vector, places_of_out) for out, places_of_out in results}
                continue
        looked_at |= {variable: moves[variable] for variable in inputs if variable in moves}
    return {
        variable: move
        for variable, move in looked_at.items()
        if variable is not move.vector
        and variable.aval.size >= ALIGNMENT
        and (variable.aval.dtype != move.vector.aval.dtype or (np.diff(move.places.reshape(-1)) != 1).any())
    }


def _keeps_numbers(equation: Any, move: Move) -> bool:
    """Whether the numbers are rounded once at most: by their last type."""
    before, after = equation.invars[0].aval.dtype, equation.outvars[0].aval.dtype
    return before == after or (before == move.vector.aval.dtype and jnp.issubdtype(after, jnp.floating))


def _moved(equation: Any, places: np.ndarray) -> Sequence[np.ndarray]:
    """The places after a primitive of MOVING; in numpy, since jax would compile a program for each."""
    params = equation.params
    match equation.primitive.name:
        case "slice":
            bounds = zip(params["start_indices"], params["limit_indices"], strict=True)
            steps = params["strides"] or (1,) * places.ndim
            return [places[tuple(slice(*bound, step) for bound, step in zip(bounds, steps, strict=True))]]
        case "reshape" if params["dimensions"] is not None:
            return [places.transpose(params["dimensions"]).reshape(params["new_sizes"])]
        case "split":
            return np.split(places, np.cumsum(params["sizes"])[:-1], params["axis"])
        case "transpose":
            return [places.transpose(params["permutation"])]
        case "rev":
            return [np.flip(places, params["dimensions"])]
        case "pad":
            return [_padded(places, params["padding_config"])]
    return [places.reshape(equation.outvars[0].aval.shape)]  # the rest keep the order


def _padded(places: np.ndarray, config: Any) -> np.ndarray:
    """Places with zeros put before, after and between them on every axis; negative numbers of zeros cut off."""
    for axis, (low, high, inner) in enumerate(config):
        along = np.moveaxis(places, axis, 0)
        spread = np.full((max(0, len(along) + (len(along) - 1) * inner), *along.shape[1:]), -1, places.dtype)
        spread[:: inner + 1] = along
        sides = [(max(0, low), max(0, high)), *[(0, 0)] * (places.ndim - 1)]
        spread = np.pad(spread, sides, constant_values=-1)
        spread = spread[max(0, -low) : max(0, len(spread) - max(0, -high))]
        places = np.moveaxis(spread, 0, axis)
    return places


def _gathered(moves: Mapping[Any, Move], known: Mapping[Any, Any]) -> dict[Any, Any]:
    """The values of moved variables, by one gather for every vector and type of number."""
    results = {}
    groups: dict[Any, list[Any]] = {}
    for variable, move in moves.items():
        groups.setdefault((move.vector, variable.aval.dtype), []).append(variable)
    for (vector, dtype), variables in groups.items():
        # A variable begins at a whole number of lines, as in a packed vector.
        parts = [moves[variable].places.reshape(-1) for variable in variables]
        parts = [np.pad(part, (0, -len(part) % ALIGNMENT), constant_values=-1) for part in parts]
        places = np.concatenate(parts)
        values = known[vector].at[places].get(mode="clip", wrap_negative_indices=False)
        values = jnp.where(places >= 0, values, 0).astype(dtype)
        values = lax.optimization_barrier(values)  # one kernel, not one a part
        ends = np.cumsum([len(part) for part in parts])
        for variable, part, end in zip(variables, parts, ends.tolist(), strict=True):
            first = end - len(part)
            results[variable] = values[first : first + variable.aval.size].reshape(variable.aval.shape)
    return results


def _needed(
    equations: Sequence[Any], outputs: Sequence[Any], given: Collection[Any] = (), effects: bool = False
) -> list[Any]:
    """The equations that these outputs need, if some variables are given; with `effects` also those that print."""
    wanted, needed = set(outputs).difference(given), []
    for equation in reversed(equations):
        if (effects and equation.effects) or wanted.intersection(equation.outvars):
            needed.append(equation)
            wanted |= set(_variables(equation.invars)).difference(given)
    return needed[::-1]


def _value(known: Mapping[Any, Any], variable: Any) -> Any:
    return variable.val if isinstance(variable, core.Literal) else known[variable]


def _variables(inputs: Sequence[Any]) -> list[Any]:
    return [variable for variable in inputs if not isinstance(variable, core.Literal)]


def _bytes(shaped: Any) -> int:
    size = 4 if jnp.issubdtype(shaped.dtype, jax.dtypes.extended) else shaped.dtype.itemsize
    return shaped.size * size
