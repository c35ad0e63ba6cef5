"""Compiled sum over all components, for queries and components that a tree cannot hold."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfp_surgery.log_density.tree.build import compiled


@compiled
def scan(
    queries: Any,
    rows: Any,
    excluded: Any,
    loc: Any,
    scale: Any,
    constants: Any,
    log_prob: Any,
    entropy: Any,
    visited: Any,
) -> None:
    """Scores queries[rows] against every component in float64 and writes the results.

    See `search.search` for the arguments; `excluded` has a component for each query, or -1.
    """
    for row in rows:
        top, mass, moment, count = -np.inf, 0.0, 0.0, 0
        for n in range(loc.shape[0]):
            if n == excluded[row] or constants[n] == -np.inf:
                continue
            count += 1
            half = 0.0
            for d in range(loc.shape[1]):
                x = (np.float64(queries[row, d]) - np.float64(loc[n, d])) / np.float64(scale[n, d])
                half += 0.5 * x * x
            score = constants[n] - half
            if score == -np.inf:
                continue
            if score > top:
                if mass > 0.0:
                    factor = np.exp(top - score)
                    moment = factor * (moment + (top - score) * mass) if factor > 0.0 else 0.0
                    mass *= factor
                top = score
            part = np.exp(score - top)
            mass += part
            if part > 0.0:
                moment += part * (score - top)
        visited[row] = count
        # A NaN score is never the top and adds NaN to the mass, so that log_prob is NaN too.
        log_prob[row] = -np.inf if mass == 0.0 else top + np.log(mass)
        entropy[row] = np.nan
        if mass > 0.0:
            entropy[row] = max(0.0, np.log(mass) - moment / mass)
