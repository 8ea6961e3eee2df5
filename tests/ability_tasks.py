"""Three tasks of lm-eval's, with data of their own: one to choose in, one to read, one to write."""

import json

from conftest import TEXT

QUESTIONS = [
    {"question": "The capital of France is", "choices": ["Paris", "city of Rome", "the river"], "answer": 0},
    {"question": "Grace Hopper worked in", "choices": ["Oslo for many years", "Rome", "London"], "answer": 1},
    {"question": "Ada Lovelace was born in the city of", "choices": ["London", "Paris", "moth"], "answer": 0},
    {"question": "Where does Grace Hopper live? In the city of", "choices": ["Rome", "Oslo", "Paris"], "answer": 1},
    {"question": "Alan Turing liked to run along the", "choices": ["engine", "river", "moth"], "answer": 1},
]
CHOICE = """
task: cities
dataset_path: json
dataset_kwargs:
  data_files: {folder}/cities.json
test_split: train
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
  - metric: acc_norm
"""
TEXTS = """
task: texts
dataset_path: json
dataset_kwargs:
  data_files: {folder}/texts.json
test_split: train
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - metric: bits_per_byte
"""
WRITE = """
task: write
dataset_path: json
dataset_kwargs:
  data_files: {folder}/cities.json
test_split: train
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[answer]}}}}"
generation_kwargs:
  until: ["."]
  max_gen_toks: 4
metric_list:
  - metric: exact_match
"""
TASKS = ("cities", "texts", "write")


def write_tasks(folder):
    for name, text in zip(TASKS, (CHOICE, TEXTS, WRITE), strict=True):
        (folder / f"{name}.yaml").write_text(text.format(folder=folder))
    (folder / "cities.json").write_text("\n".join(map(json.dumps, QUESTIONS)))
    (folder / "texts.json").write_text("\n".join(json.dumps({"text": text}) for text in (*TEXT, " ".join(TEXT * 2))))
