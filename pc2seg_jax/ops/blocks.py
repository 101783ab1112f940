"""Blocks of anchors, and the window of candidates that each of them looks at (see `contrastive`)."""

import math

import jax
import jax.numpy as jnp

from pc2seg_jax.ops.arrivals import Arrivals, draw_arrivals

# The anchors of a block come in multiples of this many: matrix units would otherwise copy their operands to fill them.
ALIGNED = 8


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


def draw_windows(
    key: jax.Array, at_hand: jax.Array, images: int, cells: int, blocks: int, width: int, without_own: bool
) -> tuple[jax.Array, Arrivals]:
    """What every block looks at: the candidates that arrive first, from a permuted circle of all, and their marks.

    Blocks shall draw as differently as they can; each for itself has uniformly drawn candidates in a uniformly drawn
    order with uniform marks. So their windows start at equal distances in the circle, those of an image as far apart as
    can be, and where neighbouring windows overlap, a candidate has distant marks, so that one of small weight is not
    drawn in both: marks turn from block to block by nearly the golden section, and once around by whole turns.

    Args:
      at_hand: [g'] places of the images whose anchors are at hand. blocks: of every image. without_own: the windows of
        an image pass over its own candidates.

    Returns:
      places: [g' * blocks, width] int32 among the candidates of the group. arrivals: `Arrivals` of these.
    """
    count, num_blocks = 2 * images * cells, images * blocks
    key_circle, key_marks, key_arrivals = jax.random.split(key, 3)
    circle = jax.random.permutation(key_circle, count)
    marks = jax.random.bits(key_marks, (count,))
    turn = jnp.uint32(2**32 * golden_share(num_blocks) // num_blocks % 2**32)
    starts = jnp.array([block * count // num_blocks for block in range(num_blocks)])

    def of_image(image):
        eligible = jnp.arange(count)  # places in the circle
        if without_own:
            (eligible,) = jnp.nonzero(circle // cells % images != image, size=count - 2 * cells)

        def of_block(block):
            first = jnp.sum(eligible < starts[block])

            def place(number):
                return eligible[(first + number) % len(eligible)]

            arrivals = draw_arrivals(
                jax.random.fold_in(key_arrivals, block),
                lambda number: marks[place(number)] + block.astype(jnp.uint32) * turn,
                len(eligible),
                width,
            )
            return circle[place(arrivals.order)], arrivals

        return jax.vmap(of_block)(image + images * jnp.arange(blocks))

    return jax.tree.map(lambda x: x.reshape(-1, width), jax.vmap(of_image)(at_hand))


def golden_share(n: int) -> int:
    """The number from 1 to n, without a common divisor with n, that is nearest to the golden section of n."""
    return min((r for r in range(1, n + 1) if math.gcd(r, n) == 1), key=lambda r: abs(r - 0.618034 * n))
