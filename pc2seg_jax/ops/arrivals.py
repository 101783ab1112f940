"""Drawing without replacement as a stream: no noise per pair, no sort per anchor, no search.

Every candidate arrives again and again, at the times of a Poisson process of rate 1, each time with a mark u ~ U(0, 1).
An arrival counts for an anchor whose weight for that candidate is above the mark. The first arrival that counts then
comes after a time ~ Exp(w), so the candidates in the order of these are the race of exponential clocks E / w
(`sampling`), the first n of them n draws without replacement with probabilities proportional to w. Only the order of
the arrivals matters, not their times, and it is the same for all anchors: what an anchor has drawn is a prefix of the
stream, found by counting.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pc2seg_jax.ops.sampling import to_uniform

# Candidates of the first arrival have no earlier mark; above every weight.
NO_MARK = 2.0
# Arrivals are counted in chunks of so many, so that n of them are found in two steps: the chunk, then the place in it.
CHUNK = 128


class Arrivals(NamedTuple):
    """The first k arrivals, in order, that count for some weight: mark < earlier.

    order: [k] int32, which candidate, numbered by first arrival: 0, 1, 2, ... and again.
    mark: [k] float32 in (0, 1). earlier: [k] float32, smallest mark of the candidate's earlier arrivals, or `NO_MARK`.
    """

    order: jax.Array
    mark: jax.Array
    earlier: jax.Array


def draw_arrivals(key: jax.Array, first_mark: Callable[[jax.Array], jax.Array], m: int, k: int) -> Arrivals:
    """The stream of m candidates, as far as its first k arrivals of use.

    While d candidates have been seen, an arrival is one of these with probability d / m, each alike: the numbers of
    such arrivals between two new candidates are geometric. An arrival whose mark is above an earlier one of the same
    candidate counts for nobody and is left out.

    Args:
      key: a random key.
      first_mark: uint32 bits of the marks of the candidates' first arrivals, from their int32 numbers 0..m-1, which
        are any shape. All values are alike, and independent of one another and of the key.
      m, k: candidates, and arrivals wanted, 1..m.

    Returns:
      `Arrivals`; in the unlikely case that too few are of use, the last ones have mark > earlier and never count.
    """
    share = k / m
    # After length = h m arrivals, h - h^2/4 + h^3/18 - ... of m of use are expected; and six standard deviations more.
    length = math.ceil(k * (1 + share / 4 + share**2 / 14 + share**3 / 40) + 6 * math.sqrt(k * share))
    key_gap, key_again, key_mark = jax.random.split(key, 3)
    seen = jnp.arange(min(length, m))
    again = jnp.log(to_uniform(jax.random.bits(key_gap, seen.shape))) / jnp.log(jnp.maximum(seen, 1e-30) / m)
    time = seen + jnp.cumsum(jnp.minimum(again, length).astype(jnp.int32))
    is_new = jnp.zeros(length, bool).at[time].set(True, mode="drop")
    number = jnp.cumsum(is_new)
    order = jnp.where(is_new, number - 1, jax.random.randint(key_again, (length,), 0, number))
    mark = to_uniform(jnp.where(is_new, first_mark(order), jax.random.bits(key_mark, (length,))))

    # Side by side, the arrivals of a candidate are few: the smallest of the 32 before each is that of all of them.
    order, time, mark = jax.lax.sort((order, jnp.arange(length), mark), num_keys=1, is_stable=True)
    earlier = _from_before(mark, order, 1)
    for distance in (1, 2, 4, 8, 16):
        earlier = jnp.minimum(earlier, _from_before(earlier, order, distance))
    of_use_first = jnp.where(mark < earlier, time, time + length)
    _, *arrivals = jax.lax.sort((of_use_first, order, mark, earlier), num_keys=1)
    return Arrivals(*(x[:k] for x in arrivals))


def _from_before(x: jax.Array, order: jax.Array, distance: int) -> jax.Array:
    """The value so many places before, where that is of the same candidate."""
    same = jnp.pad(order, (distance, 0), constant_values=-1)[: len(order)] == order
    return jnp.where(same, jnp.pad(x, (distance, 0))[: len(x)], NO_MARK)


def draw_from_arrivals(arrivals: Arrivals, weights: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
    """Draws without replacement as a mask: the first n arrivals of every row that count, fewer where fewer came.

    Args:
      arrivals: k of them. weights: [A, k] float32 in 0..1, of the candidates that arrive. n: negatives per anchor, 1...

    Returns:
      drawn: [A, k] bool; no candidate twice. A row with n of them has its exact draw; one with fewer has the first of
        it. possible: [A] int32, arrivals of a weight above 0.
    """
    counts = (arrivals.mark < weights) & (weights <= arrivals.earlier)
    rows, k = counts.shape

    def in_chunks(x):
        return jnp.pad(x, ((0, 0), (0, -k % CHUNK))).reshape(rows, -1, CHUNK)

    # Both numbers in one sum: the weights, which take more memory than all else here, are read once and not written.
    sums = jnp.sum(in_chunks(counts + 2 * CHUNK * (weights > 0)), axis=-1)
    in_chunk, possible = sums % (2 * CHUNK), jnp.sum(sums // (2 * CHUNK), axis=-1)
    until = jnp.cumsum(in_chunk, axis=-1)
    # Of the chunk that holds the n-th: its arrivals, and how many of those belong to the draw.
    crossed = (until >= n) & (until - in_chunk < n)
    within = jnp.any(in_chunks(counts) & crossed[..., None], axis=1)
    within = jnp.cumsum(within, axis=-1, dtype=jnp.int32)
    wanted = n - jnp.sum(jnp.where(crossed, until - in_chunk, 0), axis=-1)
    full_chunks = jnp.sum(until < n, axis=-1)
    last = full_chunks * CHUNK + jnp.sum(within < wanted[:, None], axis=-1)
    return counts & (jnp.arange(k) <= last[:, None]), possible
