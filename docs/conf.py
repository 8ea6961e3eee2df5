"""Settings of the documentation site (Sphinx). `make docs` builds it, offline; every warning is an error."""

import html
import re
import subprocess
import sys
import textwrap

from docutils.writers.html5_polyglot import HTMLTranslator

import coachhook
from coachhook.hyperparameters import hyperparameters

project = "CoachHooK"
author = "The CoachHooK developers"
version = release = coachhook.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "matplotlib.sphinxext.plot_directive"]

html_theme = "furo"
html_title = f"CoachHooK {version}"
html_copy_source = html_show_copyright = html_show_sphinx = False
html_math_renderer = "mathml"
html_static_path, html_css_files = ["_static"], ["site.css"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
highlight_language = "none"  # a block without a language is a command or its output
smartquotes = False  # two hyphens are an option, not a dash

default_role = "py:obj"  # `name` in a docstring is code, and a link where such an object is documented
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 80

plot_formats = [("svg", 100)]
plot_html_show_formats = plot_html_show_source_link = False
plot_rcparams = {"svg.fonttype": "path", "svg.hashsalt": "coachhook"}


def write_math(translator, node):
    """LaTeX as MathML, by docutils: browsers draw it without scripts and fonts from elsewhere."""
    translator.math_output, translator.math_options = "mathml", ""
    HTMLTranslator.visit_math(translator, node)


def set_fences(app, what, name, obj, options, lines):
    """Fenced code, as our docstrings have it, in the words that Sphinx reads."""
    inside = False
    for number, line in enumerate(lines):
        if line.startswith("```"):
            inside = not inside
            lines[number] = f".. code-block:: {line[3:]}\n" if inside else ""
        elif inside:
            lines[number] = f"   {line}"
    lines[:] = "\n".join(lines).split("\n")


def write_commands(app, docname, source):
    """The page on the command line is what the commands say of themselves."""
    if docname == "commands":
        command = [sys.executable, "-m", "typer", "coachhook.cli", "utils", "docs"]
        options = ["--name", "coachhook", "--title", "Commands"]
        text = subprocess.run([*command, *options], check=True, capture_output=True, text=True).stdout
        source[0] += re.sub(r"(?:^  coachhook .*\n(?:^      .*\n)*)+", set_examples, text, flags=re.MULTILINE)


def write_hyperparameters(app, docname, source):
    """The page on hyper-parameters is what the methods' configurations say of themselves."""
    if docname == "hyperparameters":
        for method in coachhook.methods():
            rows = [
                (f"`{one.name}`", one.allowed, f"`{one.told_default()}`", one.description)
                for one in hyperparameters(method)
            ]
            lines = [" | ".join(row) for row in (("name", "value", "default", "what it is"), ("---",) * 4, *rows)]
            source[0] += f"\n## {method}\n\n" + "".join(f"| {line} |\n" for line in lines)


def set_examples(found):
    """Indented examples of a command's help, as a block of their own."""
    return f"\n```console\n{html.unescape(textwrap.dedent(found[0]))}```\n"


def setup(app):
    app.add_html_math_renderer("mathml", (write_math, None), (write_math, None))
    app.connect("autodoc-process-docstring", set_fences, priority=400)  # before napoleon looks for sections
    app.connect("source-read", write_commands)
    app.connect("source-read", write_hyperparameters)
    app.connect("env-get-outdated", lambda *_: ["commands", "hyperparameters"])  # their files stay as they are
