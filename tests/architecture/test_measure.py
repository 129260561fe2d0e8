"""Rules for the source: sizes, annotations, a type for each of `**kwargs`, and no `pytest.raises` without `match`."""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("tnadapt", "tnadapt_torch", "tnadapt_jax")
MAX_FILE_LINES = 350
MAX_FUNCTION_LINES = 60
# What the user passed is passed on: by torch, PEFT and optax, and to the user's own function or module in JAX.
HANDED_ON = {"forward", "_enable_peft_forward_hooks", "update", "__call__", "adapted", "call", "explain", "explained"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources(*folders: str) -> list[str]:
    return sorted(path.relative_to(ROOT).as_posix() for name in folders for path in (ROOT / name).rglob("*.py"))


def code_lines(function: Function, lines: list[str]) -> int:
    """Count the lines of a function, without the docstring, blank lines and comment lines."""
    counted = set(range(function.lineno, function.end_lineno + 1))
    if ast.get_docstring(function) is not None:
        counted -= set(range(function.body[0].lineno, function.body[0].end_lineno + 1))
    kept = (lines[number - 1].strip() for number in counted)
    return sum(bool(line) and not line.startswith("#") for line in kept)


def faults(source: str) -> Iterator[str]:
    lines = source.splitlines()
    if len(lines) > MAX_FILE_LINES:
        yield f"the file has {len(lines)} lines, more than {MAX_FILE_LINES}"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, Function | ast.Lambda) and node.args.kwarg is not None and not is_passed_on(node):
            yield f"line {node.lineno}: takes **{node.args.kwarg.arg}"
        if isinstance(node, Function):
            if node.returns is None:
                yield f"line {node.lineno}: {node.name} has no return annotation"
            if (length := code_lines(node, lines)) > MAX_FUNCTION_LINES:
                yield f"line {node.lineno}: {node.name} has {length} lines, more than {MAX_FUNCTION_LINES}"


def is_passed_on(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> bool:
    """Return whether a function passes on the arguments of a function it decorates, or of a class it stands before.

    Arguments that a type names one by one are as good as keywords.
    """
    kwarg = node.args.kwarg
    written = "" if kwarg.annotation is None else ast.unparse(kwarg.annotation)
    if written == "P.kwargs" or written.startswith("Unpack["):
        return True
    if getattr(node, "name", "") in HANDED_ON:
        return True
    calls = {ast.unparse(call) for call in ast.walk(node) if isinstance(call, ast.Call)}
    return f"super().{getattr(node, 'name', '')}(*args, **{kwarg.arg})" in calls


def private_imports(source: str) -> Iterator[str]:
    """Yield each import from the private part of another library in JAX's family; these change with every release."""
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        yield from (f"line {node.lineno}: imports {name}" for name in names if "_src" in name.split("."))


def bare_raises(source: str) -> Iterator[str]:
    if "raises" not in source:  # to parse all files takes seconds
        return
    for node in ast.walk(ast.parse(source)):
        named = isinstance(node, ast.Call) and ast.unparse(node.func) in {"pytest.raises", "raises"}
        if named and not any(keyword.arg == "match" for keyword in node.keywords):
            yield f"line {node.lineno}: raises without match="


def found_in(folders: tuple[str, ...], look: Callable[[str], Iterator[str]]) -> dict[str, list[str]]:
    """Return what is wrong in each file of some folders. There are a thousand: a test for each would take seconds."""
    found = {path: list(look((ROOT / path).read_text(encoding="utf-8"))) for path in sources(*folders)}
    assert len(found) > 10
    return {path: wrong for path, wrong in found.items() if wrong}


def test_every_module_follows_the_rules():
    assert found_in(PACKAGES, faults) == {}


def test_the_jax_binding_imports_nothing_private():
    assert found_in(("tnadapt_jax",), private_imports) == {}


def test_a_private_import_is_found():
    assert list(private_imports("from jax._src import core\n")) == ["line 1: imports jax._src"]
    assert list(private_imports("import jax._src.core\n")) == ["line 1: imports jax._src.core"]
    assert list(private_imports("import jax\nfrom jax.extend.core import Var\n")) == []


def test_every_expected_error_is_matched_by_its_message():
    assert found_in(("tests",), bare_raises) == {}


LONG = "def f() -> None:\n" + "    pass\n" * MAX_FUNCTION_LINES
PADDED = 'def f() -> None:\n    """One.\n' + "\n" * 100 + '    """\n' + "    # why\n\n" * 50 + "    pass\n"


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("\n" * (MAX_FILE_LINES + 1), "the file has 351 lines"),
        ("def f():\n    pass\n", "line 1: f has no return annotation"),
        ("class A:\n    async def f(self):\n        pass\n", "line 2: f has no return annotation"),
        ("def f(**kwargs) -> None:\n    pass\n", "line 1: takes **kwargs"),
        ("def f(**kwargs: Any) -> None:\n    pass\n", "line 1: takes **kwargs"),
        ("def f(**kwargs: Q.kwargs) -> None:\n    pass\n", "line 1: takes **kwargs"),
        ("f = lambda **words: words\n", "line 1: takes **words"),
        (LONG, "line 1: f has 61 lines"),
    ],
)
def test_a_violation_is_found(source, fault):
    (found,) = faults(source)
    assert found.startswith(fault)


def test_the_arguments_of_a_decorated_function_may_be_passed_on():
    assert list(faults("def f(*args: P.args, **kwargs: P.kwargs) -> None:\n    pass\n")) == []


def test_the_arguments_that_a_type_names_may_be_taken():
    assert list(faults("def f(**parts: Unpack[Parts]) -> None:\n    pass\n")) == []


def test_a_method_may_pass_on_the_arguments_of_the_class_behind():
    method = "def run(*args, **kwargs) -> None:\n    super().{}(*args, **kwargs)\n"
    assert list(faults(method.format("run"))) == []
    assert list(faults(method.format("other"))) == ["line 1: takes **kwargs"]


def test_docstrings_comments_and_blank_lines_do_not_count():
    assert list(faults(PADDED)) == []


def test_raises_without_match_is_found():
    assert list(bare_raises("with pytest.raises(ValueError):\n    pass\n")) == ["line 1: raises without match="]
    assert list(bare_raises("with pytest.raises(ValueError, match='x'):\n    pass\n")) == []
