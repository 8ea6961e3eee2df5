"""The numbers each figure is drawn from, gathered from stream directories.

A stream directory says in its path what was run: `.../model~M/dataset~D/method~X/setting~S/seed~N`, where S
is "default" or, as in `covariance_weight=500`, what differs. It holds `metrics.jsonl` (a row per evaluation),
`records.parquet` (a row per step, request and prompt), `cost.jsonl` (`cost_data`) and, if asked for, `zscores.parquet`.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import harmonic_mean

import numpy as np
import pandas as pd

from coachhook.errors import CoachHookError

RUN = ["model", "dataset", "method", "setting", "seed"]
SCORES = ["reliability", "generality", "locality"]
MORE_SCORES = ["locality_same_subject", "mean"]
FURTHER_SCORES = ["portability", "score"]  # only where the requests have such probes, and where the protocol has one
VALID = "_not_superseded"  # the same score without the requests that a later one contradicts
_SCORE_OF_KIND = {
    "edit": "reliability",
    "paraphrase": "generality",
    "other_subject": "locality",
    "same_subject": "locality_same_subject",
}
_BIN = 0.25  # of z; the gate's threshold lies near 2, so its neighbourhood stays visible


class StreamResultError(CoachHookError, ValueError):
    """Stream results that cannot be used, in one line: the directory, what is wrong and what to do."""


def run_of(stream_dir: str | os.PathLike) -> dict[str, str | int]:
    """What was run in a stream directory: model, dataset, method, setting and (as a number) seed."""
    parts = dict(part.split("~", 1) for part in Path(stream_dir).parts if "~" in part)
    missing = [key for key in RUN if key not in parts]
    if missing:
        problem = f"{stream_dir}: the path lacks {missing[0]}~...; it should end in {'~/'.join(RUN)}~"
        raise StreamResultError(problem)
    try:
        return {key: int(parts[key]) if key == "seed" else parts[key] for key in RUN}
    except ValueError:
        raise StreamResultError(f"{stream_dir}: seed~{parts['seed']} is no whole number") from None


def runs(stream_dirs: Iterable[str | os.PathLike]) -> Iterator[tuple[Path, dict]]:
    """Each stream's directory (its metrics.jsonl may be given instead) and run, in the order of the runs."""
    directories = {Path(entry).parent if Path(entry).suffix else Path(entry) for entry in stream_dirs}
    if not directories:
        raise StreamResultError("no stream directory was given; run streams first")
    runs = [(directory, run_of(directory)) for directory in directories]
    return iter(sorted(runs, key=lambda entry: tuple(entry[1].values())))


def read_rows(path: Path) -> Iterator[dict]:
    """The rows of a stream's `.jsonl` file; StreamResultError where it is missing or broken."""
    if not path.exists():
        raise StreamResultError(f"{path} is missing; run this stream")
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            problem = f"{path}: line {number} is no valid JSON ({error.msg}); run this stream again"
            raise StreamResultError(problem) from None


def collect(stream_dirs: Iterable[str | os.PathLike], valid: bool = True) -> pd.DataFrame:
    """All rows of all streams' metrics.jsonl, one DataFrame: the run's columns, then the rows' own.

    Scores are floats in 0..1, NaN where null; the gate's thresholds become `alpha_<layer>`. valid: add, from
    records.parquet, each score as `<score>_not_superseded`, over the requests that no later one contradicts.
    """
    rows = []
    for directory, run in runs(stream_dirs):
        single = "round=single" in str(run["setting"]).split(",")
        of_valid = _scores_not_superseded(directory, single) if valid else {}
        for row in read_rows(directory / "metrics.jsonl"):
            row |= of_valid.get((row["step"], row["protocol"]), {})
            if valid and "score" in row:
                row[f"score{VALID}"] = harmonic_mean([row.get(f"{score}{VALID}", np.nan) for score in SCORES])
            thresholds = row.pop("alpha", None) or {}
            rows.append(run | row | {f"alpha_{layer}": alpha for layer, alpha in thresholds.items()})
    frame = pd.DataFrame(rows)
    if frame.empty:
        raise StreamResultError("the streams hold no evaluation; run them again")
    for score in SCORES + MORE_SCORES:
        frame[score] = pd.to_numeric(frame[score]) if score in frame else np.nan
    return frame


def of_streams(frame: pd.DataFrame, stream_dirs: Iterable[str | os.PathLike]) -> pd.DataFrame:
    """Of what `collect` returns, the rows of some streams."""
    wanted = {tuple(run_of(directory).values()) for directory in stream_dirs}
    return frame[[run in wanted for run in frame[RUN].itertuples(index=False, name=None)]]


