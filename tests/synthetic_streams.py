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
MORE_SHAPES = {
    "rome": ((0.99, 0.90), (0.80, 0.75), (0.90, 0.80), (0.60, 0.50)),
    "emmet": ((0.95, 0.44), (0.82, 0.47), (0.94, 0.27), (0.62, 0.22)),
    "alphaedit": ((0.97, 0.15), (0.83, 0.20), (0.97, 0.08), (0.68, 0.15)),
    "rect": ((0.93, 0.42), (0.80, 0.46), (0.96, 0.22), (0.66, 0.20)),
    "prune": ((0.90, 0.40), (0.79, 0.43), (0.96, 0.20), (0.66, 0.20)),
    "ultraedit": ((0.96, 0.18), (0.82, 0.22), (0.96, 0.10), (0.67, 0.15)),
    "ft-l": ((0.80, 0.70), (0.50, 0.42), (0.65, 0.50), (0.40, 0.30)),
    "lora": ((0.99, 0.70), (0.62, 0.44), (0.72, 0.53), (0.40, 0.30)),
    "mend": ((0.85, 0.80), (0.75, 0.72), (0.92, 0.85), (0.60, 0.50)),
    "serac": ((0.95, 0.10), (0.85, 0.13), (0.90, 0.12), (0.50, 0.12)),
    "grace": ((1.00, 0.00), (0.05, 0.00), (1.00, 0.00), (0.99, 0.01)),
    "wise": ((0.95, 0.30), (0.75, 0.35), (1.00, 0.00), (0.90, 0.05)),
}
# seconds per edit, bytes of state at first, more of them per edit, slow-down: those of MEMIT, where nothing is given
COSTS = {
    "coachhook": (0.40, 1.6e6, 0, 1.35),
    "ft-m": (0.03, 5e5, 0, 1.0),
    "rome": (0.30, 5e5, 0, 1.0),
    "lora": (0.60, 8e4, 0, 1.1),
    "mend": (0.05, 1e6, 0, 1.0),
    "serac": (0.01, 3e6, 4e3, 2.6),
    "grace": (0.50, 1.2e3, 1.1e3, 1.2),
    "wise": (0.70, 2.0e6, 0, 1.25),
}
KINDS = ("edit", "paraphrase", "other_subject", "same_subject")


def stream_dir(root, dataset, method, setting="default", seed=0, model="world") -> Path:
    return Path(root, f"model~{model}", f"dataset~{dataset}", f"method~{method}", f"setting~{setting}", f"seed~{seed}")


