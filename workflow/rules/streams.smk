rule edit_stream:
    input:
        get_model_files,
        requests=get_requests,
        covariance=get_covariance,
        trained_editor=get_trained_editor,
    output:
        metrics=f"results/streams/{STREAM}/metrics.jsonl",
        records=f"results/streams/{STREAM}/records.parquet",
        zscores=f"results/streams/{STREAM}/zscores.parquet",
        cost=f"results/streams/{STREAM}/cost.jsonl",
        provenance=f"results/streams/{STREAM}/provenance.json",
    log:
        f"logs/edit_stream/{STREAM}.log",
    benchmark:
        f"results/benchmarks/edit_stream/{STREAM}.jsonl"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=growing(needed("stream", "memory_mb")),
        disk_mb=needed("stream", "disk_mb"),
        runtime=growing(needed("stream", "minutes")),
        gpu=needed("stream", "gpus"),
    params:
        stream=get_stream_settings,
        code=get_method_code,
        # Snakemake removes the outputs of a killed job; the stream goes on from here.
        checkpoint=f"results/checkpoints/{STREAM}",
        # Computed once for all streams of the same requests, whatever their method.
        base_answers="results/base_answers",
    message:
        "Stream: {wildcards.method} ({wildcards.setting}) edits {wildcards.model} with {wildcards.dataset}, seed {wildcards.seed}"
    script:
        "../../scripts/edit_stream.py"


rule streams:
    input:
        collect("results/streams/{path}/metrics.jsonl", path=study.streams),