def side_effects(columns: Iterable[str]) -> list[str]:
    """Of the columns of a table those of fluency and general ability; the base model's end in `_base`."""
    wanted = ("fluency", "fluency_base")
    return [name for name in columns if name in wanted or (name.startswith("ability_") and not name.endswith("_sd"))]


def _scores_not_superseded(directory: Path, single: bool) -> dict[tuple[int, str], dict[str, float]]:
    """Scores by step and protocol: the mean of a request's prompts, then over requests, as in the metrics.

    single: a single round, whose records are about a step's own batch and whose metrics are about all of them.
    """
    columns = ["step", "protocol", "kind", "request", "score", "superseded"]
    records = _read_parquet(directory / "records.parquet", columns)
    records = records.assign(step=records["step"].max()) if single else records
    records = records[~records["superseded"]]
    of_request = records.groupby(["step", "protocol", "kind", "request"], observed=True)["score"].mean()
    scores = of_request.groupby(level=["step", "protocol", "kind"]).mean().unstack("kind")
    further = [kind for kind in scores if kind not in _SCORE_OF_KIND]  # they are called as their scores are
    scores = scores.reindex(columns=[*_SCORE_OF_KIND, *further]).rename(columns=_SCORE_OF_KIND)
    scores["mean"] = scores[SCORES].mean(axis="columns")
    return scores.add_suffix(VALID).to_dict("index")


def final(frame: pd.DataFrame, protocol: str = "easyedit") -> pd.DataFrame:
    """Of every stream, the row of its last evaluation under one protocol."""
    rows = frame[frame["protocol"] == protocol]
    if rows.empty:
        known = ", ".join(sorted(frame["protocol"].unique()))
        raise StreamResultError(f"no row has the protocol {protocol!r}; there is {known}")
    return rows.sort_values([*RUN, "step"], kind="stable").groupby(RUN, as_index=False).tail(1)


def hook(stream_dirs: Iterable[str | os.PathLike], protocol: str = "easyedit") -> pd.DataFrame:
    """The default setting's scores over the number of edits: one row per method, seed and evaluation."""
    frame = collect(stream_dirs, valid=False)
    rows = frame[(frame["setting"] == "default") & (frame["protocol"] == protocol)]
    if rows.empty:
        raise StreamResultError(f'no stream has the setting "default" and the protocol {protocol!r}')
    columns = ["method", "seed", "edits", *SCORES, *MORE_SCORES, "step", "dataset", "model", "protocol"]
    order = ["model", "dataset", "method", "seed", "step"]
    return rows.sort_values(order, kind="stable")[columns].reset_index(drop=True)


def frontier(stream_dirs: Iterable[str | os.PathLike], protocol: str = "easyedit") -> pd.DataFrame:
    """The default setting's scores after the last batch: one row per method and seed."""
    frame = collect(stream_dirs, valid=False)
    rows = frame[frame["setting"] == "default"]
    if rows.empty:
        raise StreamResultError('no stream has the setting "default"')
    columns = ["method", "seed", *SCORES, *MORE_SCORES, "edits", "dataset", "model", "protocol"]
    rows = final(rows, protocol).sort_values(["model", "dataset", "method", "seed"])
    return rows[columns].reset_index(drop=True)


def sweep(
    stream_dirs: Iterable[str | os.PathLike],
    parameters: Sequence[str],
    defaults: Mapping[str, float | str | list] | None = None,
    protocol: str = "easyedit",
) -> pd.DataFrame:
    """Scores after the last batch against hyper-parameters: one row per method, seed and value of each.

    A parameter that a stream's setting does not name has its value in `defaults`; streams whose settings name
    anything else, or lack a value, are left out. Streams whose defaults differ need a call each.
    """
    frame = final(collect(stream_dirs, valid=False), protocol)
    chosen = {name: _setting_text(value) for name, value in (defaults or {}).items() if name in parameters}
    rows = []
    for row in frame.to_dict("records"):
        named = dict(part.split("=", 1) for part in row["setting"].split(",") if "=" in part)
        values = chosen | named
        if values.keys() == set(parameters):
            same = [value_order(values[name]) == value_order(chosen.get(name)) for name in parameters]
            rows.append(row | values | {"is_default": all(same)})
    if not rows:
        wanted = ",".join(f"{name}=..." for name in parameters)
        raise StreamResultError(f"no stream has a setting {wanted}; give the sweep's streams")
    order = ["model", "dataset", "method", "seed"]
    rows.sort(key=lambda row: ([row[key] for key in order], [value_order(row[name]) for name in parameters]))
    columns = ["method", "seed", *parameters, *SCORES, *MORE_SCORES, "edits", "is_default"]
    return pd.DataFrame(rows)[[*columns, "dataset", "model", "protocol"]]