def write_stream(directory, method, *, steps=6, batch=4, seed=0, gain=0.0, same_subject=True, zscores=False):
    """A stream of `steps` batches; `gain` is added to every score (a setting's effect)."""
    random = np.random.default_rng([seed, len(method)])
    shapes = (SHAPES | MORE_SHAPES)[method]
    directory.mkdir(parents=True)
    rows, records = [], []
    for step in range(1, steps + 1):
        scores = [
            float(np.clip(first - lost * (step - 1) / steps + gain + random.normal(0, 0.012), 0, 1))
            for first, lost in shapes
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
            for kind, (first, lost) in zip(KINDS, shapes, strict=True):
                if same_subject or kind != "same_subject":
                    score = float(random.random() < first - lost * age * 1.3)
                    records.append((*place, kind, 0, score, request == 1))
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (directory / "metrics.jsonl").write_text(lines)
    columns = ["step", "edits", "batch", "request", "kind", "prompt", "score", "superseded"]
    frame = pd.DataFrame(records, columns=columns).assign(protocol="easyedit", case_id="")
    pd.concat([frame, frame.assign(protocol="generate", score=0.0)]).to_parquet(directory / "records.parquet")
    write_cost(directory, method, random, steps, batch)
    if zscores:
        write_zscores(directory, random)


def write_cost(directory, method, random, steps, batch):
    """What each step took, and a last row about the edited model."""
    seconds, first, growth, slowdown = COSTS.get(method, (0.35, 1.6e6, 0, 1.0))
    journal = 1200 if method == "grace" else 9000
    rows = []
    for step in range(1, steps + 1):
        edits = step * batch
        taken = float(batch * seconds * random.uniform(0.9, 1.1))
        sizes = {"state_bytes": int(first + growth * edits), "journal_bytes": journal * batch}
        rows.append({"step": step, "edits": edits, "seconds": taken, **sizes})
    edited = float(slowdown * random.uniform(0.97, 1.03))
    times = {"forward_slowdown": edited, "forward_ms_base": 2.0, "forward_ms_edited": 2.0 * edited}
    rows.append(times | {"tokens": 512, "model_bytes": 5_000_000})
    (directory / "cost.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


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


def write_study(
    root, *, datasets=("world-completions", "world-questions"), seeds=2, methods=SHAPES, setting="default", **options
) -> list[Path]:
    """A study's streams of one setting."""
    directories = []
    for dataset in datasets:
        for method in methods:
            for seed in range(seeds):
                directories.append(stream_dir(root, dataset, method, setting, seed))
                write_stream(directories[-1], method, seed=seed, zscores=method == "coachhook" and seed == 0, **options)
    return directories


def write_grid(root, weights, alphas, *, models=("world",), default=None, **options):
    """Streams that vary λ and α at once, best where both are in the middle; `default` is a pair with no name."""
    directories = []
    for model in models:
        for x, weight in enumerate(weights):
            for y, alpha in enumerate(alphas):
                setting = "default" if (weight, alpha) == default else f"covariance_weight={weight},alpha={alpha}"
                directories.append(stream_dir(root, "world-completions", "coachhook", setting, model=model))
                gain = -0.06 * abs(x - len(weights) // 2) - 0.03 * abs(y - len(alphas) // 2)
                write_stream(directories[-1], "coachhook", gain=gain, **options)
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


def write_gates(directory, seed, leverage=True):
    """What comparing the gates of a stream leaves: rows of every kind, or of another gate its own."""
    random = np.random.default_rng(seed)
    names = ("reliability", "generality", "locality", "locality_same_subject")

    def row(kind, gate, value, **values):
        scores = dict(zip(names, random.uniform(0.5, 1, 4), strict=True)) if kind == "tradeoff" else {}
        return {"kind": kind, "gate": gate, "value": value, **scores, **values}

    own = "leverage" if leverage else "paper"
    rows = [row("tradeoff", own, 0)]
    for count in (0, 10):
        shares = {name: random.uniform() for name in ("subjects", "others", "recalled")}
        rows.append(row("length", own, count, **shares))
    if leverage:
        rows += [row("tradeoff", gate, 0) for gate in ("off", "leverage, own key")]
        rows += [row("tradeoff", "leverage, sharpness", sharpness) for sharpness in (5, 20, 80)]
        for gate, off in (("leverage", 1.2), ("ratio", 3.0)):
            rows += [row("tradeoff", f"{gate}, edited fraction", fraction) for fraction in (0.5, 0.8)]
            for rate in (0.02, 0.05, 0.1):
                rates = {"rate": off * rate, "rate_base": rate, "rate_elsewhere": 0.1 * rate}
                rows.append(row("unseen", gate, rate, **rates))
        rows += [row("sketch", own, size, agreement=0.999) for size in (64, 256)]
    directory.mkdir(parents=True, exist_ok=True)
    shares = ["subjects", "others", "recalled", "rate", "rate_base", "rate_elsewhere", "agreement"]
    columns = ["kind", "gate", "value", *names, *shares]
    pd.DataFrame(rows, columns=columns).to_csv(directory / "gates.csv", index=False)


def write_gate_study(root, models=("wide", "narrow"), seeds=3) -> list[Path]:
    """The streams that the figure of the gates is drawn from."""
    directories = []
    for number, (model, method, seed) in enumerate(
        (model, method, seed)
        for model in models
        for method in ("coachhook-leverage", "coachhook")
        for seed in range(seeds)
    ):
        directories.append(stream_dir(root, "world-completions", method, seed=seed, model=model))
        write_gates(directories[-1], number, leverage=method == "coachhook-leverage")
    return directories
