"""Make one data set: the edit requests, the facts and further lines that a base model learns for them, and the
requests that editors are trained on."""

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

from coachhook.facts import facts_from_requests
from coachhook.hub_files import fetch_requests
from coachhook.logs import log_to, logger
from coachhook.requests import read_requests, write_refused, write_requests
from coachhook.splits import training_requests, training_requests_from_facts, tuning_requests
from coachhook.world import WorldConfig, make_world, world_requests, write_facts

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

DRAW = ("form", "count", "seed")

log_to(snakemake.log[0], snakemake.wildcards.dataset)
source, refused = snakemake.params.source, []
if "world" in source:
    sizes = dict(source["world"])
    world = make_world(WorldConfig(**{k: v for k, v in sizes.items() if k != "seed"}), sizes["seed"])
    facts, lines = world.facts, world.lines
    drawn = [world_requests(world, *(other[key] for key in DRAW)) for other in source["apart_from"]]
    requests = tuning_requests(world, *(source[key] for key in DRAW), itertools.chain(*drawn))
    training = training_requests(world, sizes["seed"])
else:
    edited, further = list(snakemake.input.files[:1]), snakemake.input.files[1:]
    if "hub" in source:
        checked = zip(source["files"], source["sha256"], strict=True)
        edited = [fetch_requests(source["hub"], file, source["revision"], sha256) for file, sha256 in checked]
    options = {"zsre_target": source.get("zsre_target", "alt"), "part": source.get("part"), "refused": refused}
    records, others = ([r for file in files for r in read_requests(file, **options)] for files in (edited, further))
    known = facts_from_requests(records, others, seed=0)
    facts, lines, requests = known.facts, known.lines, known.requests
    training = training_requests_from_facts(facts, requests, seed=0)
    logger.info("%.0f %% of the targets can be reached", 100 * known.reachable_share)
write_requests(requests, snakemake.output.requests)
write_refused(refused, snakemake.output.refused)
write_requests(training, snakemake.output.training)
write_facts(facts, snakemake.output.facts)
Path(snakemake.output.lines).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
counts = (len(requests), len(training), len(facts), len(lines))
logger.info("%d requests, %d more for training editors, %d facts, %d further lines", *counts)
if refused:
    logger.info("%d records refused; %s says why", len(refused), snakemake.output.refused)
