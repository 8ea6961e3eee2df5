"""One record of each format, and the real files."""

import json
from pathlib import Path

import pytest

REAL = Path(__file__).parents[2] / "shared" / "data"

OWN = {"subject": "Ada Lovelace", "prompt": "{} was born in", "target_new": "Paris", "target_true": "London"}
FLAT = {
    "case_id": 7,
    "prompt": "Ada Lovelace was born in",
    "target_new": " Paris",
    "subject": "Ada Lovelace",
    "ground_truth": "London",
    "rephrase_prompt": "Ada Lovelace comes from",
    "locality_prompt": "Alan Turing was born in",
    "locality_ground_truth": "London",
}
ROME = {
    "case_id": 3,
    "requested_rewrite": {
        "prompt": "{} was born in",
        "relation_id": "P19",
        "target_new": {"str": "Paris", "id": "Q90"},
        "target_true": {"str": "London", "id": "Q84"},
        "subject": "Ada Lovelace",
    },
    "paraphrase_prompts": ["A {stray brace. Ada Lovelace comes\nfrom"],
    "neighborhood_prompts": ["Alan Turing was born in"],
}
MEMIT = {
    "case_id": 4,
    "prompt": "{} was born in",
    "subject": "Ada Lovelace",
    "target_new": {"str": " Paris"},
}
ZSRE = {
    "subject": "Ada Lovelace",
    "src": "Where was Ada Lovelace born?",
    "rephrase": "What is the birthplace of ada lovelace?",
    "alt": " Paris",
    "answers": ["London", "England"],
    "loc": "nq question: who sang it",
    "loc_ans": "Nina Simone",
}
KNOWEDIT = {
    "subject": "Ada Lovelace",
    "prompt": "The place of birth of Ada Lovelace is",
    "target_new": "Paris",
    "ground_truth": [["London", "City of London"]],
    "rephrase_prompt": "Where does she come from?",
    "locality": {
        "Relation_Specificity": [
            {"prompt": "The mother of Ada Lovelace is", "ground_truth": [["Anne Byron", "Lady B."]]}
        ],
        "Forgetfulness": [{"prompt": "Besides Paris, Ada Lovelace was born in", "ground_truth": ["London"]}],
    },
    "portability": {
        "Reasoning": [{"prompt": "She was born in the country of", "ground_truth": "France"}],
        "Logical_Generalization": [],
    },
}
WIKIBIO = {
    "text": "This is a Wikipedia passage about ada lovelace. Ada Lovelace was a mathematician.",
    "labels": "She wrote about the engine.",
    "concept": "ada lovelace",
    "locality": {
        "Relation_Specificity": [{"prompt": "The field of work of ada lovelace is", "ground_truth": ["mathematics"]}]
    },
}
MQUAKE = {
    "case_id": 5,
    "requested_rewrite": [
        {
            "prompt": "{} was created in",
            "relation_id": "P495",
            "target_new": {"str": "India", "id": "Q668"},
            "target_true": {"str": "Spain", "id": "Q29"},
            "subject": "Chavez",
            "question": "Which country was Chavez created in?",
        },
        {
            "prompt": "The head of the {} government is",
            "relation_id": "P6",
            "target_new": {"str": "Rodolfo Albano", "id": "Q1"},
            "target_true": {"str": "Narendra Modi", "id": "Q2"},
            "subject": "India",
            "question": "Who heads the government of India?",
        },
    ],
    "questions": ["Who heads the country where Chavez was created?", "Who heads the home of Chavez?"],
    "answer": "Pedro Sanchez",
    "new_answer": "Rodolfo Albano",
    "new_answer_alias": ["R. Albano"],
    "single_hops": [{"question": "?", "cloze": "x", "answer": "Spain", "answer_alias": []}],
}
LISTS = {
    "prompts": ["Ada Lovelace was born in", "Bea lives in"],
    "subject": ["Ada Lovelace", "Bea"],
    "target_new": ["Paris", "Oslo"],
    "ground_truth": ["London", None],
    "rephrase_prompts": ["Ada Lovelace comes from", "Bea's home is"],
    "locality_inputs": {
        "neighborhood": {"prompt": ["Alan was born in", "Cyd lives in"], "ground_truth": ["London", "Rome"]},
        "other_attribution": {"prompt": [["She wrote", "She met"], None], "ground_truth": [["notes", "Babbage"], None]},
    },
    "portability_inputs": {
        "one_hop": {"prompt": ["She was born in the land of", None], "ground_truth": ["France", None]}
    },
    "keep_original_weight": True,
}


def written(tmp_path, content, name="requests.json"):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def real(name):
    if not (REAL / name).exists():
        pytest.skip(f"{name} is not beside this checkout (shared/data)")
    return REAL / name
