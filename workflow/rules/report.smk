rule aggregate:
    input:
        metrics=collect("results/streams/{path}/metrics.jsonl", path=get_table_streams()),
        provenance=collect("results/streams/{path}/provenance.json", path=get_table_streams()),
        introduction="workflow/report/workflow.rst",
    output:
        report(
            collect(f"{FIGURES}/table_{{table}}.csv", table=TABLES),
            caption="../report/table.rst",
            category="Tables",
            labels={"table": "scores after the last batch"},
        ),
        collect(f"{FIGURES}/table_{{table}}.{{ending}}", table=TABLES, ending=["md", "tex"]),
        main=f"{FIGURES}/metrics.json",
        text=f"results/studies/{study.name}/report.rst",
        provenance=f"results/{FIGURES}/tables.provenance.json",
    log:
        f"logs/aggregate/{study.name}.log",
    localrule: True
    conda:
        "../../environment.yml"
    resources:
        mem_mb=growing(8000),
        disk_mb=1000,
        runtime=growing(60),
    params:
        study=study.name,
        description=study.description,
        tables=TABLES,
        code=code_label("modules", "report"),
    message:
        "Study {params.study}: tables, and what came out in words"
    script:
        "../../scripts/aggregate.py"


rule gather_metrics:
    input:
        metrics=collect("results/streams/{path}/metrics.jsonl", path=study.streams),
        provenance=collect("results/streams/{path}/provenance.json", path=study.streams),
    output:
        metrics=f"results/studies/{study.name}/metrics.csv",
        provenance=f"results/studies/{study.name}/metrics.provenance.json",
    log:
        f"logs/gather_metrics/{study.name}.log",
    localrule: True
    conda:
        "../../environment.yml"
    resources:
        mem_mb=growing(8000),
        disk_mb=1000,
        runtime=growing(60),
    params:
        study=study.name,
        code=code_label("modules", "figures"),
    message:
        "All metrics of all streams in one table"
    script:
        "../../scripts/gather_metrics.py"


rule make_report:
    input:
        rules.figures.input,
        rules.aggregate.output,
        rules.gather_metrics.output,
        text=rules.aggregate.output.text,
    output:
        html=REPORT,
    log:
        f"logs/make_report/{study.name}.log",
    localrule: True
    conda:
        "../../environment.yml"
    resources:
        mem_mb=growing(4000),
        disk_mb=1000,
        runtime=growing(60),
    params:
        study=study.name,
        config=CONFIG,
    message:
        "Report of study {params.study}"
    script:
        "../../scripts/make_report.py"
