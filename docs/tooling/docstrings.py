"""What mkdocstrings reads of the package: the folders that are installed elsewhere, and our docstrings rewritten."""

import importlib.util
from pathlib import Path
from typing import Any

import griffe


def _beside(name: str) -> Any:
    """A module of this folder, which is no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


google_style = _beside("huggingface_style").google_style
MOVED = ("callbacks",)  # top folders that ship inside lorif_hf (`package-dir` in pyproject.toml)


class HuggingFaceDocstrings(griffe.Extension):
    """Runs once the sources of the package are parsed; nothing of it is imported."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **_: Any) -> None:
        if pkg.name != "lorif_hf":
            return
        for name in MOVED:
            pkg.set_member(name, loader.load(name))
        self._rewrite(pkg)

    def _rewrite(self, obj: griffe.Object) -> None:
        if obj.docstring is not None:
            is_function = isinstance(obj, griffe.Function)
            obj.docstring.value = google_style(
                obj.docstring.value,
                lambda target, text: _reference(_resolved(obj, target), text),
                parameters=[_starred(one) for one in obj.parameters] if is_function else (),
                returns=str(obj.returns) if is_function and obj.returns is not None else None,
            )
        for member in obj.members.values():
            if not member.is_alias:
                self._rewrite(member)


def _starred(parameter: griffe.Parameter) -> str:
    stars = {griffe.ParameterKind.var_positional: "*", griffe.ParameterKind.var_keyword: "**"}
    return stars.get(parameter.kind, "") + parameter.name


def _resolved(obj: griffe.Object, target: str) -> str:
    """The full name of what a docstring names, as its module sees it, else as the package exports it."""
    if target.startswith("lorif_hf."):
        return target
    first, dot, rest = target.partition(".")
    try:
        return f"{obj.resolve(first)}{dot}{rest}"
    except griffe.NameResolutionError:
        return f"lorif_hf.{target}"


def _reference(target: str, text: str) -> str:
    """A link where a page of the site holds the target, else the text alone."""
    return f'<autoref identifier="{target}" optional><code>{text}</code></autoref>'
