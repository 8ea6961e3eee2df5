rule compare_gates:
    input:
        get_model_files,
        requests=get_requests,
        covariance=get_covariance,
        text=get_covariance_text,
    output:
        gates=f"results/streams/{STREAM}/gates.csv",
    log:
        f"logs/compare_gates/{STREAM}.log",
    benchmark:
        f"results/benchmarks/compare_gates/{STREAM}.jsonl"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=lambda wildcards: get_resources("stream", "memory_mb", wildcards),
        disk_mb=lambda wildcards: get_resources("stream", "disk_mb", wildcards),
        runtime=lambda wildcards: get_resources("stream", "minutes", wildcards),
        gpu=lambda wildcards: get_resources("stream", "gpus", wildcards),
    params:
        stream=get_stream_settings,
        code=code_digest("gate_comparison"),
    message:
        "Gates of {wildcards.method} on {wildcards.model} with {wildcards.dataset}, seed {wildcards.seed}"
    script:
        "../../scripts/compare_gates.py"
