"""Put a finished study's stream results under DVC, one .dvc file per model; push them where there is a remote."""

import subprocess
import sys
from pathlib import Path

import yaml

from coachhook.errors import CoachHookError
from coachhook.study import load_study
from coachhook.whole_files import write_text


def dvc(*command: str) -> str:
    """Run dvc and return what it printed; end with its own words when it fails."""
    run = subprocess.run([sys.executable, "-m", "dvc", *command], capture_output=True, text=True)
    if run.returncode:
        sys.exit(f"dvc {' '.join(command)}: {(run.stderr or run.stdout).strip()}")
    return run.stdout


try:
    study = load_study(sys.argv[1], Path("config"), Path("workflow/schemas"))
except CoachHookError as error:
    sys.exit(str(error))
for path in study.streams:
    if not Path("results/streams", path, "metrics.jsonl").exists():
        sys.exit(f"results/streams/{path} is missing: finish the study first, with make reproduce STUDY={study.name}")
pointers = []
for model in sorted({stream.model for stream in study.streams.values()}):
    pointer = Path("data/streams", f"{model}.dvc")
    pointer.parent.mkdir(parents=True, exist_ok=True)
    if not pointer.exists():
        write_text(pointer, yaml.safe_dump({"wdir": "../..", "outs": [{"path": f"results/streams/model~{model}"}]}))
    dvc("commit", "--force", str(pointer))
    pointers.append(str(pointer))
print(f"tracked: {', '.join(pointers)}; to share them: git add {' '.join(pointers)}, and commit")
if dvc("remote", "list").strip():
    print(dvc("push", *pointers).strip())
else:
    print("no DVC remote: the results are kept in this clone's cache only (dvc remote add -d NAME PLACE)")
