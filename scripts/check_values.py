"""Hold all hyper-parameters of a study to the methods that have them, before any job; one line says what is wrong."""

import json
import sys
from pathlib import Path

import coachhook.starting  # noqa: F401  first
from coachhook.errors import CoachHookError
from coachhook.hyperparameters import configure, registered
from coachhook.metrics.ability import check_tasks
from coachhook.study import load_study

checked, tiny = set(), "tiny" in sys.argv[2:]
streams = load_study(sys.argv[1], Path("config"), Path("workflow/schemas"), tiny).streams.values()
ability = next((stream.ability for stream in streams if stream.ability), None)  # all that have any have the same
try:
    if ability:
        check_tasks(ability["tasks"], ability.get("include_path"))
except CoachHookError as error:
    sys.exit(f"config/studies/{sys.argv[1]}.yaml: {error}")
for stream in streams:
    settings = json.dumps([stream.editor, stream.hyperparameters, stream.training])
    if settings in checked:
        continue
    checked.add(settings)
    entry = registered(stream.editor)
    try:
        configure(stream.editor, entry.load().config_class, {**entry.preset, **stream.hyperparameters})
        if stream.training is not None:
            configure(stream.editor, entry.load().training_class, stream.training)
    except CoachHookError as error:
        sys.exit(f"config/methods/{stream.method}.yaml, for model {stream.model}: {error}")
