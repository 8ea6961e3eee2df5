rule compute_covariance:
    input:
        get_model_files,
        text=get_covariance_text,
    output:
        link="results/covariances/{model}.{key}.safetensors",
        provenance="results/covariances/{model}.{key}.provenance.json",
    log:
        "logs/compute_covariance/{model}.{key}.log",
    benchmark:
        "results/benchmarks/compute_covariance/{model}.{key}.jsonl"
    conda:
        "../../environment.yml"
    threads: 2
    resources:
        mem_mb=lambda wildcards: get_resources("covariance", "memory_mb", wildcards),
        disk_mb=lambda wildcards: get_resources("covariance", "disk_mb", wildcards),
        runtime=lambda wildcards: get_resources("covariance", "minutes", wildcards),
        gpu=lambda wildcards: get_resources("covariance", "gpus", wildcards),
    params:
        stage=get_covariance_stage,
        command=get_covariance_command,
        # Sums depend on it, so it is the same with fewer cores, for which Snakemake lowers `threads`.
        threads=2,
        code=code_label("modules", "covariance", "texts"),
    message:
        "Covariance of {wildcards.model}: restored by DVC, or computed"
    script:
        "../../scripts/compute_covariance.py"


rule covariances:
    input:
        sorted({get_covariance_path(stream.model) for stream in study.streams.values()}),
