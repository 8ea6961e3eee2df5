"""Hold all hyper-parameters of a study to the methods that have them, before any job; one line says what is wrong."""

import json
import sys
from pathlib import Path

from coachhook.errors import CoachHookError
from coachhook.hyperparameters import configure, registered
from coachhook.study import load_study

checked, tiny = set(), "tiny" in sys.argv[2:]
for stream in load_study(sys.argv[1], Path("config"), Path("workflow/schemas"), tiny).streams.values():
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
