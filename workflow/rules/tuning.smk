rule choose:
    input:
        metrics=collect("results/streams/{path}/metrics.jsonl", path=study.streams),
    output:
        tuned=collect("config/tuned/{model}.yaml", model=sorted({trial.model for trial in study.trials})),
        search=f"{FIGURES}/search.csv",
        provenance=f"results/{FIGURES}/search.provenance.json",
    log:
        f"logs/choose/{study.name}.log",
    localrule: True
    conda:
        "../../environment.yml"
    resources:
        mem_mb=growing(4000),
        disk_mb=1000,
        runtime=growing(60),
    params:
        trials=get_trials(),
        protocol=PROTOCOLS[0],
        code=code_label("modules", "tuning"),
    message:
        "Hyper-parameters: the best of each method's trials"
    script:
        "../../scripts/choose.py"


rule tune:
    input:
        rules.choose.output,
