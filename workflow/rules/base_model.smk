rule train_base_model:
    input:
        facts=get_training_facts,
        lines=get_training_lines,
    output:
        get_model_files("{model}"),
        text="results/models/{model}/text.txt",
        report="results/models/{model}/training.json",
    log:
        "logs/train_base_model/{model}.log",
    benchmark:
        "results/benchmarks/train_base_model/{model}.jsonl"
    conda:
        "../../environment.yml"
    # The weights depend on the number of threads; with fewer cores than this, Snakemake lowers it.
    threads: 2
    params:
        training=get_training,
        seed=get_model_seed,
        code=code_digest("base_model"),
    message:
        "Base model {wildcards.model}: learns its facts"
    script:
        "../../scripts/train_base_model.py"


rule base_models:
    input:
        sorted({f"results/models/{stream.model}/model.safetensors" for stream in study.streams.values()}),
