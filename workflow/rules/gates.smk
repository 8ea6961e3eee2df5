rule compare_gates:
    input:
        get_model_files,
        requests=get_requests,
        covariance=get_covariance,
        text=get_covariance_text,
    output:
        gates=f"results/streams/{STREAM}/gates.csv",
        provenance=f"results/streams/{STREAM}/gates.provenance.json",
    log:
        f"logs/compare_gates/{STREAM}.log",
    benchmark:
        f"results/benchmarks/compare_gates/{STREAM}.jsonl"
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
        code=get_gates_code,
    message:
        "Gates of {wildcards.method} on {wildcards.model} with {wildcards.dataset}, seed {wildcards.seed}"
    script:
        "../../scripts/compare_gates.py"
