rule compute_covariance:
    input:
        get_model_files("{model}"),
        text="results/models/{model}/text.txt",
    output:
        link="results/covariances/{model}.{key}.safetensors",
    log:
        "logs/compute_covariance/{model}.{key}.log",
    benchmark:
        "results/benchmarks/compute_covariance/{model}.{key}.jsonl"
    conda:
        "../../environment.yml"
    threads: 2
    params:
        command=get_covariance_command,
        code=code_digest("covariance", "texts"),
    message:
        "Covariance of {wildcards.model}: restored by DVC, or computed"
    script:
        "../../scripts/compute_covariance.py"


rule covariances:
    input:
        sorted({get_covariance_path(stream.model) for stream in study.streams.values()}),
