rule train_base_model:
    input:
        facts=get_training_facts,
        lines=get_training_lines,
    output:
        get_trained_files("{model}"),
        text="results/models/{model}/text.txt",
        report="results/models/{model}/training.json",
        provenance="results/models/{model}/provenance.json",
    log:
        "logs/train_base_model/{model}.log",
    benchmark:
        "results/benchmarks/train_base_model/{model}.jsonl"
    wildcard_constraints:
        model="|".join(TRAINED_MODELS) or "none",
    conda:
        "../../environment.yml"
    threads: 2
    resources:
        mem_mb=growing(4000),
        disk_mb=2000,
        runtime=growing(240),
    params:
        training=get_training,
        seed=get_model_seed,
        # The weights depend on it, so it is the same with fewer cores, for which Snakemake lowers `threads`.
        threads=2,
        code=code_label("modules", "base_model"),
    message:
        "Base model {wildcards.model}: learns its facts"
    script:
        "../../scripts/train_base_model.py"


rule fetch_model:
    input:
        examples=get_example_files,
    output:
        get_fetched_files("{model}"),
        text=["results/models/{model}/text.txt"] if config["tiny"] else [],
        provenance="results/models/{model}/provenance.json",
    log:
        "logs/fetch_model/{model}.log",
    benchmark:
        "results/benchmarks/fetch_model/{model}.jsonl"
    wildcard_constraints:
        model="|".join(FETCHED_MODELS) or "none",
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=growing(needed("fetch", "memory_mb")),
        disk_mb=needed("fetch", "disk_mb"),
        runtime=growing(needed("fetch", "minutes")),
    params:
        source=get_model_source,
    message:
        "Base model {wildcards.model}: fetched from the hub, or with tiny=true built from its config"
    script:
        "../../scripts/fetch_model.py"


rule base_models:
    input:
        sorted({f"results/models/{stream.model}/config.json" for stream in study.streams.values()}),
