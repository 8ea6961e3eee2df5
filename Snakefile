# A study as a table of contents. What is run stands in its path:
#   results/streams/model~M/dataset~D/method~X/setting~S/seed~N/   one stream of edits, the only place where models are edited
#   results/studies/<study>/                                       what is drawn from the streams of one study
#   figures/ (studies mini and full), figures/<study>/ (others)    figures and tables, each with the CSV it is drawn from
#   .../tiny-.../                                                  all of it for a study with tiny=true
#   config/tuned/<model>.yaml                                      hyper-parameters that a study with trials has chosen
from snakemake.utils import min_version

min_version("9.27")


configfile: "config/config.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/checks.smk"


report: f"results/studies/{study.name}/report.rst"


include: "workflow/rules/data.smk"
include: "workflow/rules/base_model.smk"
include: "workflow/rules/covariance.smk"
include: "workflow/rules/trained_editors.smk"
include: "workflow/rules/streams.smk"
include: "workflow/rules/gates.smk"
include: "workflow/rules/tuning.smk"
include: "workflow/rules/figures.smk"
include: "workflow/rules/report.smk"


rule all:
    default_target: True
    input:
        rules.tune.input if study.trials else [rules.figures.input, rules.make_report.output.html],


onstart:
    keep_out_of_running_study()
    check_folders()
    check_records()
    check_values()
    check_room()
