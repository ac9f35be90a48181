"""Every public name has an example in its docstring, and every example is Python."""

import ast
import inspect
import re
from importlib import import_module

import pytest


MODULES = ["lorif_hf", "lorif_hf.callbacks", "lorif_hf.evaluation"]
KINDS = {"layers": "LayerKind", "tasks": "Task", "curvature": "Curvature", "codecs": "Codec"}
FENCE = re.compile(r"^( *)```python\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)


def public_names():
    """Classes and functions that a user is told of, and the methods of these classes, by their dotted names."""
    named = {}
    for module in MODULES:
        for name in import_module(module).__all__:
            value = getattr(import_module(module), name)
            if callable(value) and getattr(value, "__module__", "").startswith("lorif_hf"):
                named[f"{module}.{name}"] = value
    for folder, base in KINDS.items():
        package = import_module(f"lorif_hf.{folder}")
        named[f"lorif_hf.{folder}.{base}"] = getattr(package, base)
        named[f"lorif_hf.{folder}.register"] = package.register
    for name, value in list(named.items()):
        if inspect.isclass(value) and not inspect.isabstract(value):
            methods = inspect.getmembers(value, lambda member: inspect.isfunction(member) or inspect.ismethod(member))
            ours = {n: m for n, m in methods if not n.startswith("_") and m.__module__.startswith("lorif_hf")}
            inherited = {n for base in value.__mro__ if not base.__module__.startswith("lorif_hf") for n in vars(base)}
            named |= {f"{name}.{n}": method for n, method in ours.items() if n not in inherited}
    return named


PUBLIC = public_names()


def examples(docstring):
    """The code of a docstring's examples: what follows >>> and ..., the whole of a fence without these, or a line in
    backticks."""
    yield from re.findall(r"`>>> ([^`\n]+)`", docstring)
    for _, block in FENCE.findall(docstring):
        lines = inspect.cleandoc(block).splitlines()
        prompted = [line[4:] for line in lines if line.startswith((">>> ", "... "))]
        yield "\n".join(prompted) if any(line.startswith(">>>") for line in lines) else "\n".join(lines)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_name_has_an_example_that_is_python(name):
    found = list(examples(f"{inspect.getdoc(PUBLIC[name]) or ''}\n"))
    assert found, f"the docstring of {name} needs an example, between ```python and ```"
    for code in found:
        assert ast.parse(code).body, f"an example of {name} is empty"


def test_the_walk_sees_what_a_user_sees():
    seen = {"lorif_hf.InfluenceIndex.build", "lorif_hf.InfluenceIndex.from_pretrained", "lorif_hf.metric"}
    seen |= {"lorif_hf.callbacks.InfluenceCallback.record", "lorif_hf.evaluation.RetrainBank", "lorif_hf.tasks.Task"}
    assert seen <= PUBLIC.keys()
    assert "lorif_hf.callbacks.InfluenceCallback.on_train_end" not in PUBLIC


def test_examples_are_read():
    text = "Adds.\n\n```python\n>>> for x in (1,):\n...     print(x)\n1\n```\n\n```python\nx = 1\n```\n`>>> y`"
    assert list(examples(text)) == ["y", "for x in (1,):\n    print(x)", "x = 1"]
