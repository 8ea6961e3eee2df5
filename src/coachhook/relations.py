"""Which requests ask for the same relation, where their records do not say it, as in ZsRE.

The questions themselves tell: two templates belong to one relation where a record gives them as each other's
rephrasing, where they give the same true answer about the same subject, or where they are the same words but for
the little ones. Joining goes on until nothing is left to join.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace

from coachhook.edit_request import EditRequest, RequestError

# Words that change with the wording and not with what is asked. "when" stays: "when was {} born" asks for no place.
_LITTLE = re.compile(
    r"an?|the|of|in|on|at|to|for|by|with|from|as|and|or|is|are|was|were|be|been|being|do|does|did|has|have|had|can|"
    r"could|would|what|which|who|whom|whose|where|how|that|its?|his|her|their|he|she|they|s|names?|types?|kinds?|"
    r"listed|called|known|belongs?|part"
)


def template_of(request: EditRequest, text: str) -> str | None:
    """`text` with "{}" for the subject; None where it does not stand there exactly or there are other braces."""
    try:
        start, end = request.subject_span(text)
    except RequestError:
        return None
    template = f"{text[:start]}{{}}{text[end:]}"
    return template if template.count("{}") == 1 and text[start:end] == request.subject else None


def label_relations(requests: Sequence[EditRequest]) -> list[EditRequest]:
    """The requests, each without a `relation` given one: the template that its relation is asked with most often.

    Requests whose prompt does not name the subject as it is written stay without.
    """
    groups = _Groups()
    for request in requests:
        template = template_of(request, request.text)
        if template is None:
            continue
        groups.join(("template", template), ("words", _content(template)) if _content(template) else None)
        if request.target_true is not None:
            groups.join(("template", template), ("fact", request.subject, request.target_true.strip()))
        for text in request.paraphrase_texts:
            if (other := template_of(request, text)) is not None:
                groups.join(("template", template), ("template", other))
                groups.join(("template", other), ("words", _content(other)) if _content(other) else None)
    templates = [template_of(request, request.text) for request in requests]
    names = _most_common(groups, [template for template in templates if template is not None])
    return [
        request
        if template is None or request.relation is not None
        else replace(request, relation=names[groups.of(("template", template))])
        for request, template in zip(requests, templates, strict=True)
    ]


def _content(template: str) -> tuple[str, ...]:
    """The words of a question that say what it asks for, in alphabetical order."""
    words = re.findall(r"[^\W\d_]+", template.replace("{}", " ").lower())
    return tuple(sorted({word for word in words if not _LITTLE.fullmatch(word)}))


def _most_common(groups: _Groups, templates: Iterable[str]) -> dict[Hashable, str]:
    counts: dict[str, int] = {}
    for template in templates:
        counts[template] = counts.get(template, 0) + 1
    names: dict[Hashable, str] = {}
    for template in counts:  # in the order of the records, so that of equals the first counts
        group = groups.of(("template", template))
        if group not in names or counts[template] > counts[names[group]]:
            names[group] = template
    return names


class _Groups:
    """Disjoint sets of whatever can be a key (union-find)."""

    def __init__(self):
        self._above: dict[Hashable, Hashable] = {}

    def of(self, item: Hashable) -> Hashable:
        """One item that stands for the whole group of `item`."""
        root = item
        while self._above.get(root, root) != root:
            root = self._above[root]
        while self._above.get(item, item) != root:
            self._above[item], item = root, self._above[item]
        return root

    def join(self, item: Hashable, other: Hashable | None) -> None:
        """Put both in one group; `item` alone where there is no other."""
        self._above.setdefault(item, item)
        if other is not None:
            self._above[self.of(other)] = self.of(item)
