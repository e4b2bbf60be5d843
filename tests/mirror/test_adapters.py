"""The two adapters are mirror images: whoever has read one knows the other.

Read from source, so neither framework is needed. The rule:

- the packages hold the same modules, and the two job folders the same scripts, but those of `ONE_SIDED`;
- a module binds the same public names, but those of `BY_NATURE`: functions, classes, constants and aliases;
- a function or method has the same parameters (names, order, kinds, defaults) and the same decorators;
- an annotation is the same text, unless one of the two names a framework's type (`torch.…`, `tf.…`)
  at its root or inside: there the types must differ, and readers expect it;
- a class has the same bases, the same public methods and properties, and sets the same public attributes on
  `self`. Its constructor counts as public. Of a class of `BY_NATURE`, what both have is the same.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TORCH, TENSORFLOW = ROOT / "hvdtrain" / "torch", ROOT / "hvdtrain" / "tensorflow"
# Modules that one adapter alone has, and why. A user's own loop is written in another way in each framework.
ONE_SIDED = {
    "dropin/arrays.py": "Keras' variables give NumPy's arrays themselves",
    "dropin/backward.py": "PyTorch tells by hooks which backward runs; TensorFlow's tape is called",
    "dropin/checkpoint.py": "TensorFlow's is Keras' (hvdtrain/keras/callbacks/checkpoint.py)",
    "dropin/copies.py": "PyTorch copies optimizers whole, Keras makes them anew (hvdtrain/keras/telling.py)",
    "dropin/filling.py": "PyTorch's gradients come and go by `.grad`; TensorFlow's are arguments",
    "dropin/hooks.py": "PyTorch tells by hooks of each gradient; TensorFlow's tape returns all",
    "dropin/naming.py": "PyTorch's parameters have no names of their own",
    "dropin/optimizer.py": "TensorFlow's is Keras' (hvdtrain/keras/optimizer.py)",
    "dropin/optimizer_state.py": "PyTorch's optimizers number parameters; Keras' have variables",
    "dropin/packing.py": "PyTorch's optimizers keep what they like; Keras' have variables",
    "dropin/sampler.py": "data of TensorFlow are sharded by tf.data",
    "dropin/sharding.py": "TensorFlow's is Keras' (hvdtrain/keras/sharding.py)",
    "dropin/showing.py": "PyTorch shows gradients in `.grad`; TensorFlow returns them",
    "dropin/state.py": "PyTorch has a state_dict",
    "dropin/messages.py": "TensorFlow has a list of variables",
    "dropin/tape.py": "PyTorch has no tape",
    "families/_keras.py": "what Keras' layers need to compute what the spec says; PyTorch's do it",
    "families/_transformers.py": "likewise for Transformers' models",
    "families/_recompute.py": "gradient checkpointing of Keras' layers; Transformers' models have their own",
    "keras/__init__.py": "Horovod's names for Keras in TensorFlow",
    "keras/callbacks.py": "likewise",
    "keras/elastic.py": "likewise",
}
_HOOKS = "PyTorch's are filled by hooks and told of `step`; TensorFlow's are given to one call in a graph"
_BUCKETS = "PyTorch's parameters have views of a bucket, TensorFlow's variables are packed, in Keras' layout"
_HELD = (
    "PyTorch's weights are views of flat tensors, and its modules have hooks; TensorFlow's graph has neither"
)
_DRIVER = "PyTorch has requests under way, TensorFlow a graph in which data flow orders them"
# Public names of a module that one adapter alone has, or that are otherwise in each, and why.
BY_NATURE = {
    "buckets.py": dict.fromkeys(("GradBucket", "lay_out", "pack", "unpack", "swap_layout"), _BUCKETS),
    "flat_weights.py": dict.fromkeys(("HeldWeights", "FlatWeights"), _HELD),
    "gathers.py": {"GatheredWeights": _HELD},
    "optimizers.py": {"Optimizer": _HELD},
    "placeholders.py": dict.fromkeys(
        ("empty", "is_empty", "place"), "TensorFlow's variables give their memory back where they are made"
    ),
    "reducer.py": {"Reducer": "TensorFlow's variables are made before what adds to them is traced"},
    "shards.py": {"ShardExchange": _DRIVER},
    "driver.py": dict.fromkeys(("Work", "Driver"), _DRIVER),
    "update_rules.py": dict.fromkeys(
        ("Norms", "Piece", "Task", "build_rule", "empty_group", "update_pieces"),
        "PyTorch's rules are its optimizers of flat parameters, TensorFlow's are kernels in a graph",
    ),
    "weights.py": {"host_copy": "TensorFlow copies from GPUs through pinned memory by itself"},
    "dropin/accumulation.py": {"Accumulation": _HOOKS},
    "dropin/arguments.py": dict.fromkeys(
        ("Reach", "check_local_layers", "handles"), "layers that stay local are Horovod's in TensorFlow alone"
    ),
    "dropin/agreement.py": {
        "facts": "of tensors by name",
        "parameters_of": "of variables, which have their name",
        "compare_ranks": "one comparison, of structure and values, before the first backward",
        "check_structure": "while TensorFlow traces, when variables may not have their values yet",
        "check_values": "in the graph, once they have",
        "check_shapes": "lazy layers are PyTorch's",
        "shared_name": "Keras numbers names, and loading changes them",
        "AGREEMENT": "the name of TensorFlow's one comparison; PyTorch's have the optimizer's",
    },
    "dropin/gradients.py": {
        "Gradients": _HOOKS,
        "gradients_in_use": "PyTorch's are their optimizers' (dropin/optimizer.py), a tape's nobody's",
    },
    "dropin/loader.py": dict.fromkeys(
        ("DataLoader", "dataset", "Dataset"),
        "PyTorch's loader is a class, a tf.data.Dataset is made by functions",
    ),
    "dropin/sync_batch_norm.py": dict.fromkeys(
        ("SyncBatchNorm", "SyncBatchNormalization"), "each framework's own name for the layer"
    ),
    **{f"families/{family}.py": {"Network": _HELD} for family in ("bert", "gpt2", "llama", "resnet", "vit")},
    "model.py": {"check_layers": "modules of PyTorch have hooks, whatever they are"},
    "elastic.py": dict.fromkeys(("TorchState", "TensorFlowKerasState"), "Horovod's names"),
    "dropin/session.py": {
        "explained": "TensorFlow's error holds an account of the graph, PyTorch's one sentence"
    },
}
FRAMEWORK_ROOTS = {"torch", "tf", "keras", "hvd"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def modules(package: Path) -> set[str]:
    return {str(file.relative_to(package)) for file in package.rglob("*.py")}


SHARED = sorted(modules(TORCH) & modules(TENSORFLOW))


def test_the_adapters_have_the_same_modules() -> None:
    assert modules(TORCH) - ONE_SIDED.keys() == modules(TENSORFLOW) - ONE_SIDED.keys()
    assert not ONE_SIDED.keys() & modules(TORCH) & modules(TENSORFLOW)


def test_both_drivers_answer_the_same_requests() -> None:
    protocol = _parse(ROOT / "hvdtrain" / "core" / "compression" / "protocol.py")
    requests = {
        name
        for name in public_names(protocol)
        if name.startswith(("All", "ReduceS")) or name.endswith("Reduce")
    }
    torch, tensorflow = (_names(_parse(package / "driver.py")) & requests for package in (TORCH, TENSORFLOW))
    # Whatever is none of the others is the last one.
    assert torch == tensorflow
    assert len(torch) == len(requests) - 1 == 4


def test_the_job_folders_have_the_same_scripts() -> None:
    assert modules(ROOT / "torch_jobs") == modules(ROOT / "tf_jobs") != set()


def test_the_job_scripts_differ_in_nothing_but_the_adapter_they_name() -> None:
    for script in modules(ROOT / "torch_jobs"):
        torch = ast.parse((ROOT / "torch_jobs" / script).read_text())
        tensorflow = ast.parse((ROOT / "tf_jobs" / script).read_text())
        code = [ast.unparse(_without_docstring(tree)) for tree in (torch, tensorflow)]
        assert code[0].replace("hvdtrain.torch", "hvdtrain.tensorflow") == code[1], script


@pytest.mark.parametrize("module", SHARED)
def test_a_module_binds_the_same_public_names(module: str) -> None:
    torch, tensorflow = (public_names(_parse(package / module)) for package in (TORCH, TENSORFLOW))
    assert torch ^ tensorflow <= BY_NATURE.get(module, {}).keys()


@pytest.mark.parametrize("module", SHARED)
def test_functions_have_the_same_signatures(module: str) -> None:
    torch, tensorflow = (public_functions(_parse(package / module)) for package in (TORCH, TENSORFLOW))
    _assert_same_signatures(torch, tensorflow)


@pytest.mark.parametrize("module", SHARED)
def test_classes_have_the_same_bases_methods_and_attributes(module: str) -> None:
    torch, tensorflow = (_classes(_parse(package / module)) for package in (TORCH, TENSORFLOW))
    for name in torch.keys() & tensorflow.keys():
        ours, theirs = torch[name], tensorflow[name]
        if name not in BY_NATURE.get(module, {}):
            assert [*map(ast.unparse, ours.bases)] == [*map(ast.unparse, theirs.bases)], name
        methods = public_functions(ours), public_functions(theirs)
        if name in BY_NATURE.get(module, {}):
            for each in methods:
                each.pop("__init__", None)
        else:
            assert public_attributes(ours) == public_attributes(theirs), name
            assert methods[0].keys() == methods[1].keys(), name
        _assert_same_signatures(*methods)


def test_the_rule_sees_what_it_should() -> None:
    ours = public_functions(ast.parse("def f(x: torch.Tensor, n: int = 1, *, last: bool) -> int: ..."))["f"]
    same = "def f(x: tf.Tensor, n: int = 1, *, last: bool) -> int: ..."
    others = (
        "def f(y: tf.Tensor, n: int = 1, *, last: bool) -> int: ...",
        "def f(x: tf.Tensor, n: int = 2, *, last: bool) -> int: ...",
        "def f(x: tf.Tensor, n: int = 1, last: bool = True) -> int: ...",
        "def f(x: tf.Tensor, n: int = 1, *, last: bool) -> float: ...",
        "def f(x: tf.Tensor, n: float = 1, *, last: bool) -> int: ...",
        "def f(n: int, x: tf.Tensor, *, last: bool) -> int: ...",
        "@property\ndef f(x: tf.Tensor, n: int = 1, *, last: bool) -> int: ...",
    )
    assert not differences(ours, public_functions(ast.parse(same))["f"])
    for other in others:
        assert differences(ours, public_functions(ast.parse(other))["f"]), other


def public_names(tree: ast.Module) -> set[str]:
    """Public names that a module binds at its top level, imports aside."""
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, Function | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in found if not name.startswith("_")}


def public_functions(scope: ast.Module | ast.ClassDef) -> dict[str, Function]:
    """Public functions of a module, or public methods and the constructor of a class."""
    return {
        node.name: node
        for node in scope.body
        if isinstance(node, Function) and (not node.name.startswith("_") or node.name == "__init__")
    }


def public_attributes(scope: ast.ClassDef) -> set[str]:
    """Public names that a class' methods set on `self`, and its fields."""
    fields = {
        n.target.id for n in scope.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
    }
    assigned = {
        node.attr
        for node in ast.walk(scope)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }
    return {name for name in fields | assigned if not name.startswith("_")}


