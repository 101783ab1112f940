"""Forms and textures as functions of coordinates: what the objects of the embedded dataset are made of."""

import numpy as np

# Forms are indicator functions of object coordinates u, v (both about -1..1).


def _disk(u, v):
    return u**2 + v**2 < 0.9


def _triangle(u, v):
    return (v > -0.7) & (v < 1.15 - 1.6 * abs(u))


def _star(u, v):
    return np.hypot(u, v) < 0.72 + 0.3 * np.cos(5 * np.arctan2(v, u))


def _ring(u, v):
    return abs(np.hypot(u, v) - 0.72) < 0.25


def _cross(u, v):
    return (np.minimum(abs(u), abs(v)) < 0.3) & (np.maximum(abs(u), abs(v)) < 1)


def _crescent(u, v):
    return (u**2 + v**2 < 1) & ((u - 0.5) ** 2 + v**2 > 0.55)


def _corner(u, v):
    return (np.maximum(abs(u), abs(v)) < 0.9) & ((u < -0.2) | (v < -0.2))


def _drop(u, v):
    return (u**2 < 0.22 * (1 - v) ** 2 * (1 + v)) & (abs(v) < 1)


def _bar(u, v):
    return (abs(u) < 0.32) & (abs(v) < 1)


def _polygon(sides):
    def inside(u, v):
        sector = np.pi / sides
        return np.hypot(u, v) * np.cos((np.arctan2(v, u) % (2 * sector)) - sector) < 0.8

    return inside


def _flower(petals):
    return lambda u, v: np.hypot(u, v) < 0.65 + 0.33 * np.cos(petals * np.arctan2(v, u))


def _frame(u, v):
    return abs(np.maximum(abs(u), abs(v)) - 0.65) < 0.22


def _tee(u, v):
    return (np.maximum(abs(u), abs(v)) < 0.9) & ((v < -0.3) | (abs(u) < 0.3))


def _zed(u, v):
    return (np.maximum(abs(u), abs(v)) < 0.9) & ((v > 0.35) & (u > -0.3) | (v < -0.35) & (u < 0.3) | (abs(u) < 0.3))


def _half(u, v):
    return (u**2 + v**2 < 1) & (v > 0)


def _bite(u, v):
    return (u**2 + v**2 < 0.9) & (abs(np.arctan2(v, u)) > 0.6)


def _heart(u, v):
    return u**2 + (1.2 * v - 0.75 * np.sqrt(abs(u))) ** 2 < 0.8


def _lens(u, v):
    return (u**2 + (abs(v) + 0.7) ** 2) < 1.5


def _hourglass(u, v):
    return (abs(u) < 0.15 + 0.75 * abs(v)) & (abs(v) < 0.9)


def _arrow(u, v):
    return ((v > 0) & (abs(u) < 1 - v)) | ((v <= 0) & (v > -0.95) & (abs(u) < 0.3))


FORMS = {
    "disk": _disk,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
    "cross": _cross,
    "crescent": _crescent,
    "corner": _corner,
    "drop": _drop,
    "bar": _bar,
    "square": _polygon(4),
    "pentagon": _polygon(5),
    "hexagon": _polygon(6),
    "clover": _flower(3),
    "four_petals": _flower(4),
    "six_petals": _flower(6),
    "eight_petals": _flower(8),
    "frame": _frame,
    "tee": _tee,
    "zed": _zed,
    "half": _half,
    "bite": _bite,
    "heart": _heart,
    "lens": _lens,
    "hourglass": _hourglass,
    "arrow": _arrow,
}

# Textures are scalar fields 0..1 of texture coordinates s, t (measured in periods); 0 and 1 are the two colours.


def _plain(s, t):
    return np.zeros_like(s)


def _stripes(s, t):
    return (s % 1 < 0.5).astype(float)


def _dots(s, t):
    return (np.hypot(s % 1 - 0.5, t % 1 - 0.5) < 0.33).astype(float)


def _waves(s, t):
    return ((s + 0.3 * np.sin(2 * np.pi * t)) % 1 < 0.5).astype(float)


def _grid(s, t):
    return ((s % 1 < 0.25) | (t % 1 < 0.25)).astype(float)


def _bricks(s, t):
    return ((t % 1 < 0.2) | ((s / 2 + 0.5 * (np.floor(t) % 2)) % 1 < 0.12)).astype(float)


def _zigzag(s, t):
    return ((s + abs(2 * (t % 1) - 1)) % 1 < 0.5).astype(float)


def _fade(s, t):
    return s % 1


def _blotches(s, t):
    return (np.sin(4.1 * s + 2 * np.sin(2.3 * t)) + np.sin(3.7 * t + 2 * np.sin(2.9 * s)) > 0).astype(float)


def _eyes(s, t):
    return (abs(np.hypot(s % 1 - 0.5, t % 1 - 0.5) - 0.3) < 0.12).astype(float)


def _dashes(s, t):
    return ((s % 1 < 0.4) & ((t / 2 + 0.5 * (np.floor(s) % 2)) % 1 < 0.55)).astype(float)


def _checks(s, t):
    return ((s % 1 < 0.5) ^ (t % 1 < 0.5)).astype(float)


def _pluses(s, t):
    u, v = abs(s % 1 - 0.5), abs(t % 1 - 0.5)
    return ((np.minimum(u, v) < 0.12) & (np.maximum(u, v) < 0.4)).astype(float)


def _scales(s, t):
    shifted = s + 0.5 * (np.floor(t) % 2)
    return (abs(np.hypot(shifted % 1 - 0.5, t % 1) - 0.6) < 0.14).astype(float)


def _plaid(s, t):
    return 0.5 + 0.25 * (np.sin(2 * np.pi * s) + np.sin(2 * np.pi * t))


def _speckle(s, t):
    return (np.sin(37.7 * s + 71.3 * t) * 43758.5 % 1 < 0.4).astype(float)


def _weave(s, t):
    over = (np.floor(s) + np.floor(t)) % 2 < 1
    return np.where(over, s % 1, t % 1)


TEXTURES = {
    "plain": _plain,
    "stripes": _stripes,
    "dots": _dots,
    "waves": _waves,
    "grid": _grid,
    "bricks": _bricks,
    "zigzag": _zigzag,
    "fade": _fade,
    "blotches": _blotches,
    "eyes": _eyes,
    "dashes": _dashes,
    "checks": _checks,
    "pluses": _pluses,
    "scales": _scales,
    "plaid": _plaid,
    "speckle": _speckle,
    "weave": _weave,
}
