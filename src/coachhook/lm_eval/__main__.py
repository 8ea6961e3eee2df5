"""lm-eval's own command, with the model `coachhook` known to it."""

import sys

try:
    from lm_eval.__main__ import cli_evaluate
except ImportError as error:
    sys.exit(f"error: this needs lm-eval ({error}); install it: pip install 'coachhook[eval]'")

import coachhook.lm_eval  # noqa: F401 (registers the model)
from coachhook.cli.shared import one_line_errors

with one_line_errors():
    cli_evaluate()
