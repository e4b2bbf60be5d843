"""Which metrics keep sums, so that those of several ranks may be added: read from their source."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterable, Iterator

import keras

# What does not run when a batch comes.
_ELSEWHERE = {"__init__", "build", "from_config", "get_config", "reset_state", "reset_states", "result"}
_KERAS = {"keras", "tensorflow", "builtins"}


def flat_metrics(metrics: Iterable[keras.metrics.Metric]) -> list[keras.metrics.Metric]:
    """Every metric, and those inside it, once."""
    found: dict[int, keras.metrics.Metric] = {}
    for metric in metrics:
        inside = getattr(metric, "metrics", None) or getattr(metric, "_metrics", [])
        found |= {id(each): each for each in (*flat_metrics(inside), metric)}
    return list(found.values())


def own_variables(metric: keras.metrics.Metric) -> list[keras.Variable]:
    """Those that no metric inside it has."""
    return list(getattr(metric, "_variables", []))


def adds_up(metric: keras.metrics.Metric) -> bool:
    """Whether each batch adds to a metric's variables what depends on the batch alone.

    Keras' own metrics all do. Of others, `update_state` and what it calls in the class may say
    `v.assign_add(x)` or `v.assign(v + x)`, x without any of the variables, or leave it to Keras' class.
    Where the source cannot be read or says anything else, the answer is no.
    """
    classes = _own_classes(metric)
    if not any("update_state" in vars(kind) for kind in classes):
        return True
    variables = {name for name, value in vars(metric).items() if any(value is v for v in metric.variables)}
    try:
        calls = [call for kind in classes for call in _calls(kind)]
    except (OSError, TypeError, SyntaxError):
        return False
    writes = [call for call in calls if _method(call).startswith(("assign", "scatter"))]
    passed_on = any(ast.unparse(call.func) == "super().update_state" for call in calls)
    return bool(writes or passed_on) and all(_adds(call, variables) for call in writes)


def _own_classes(metric: keras.metrics.Metric) -> list[type]:
    """Its classes that are not Keras' own."""
    return [kind for kind in type(metric).__mro__ if kind.__module__.partition(".")[0] not in _KERAS]


def _calls(kind: type) -> Iterator[ast.Call]:
    for name, value in vars(kind).items():
        function = getattr(value, "__func__", value)
        if name in _ELSEWHERE or not inspect.isfunction(function):
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        yield from (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def _adds(call: ast.Call, variables: set[str]) -> bool:
    if not isinstance(call.func, ast.Attribute) or not call.args:
        return False
    target, value, method = ast.unparse(call.func.value), call.args[0], _method(call)
    if method not in ("assign", "assign_add", "assign_sub"):
        return False
    terms = [value] if method != "assign" else _terms(value)
    rest = [term for term in terms if ast.unparse(term) != target]
    if method == "assign" and len(rest) != len(terms) - 1:
        return False
    return not any(_reads(node, target, variables) for term in rest for node in ast.walk(term))


def _terms(value: ast.expr) -> list[ast.expr]:
    """What is added up; of a difference, what is subtracted is marked so that it is nobody's variable."""
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add):
        return [*_terms(value.left), *_terms(value.right)]
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Sub):
        return [*_terms(value.left), ast.UnaryOp(ast.USub(), value.right)]
    if isinstance(value, ast.Call) and _method(value) == "add" and len(value.args) == 2:
        return [term for each in value.args for term in _terms(each)]
    return [value]


def _reads(node: ast.AST, target: str, variables: set[str]) -> bool:
    if isinstance(node, ast.Attribute) and node.attr in variables:
        return True
    return isinstance(node, ast.expr) and ast.unparse(node) == target


def _method(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else ""
