"""Random numbers addressed by counters, so that a user's draws do not depend on who is drawn beside them."""

import numpy as np
import numpy.typing as npt

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniforms(seed: int, stream: int, *counters: int | npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Uniforms in [0, 1), one for each combination of the broadcast non-negative integer counters.

    The same (seed, stream, counters) always give the same number.

    Source: the finaliser of SplitMix64 (Steele et al., OOPSLA 2014), applied once per counter.
    """
    state = _mixed(np.array([seed], np.uint64))
    for counter in (stream, *counters):
        # At least one dimension: NumPy wraps overflowing arrays silently, as wanted, but warns of scalars.
        state = _mixed(state ^ (np.atleast_1d(counter).astype(np.uint64) * _GOLDEN + _GOLDEN))
    drawn: npt.NDArray[np.float64] = (state >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return drawn


def normals(seed: int, stream: int, *counters: int | npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Standard normals by counters (Box-Muller); takes the streams `stream` and `stream` + 1."""
    radius = np.sqrt(-2 * np.log1p(-uniforms(seed, stream, *counters)))
    drawn: npt.NDArray[np.float64] = radius * np.cos(2 * np.pi * uniforms(seed, stream + 1, *counters))
    return drawn


def _mixed(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    state = state + _GOLDEN
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
