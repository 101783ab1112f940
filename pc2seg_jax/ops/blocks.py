"""Blocks of anchors, and the window of candidates that each of them looks at (see `contrastive`)."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pc2seg_jax.ops.arrivals import Arrivals, draw_arrivals
from pc2seg_jax.ops.sampling import OF_OTHER_IMAGES

# The anchors of a block come in multiples of this many: matrix units would otherwise copy their operands to fill them.
ALIGNED = 8


class Layout(NamedTuple):
    """How one group is looked at.

    images, cells: of the group, and of one image. blocks: of the anchors of one image, of about block_size each.
    candidates: of the group. eligible: those that the strategy may draw for an anchor. width: how many of these a block
      looks at. whole: at all candidates of the group, instead of a window.
    """

    images: int
    cells: int
    blocks: int
    block_size: int
    candidates: int
    eligible: int
    width: int
    whole: bool


def lay_out(
    shape: tuple[int, int, int], strategy: str, num_negatives: int, method: str, window: int = 0, block_size: int = 0
) -> Layout:
    """shape: (g, h, w) of the whole group. The rest: as `contrastive.pixel_contrast`."""
    images, cells = shape[0], math.prod(shape[1:])
    candidates = 2 * images * cells
    # No block looks at what the strategy never draws for its anchors. An image alone has no others.
    eligible = candidates - 2 * cells * (strategy in OF_OTHER_IMAGES and images > 1)
    width = min(eligible, window or choose_window(num_negatives, candidates, eligible))
    whole = method == "full" or width == eligible
    block_size = min(block_size or max(256, 32 * images), 2 * cells)
    blocks = count_blocks(math.ceil(2 * cells / block_size), shape[2])
    return Layout(images, cells, blocks, block_size, candidates, eligible, eligible if whole else width, whole)


def choose_window(num_negatives: int, num_candidates: int, num_eligible: int) -> int:
    """How many candidates a block of anchors looks at by default: of every group's max(1024, 5 N), those eligible.

    The draw is exact for an anchor whose mean weight is above about N / window, so that with 5 N an anchor may have
    three quarters of the candidates in its own class; two thirds where the window is more than half of them, as more
    arrive again. 1024 cost next to nothing. Rounded up to 128, at most all that are eligible.

    Args:
      num_candidates, num_eligible: all of a group, and those that the strategy may draw for an anchor.
    """
    looked_at = max(1024, 5 * num_negatives) * num_eligible / num_candidates
    return min(num_eligible, 128 * math.ceil(looked_at / 128))


def count_blocks(blocks: int, width: int) -> int:
    """At least so many that `cut_into_blocks` has a cell and the one below it in different blocks."""
    while blocks > 1 and 2 * width % blocks == 0:
        blocks += 1
    return blocks


def largest_divisor(num_blocks: int, limit: int) -> int | None:
    """The largest divisor up to the limit, so that no block is left over; None, for `lax.map`: one after the other."""
    largest = max(d for d in range(1, max(1, limit) + 1) if num_blocks % d == 0)
    return largest if largest > 1 else None


def cut_into_blocks(x: jax.Array, blocks: int) -> jax.Array:
    """[K, g', cells, ...] -> [g' * blocks, A, ...]; the last blocks of an image are filled with its first anchors.

    Both views of a cell, and cells side by side, are in different blocks: they are alike, and would draw alike.
    """
    x = jnp.moveaxis(x, 0, 2).reshape(x.shape[1], -1, *x.shape[3:])
    size = math.ceil(x.shape[1] / blocks)
    size += -size % ALIGNED if size > ALIGNED and blocks > 1 else 0
    x = jnp.concatenate([x, x[:, : blocks * size - x.shape[1]]], axis=1)
    x = jnp.moveaxis(x.reshape(len(x), size, blocks, *x.shape[2:]), 2, 1)
    return x.reshape(-1, *x.shape[2:])


def join_blocks(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Undoes `cut_into_blocks`: [G, g' * blocks, A] -> [G, g', K, h, w]."""
    groups, images, height, width = shape
    x = jnp.swapaxes(x.reshape(groups, images, -1, x.shape[2]), 2, 3)
    x = x.reshape(groups, images, -1)[..., : height * width * 2].reshape(groups, images, height, width, 2)
    return jnp.moveaxis(x, -1, 2)


def draw_windows(key: jax.Array, at_hand: jax.Array, layout: Layout) -> tuple[jax.Array, Arrivals]:
    """What every block looks at: the candidates that arrive first, from a permuted circle of all, and their marks.

    Blocks shall draw as differently as they can; each for itself has uniformly drawn candidates in a uniformly drawn
    order with uniform marks. So their windows start at equal distances in the circle, those of an image as far apart as
    can be, and where neighbouring windows overlap, a candidate has distant marks, so that one of small weight is not
    drawn in both: marks turn from block to block by nearly the golden section, and once around by whole turns.

    Args:
      at_hand: [g'] places in the group of the images whose anchors are at hand.

    Returns:
      places: [g' * blocks, width] int32 among the candidates of the group. arrivals: `Arrivals` of these.
    """
    images, count, num_blocks = layout.images, layout.candidates, layout.images * layout.blocks
    key_circle, key_marks, key_arrivals = jax.random.split(key, 3)
    circle = jax.random.permutation(key_circle, count)
    marks = jax.random.bits(key_marks, (count,))
    turn = jnp.uint32(2**32 * golden_share(num_blocks) // num_blocks % 2**32)
    starts = jnp.array([block * count // num_blocks for block in range(num_blocks)])

    def of_image(image):
        eligible = jnp.arange(count)  # places in the circle
        if layout.eligible < count:
            (eligible,) = jnp.nonzero(circle // layout.cells % images != image, size=layout.eligible)

        def of_block(block):
            first = jnp.sum(eligible < starts[block])

            def place(number):
                return eligible[(first + number) % layout.eligible]

            arrivals = draw_arrivals(
                jax.random.fold_in(key_arrivals, block),
                lambda number: marks[place(number)] + block.astype(jnp.uint32) * turn,
                layout.eligible,
                layout.width,
            )
            return circle[place(arrivals.order)], arrivals

        return jax.vmap(of_block)(image + images * jnp.arange(layout.blocks))

    return jax.tree.map(lambda x: x.reshape(-1, layout.width), jax.vmap(of_image)(at_hand))


def golden_share(n: int) -> int:
    """The number from 1 to n, without a common divisor with n, that is nearest to the golden section of n."""
    return min((r for r in range(1, n + 1) if math.gcd(r, n) == 1), key=lambda r: abs(r - 0.618034 * n))
