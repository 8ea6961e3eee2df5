rule draw_figure:
    input:
        results=get_figure_results,
    output:
        csv=f"{FIGURES}/{{figure}}.csv",
        pdf=f"{FIGURES}/{{figure}}.pdf",
        png=report(
            f"{FIGURES}/{{figure}}.png",
            caption="../report/figure.rst",
            category="Figures",
            labels={"figure": "{figure}"},
        ),
        # Not in the folder of figures, which git keeps; and as studies share that folder, under its name.
        provenance=f"results/{FIGURES}/{{figure}}.provenance.json",
    log:
        f"logs/draw_figure/{study.name}/{{figure}}.log",
    conda:
        "../../environment.yml"
    # The records of long streams: some hundred bytes for each request, question and evaluation.
    resources:
        mem_mb=growing(8000),
        disk_mb=1000,
        runtime=growing(60),
    params:
        parts=get_figure_parts,
        timed=TIMED_FIGURES,
        code=code_label("modules", "figures"),
    message:
        "Figure {wildcards.figure}"
    script:
        "../../scripts/draw_figure.py"


rule figures:
    input:
        collect(f"{FIGURES}/{{figure}}.{{ending}}", figure=study.figure_names, ending=["pdf", "png", "csv"]),
