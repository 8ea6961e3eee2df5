rule make_dataset:
    input:
        files=get_request_files,
    output:
        requests="results/datasets/{dataset}/requests.json",
        training="results/datasets/{dataset}/training.json",
        facts="results/datasets/{dataset}/facts.json",
        lines="results/datasets/{dataset}/lines.txt",
        refused="results/datasets/{dataset}/refused.csv",
        provenance="results/datasets/{dataset}/provenance.json",
    log:
        "logs/make_dataset/{dataset}.log",
    conda:
        "../../environment.yml"
    resources:
        mem_mb=growing(4000),
        disk_mb=2000,
        runtime=growing(60),
    params:
        source=get_source,
        records=str(RECORDS),
        code=code_label("modules", "world", "facts", "splits", "contradictions"),
    message:
        "Data set {wildcards.dataset}: requests, and the facts that they are about"
    script:
        "../../scripts/make_dataset.py"


rule datasets:
    input:
        sorted({f"results/datasets/{stream.dataset}/requests.json" for stream in study.streams.values()}),
