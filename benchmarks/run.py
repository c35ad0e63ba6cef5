r"""Measures time, memory and error of tfp_surgery beside other libraries.

The codes are those of a finished run of `experiments.elbo_surgery`, which is made if it is not
there; a small example that takes a minute or two is

    python -m benchmarks.run --synthetic --latent_sizes=2 --num_components=5000 \
        --sections=evaluation --workdir=runs/small_benchmark

What is measured is left in --workdir as results.json, results.csv and report.md. A run that was
stopped goes on at the section it was in when the same command is given again.
"""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from benchmarks import codes, report, sections
from benchmarks.measure import num_cores

_EXPERIMENT = "benchmarks"
_PEERS = ("jax", "numba", "scipy", "torch")


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags, of which some have the names of those of an experiment."""
    flags.DEFINE_string("workdir", None, "folder of the run", required=True, flag_values=values)
    flags.DEFINE_string("report", None, "further file for the report", flag_values=values)
    flags.DEFINE_list("sections", list(sections.SECTIONS), "what to measure", flag_values=values)
    flags.DEFINE_list(
        "latent_sizes", ["2", "10", "20", "50"], "sizes of the code", flag_values=values
    )
    flags.DEFINE_integer(
        "num_components", 60000, "N, and the number of queries", flag_values=values
    )
    flags.DEFINE_list(
        "sizes", ["15000", "60000", "250000", "1000000"], "N of the scaling", flag_values=values
    )
    flags.DEFINE_integer("fixed_queries", 2000, "fixed M of the scaling", flag_values=values)
    flags.DEFINE_integer("repeats", 5, "timed calls of each method", flag_values=values)
    flags.DEFINE_integer("error_queries", 500, "queries computed in float64", flag_values=values)
    flags.DEFINE_float(
        "share_seconds",
        4.0,
        "time of one call of a method that is timed on a share of the queries",
        flag_values=values,
    )
    flags.DEFINE_boolean("peers", True, "whether to measure other libraries", flag_values=values)
    flags.DEFINE_boolean(
        "synthetic", False, "codes without a VAE, instead of a run's", flag_values=values
    )
    flags.DEFINE_string(
        "codes_run",
        "runs/benchmark_codes",
        "folder of the run that the codes come from",
        flag_values=values,
    )
    flags.DEFINE_string(
        "dataset", "mnist", "data set of that run, if it has to be made", flag_values=values
    )
    flags.DEFINE_integer("epochs", 12, "its epochs", flag_values=values)
    flags.DEFINE_integer(
        "surgery_latent_size", 20, "D of the sections surgery and training", flag_values=values
    )
    flags.DEFINE_list("hidden_sizes", ["500", "500"], "units of the networks", flag_values=values)
    flags.DEFINE_string("data_dir", None, "folder of prepared TFDS data", flag_values=values)
    flags.DEFINE_string(
        "manual_dir", None, "folder with the data set's original files", flag_values=values
    )


def run(
    folder: Path,
    config: dict[str, Any],
    command: str,
    data_dir: str | None = None,
    manual_dir: str | None = None,
) -> dict[str, Any]:
    """Brings the run in `folder` to its end.

    Args:
      folder: its folder.
      config: the values of the flags by name, without those of folders and of the report.
      command: what started it, for the report.
      data_dir: see `tfp_surgery.datasets.load`, as for `manual_dir`.
      manual_dir: likewise.

    Returns:
      The content of `results.json`.

    Raises:
      OSError: if the folder or the data cannot be used.
      ValueError: if the folder holds something else, or a setting is wrong.
    """
    from experiments.common import workdir

    results: dict[str, Any]
    _check(config)
    work = workdir.Run(folder, _EXPERIMENT, config)
    if work.is_finished:
        print(f"{folder} holds the finished run of these settings; nothing was changed.\n")
        results = workdir.read_json(folder / workdir.RESULTS_FILE)
        return results
    codes_run = None if config["synthetic"] else Path(config["codes_run"])
    if codes_run is not None:
        _make_codes_run(codes_run, config, data_dir, manual_dir)
    about = _about_codes(codes_run, config)
    work.begin({"codes": about}, about)
    setting, gpu = _setting(folder, codes_run, config, data_dir, manual_dir)
    rows = []
    for name in config["sections"]:
        path = folder / f"{name}.json"
        if not path.exists():
            workdir.write_json(path, sections.SECTIONS[name](setting))
        rows += workdir.read_json(path)
    results = {
        "machine": {**machine(), "gpu": gpu},
        "versions": {**workdir.versions(), **_peer_versions()},
        "command": command,
        "date": dt.date.today().isoformat(),
        "codes": about,
        "config": config,
        "rows": rows,
    }
    made = (*setting.files.values(), *setting.shifted_files.values(), setting.observations)
    for file in made:
        file.unlink(missing_ok=True)
    workdir.write_csv(folder / "results.csv", rows)
    (folder / "report.md").write_text(report.markdown(results), encoding="utf-8")
    # Written last: where it is, the run is finished.
    workdir.write_json(folder / workdir.RESULTS_FILE, results)
    return results


def machine() -> dict[str, Any]:
    """Processor, cores that may be used, and memory of this machine."""
    processor = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = information.read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        processor = names[0] if names else processor
    return {
        "processor": processor,
        "cores": num_cores(),
        "memory_gib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
    }


def _peer_versions() -> dict[str, str]:
    found = {}
    for package in _PEERS:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _check(config: dict[str, Any]) -> None:
    unknown = sorted(set(config["sections"]) - set(sections.SECTIONS))
    if unknown or not config["sections"]:
        raise ValueError(
            f"--sections takes some of {', '.join(sections.SECTIONS)}, got "
            f"{','.join(config['sections']) or 'none'}."
        )
    if config["synthetic"] and {"surgery", "training"} & set(config["sections"]):
        raise ValueError(
            "the sections surgery and training need the data and networks of a run: leave them "
            "out, or leave out --synthetic."
        )
    for name in ("latent_sizes", "sizes", "hidden_sizes"):
        if not config[name] or min(config[name]) < 1:
            raise ValueError(f"--{name} takes integers from 1 on, got {config[name]}.")
    for name in ("num_components", "fixed_queries", "repeats", "error_queries"):
        if config[name] < 1:
            raise ValueError(f"--{name} must be at least 1, got {config[name]}.")
    if (
        "surgery" in config["sections"]
        and config["surgery_latent_size"] not in (config["latent_sizes"])
    ):
        raise ValueError(
            f"--surgery_latent_size={config['surgery_latent_size']} is none of --latent_sizes."
        )


def _make_codes_run(
    folder: Path, config: dict[str, Any], data_dir: str | None, manual_dir: str | None
) -> None:
    from experiments.common import workdir

    if (folder / workdir.RESULTS_FILE).is_file():
        return
    print(f"Making the run of {folder}, for its codes.", flush=True)
    arguments = {
        "dataset": config["dataset"],
        "latent_sizes": ",".join(map(str, config["latent_sizes"])),
        "hidden_sizes": ",".join(map(str, config["hidden_sizes"])),
        "epochs": config["epochs"],
        "num_samples": 2,
        "workdir": folder,
        "data_dir": data_dir,
        "manual_dir": manual_dir,
    }
    given = [f"--{name}={value}" for name, value in arguments.items() if value is not None]
    subprocess.run([sys.executable, "-m", "experiments.elbo_surgery", *given], check=True)


def _about_codes(codes_run: Path | None, config: dict[str, Any]) -> str:
    if codes_run is None:
        return "synthetic, of no VAE: means N(0, I), standard deviations uniform in [0.05, 0.3]"
    from experiments.common import workdir

    made = workdir.settings_of("codes_run", codes_run, "elbo_surgery")
    missing = sorted(set(config["latent_sizes"]) - set(made["latent_sizes"]))
    if missing:
        raise ValueError(f"--codes_run={codes_run} has no latent sizes {missing}.")
    return (
        f"{made['dataset']}, binarization {made['binarization']}, of VAEs with hidden layers of "
        f"{made['hidden_sizes']} units trained for {made['epochs']} epochs"
    )


def _setting(
    folder: Path,
    codes_run: Path | None,
    config: dict[str, Any],
    data_dir: str | None,
    manual_dir: str | None,
) -> tuple[sections.Setting, str | None]:
    """Writes the files of the codes; the setting, and the name of the GPU if there is one."""
    import tensorflow as tf

    num, most = config["num_components"], max(config["sizes"])
    files = {size: folder / f"latent_{size:02d}.npz" for size in config["latent_sizes"]}
    shifted_files = {}
    if "scaling" in config["sections"]:
        shifted_files = {size: folder / f"shifted_{size:02d}.npz" for size in files}
    if codes_run is not None:
        dataset = codes.training_set(codes_run, data_dir, manual_dir)
        if num > len(dataset):
            raise ValueError(f"--num_components={num} exceeds the data's {len(dataset)}.")
        if shifted_files and most > len(codes.SHIFTS) * len(dataset):
            raise ValueError(
                f"--sizes up to {most} exceed the {len(codes.SHIFTS)} shifts of the data's "
                f"{len(dataset)} images."
            )
        stochastic = dataset.binarization == "stochastic"
        x = dataset.observations(draw_seed=0 if stochastic else None)
    for size, path in files.items():
        if codes_run is None:
            codes.write_synthetic(path, num, size)
        else:
            codes.write_encoded(path, codes.checkpoint_of(codes_run, size), x)
    for size, path in shifted_files.items():
        if codes_run is None:
            codes.write_synthetic(path, most, size)
        else:
            codes.write_encoded(path, codes.checkpoint_of(codes_run, size), x, codes.SHIFTS)
    gpus = tf.config.list_physical_devices("GPU")
    names = [tf.config.experimental.get_device_details(gpu).get("device_name") for gpu in gpus]
    setting = sections.Setting(
        files=files,
        shifted_files=shifted_files,
        num_components=num,
        sizes=config["sizes"],
        fixed_queries=config["fixed_queries"],
        repeats=config["repeats"],
        error_queries=config["error_queries"],
        share_seconds=config["share_seconds"],
        peers=config["peers"],
        has_gpu=bool(gpus),
        run=codes_run,
        surgery_latent_size=config["surgery_latent_size"],
        hidden_sizes=config["hidden_sizes"],
        observations=folder / "observations.npy",
        data_dir=data_dir,
        manual_dir=manual_dir,
    )
    return setting, (names[0] or "one of unknown name") if names else None


def _config_from_flags(values: flags.FlagValues) -> dict[str, Any]:
    given = values.flag_values_dict()
    names = (
        *("peers", "synthetic", "codes_run", "dataset", "epochs", "surgery_latent_size"),
        *("num_components", "fixed_queries", "repeats", "error_queries", "share_seconds"),
        "sections",
    )
    config = {name: given[name] for name in names}
    for name in ("latent_sizes", "sizes", "hidden_sizes"):
        try:
            config[name] = [int(value) for value in given[name]]
        except ValueError:
            raise ValueError(
                f"--{name} takes integers with commas between them, got {','.join(given[name])}."
            ) from None
    return config


def main(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> int:
    """Measures what the flags describe."""
    try:
        if len(argv) > 1:
            raise ValueError(f"unexpected arguments: {' '.join(argv[1:])}; see --help.")
        command = f"python -m benchmarks.run {shlex.join(sys.argv[1:])}"
        results = run(
            Path(values.workdir),
            _config_from_flags(values),
            command,
            values.data_dir,
            values.manual_dir,
        )
        page = report.markdown(results)
        print(page, flush=True)
        if values.report is not None:
            Path(values.report).write_text(page, encoding="utf-8")
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped; the same command goes on with the section it was in.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    app.run(main)
