"""Say what the jobs of a study with large models will need of this machine, before the first of them starts; end with
one line where something cannot fit."""

import sys
from collections.abc import Iterator
from pathlib import Path

from transformers import AutoConfig

from coachhook.starting import torch  # first
from coachhook.errors import CoachHookError
from coachhook.needs import Available, Needs, refuse_if_too_large, size
from coachhook.preflight import measure_speed, plan_covariance, plan_stream, plan_training
from coachhook.resources import weights_mb
from coachhook.study import Stream, load_study

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TINY = "tiny" in sys.argv[2:]


def jobs(model: str, entry: dict, config, streams: list[Stream], **place) -> Iterator[Needs]:
    """What the model on disk, its covariance and its trained editors need, and of each method the largest stream."""
    if "hub" in entry and not Path("results/models", model, "source.json").exists():
        weights = weights_mb(entry) * 10**6
        yield Needs(0, weights, 0, None, {}, {"weights": weights}, f"fetching {model}", DEVICE)
    if any(stream.needs_covariance for stream in streams):
        layers = [int(layer) for layer in entry["covariance"]["layers"].split(",")]
        yield plan_covariance(config, layers, max_tokens=entry["covariance"]["max_tokens"], **place)
    trained = [stream for stream in streams if stream.training is not None]
    for stream in {(s.editor, *s.hyperparameters["layers"], *s.training.values()): s for s in trained}.values():
        yield plan_training(config, stream.editor, stream.hyperparameters["layers"], stream.training, **place)
    for method in sorted({stream.method for stream in streams}):
        largest = max((s for s in streams if s.method == method), key=lambda s: (s.batch_size, s.edits))
        values = {name: value for name, value in largest.hyperparameters.items() if name != "layers"}
        sizes = {"edits": largest.edits, "batch_size": largest.batch_size, "evaluate_every": largest.evaluate_every}
        layers = largest.hyperparameters["layers"]
        yield plan_stream(config, largest.editor, layers, **sizes, hyperparameters=values, **place)


def plan(model: str, entry: dict, streams: list[Stream], available: Available) -> None:
    config = AutoConfig.for_model(**entry["config"], name_or_path=model)
    place = {"device": DEVICE, "dtype": entry["dtype"], "architecture": entry.get("architecture")}
    if "device_map" not in entry:  # else it has more than this one device
        for needs in jobs(model, entry, config, streams, **place):
            refuse_if_too_large(needs, available)
    speed = measure_speed(config, DEVICE, entry["dtype"], seconds=1 if TINY else 10)
    for needs in jobs(model, entry, config, streams, **place, speed=speed):
        time = "" if needs.seconds is None else f", about {max(1, round(needs.seconds / 60))} minutes"
        room = f"{size(needs.memory_bytes)} on {needs.device}, {size(needs.disk_bytes)} of disk"
        print(f"{needs.job}: {room}{time}", flush=True)


try:
    study = load_study(sys.argv[1], Path("config"), Path("workflow/schemas"), TINY)
    for name, entry in study.models.items():
        own = [stream for stream in study.streams.values() if stream.model == name]
        if own and "config" in entry:
            plan(name, entry, own, Available.measure(DEVICE, "results"))
except CoachHookError as error:
    sys.exit(str(error))
