"""Questions drawn from populations whose truth is known, many samples at once: (questions, samples) arrays."""

import math

import numpy as np

COUNTS = (20, 48, 100, 300)  # questions


def bits_and_bytes(name: str, shape: tuple[int, int], generator: np.random.Generator):
    """Bits and bytes of reference answers, and the true bits per byte: the ratio of their means."""
    normal = lambda: generator.normal(size=shape)  # noqa: E731
    if name == "even":
        size = generator.gamma(4, 25, shape)
        return size * (2 + 0.5 * normal()), size, 2.0
    if name == "several answers":  # one to five a question, which share its difficulty
        size = generator.integers(1, 6, shape) * generator.gamma(4, 25, shape)
        return size * np.exp(0.5 * normal() - 0.125), size, 1.0
    if name == "short ones are hard":
        longer = normal()
        size = np.exp(5 + 0.8 * longer)
        truth = math.exp((0.5**2 + 0.4**2) / 2 - 0.8**2 / 2)
        return size * np.exp(-0.3 * longer + 0.4 * normal()), size, truth
    spread, rate = {"log-normal": (0.5, 0.3), "wide log-normal": (0.8, 0.5), "extreme log-normal": (1.0, 0.8)}[name]
    size = np.exp(5 + spread * normal())
    return size * np.exp(rate * normal() - rate**2 / 2), size, 1.0


REALISTIC = ("even", "log-normal", "wide log-normal", "short ones are hard", "several answers")
EXTREME = ("extreme log-normal",)


def differences(name: str, shape: tuple[int, int], generator: np.random.Generator):
    """Differences of two models that are equally good, and sizes of the questions."""
    size = np.ones(shape)
    if name.endswith("sizes differ"):
        size = np.exp(0.5 * generator.normal(size=shape))
    elif name.startswith("several answers"):
        size = generator.integers(1, 6, shape).astype(float)
    elif name.startswith("very uneven"):
        size = generator.geometric(0.3, shape).astype(float)
    one_in_20 = generator.random(shape) < 1 / 20
    noise = generator.normal(size=shape)
    drawn = {
        "normal": lambda: noise,
        "heavy": lambda: generator.standard_t(5, shape),
        "exponential": lambda: generator.exponential(1, shape) - 1,
        "log-normal": lambda: np.exp(noise) - math.exp(0.5),
        "1 in 20, steady": lambda: np.where(one_in_20, 19, -1) + 0.05 * noise,
        "1 in 20, uneven": lambda: np.where(one_in_20, 19 * generator.exponential(1, shape), -1) + 0.5 * noise,
        "1 in 20, noisy": lambda: np.where(one_in_20, 19, -1) + 3 * noise,
        "1 in 20, both ways": lambda: np.where(one_in_20, 20, 1) * noise,
        "several answers": lambda: noise + generator.normal(0, 0.5, shape) / np.sqrt(size),
        "several answers, exponential": lambda: generator.exponential(1, shape) - 1 + 0.5 * noise / np.sqrt(size),
        "very uneven numbers of answers": lambda: noise,
    }[name.removesuffix(", sizes differ")]()
    return drawn * size, size


SYMMETRIC = ("normal", "normal, sizes differ", "heavy", "several answers", "very uneven numbers of answers")
SKEWED = ("exponential", "exponential, sizes differ", "several answers, exponential", "log-normal")
DECIDED = ("1 in 20, steady", "1 in 20, uneven", "1 in 20, noisy", "1 in 20, both ways")
