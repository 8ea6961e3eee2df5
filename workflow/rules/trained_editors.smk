rule train_editor:
    input:
        get_model_files,
        requests=get_training_requests,
    output:
        editor="results/editors/{model}/{method}.{key}.safetensors",
        provenance="results/editors/{model}/{method}.{key}.provenance.json",
    log:
        "logs/train_editor/{model}/{method}.{key}.log",
    benchmark:
        "results/benchmarks/train_editor/{model}/{method}.{key}.jsonl"
    conda:
        "../../environment.yml"
    # Batches are too small for a second thread to be of use; other jobs run beside it.
    threads: 1
    resources:
        mem_mb=growing(needed("training", "memory_mb")),
        disk_mb=needed("training", "disk_mb"),
        runtime=growing(needed("training", "minutes")),
        gpu=needed("training", "gpus"),
    params:
        settings=get_editor_training,
        loading=get_loading,
        seed=get_model_seed,
        code=get_training_code,
        # Snakemake removes the outputs of a killed job; training goes on from here.
        checkpoint="results/checkpoints/editors/{model}/{method}.{key}.safetensors",
    message:
        "Editor of {wildcards.method} for {wildcards.model}: learns to edit, on requests that no stream uses"
    script:
        "../../scripts/train_editor.py"


rule trained_editors:
    input:
        collect("results/editors/{path}", path=TRAINED_EDITORS),
