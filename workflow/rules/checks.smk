# What is looked at before the first job of a study starts: `onstart` of the Snakefile calls it.
import fcntl
import subprocess

from coachhook.errors import one_line
from coachhook.whole_files import check_writable, write_text


def check_folders():
    """Refuse folders that take no files: Snakemake itself would end with a traceback, and jobs late."""
    unfinished = [path for path in study.streams if not Path(f"results/streams/{path}/metrics.jsonl").exists()]
    folders = [".snakemake", "logs", "results", "data/covariances", FIGURES]
    try:
        for folder in folders + [
            f"results/{kind}/{path}" for path in unfinished for kind in ("streams", "checkpoints")
        ]:
            check_writable(folder)
    except OSError as error:
        raise WorkflowError(one_line(error)) from None


def check_values():
    """Hold every hyper-parameter to the method that has it; again only once a value or the methods' code has changed."""
    streams = study.streams.values()
    values = [[stream.editor, stream.hyperparameters, stream.training] for stream in streams]
    code = [METHOD_CODE, TRAINING_CODE, code_label("modules", "hyperparameters")]
    checked, passed = settings_key([values, code]), Path(".snakemake", f"{study.name}.values")
    if passed.exists() and passed.read_text() == checked and not any(stream.ability for stream in streams):
        return  # tasks of a study with `ability` may lie outside, and are looked for each time
    run_check("check_values")
    write_text(passed, checked)


def check_room():
    """Say what jobs with large models need, and refuse what cannot fit, where the jobs run on this machine."""
    if workflow.local_exec and any(stream.model in FETCHED_MODELS for stream in study.streams.values()):
        run_check("plan_study")


def run_check(name):
    """Run a script on the study in a process of its own: it has to import torch."""
    check = [sys.executable, f"scripts/{name}.py", config["study"], *(["tiny"] if config["tiny"] else [])]
    if subprocess.run(check).returncode:
        raise WorkflowError(f"study {study.name} was not started")


def check_records():
    """Ask for request files that data sets still have to be made from."""
    streams = study.streams.values()
    wanted = {study.models[stream.model].get("dataset", stream.dataset) for stream in streams}
    wanted |= {stream.dataset for stream in streams} | {draw.dataset for draw in study.draws}
    learnt = {stream.trained_on for stream in streams if stream.training is not None}
    for dataset in sorted(wanted):
        paths = request_paths(dataset, with_training=dataset in learnt)
        missing = [path for path in paths if not path.exists()]
        if missing and not Path(f"results/datasets/{dataset}/requests.json").exists():
            raise WorkflowError(
                f"{missing[0]} is missing: data/README.md says where it comes from; put a copy there, or name your "
                "folder with --config records=FOLDER"
            )


def keep_out_of_running_study():
    """Hold a lock that the kernel releases however this process ends; profiles/default turns Snakemake's own off.

    Snakemake's lock outlives a killed run and would have to be removed by hand.
    """
    lock = os.open(".snakemake/running", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise WorkflowError(f"another snakemake is running in {os.getcwd()}; wait for it, or stop it") from None
