"""What programs import first: the garbage collector rests meanwhile, and works again."""

import subprocess
import sys

COUNT = "import gc, sys; runs = []; gc.callbacks.append(lambda phase, info: runs.append(phase))"
REPORT = "print(len(runs), gc.isenabled(), 'transformers.modeling_utils' in sys.modules)"


def collections(statement: str, before: str = "") -> tuple[int, str, str]:
    code = "\n".join([before, COUNT, statement, REPORT])
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    return int(said[0]), said[1], said[2]


def test_no_object_is_looked_through_while_the_libraries_are_imported():
    assert collections("import transformers.modeling_utils")[0] > 100
    runs, works, there = collections("import coachhook.starting")
    assert runs <= 4  # the first when it works again
    assert (works, there) == ("True", "True")


def test_what_was_imported_is_not_looked_through_at_the_end_either():
    code = "import coachhook.starting, gc; print(gc.get_freeze_count())"
    frozen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(frozen) > 300_000


def test_a_program_that_does_without_the_collector_keeps_doing_so():
    assert collections("import coachhook.starting", "import gc; gc.disable()") == (0, "False", "True")
