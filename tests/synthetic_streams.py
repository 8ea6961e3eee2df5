"""Stream directories as a study leaves them, with made-up numbers of a realistic shape."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

# method: (score at first, score lost over the stream) for reliability, generality, locality, same subject
SHAPES = {
    "coachhook": ((0.97, 0.12), (0.86, 0.15), (0.99, 0.03), (0.80, 0.12)),
    "coachhook-nohook": ((0.96, 0.22), (0.84, 0.28), (0.96, 0.14), (0.66, 0.18)),
    "memit": ((0.95, 0.45), (0.82, 0.48), (0.95, 0.25), (0.64, 0.22)),
    "ft-m": ((0.99, 0.72), (0.60, 0.45), (0.70, 0.55), (0.40, 0.30)),
}
KINDS = ("edit", "paraphrase", "other_subject", "same_subject")


def stream_dir(root, dataset, method, setting="default", seed=0, model="world") -> Path:
    return Path(root, f"model~{model}", f"dataset~{dataset}", f"method~{method}", f"setting~{setting}", f"seed~{seed}")


def write_stream(directory, method, *, steps=6, batch=4, seed=0, gain=0.0, same_subject=True, zscores=False):
    """A stream of `steps` batches; `gain` is added to every score (a setting's effect)."""
    random = np.random.default_rng([seed, len(method)])
    directory.mkdir(parents=True)
    rows, records = [], []
    for step in range(1, steps + 1):
        scores = [
            float(np.clip(first - lost * (step - 1) / steps + gain + random.normal(0, 0.012), 0, 1))
            for first, lost in SHAPES[method]
        ]
        alpha = {str(layer): round(2.2 - 0.1 * layer - 0.01 * step, 3) for layer in range(3)}
        for protocol, factor in (("easyedit", 1.0), ("generate", 0.7)):
            values = [round(score * factor, 6) for score in scores]
            row = {"step": step, "edits": step * batch, "protocol": protocol}
            row |= dict(zip(("reliability", "generality", "locality"), values[:3], strict=True))
            row |= {"locality_same_subject": values[3] if same_subject else None}
            row |= {"mean": sum(values[:3]) / 3, "reliability_current_batch": 0.9}
            rows.append(row | {"alpha": alpha if method == "coachhook" else None})
        for request in range(step * batch):
            age = (step * batch - request) / (steps * batch)
            place = (step, step * batch, request // batch + 1, request)
            for kind, (first, lost) in zip(KINDS, SHAPES[method], strict=True):
                if same_subject or kind != "same_subject":
                    score = float(random.random() < first - lost * age * 1.3)
                    records.append((*place, kind, 0, score, request == 1))
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (directory / "metrics.jsonl").write_text(lines)
    columns = ["step", "edits", "batch", "request", "kind", "prompt", "score", "superseded"]
    frame = pd.DataFrame(records, columns=columns).assign(protocol="easyedit", case_id="")
    pd.concat([frame, frame.assign(protocol="generate", score=0.0)]).to_parquet(directory / "records.parquet")
    if zscores:
        write_zscores(directory, random)


def write_zscores(directory, random, requests=60):
    """z in prompts of 12 to 18 tokens, that of the subject's token the highest as a rule."""
    parts = []
    for layer in range(3):
        for kind, height in (("edit", 2.9), ("paraphrase", 2.3)):
            for request in range(requests):
                others = random.normal(-0.2, 0.6, int(random.integers(12, 18)))
                z = np.append(others, random.normal(height - 0.2 * layer, 0.35))
                roles = ["other"] * len(others) + ["subject"]
                parts.append(pd.DataFrame({"z": z, "role": roles}).assign(layer=layer, kind=kind, request=request))
    pd.concat(parts).to_parquet(directory / "zscores.parquet")


def write_study(root, *, datasets=("world-completions", "world-questions"), seeds=2, **options) -> list[Path]:
    """A study's default streams, of every method in SHAPES."""
    directories = []
    for dataset in datasets:
        for method in SHAPES:
            for seed in range(seeds):
                directories.append(stream_dir(root, dataset, method, seed=seed))
                write_stream(directories[-1], method, seed=seed, zscores=method == "coachhook" and seed == 0, **options)
    return directories


def write_sweep(root, parameter, values, *, methods=("coachhook",), seeds=2, **options):
    """Streams of the settings parameter=value, best in the middle."""
    directories = []
    for method in methods:
        for position, value in enumerate(values):
            for seed in range(seeds):
                directory = stream_dir(root, "world-completions", method, f"{parameter}={value}", seed)
                gain = -0.06 * abs(position - len(values) // 2)
                write_stream(directory, method, seed=seed, gain=gain, **options)
                directories.append(directory)
    return directories