def differences(ours: Function, theirs: Function) -> list[str]:
    """In what two functions' signatures differ by the rule above; empty when they do not."""
    found = []
    for what in (_decorators, _parameters):
        if what(ours) != what(theirs):
            found.append(f"{what.__name__.strip('_')}: {what(ours)} != {what(theirs)}")
    for name, annotation in _annotations(ours).items():
        other = _annotations(theirs).get(name)
        if not (_names_a_framework(annotation) or _names_a_framework(other) or _same(annotation, other)):
            found.append(f"annotation of {name}: {_text(annotation)} != {_text(other)}")
    return found


def _assert_same_signatures(torch: dict[str, Function], tensorflow: dict[str, Function]) -> None:
    for name in torch.keys() & tensorflow.keys():
        assert not differences(torch[name], tensorflow[name]), name


def _names(tree: ast.Module) -> set[str]:
    """Names that a module uses, imports aside."""
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def _parameters(function: Function) -> list[tuple[str, str, str]]:
    """(kind, name, default) of every parameter."""
    arguments = function.args
    positional = [("positional-only", a) for a in arguments.posonlyargs]
    positional += [("positional", a) for a in arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + [*arguments.defaults]
    found = [(kind, a.arg, _text(d)) for (kind, a), d in zip(positional, defaults, strict=True)]
    if arguments.vararg:
        found.append(("*", arguments.vararg.arg, ""))
    found += [
        ("keyword", a.arg, _text(d)) for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    ]
    if arguments.kwarg:
        found.append(("**", arguments.kwarg.arg, ""))
    return found


def _annotations(function: Function) -> dict[str, ast.expr | None]:
    arguments = function.args
    every = [
        *arguments.posonlyargs,
        *arguments.args,
        *arguments.kwonlyargs,
        arguments.vararg,
        arguments.kwarg,
    ]
    return {a.arg: a.annotation for a in every if a is not None} | {"return": function.returns}


def _decorators(function: Function) -> list[str]:
    return [ast.unparse(decorator) for decorator in function.decorator_list]


def _names_a_framework(annotation: ast.expr | None) -> bool:
    nodes = ast.walk(annotation) if annotation is not None else ()
    return any(isinstance(node, ast.Name) and node.id in FRAMEWORK_ROOTS for node in nodes)


def _same(ours: ast.expr | None, theirs: ast.expr | None) -> bool:
    return _text(ours) == _text(theirs)


def _text(node: ast.expr | None) -> str:
    return "" if node is None else ast.unparse(node)


def _parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), filename=str(file))


def _classes(tree: ast.Module) -> dict[str, ast.ClassDef]:
    return {n.name: n for n in tree.body if isinstance(n, ast.ClassDef) and not n.name.startswith("_")}


def _without_docstring(tree: ast.Module) -> ast.Module:
    return ast.Module(body=tree.body[1:], type_ignores=[]) if ast.get_docstring(tree) else tree
