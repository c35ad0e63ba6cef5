"""What is measured, section by section: methods side by side, and a row for each."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import codes, reference
from benchmarks.codes import Source
from benchmarks.measure import Measurement, Task, side_by_side

EXACT, TREE, GRADIENT = "exact", "tolerance 1e-4", "exact, forward and backward"
COMPILATION = f"{TREE}, without numba's cache"
TFD, TORCH = "tfd.MixtureSameFamily, XLA", "torch MixtureSameFamily"
MARGINALS, MARGINALS_EXACT = "interpolated, tolerance 1e-5", "exact, one dimension times D"
SURGERY, NETWORKS = "elbo_surgery", "the networks alone, XLA"
SURGERY_TREE = f"{SURGERY}, {TREE}"
FIT, HAND_WRITTEN, TORCH_COMPILED = "tfs.VAE.fit", "hand-written tf.function, XLA", "torch.compile"
ON_GPU = ", GPU"

_TOLERANCE, _MARGINAL_TOLERANCE = 1e-4, 1e-5
_OURS, _PEERS, _TRAINING = "benchmarks.methods", "benchmarks.peers", "benchmarks.training"
_NUM_SAMPLES = 2
_MARGINAL_ERROR_DIMENSIONS = 5

Rows = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Setting:
    """What the sections measure on.

    Attributes:
      files: of the codes of the images, by latent size.
      shifted_files: of the codes of the shifted images, likewise; only for the scaling.
      num_components: N = M, except where sizes vary.
      sizes: numbers of components for the scaling.
      fixed_queries: M for the scaling with a fixed number of queries.
      repeats: timed calls of each method.
      error_queries: queries that are computed in float64.
      share_seconds: time of one call of a method that is timed on a share of the queries.
      peers: whether other libraries are measured.
      has_gpu: whether TensorFlow sees one.
      run: folder of the run of `experiments.elbo_surgery`; None with synthetic codes.
      surgery_latent_size: D of the whole surgery and of training.
      hidden_sizes: of the networks that are trained.
      observations: `.npy` file of the training set, made for `training`.
      data_dir: see `tfp_surgery.datasets.load`, as for `manual_dir`.
      manual_dir: likewise.
    """

    files: Mapping[int, Path]
    shifted_files: Mapping[int, Path]
    num_components: int
    sizes: Sequence[int]
    fixed_queries: int
    repeats: int
    error_queries: int
    share_seconds: float
    peers: bool
    has_gpu: bool
    run: Path | None
    surgery_latent_size: int
    hidden_sizes: Sequence[int]
    observations: Path
    data_dir: str | None
    manual_dir: str | None

    def source(self, latent_size: int, **changes: Any) -> Source:
        """The codes of a latent size, a query for each component."""
        made = Source(str(self.files[latent_size]), self.num_components, self.num_components)
        return dataclasses.replace(made, **changes)

    def measured(self, tasks: Sequence[Task]) -> dict[str, Measurement]:
        """The tasks, side by side."""
        return side_by_side(tasks, self.repeats, self.share_seconds)


def evaluation(setting: Setting) -> Rows:
    """log q(z) of N codes: exact, with a tolerance, with gradients, and in other libraries."""
    rows: Rows = []
    for size in setting.files:
        print(f"evaluation, D = {size}", flush=True)
        source = setting.source(size)
        tasks = [
            Task(EXACT, _OURS, "evaluation", {"source": source}),
            Task(TREE, _OURS, "evaluation", {"source": source, "tolerance": _TOLERANCE}),
            Task(GRADIENT, _OURS, "gradient", {"source": source}),
        ]
        if setting.peers:
            peers = (
                (TFD, "tfd_mixture", ()),
                (TORCH, "torch_mixture", ("torch",)),
                ("JAX, streamed", "jax_streamed", ("jax",)),
                ("scipy logsumexp", "scipy_logsumexp", ("scipy",)),
            )
            tasks += [
                Task(label, _PEERS, function, {"source": source}, requires)
                for label, function, requires in peers
            ]
        if setting.has_gpu:
            tasks += [
                dataclasses.replace(task, label=f"{task.label}{ON_GPU}", on_gpu=True)
                for task in tasks
                if task.label in (EXACT, GRADIENT, TFD)
            ]
        rows += _rows("evaluation", setting.measured(tasks), EXACT, source, setting.error_queries)
    return rows


def small_scales(setting: Setting) -> Rows:
    """The error where posteriors are 10 and 1000 times narrower, with codes drawn from those."""
    rows: Rows = []
    for size in setting.files:
        for shrink in (10.0, 1000.0):
            print(f"small_scales, D = {size}, standard deviations / {shrink:g}", flush=True)
            source = setting.source(size, shrink=shrink, seed=1)
            tasks = [
                Task(EXACT, _OURS, "evaluation", {"source": source}),
                Task(TREE, _OURS, "evaluation", {"source": source, "tolerance": _TOLERANCE}),
            ]
            measured = side_by_side(tasks, 1, setting.share_seconds)
            rows += _rows("small_scales", measured, EXACT, source, setting.error_queries)
    return rows


def marginals(setting: Setting) -> Rows:
    """log q(z_j) of N codes in all dimensions."""
    rows: Rows = []
    for size in setting.files:
        print(f"marginals, D = {size}", flush=True)
        source = setting.source(size)
        one = dataclasses.replace(source, dimensions=1)
        tolerance = {"tolerance": _MARGINAL_TOLERANCE}
        measured = setting.measured(
            [
                Task(MARGINALS, _OURS, "marginals", {"source": source, **tolerance}),
                Task(MARGINALS_EXACT, _OURS, "marginals", {"source": one}),
            ]
        )
        exact = measured[MARGINALS_EXACT]
        measured[MARGINALS_EXACT] = dataclasses.replace(
            exact, seconds=tuple(size * value for value in exact.seconds), share=1 / size
        )
        rows += _rows("marginals", measured, MARGINALS_EXACT, source, 0)
        data = source.load()
        shown = np.unique(np.linspace(0, size - 1, _MARGINAL_ERROR_DIMENSIONS).astype(int))
        queries = data.z[: setting.error_queries]
        expected = np.stack(
            [
                reference.log_prob_and_index_entropy(
                    queries[:, [j]], data.loc[:, [j]], data.scale[:, [j]]
                )[0]
                for j in shown
            ],
            axis=1,
        )
        bound = _MARGINAL_TOLERANCE + reference.error_bound(expected)
        values = measured[MARGINALS].outputs["log_prob"][:, shown]
        rows[-2].update(_errors("log_prob", reference.max_error(values, expected, bound)))
        values = exact.outputs["log_prob"].reshape(-1, 1)
        errors = reference.max_error(values, expected[:, :1], bound[:, :1])
        rows[-1].update(_errors("log_prob", errors))
    return rows


def scaling(setting: Setting) -> Rows:
    """Time over N, for a fixed number of queries and for M = N, on codes of shifted images."""
    rows = _compilation(setting)
    most_pairs = setting.num_components**2
    for size in setting.files:
        for num in setting.sizes:
            print(f"scaling, D = {size}, N = {num}", flush=True)
            few = min(setting.fixed_queries, num)
            share = min(num, max(few, most_pairs // num))
            for section, num_queries, exact_queries in (
                ("scaling, M fixed", few, few),
                ("scaling, M = N", num, share),
            ):
                source = Source(str(setting.shifted_files[size]), num, num_queries)
                exact_source = dataclasses.replace(source, num_queries=exact_queries)
                tolerance = {"tolerance": _TOLERANCE}
                measured = setting.measured(
                    [
                        Task(EXACT, _OURS, "evaluation", {"source": exact_source}),
                        Task(TREE, _OURS, "evaluation", {"source": source, **tolerance}),
                    ]
                )
                exact, factor = measured[EXACT], num_queries / exact_queries
                measured[EXACT] = dataclasses.replace(
                    exact,
                    seconds=tuple(factor * value for value in exact.seconds),
                    share=1 / factor,
                )
                rows += _rows(section, measured, EXACT, source, setting.error_queries // 5)
    return rows


def _compilation(setting: Setting) -> Rows:
    """The first call of the tree in a process whose numba finds no cache."""
    if importlib.util.find_spec("numba") is None:
        return []
    print("scaling, compilation of the tree", flush=True)
    file = next(iter(setting.shifted_files.values()))
    num = min(setting.fixed_queries, *setting.sizes)
    source = Source(str(file), num, num)
    arguments = {"source": source, "tolerance": _TOLERANCE}
    measured = side_by_side([Task(COMPILATION, _OURS, "compilation", arguments)], 1, 0.0)
    return _rows("scaling, compilation", measured, COMPILATION, source, 0)


def surgery(setting: Setting) -> Rows:
    """The whole of `elbo_surgery`, and beside it the networks that it calls."""
    if setting.run is None:
        raise ValueError("the section surgery needs the networks of a run, not synthetic codes.")
    size = setting.surgery_latent_size
    print(f"surgery, D = {size}", flush=True)
    checkpoint = str(codes.checkpoint_of(setting.run, size))
    common = {
        "checkpoint": checkpoint,
        "run_folder": str(setting.run),
        "num_samples": _NUM_SAMPLES,
        "data_dir": setting.data_dir,
        "manual_dir": setting.manual_dir,
    }
    measured = setting.measured(
        [
            Task(SURGERY, _OURS, "whole_surgery", common),
            Task(SURGERY_TREE, _OURS, "whole_surgery", {**common, "tolerance": _TOLERANCE}),
            Task(NETWORKS, _OURS, "networks", common),
        ]
    )
    num = measured[SURGERY].outputs["num_observations"]
    counts = {"num_components": num, "num_queries": _NUM_SAMPLES * num}
    rows = _rows("surgery", measured, NETWORKS, setting.source(size), 0)
    return [{**row, **counts} for row in rows]


def training(setting: Setting) -> Rows:
    """An epoch of a VAE."""
    if setting.run is None:
        raise ValueError("the section training needs the data of a run, not synthetic codes.")
    print("training", flush=True)
    size = setting.surgery_latent_size
    dataset = codes.training_set(setting.run, setting.data_dir, setting.manual_dir)
    x = dataset.observations(draw_seed=0 if dataset.binarization == "stochastic" else None)
    np.save(setting.observations, x)
    network = {"latent_size": size, "hidden_sizes": list(setting.hidden_sizes)}
    data = {
        "run": str(setting.run),
        "data_dir": setting.data_dir,
        "manual_dir": setting.manual_dir,
    }
    tasks = [
        Task(FIT, _TRAINING, "fit", {**network, **data}),
        Task(HAND_WRITTEN, _TRAINING, "hand_written", {**network, **data}),
    ]
    if setting.peers:
        arguments = {**network, "observations": str(setting.observations)}
        tasks.append(Task(TORCH_COMPILED, _TRAINING, "torch_compiled", arguments, ("torch",)))
    measured = setting.measured(tasks)
    rows = _rows("training", measured, FIT, setting.source(size), 0)
    for row in rows:
        row.update(num_components=len(x), num_queries=len(x))
        row["loss"] = measured[row["method"]].outputs.get("loss")
    return rows


SECTIONS: Mapping[str, Callable[[Setting], Rows]] = {
    "evaluation": evaluation,
    "small_scales": small_scales,
    "marginals": marginals,
    "scaling": scaling,
    "surgery": surgery,
    "training": training,
}


def _rows(
    section: str, measured: Mapping[str, Measurement], base: str, source: Source, num_errors: int
) -> Rows:
    """A row for each measurement; errors of evaluations on the first queries."""
    data = source.load()
    latent_size = data.loc.shape[1]
    queries = data.z[:num_errors]
    expected = reference.log_prob_and_index_entropy(queries, data.loc, data.scale)
    rows: Rows = []
    for measurement in measured.values():
        row: dict[str, Any] = {
            "section": section,
            "latent_size": latent_size,
            "num_components": source.num_components,
            "num_queries": source.num_queries,
            "shrink": source.shrink,
            "method": measurement.label,
            **_times(measurement.seconds),
            "times_base": None,
            "base": base,
            "share_timed": measurement.share,
            "first_call_seconds": _number(measurement.first_call_seconds),
            "peak_mib": measurement.peak_mib,
            **_errors("log_prob", None),
            **_errors("index_entropy", None),
            "mean_visited": measurement.outputs.get("mean_visited"),
            "loss": None,
            "note": measurement.note,
        }
        if measurement.seconds and measured[base].seconds:
            row["times_base"] = measurement.median / measured[base].median
        for name, values in zip(("log_prob", "index_entropy"), expected, strict=True):
            if num_errors and name in measurement.outputs:
                bound = reference.error_bound(expected[0])
                if measurement.label == TREE:
                    bound = bound + _TOLERANCE
                computed = measurement.outputs[name]
                row.update(_errors(name, reference.max_error(computed, values, bound)))
        rows.append(row)
    return rows


def _times(seconds: Sequence[float]) -> dict[str, float | int | None]:
    if not seconds:
        return {"seconds": None, "seconds_min": None, "seconds_max": None, "repeats": 0}
    return {
        "seconds": statistics.median(seconds),
        "seconds_min": min(seconds),
        "seconds_max": max(seconds),
        "repeats": len(seconds),
    }


def _errors(name: str, errors: tuple[float, float] | None) -> dict[str, float | None]:
    error, over_bound = errors or (math.nan, math.nan)
    return {f"{name}_error": _number(error), f"{name}_error_over_bound": _number(over_bound)}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
