"""Put a study's figures and tables in one HTML file; made by Snakemake under another name."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from coachhook.logs import log_to, logger
from coachhook.whole_files import whole_file

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

log_to(snakemake.log[0], f"report {snakemake.params.study}")
with tempfile.TemporaryDirectory() as folder:
    made = Path(folder, "report.html")  # Snakemake wants this ending
    command = ["snakemake", "figures", snakemake.input.text, "--cores", "1", "--report", str(made)]
    command += ["--config", *snakemake.params.config]
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in run.stdout.splitlines():
        logger.info("%s", line)
    if run.returncode:
        sys.exit(f"the report could not be made; see {snakemake.log[0]}")
    with whole_file(snakemake.output.html) as temporary:
        shutil.copyfile(made, temporary)