def _setting_text(value: object) -> str:
    """A value as it stands in a setting's name."""
    return "-".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def value_order(value: object) -> tuple:
    """A sort key for a setting's value: numbers by size, lists of layers by length and then by layer."""
    try:
        return (1, float(str(value)))
    except ValueError:
        numbers = tuple(float(number) for number in re.findall(r"\d+(?:\.\d+)?", str(value)))
        return (len(numbers), *numbers)


def retention(stream_dirs: Iterable[str | os.PathLike], protocol: str = "easyedit") -> pd.DataFrame:
    """Mean reliability of each batch at each evaluated step, over requests and seeds, of the default setting.

    `reliability_not_superseded` leaves out requests that a later one contradicts (empty where none is left).
    """
    columns = ["step", "edits", "batch", "kind", "protocol", "score", "superseded"]
    cells = []
    for directory, run in runs(stream_dirs):
        if run["setting"] != "default":
            continue
        records = _read_parquet(directory / "records.parquet", columns)
        records = records[(records["kind"] == "edit") & (records["protocol"] == protocol)]
        cells.append(records.assign(**run))
    records = pd.concat(cells) if cells else pd.DataFrame()
    if records.empty:
        raise StreamResultError(f'no stream of the setting "default" has records of the protocol {protocol!r}')
    key = ["model", "dataset", "method", "batch", "step", "edits"]
    records = records.assign(valid=records["score"].where(~records["superseded"]))
    means = records.groupby([*key, "seed"], as_index=False).agg(
        reliability=("score", "mean"),
        reliability_not_superseded=("valid", "mean"),
        requests=("score", "size"),
    )
    means = means.groupby(key, as_index=False).agg(
        reliability=("reliability", "mean"),
        reliability_not_superseded=("reliability_not_superseded", "mean"),
        requests=("requests", "sum"),
        seeds=("seed", "nunique"),
    )
    first = ["method", "batch", "step", "edits", "reliability", "reliability_not_superseded"]
    return means.assign(protocol=protocol)[[*first, "requests", "seeds", "dataset", "model", "protocol"]]


def zscore(stream_dirs: Iterable[str | os.PathLike], method: str = "coachhook") -> pd.DataFrame:
    """How z is distributed at the subject's token and at the others, per layer and kind of prompt.

    One row per bin [z_low, z_high), over seeds: `count` tokens, their `share` of the role's tokens;
    `alpha`, the layer's last threshold (mean over seeds). Default streams without z-scores are left out.
    """
    parts, thresholds = [], []
    for directory, run in runs(stream_dirs):
        path = directory / "zscores.parquet"
        if run["setting"] != "default" or run["method"] != method or not path.exists():
            continue
        parts.append(_read_parquet(path, ["layer", "kind", "role", "z"]).assign(**run))
        for layer, alpha in ([*read_rows(directory / "metrics.jsonl")][-1].get("alpha") or {}).items():
            thresholds.append({**run, "layer": int(layer), "alpha": alpha})
    if not parts:
        problem = f"no default stream of {method} holds zscores.parquet; have the stream write z-scores"
        raise StreamResultError(problem)
    tokens = pd.concat(parts).dropna(subset="z")
    role = ["model", "dataset", "method", "layer", "kind", "role"]
    tokens = tokens.assign(bin=np.floor(tokens["z"] / _BIN).astype(int))
    counts = tokens.groupby([*role, "bin"], as_index=False).size().rename(columns={"size": "count"})
    counts["share"] = counts["count"] / counts.groupby(role)["count"].transform("sum")
    counts = counts.assign(z_low=counts["bin"] * _BIN, z_high=(counts["bin"] + 1) * _BIN, alpha=np.nan)
    if thresholds:
        alpha = pd.DataFrame(thresholds).groupby(role[:4], as_index=False)["alpha"].mean()
        counts = counts.drop(columns="alpha").merge(alpha, on=role[:4], how="left")
    columns = ["layer", "kind", "role", "z_low", "z_high", "count", "share", "alpha"]
    return counts[[*columns, "method", "dataset", "model"]]


def _read_parquet(path: Path, columns: list[str]) -> pd.DataFrame:
    if not path.exists():
        raise StreamResultError(f"{path} is missing; run this stream again")
    try:
        return pd.read_parquet(path, columns=columns)
    except (OSError, ValueError) as error:  # pyarrow's errors are both; they span lines
        problem = f"{path} cannot be read ({str(error).splitlines()[0]}); run this stream again"
        raise StreamResultError(problem) from None
