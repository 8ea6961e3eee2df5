"""The formats that the field keeps edit requests in: a parse function each, and a line in `_FORMATS`.

A record's format is known from its keys. Text is never formatted: real records hold stray braces.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

from coachhook.edit_request import PORTABILITY, EditRequest, Probe, RequestError, checked_text, quoted
from coachhook.json_fields import answers, as_list, as_object, required
from coachhook.keyword_lists import is_keyword_lists, split_lists
from coachhook.probe_groups import locality_probes, portability_probes

_NATURAL_QUESTIONS = "nq question: "  # MEND marks every locality question so; it is no part of the question
_UNKNOWN = "<|endoftext|>"  # ROME and EasyEdit write this where they know no old answer


@dataclass
class Reading:
    """What is decided for all records of a file, and how many probes without an answer were left out of them."""

    zsre_target: str = "alt"
    part: str | None = None
    probes_left_out: int = 0

    def answered(self, probes_and_left_out: tuple[list[Probe], int]) -> list[Probe]:
        probes, left_out = probes_and_left_out
        self.probes_left_out += left_out
        return probes


Parse = Callable[[dict, Reading], list[EditRequest]]


def parse(record: object, reading: Reading) -> list[EditRequest]:
    """The requests of one record: one, or in MQuAKE one per rewrite. RequestError for what cannot be edited."""
    while isinstance(record, dict):
        if (found := find_format(record)) is not None:
            return found(record, reading)
        if not all(isinstance(value, dict) for value in record.values()):
            raise _unknown(record)
        record = inside(record, reading.part)
    raise RequestError(f"{quoted(record)} is not an object; write {{'subject': ..., 'prompt': ..., ...}}")


def find_format(record: dict) -> Parse | None:
    """The parse function for records with such keys, if there is one."""
    return next((parse for recognises, parse in _FORMATS if recognises(record)), None)


def inside(wrapper: dict, part: str | None) -> object:
    """What an object that is no record is wrapped around: its one part, `part`, or all where the keys are numbers."""
    parts = {key: value for key, value in wrapper.items() if isinstance(value, dict | list)}
    if not parts:
        raise _unknown(wrapper)
    if part in parts:
        return parts[part]
    if all(key.isdigit() for key in parts):
        return list(parts.values())
    if len(parts) > 1:
        raise RequestError(f"it has the parts {quoted(list(parts))}; say which one is meant (part)")
    return next(iter(parts.values()))


def _unknown(record: dict) -> RequestError:
    return RequestError(f"the keys {quoted(sorted(record))} fit no known format; see EditRequest for ours")


def _refuse_unknown(record: dict, cls: type, field: str = ""):
    known = [entry.name for entry in fields(cls)]
    for key in record:
        if key not in known:
            raise RequestError(f"the key is unknown; use {', '.join(known)}", f"{field}{key}")


def _refuse_true(target: object, true: list[str], field: str):
    if isinstance(target, str) and target.strip() in [answer.strip() for answer in true]:
        raise RequestError(f"{quoted(target)} is already a true answer; drop the record or change it", field)


def _texts(value: object, subject: object, field: str) -> tuple:
    """Texts that name their subject, of a format without templates: in ours a "{}" would stand for the subject."""
    texts = tuple(value) if isinstance(value, list) else (value,) if value else ()
    for text in texts:
        if isinstance(text, str) and "{}" in text and isinstance(subject, str) and subject in text:
            raise RequestError(f'{quoted(text)} names the subject and has a "{{}}" besides; take one out', field)
    return texts


def _one_text(value: object, subject: object, field: str) -> object:
    return _texts([value], subject, field)[0]


def _parse_own(record: dict, reading: Reading) -> list[EditRequest]:
    _refuse_unknown(record, EditRequest)
    for key in ("subject", "prompt", "target_new"):
        required(record, key)
    probes = {}
    for field, kind in (("locality", {}), (PORTABILITY, {"kind": PORTABILITY})):
        probes[field] = []
        for probe in as_list(record.get(field, []), field):
            _refuse_unknown(as_object(probe, field), Probe, f"{field} ")
            for key in ("prompt", "answer"):
                required(probe, key, f"{field} ")
            probes[field].append(Probe(**{**kind, **probe}))
    return [EditRequest(**{**record, **probes})]


def _parse_easyedit(record: dict, reading: Reading) -> list[EditRequest]:
    """EasyEdit's flat CounterFact, KnowEdit (WikiBio has names of its own) and the records of EasyEdit's calls."""
    concept, text, labels = (
        ("concept", "text", "labels") if "concept" in record else ("subject", "prompt", "target_new")
    )
    subject, target = required(record, concept), required(record, labels)
    true = [answer for answer in answers(record.get("ground_truth"), "ground_truth") if answer != _UNKNOWN]
    _refuse_true(target, true, labels)
    locality = reading.answered(locality_probes(record.get("locality"), subject))
    if record.get("locality_prompt"):
        locality.append(Probe(record["locality_prompt"], required(record, "locality_ground_truth")))
    rephrased = "rephrase_prompt" if "rephrase_prompt" in record else "rephrase"
    return [
        EditRequest(
            subject=subject,
            prompt=_one_text(required(record, text), subject, text),
            target_new=target,
            target_true=true[0] if true else None,
            paraphrases=_texts(record.get(rephrased), subject, rephrased),
            locality=locality,
            portability=reading.answered(portability_probes(record.get(PORTABILITY))),
            case_id=record.get("case_id"),
        )
    ]


def _parse_rome(record: dict, reading: Reading) -> list[EditRequest]:
    """CounterFact, and MQuAKE with its list of rewrites. Its questions follow from all of them, and each has them."""
    rewrites = record["requested_rewrite"]
    if not isinstance(rewrites, list) or not rewrites:
        return [_parse_rewrite(rewrites, "requested_rewrite", record, reading)]
    return [_parse_rewrite(rewrite, f"requested_rewrite[{i}]", record, reading) for i, rewrite in enumerate(rewrites)]


def _parse_memit(record: dict, reading: Reading) -> list[EditRequest]:
    """A rewrite by itself, as ROME, MEMIT and AlphaEdit take requests; it need not say what was true."""
    return [_parse_rewrite(record, "", record, reading)]


def _parse_rewrite(rewrite: object, field: str, record: dict, reading: Reading) -> EditRequest:
    rewrite, inside = as_object(rewrite, field), f"{field}." if field else ""
    said = field or record.get("neighborhood_prompts") or "target_true" in rewrite
    new, true = (
        required(as_object(required(rewrite, key, inside), inside + key), "str", f"{inside}{key}.")
        if key == "target_new" or said
        else None
        for key in ("target_new", "target_true")
    )
    subject, prompt = required(rewrite, "subject", inside), required(rewrite, "prompt", inside)
    paraphrases = as_list(record.get("paraphrase_prompts", []), "paraphrase_prompts")
    asked = [rewrite["question"]] if rewrite.get("question") else []
    portability = reading.answered(portability_probes(record.get(PORTABILITY)))
    questions = as_list(record.get("questions", []), "questions")
    if questions:
        portability += [Probe(question, required(record, "new_answer"), PORTABILITY) for question in questions]
    if "alternative_subject" in record:
        alias = checked_text(record["alternative_subject"], "alternative_subject", "give the subject's other name")
        portability.append(Probe(str(prompt).replace("{}", alias), new, PORTABILITY))
    neighbours = as_list(record.get("neighborhood_prompts", []), "neighborhood_prompts")
    return EditRequest(
        subject=subject,
        prompt=prompt,
        target_new=new,
        target_true=true,
        paraphrases=_texts([*paraphrases, *asked], subject, "paraphrase_prompts"),
        locality=[Probe(neighbour, true) for neighbour in neighbours],
        portability=portability,
        case_id=record.get("case_id"),
        relation=rewrite.get("relation_id"),
    )


def _parse_zsre(record: dict, reading: Reading) -> list[EditRequest]:
    """MEND's ZsRE. What EasyEdit's variants ask for besides follows from the edit to `alt`, and from no other."""
    true = answers(as_list(required(record, "answers"), "answers"), "answers")
    if not true:
        raise RequestError("it is empty; give the true answer", "answers")
    subject, target, old, portability = required(record, "subject"), true[0], None, []
    if reading.zsre_target == "alt":
        target, old = required(record, "alt"), true[0]
        _refuse_true(target, true, "alt")
        portability = reading.answered(portability_probes(record.get(PORTABILITY)))
        for question, answer in (("inverse question", subject), ("alter_subject_question", target)):
            portability += [Probe(record[question], answer, PORTABILITY)] if record.get(question) else []
    locality = ()
    if record.get("loc"):
        question = checked_text(record["loc"], "loc", "give the unrelated question")
        locality = (Probe(question.removeprefix(_NATURAL_QUESTIONS), required(record, "loc_ans")),)
    return [
        EditRequest(
            subject=subject,
            prompt=_one_text(required(record, "src"), subject, "src"),
            target_new=target,
            target_true=old,
            paraphrases=_texts(record.get("rephrase"), subject, "rephrase"),
            locality=locality,
            portability=portability,
            case_id=record.get("case_id"),
        )
    ]


def _parse_lists(record: dict, reading: Reading) -> list[EditRequest]:
    return [request for single in split_lists(record) for request in parse(single, reading)]


def _is_easyedit(record: dict) -> bool:
    """EasyEdit shares subject, prompt, target_new with our schema; what differs decides."""
    theirs = {"ground_truth", "rephrase_prompt", "rephrase", "locality_prompt", "locality_ground_truth", "concept"}
    grouped = any(isinstance(record.get(field), dict) for field in ("locality", PORTABILITY))
    listed = any(isinstance(record.get(field), list) for field in ("locality", PORTABILITY))
    ours = {"target_true", "paraphrases", "relation", "superseded"}
    return (grouped or not theirs.isdisjoint(record)) and not listed and ours.isdisjoint(record)


_FORMATS: tuple[tuple[Callable[[dict], bool], Parse], ...] = (
    (lambda record: "requested_rewrite" in record, _parse_rome),
    (lambda record: "src" in record and "prompt" not in record, _parse_zsre),
    (is_keyword_lists, _parse_lists),
    (lambda record: isinstance(record.get("target_new"), dict), _parse_memit),
    (_is_easyedit, _parse_easyedit),
    (lambda record: not {"subject", "prompt", "target_new"}.isdisjoint(record), _parse_own),
)
