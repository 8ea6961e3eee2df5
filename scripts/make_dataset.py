"""Make one data set: its edit requests, what a base model learns for them, and requests that editors are trained on."""

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

from coachhook.contradictions import resolve_contradictions
from coachhook.facts import facts_from_questions, facts_from_requests
from coachhook.hub_files import fetch_requests
from coachhook.logs import log_to, logger
from coachhook.requests import read_requests, write_refused, write_requests
from coachhook.splits import requests_apart, training_requests, training_requests_from_facts, tuning_requests
from coachhook.whole_files import write_text
from coachhook.world import WorldConfig, make_world, world_requests, write_facts
from job_provenance import write_job_provenance

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

DRAW = ("form", "count", "seed")
FACTS = {"relations": facts_from_requests, "questions": facts_from_questions}


def read(source: dict, refused: list, *names: str) -> list:
    """All requests of files in the folder of records, or of the source's own files on the hub."""
    paths = [Path(snakemake.params.records, name) for name in names]
    if "hub" in source:
        checked = zip(source["files"], source["sha256"], strict=True)
        paths = [fetch_requests(source["hub"], file, source["revision"], sha256) for file, sha256 in checked]
    options = {"zsre_target": source.get("zsre_target", "alt"), "part": source.get("part"), "refused": refused}
    return [request for path in paths for request in read_requests(path, **options)]


log_to(snakemake.log[0], snakemake.wildcards.dataset)
source, refused, facts, lines = snakemake.params.source, [], [], []
if "world" in source:
    sizes = dict(source["world"])
    world = make_world(WorldConfig(**{k: v for k, v in sizes.items() if k != "seed"}), sizes["seed"])
    facts, lines = world.facts, world.lines
    drawn = [world_requests(world, *(other[key] for key in DRAW)) for other in source["apart_from"]]
    requests = tuning_requests(world, *(source[key] for key in DRAW), itertools.chain(*drawn))
    training = training_requests(world, sizes["seed"])
else:
    records = read(source, refused, *filter(None, [source.get("file")]))
    requests = resolve_contradictions(records, source.get("contradictions", "keep"))
    logger.info("%d of %d requests left by the policy on contradictions", len(requests), len(records))
    others = source.get("training", {})
    there = [others["file"]] if "file" in others and Path(snakemake.params.records, others["file"]).exists() else []
    training = requests_apart(read(others, refused, *there), requests)
if "facts" in source:
    known = FACTS[source["facts"]](requests, read({}, refused, *source.get("more_facts", ())), seed=0)
    facts, lines, requests = known.facts, known.lines, known.requests
    training = training_requests_from_facts(facts, requests, seed=0)
    logger.info("%.0f %% of the targets can be reached", 100 * known.reachable_share)
write_requests(requests, snakemake.output.requests)
write_refused(refused, snakemake.output.refused)
write_requests(training, snakemake.output.training)
write_facts(facts, snakemake.output.facts)
write_text(snakemake.output.lines, "".join(f"{line}\n" for line in lines))
counts = [len(made) for made in (requests, training, facts, lines, refused)]
logger.info("%d requests, %d more for training editors, %d facts, %d further lines; %d records refused", *counts)
write_job_provenance(snakemake, {"source": source})
