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
        mem_mb=growing(needed("covariance", "memory_mb")),
        disk_mb=needed("covariance", "disk_mb"),
        runtime=growing(needed("covariance", "minutes")),
        gpu=needed("covariance", "gpus"),
    params:
        stage=get_covariance_stage,
        command=get_covariance_command,
        device_map=get_device_map,
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
