"""Digests of the code that a result was computed with, blind to comments and docstrings."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path


def code_digest(*modules: str, package: str = "coachhook", without: Collection[str] = ()) -> str:
    """Digest of modules (`"stream"`, `"editors.memit"`) of a package and of all that they import from it.

    without: modules to leave out although they are imported.

    Only statements count: a comment, a docstring or the formatting changes nothing. Modules are found where Python
    would import them from, and nothing is imported. Raises ModuleNotFoundError for a module that does not exist.
    """
    root = Path(importlib.util.find_spec(package).origin).parent
    found: dict[str, str] = {}
    pending = list(modules)
    while pending:
        name = pending.pop()
        if name in found or name in without:
            continue
        path = _source(root, name)
        if path is None:
            raise ModuleNotFoundError(f"{package}.{name}: no such module under {root}")
        inside = f"{package}.{name}" if path.name == "__init__.py" else f"{package}.{name}".rpartition(".")[0]
        found[name], imported = _read(path.read_text(encoding="utf-8"), package, inside)
        pending += [other for other in imported if _source(root, other)]
    return hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()[:16]


def method_digest(name: str, *modules: str) -> str:
    """Digest of the code of a stream: of the methods and of their registry only what concerns this one.

    Adding a method thus leaves the results of all others as they are. Raises KeyError for an unknown method.

    modules: what the stream is run by besides.
    """
    return _digest(name, "stream", *modules)


def training_digest(name: str) -> str:
    """Digest of the code that trains a method's editor: of the method's module, and of all that it imports.

    Raises KeyError for an unknown method.
    """
    return _digest(name)


def code_label(kind: str, *names: str) -> str:
    """Code by what it is and its digest, such as `modules covariance texts: 0123456789abcdef`.

    kind: `modules` (names: modules), `method` (names: a method, further modules) or `training` (name: a method).
    """
    return f"{kind} {' '.join(names)}: {_DIGESTS[kind](*names)}"


def label_now(label: str) -> str | None:
    """The `code_label` of the same code as it is now; None where it is gone, or this version knows no such code."""
    kind, _, names = label.rpartition(": ")[0].partition(" ")
    try:
        return code_label(kind, *names.split())
    except (KeyError, TypeError, ModuleNotFoundError):
        return None


def _digest(name: str, *modules: str) -> str:
    entry = _registry()[name]
    module = entry.args[0].value.split(":")[0]
    code = code_digest(*modules, f"editors.{module}", without=("editors",))
    return hashlib.sha256((code + ast.dump(entry)).encode()).hexdigest()[:16]


_DIGESTS = {"modules": code_digest, "method": method_digest, "training": training_digest}


def method_names() -> list[str]:
    """Names of all registered methods, read without importing them (which would import torch)."""
    return list(_registry())


def _registry() -> dict[str, ast.Call]:
    root = Path(importlib.util.find_spec("coachhook").origin).parent
    tree = ast.parse((root / "editors" / "__init__.py").read_text(encoding="utf-8"))
    tables = (node.value for node in tree.body if isinstance(node, ast.AnnAssign) and node.target.id == "METHODS")
    table = next(tables)
    return {key.value: value for key, value in zip(table.keys, table.values, strict=True)}


@cache  # methods share most of their modules, and a study has many methods
def _read(text: str, package: str, inside: str) -> tuple[str, tuple[str, ...]]:
    """Digest of a module's statements, and what it imports from the package."""
    tree = ast.parse(text)
    imported = []
    for node in _statements(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            imported += _imports(node, package, inside)
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [statement for statement in node.body if not _is_string(statement)]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), tuple(dict.fromkeys(imported))


def _source(root: Path, name: str) -> Path | None:
    path = os.path.join(root, *name.split("."))  # asked thousands of times: pathlib would take longer than the rest
    candidates = (f"{path}.py", os.path.join(path, "__init__.py"))
    return next((Path(candidate) for candidate in candidates if os.path.isfile(candidate)), None)


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """The module and all statements in it; what is inside expressions is neither an import nor has a docstring."""
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        yield node
        for blocks in ("body", "orelse", "finalbody", "handlers", "cases"):
            pending += getattr(node, blocks, ())


def _imports(node: ast.Import | ast.ImportFrom, package: str, inside: str) -> Iterator[str]:
    """Names, relative to the package, that may be modules; the package's own `__init__` is not followed.

    inside: the package or subpackage that relative imports start from.
    """
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    else:
        base = node.module or ""
        if node.level:
            parents = inside.split(".")[: len(inside.split(".")) - node.level + 1]
            base = ".".join(filter(None, [*parents, base]))
        names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
    yield from (full.removeprefix(f"{package}.") for full in names if full.startswith(f"{package}."))


def _is_string(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )
