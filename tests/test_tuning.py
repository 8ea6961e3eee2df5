import json

import pytest
import yaml

from coachhook.figure_data import StreamResultError
from coachhook.study import Trial
from coachhook.tuning import TuningError, choose, search, write_chosen


def _trial(root, method: str, values: dict, means: list[float | None], model: str = "world") -> Trial:
    """A trial whose streams, one per seed, end with these means; on the way they were better."""
    paths = []
    for seed, mean in enumerate(means):
        setting = ",".join(f"{name}={value}" for name, value in values.items())
        paths.append(f"model~{model}/dataset~validation/method~{method}/setting~{setting}/seed~{seed}")
        rows = [
            {"step": step, "edits": 4 * step, "protocol": "easyedit", "mean": score}
            | dict.fromkeys(("reliability", "generality", "locality"), score)
            for step, score in ((1, 1.0), (2, mean))
        ]
        (root / paths[-1]).mkdir(parents=True)
        (root / paths[-1] / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Trial(model, method, values, tuple(paths))


def test_the_best_mean_at_the_end_over_all_streams_is_chosen(tmp_path):
    trials = [
        _trial(tmp_path, "memit", {"clamp": 0.5}, [0.9, 0.1]),
        _trial(tmp_path, "memit", {"clamp": 1.0}, [0.6, 0.5]),
        _trial(tmp_path, "memit", {"clamp": 1.5}, [0.6, 0.5]),
        _trial(tmp_path, "grace", {"steps": 10, "radius": 2.0}, [0.2]),
        _trial(tmp_path, "memit", {"clamp": 0.5}, [0.8], model="other"),
    ]
    found = search(trials, tmp_path, "easyedit")
    assert found["mean"].tolist() == pytest.approx([0.5, 0.55, 0.55, 0.2, 0.8])
    assert found["chosen"].tolist() == [False, True, False, True, True]
    assert found["setting"].tolist()[3] == "steps=10,radius=2.0"
    assert choose(trials, found, "world") == {"memit": {"clamp": 1.0}, "grace": {"steps": 10, "radius": 2.0}}
    assert choose(trials, found, "other") == {"memit": {"clamp": 0.5}}


def test_a_trial_without_a_score_is_never_chosen(tmp_path):
    trials = [_trial(tmp_path, "memit", {"clamp": 0.5}, [None]), _trial(tmp_path, "memit", {"clamp": 1.0}, [0.1])]
    assert search(trials, tmp_path, "easyedit")["chosen"].tolist() == [False, True]
    with pytest.raises(TuningError, match="no trial of memit on world has a score"):
        search(trials[:1], tmp_path, "easyedit")


def test_a_missing_stream_is_named(tmp_path):
    trial = Trial("world", "memit", {}, ("model~world/dataset~d/method~memit/setting~default/seed~0",))
    with pytest.raises(StreamResultError, match=r"method~memit/setting~default/seed~0/metrics\.jsonl is missing"):
        search([trial], tmp_path, "easyedit")


def test_what_is_chosen_is_a_line_per_method(tmp_path):
    chosen = {"memit": {"layers": [0, 1], "clamp": 0.5}, "grace": {"replacement": "last"}}
    path = tmp_path / "world.yaml"
    write_chosen(chosen, path)
    text = path.read_text(encoding="utf-8")
    assert yaml.safe_load(text) == chosen
    assert len([line for line in text.splitlines() if not line.startswith("#")]) == 2
