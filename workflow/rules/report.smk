rule aggregate:
    input:
        metrics=collect("results/streams/{path}/metrics.jsonl", path=study.streams),
        provenance=collect("results/streams/{path}/provenance.json", path=study.streams),
        introduction="workflow/report/workflow.rst",
    output:
        report(
            collect(f"{FIGURES}/table_{{table}}.csv", table=TABLES),
            caption="../report/table.rst",
            category="Tables",
            labels={"table": "scores after the last batch"},
        ),
        collect(f"{FIGURES}/table_{{table}}.{{ending}}", table=TABLES, ending=["md", "tex"]),
        metrics=f"results/studies/{study.name}/metrics.csv",
        main=f"{FIGURES}/metrics.json",
        text=f"results/studies/{study.name}/report.rst",
        provenance=f"results/{FIGURES}/tables.provenance.json",
    log:
        f"logs/aggregate/{study.name}.log",
    conda:
        "../../environment.yml"
    resources:
        mem_mb=8000,
        disk_mb=1000,
        runtime=60,
    params:
        study=study.name,
        description=study.description,
        tables=TABLES,
        code=code_label("modules", "report"),
    message:
        "Study {params.study}: all metrics, tables, and what came out in words"
    script:
        "../../scripts/aggregate.py"


rule make_report:
    input:
        rules.figures.input,
        rules.aggregate.output,
        text=rules.aggregate.output.text,
    output:
        html=REPORT,
    log:
        f"logs/make_report/{study.name}.log",
    conda:
        "../../environment.yml"
    resources:
        mem_mb=4000,
        disk_mb=1000,
        runtime=60,
    params:
        study=study.name,
        config=CONFIG,
    message:
        "Report of study {params.study}"
    shell:
        "snakemake figures {input.text} --cores 1 --report {output.html} --config {params.config} 2>&1 | tee {log}"
