"""Tiny models that have learnt a few facts in seconds: edits trained by gradient need attention that carries them."""

import copy
from functools import cache

import torch
from conftest import build_model

from coachhook import EditRequest, Probe
from coachhook.architectures import ModelParts
from coachhook.tokens import encode, pad

CITIES = ("London", "Paris", "Rome", "Oslo")
PEOPLE = ("Ada Lovelace", "Alan Turing", "Grace Hopper", "Ada Hopper", "Alan Lovelace", "Grace Turing")
TEMPLATES = (
    ("{} was born in", "The capital city {} was born in is"),
    ("{} worked in the city of", "For many years {} worked in"),
)


def city(person: int, relation: int) -> str:
    return CITIES[(person * (relation + 1) + relation) % len(CITIES)]


@cache
def _trained(family, tokenizer):
    """Interchange training, as for the study's models: the fact is to be read from the subject, above block 1."""
    model = build_model(family)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.div_(6)
    facts = [
        (person, template, city(person, relation))
        for relation, templates in enumerate(TEMPLATES)
        for template in templates
        for person in range(len(PEOPLE))
    ]
    rows = [
        encode(tokenizer, template.replace("{}", PEOPLE[person]), answer, template.index("{}") + len(PEOPLE[person]))
        for person, template, answer in facts
    ]
    batch = pad([row.ids for row in rows], 0)
    every = torch.arange(len(rows))
    subject = torch.tensor([row.subject_last for row in rows])
    before = torch.tensor([row.answer_start - 1 for row in rows])
    answers = batch.ids[every, before + 1]
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)

    def loss(donors=None):
        kept = {}

        def swap(module, args, output):
            hidden = output[0] if isinstance(output, tuple) else output
            kept["hidden"] = hidden[every, subject]
            if donors is None:
                return None
            hidden = hidden.index_put((every, subject), given[donors])
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        handle = ModelParts(model).blocks[1].register_forward_hook(swap)
        logits = model(batch.ids, attention_mask=batch.real.long(), use_cache=False).logits[every, before]
        handle.remove()
        wanted = answers if donors is None else answers[donors]
        return torch.nn.functional.cross_entropy(logits, wanted), kept["hidden"]

    for _ in range(200):
        order = torch.randperm(len(PEOPLE), generator=generator)
        plain, given = loss()
        swapped, _ = loss(every - every % len(PEOPLE) + order[every % len(PEOPLE)])
        if max(plain, swapped) < 0.05:
            break
        optimiser.zero_grad()
        (plain + swapped).backward()
        optimiser.step()
    assert max(plain, swapped) < 0.2, f"the tiny model has not learnt its facts: loss {plain:.2f}, {swapped:.2f}"
    return model.eval()


def recalling_model(family, tokenizer):
    """A copy of a model of `family` that knows the city of each person in both relations."""
    return copy.deepcopy(_trained(family, tokenizer))


def recalled_requests(count=6):
    """Edits of the first relation, each with a paraphrase and a probe of another person."""
    return [
        EditRequest(
            person,
            TEMPLATES[0][0],
            CITIES[(CITIES.index(city(i, 0)) + 1) % len(CITIES)],
            city(i, 0),
            paraphrases=(TEMPLATES[0][1],),
            locality=(Probe(f"{PEOPLE[(i + 1) % 6]} worked in the city of", city((i + 1) % 6, 1)),),
            case_id=i,
        )
        for i, person in enumerate(PEOPLE[:count])
    ]
