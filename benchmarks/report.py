"""The measurements as a page of Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks import reference
from benchmarks.codes import SHIFTS
from benchmarks.sections import (
    COMPILATION,
    EXACT,
    GRADIENT,
    HAND_WRITTEN,
    ON_GPU,
    TFD,
    TORCH_COMPILED,
    TREE,
)

_NOT_MEASURED = "not measured"

Row = Mapping[str, Any]


def markdown(results: Mapping[str, Any]) -> str:
    """The page.

    Args:
      results: what `benchmarks.run` writes as `results.json`.

    Returns:
      Markdown.
    """
    machine, rows = results["machine"], results["rows"]
    hardware = (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']:.0f} GiB of "
        f"memory; GPU: {machine['gpu'] or _NOT_MEASURED}"
    )
    about = [
        f"* Machine: {hardware}.",
        f"* Versions: {', '.join(f'{name} {v}' for name, v in results['versions'].items())}.",
        f"* Command: `{results['command']}`, begun {results['date']}.",
        f"* Codes: {results['codes']}.",
    ]
    parts = ["# Performance", "\n".join(about), _HOW_MEASURED]
    for section, write in _SECTIONS.items():
        of_section = [row for row in rows if row["section"].split(",")[0] == section]
        if of_section:
            parts += [f"## {_TITLES[section]}", write(of_section)]
    return "\n\n".join(parts) + "\n"


_HOW_MEASURED = """\
Each method has a process of its own, and one of them computes at a time. The repeats go round the
methods of a table, so that all of them meet the same machine; given is the median, and the range
from the fastest to the slowest where it matters. A call starts from NumPy arrays and ends with
them: making the aggregate posterior, its tree and its interpolation is in the time. A peer whose
cost is proportional to the number of chunks of queries is timed on a share of them and scaled up;
the share is given. Memory is the peak of resident memory (`VmHWM`, reset before the first call)
above that after imports and data, compilation included. Errors are the largest, in nats, over
random queries that are computed in float64 over all components; beside them stands the largest
ratio of error to bound, where the bound is max(1e-4, 4 eps |log q|), with the tolerance added
where one was given. q(n|z) is the distribution over components given the code."""

_TITLES = {
    "evaluation": "log q(z) of N codes over N components",
    "small_scales": "Narrower posteriors",
    "marginals": "The marginals log q(z_j), all D of them",
    "scaling": "Growth with N",
    "surgery": "The whole of elbo_surgery",
    "training": "Training",
}


def _evaluation(rows: Sequence[Row]) -> str:
    def gpu(row: Row) -> str:
        other = _found(rows, row["latent_size"], f"{row['method']}{ON_GPU}")
        return _seconds(other) if other else _NOT_MEASURED

    columns: dict[str, Callable[[Row], str]] = {
        "D": lambda row: str(row["latent_size"]),
        "N = M": lambda row: str(row["num_components"]),
        "method": lambda row: row["method"],
        "seconds": _seconds,
        "times exact": lambda row: _figures(row["times_base"]),
        "share timed": lambda row: _percent(row["share_timed"]) if row["seconds"] else "",
        "peak MiB": lambda row: _rounded(row["peak_mib"]),
        "error of log q(z) (/ bound)": lambda row: _error(row, "log_prob"),
        "error of H[q(n\\|z)] (/ bound)": lambda row: _error(row, "index_entropy"),
        "components visited": lambda row: _rounded(row["mean_visited"]),
        "note": lambda row: row["note"] or "",
        "GPU": gpu,
    }
    ratios = []
    for size in dict.fromkeys(row["latent_size"] for row in rows):
        exact, tree, gradient, tfd = (
            _found(rows, size, method) for method in (EXACT, TREE, GRADIENT, TFD)
        )
        ratios.append(
            {
                "D": str(size),
                "tfd.MixtureSameFamily / exact": _ratio(tfd, exact),
                "exact / tolerance 1e-4": _ratio(exact, tree),
                "forward and backward / exact": _ratio(gradient, exact),
            }
        )
    shown = [row for row in rows if not row["method"].endswith(ON_GPU)]
    return f"{_table(shown, columns)}\n\nThe ratios of these times:\n\n{_plain_table(ratios)}"


def _small_scales(rows: Sequence[Row]) -> str:
    return "Codes drawn from posteriors whose standard deviations were divided.\n\n" + _table(
        rows,
        {
            "D": lambda row: str(row["latent_size"]),
            "divided by": lambda row: f"{row['shrink']:g}",
            "method": lambda row: row["method"],
            "seconds": _seconds,
            "error of log q(z) (/ bound)": lambda row: _error(row, "log_prob"),
            "error of H[q(n\\|z)] (/ bound)": lambda row: _error(row, "index_entropy"),
            "components visited": lambda row: _rounded(row["mean_visited"]),
        },
    )


def _marginals(rows: Sequence[Row]) -> str:
    return _table(
        rows,
        {
            "D": lambda row: str(row["latent_size"]),
            "N = M": lambda row: str(row["num_components"]),
            "method": lambda row: row["method"],
            "seconds": _seconds,
            "times exact": lambda row: _figures(row["times_base"]),
            "peak MiB": lambda row: _rounded(row["peak_mib"]),
            "error of log q(z_j) (/ bound)": lambda row: _error(row, "log_prob"),
        },
    )


def _scaling(all_rows: Sequence[Row]) -> str:
    rows = [row for row in all_rows if row["method"] != COMPILATION]
    table = _table(
        rows,
        {
            "D": lambda row: str(row["latent_size"]),
            "N": lambda row: str(row["num_components"]),
            "M": lambda row: str(row["num_queries"]),
            "method": lambda row: row["method"],
            "seconds": _seconds,
            "share timed": lambda row: _percent(row["share_timed"]),
            "components visited": lambda row: _rounded(row["mean_visited"]),
            "error of log q(z) (/ bound)": lambda row: _error(row, "log_prob"),
        },
    )
    return (
        f"Posteriors of N shifted images, chosen at random from {len(SHIFTS)} times the data: each "
        "image as it is, and moved by one and by two pixels in each of eight directions. Queries "
        "are drawn from the first M of them. The exact times of M = N are scaled up from a share "
        "of the queries, which lie further apart than all of them: they are too large.\n\n"
        f"{table}\n\nThe exponents p of seconds = c N^p, by least squares on the "
        f"logarithms:\n\n{_plain_table(exponents(rows))}{_compilation(all_rows)}"
    )


def _compilation(rows: Sequence[Row]) -> str:
    """What compiling the tree takes, if it was measured."""
    for row in rows:
        if row["method"] == COMPILATION:
            seconds = _figures(row["first_call_seconds"] - row["seconds"])
            return (
                "\n\nThe times are those of a compiled tree: numba compiles it in the first call, "
                f"once for each dtype and for each cache of numba, which took {seconds} s."
            )
    return ""


def exponents(rows: Sequence[Row]) -> list[dict[str, str]]:
    """How the times of the section scaling grow with N.

    Args:
      rows: of that section.

    Returns:
      A row of a table for each latent size, kind of M and method that has at least two sizes.
    """
    kinds = dict.fromkeys((row["latent_size"], row["section"], row["method"]) for row in rows)
    found = []
    for size, section, method in kinds:
        points = [
            (row["num_components"], row["seconds"])
            for row in rows
            if (row["latent_size"], row["section"], row["method"]) == (size, section, method)
        ]
        large = [point for point in points if point[0] >= 60000]
        found.append(
            {
                "D": str(size),
                "M": section.split(", ")[1].removeprefix("M ").removeprefix("= "),
                "method": method,
                "p, all N": _exponent(points),
                "p, N >= 60000": _exponent(large),
            }
        )
    return found


def _surgery(rows: Sequence[Row]) -> str:
    return (
        "`tfs.elbo_surgery` with two codes an observation. The networks alone, compiled by XLA, "
        "encode each observation once, decode the codes and score the observations.\n\n"
    ) + _table(
        rows,
        {
            "D": lambda row: str(row["latent_size"]),
            "N": lambda row: str(row["num_components"]),
            "codes": lambda row: str(row["num_queries"]),
            "part": lambda row: row["method"],
            "seconds": _seconds,
            "range": _range,
            "times the networks": lambda row: _figures(row["times_base"]),
            "peak MiB": lambda row: _rounded(row["peak_mib"]),
        },
    )


def _training(rows: Sequence[Row]) -> str:
    def times(other: str) -> Callable[[Row], str]:
        base = _found(rows, rows[0]["latent_size"], other)
        return lambda row: _ratio(row, base)

    columns: dict[str, Callable[[Row], str]] = {
        "method": lambda row: row["method"],
        "seconds an epoch": _seconds,
        "range": _range,
        "times hand-written": times(HAND_WRITTEN),
        "times torch.compile": times(TORCH_COMPILED),
        "first epoch, compiling": lambda row: _figures(row["first_call_seconds"]),
        "peak MiB": lambda row: _rounded(row["peak_mib"]),
        "loss of the last epoch": lambda row: "" if row["loss"] is None else f"{row['loss']:.2f}",
        "note": lambda row: row["note"] or "",
    }
    return (
        f"An epoch over N = {rows[0]['num_components']} images in batches of 128, of a VAE with "
        f"D = {rows[0]['latent_size']}.\n\n{_table(rows, columns)}"
    )


_SECTIONS: Mapping[str, Callable[[Sequence[Row]], str]] = {
    "evaluation": _evaluation,
    "small_scales": _small_scales,
    "marginals": _marginals,
    "scaling": _scaling,
    "surgery": _surgery,
    "training": _training,
}


def _table(rows: Sequence[Row], columns: Mapping[str, Callable[[Row], str]]) -> str:
    return _plain_table([{name: show(row) for name, show in columns.items()} for row in rows])


def _plain_table(rows: Sequence[Mapping[str, str]]) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _found(rows: Sequence[Row], size: int, method: str) -> Row | None:
    return next(
        (row for row in rows if row["latent_size"] == size and row["method"] == method), None
    )


def _ratio(row: Row | None, base: Row | None) -> str:
    if row is None or base is None or not (row["seconds"] and base["seconds"]):
        return ""
    return _figures(row["seconds"] / base["seconds"])


def _exponent(points: Sequence[tuple[int, float]]) -> str:
    if len({size for size, _ in points}) < 2:
        return ""
    return f"{reference.exponent(*zip(*points, strict=True)):.2f}"


def _seconds(row: Row) -> str:
    return "" if row["seconds"] is None else _figures(row["seconds"])


def _range(row: Row) -> str:
    if row["seconds"] is None:
        return ""
    return f"{_figures(row['seconds_min'])} to {_figures(row['seconds_max'])}"


def _error(row: Row, name: str) -> str:
    error = row[f"{name}_error"]
    return "" if error is None else f"{error:.1e} ({row[f'{name}_error_over_bound']:.2f})"


def _percent(share: float) -> str:
    return f"{_figures(100 * share)}%"


def _rounded(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def _figures(value: float | None) -> str:
    """Three significant figures, without an exponent."""
    if value is None:
        return ""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
