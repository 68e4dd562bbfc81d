"""Who may import whom (docs/architecture.md), read from the imports themselves."""

import ast
from pathlib import Path

import foretext

ROOT = Path(foretext.__file__).parent

LAYERS = {  # first match wins
    "errors": 0, "files": 0, "archives": 0, "progress": 0, "summary": 0, "config": 0,
    "text": 1, "model": 1,
    "objectives": 2, "retrieval": 2,
    "training": 3, "interop": 3,
    "verbs": 4,
    "cli": 5,
}
STRANGERS = [("text", "model"), ("objectives", "retrieval"), ("training", "interop")]  # same layer, never each other


def modules() -> dict[str, set[str]]:
    """Module -> the foretext modules it imports, anywhere in its text."""
    found = {}
    for path in ROOT.rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if name == "__init__":
            continue
        imported = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("foretext."):
                imported.add(node.module.removeprefix("foretext."))
            elif isinstance(node, ast.ImportFrom) and node.module == "foretext":
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.Import):
                imported |= {alias.name.removeprefix("foretext.") for alias in node.names if alias.name.startswith("foretext.")}
        found[name] = imported
    return found


def room(module: str) -> str:
    return module.split(".")[0]


def test_every_room_has_a_layer():
    assert {room(module) for module in modules()} <= set(LAYERS)


def test_imports_go_down():
    wrong = [(module, imported) for module, all_imported in modules().items() for imported in all_imported
             if LAYERS[room(imported)] > LAYERS[room(module)]]
    assert not wrong


def test_neighbours_do_not_know_each_other():
    wrong = [(module, imported) for module, all_imported in modules().items() for imported in all_imported
             for pair in STRANGERS if {room(module), room(imported)} == set(pair)]
    assert not wrong


def test_objectives_do_not_import_each_other():
    siblings = {module for module in modules() if module.startswith("objectives.")} - {"objectives.base", "objectives.show"}
    wrong = [(module, imported) for module, all_imported in modules().items() if module in siblings
             for imported in all_imported & siblings]
    assert not wrong


def test_the_loop_names_no_objective():
    from foretext.objectives import OBJECTIVES

    for path in (ROOT / "training").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
        assert not strings & set(OBJECTIVES), path


def test_the_model_reads_alone():
    """The network is four short files, besides presets, heads and names."""
    closure, todo = set(), {"model.encoder"}
    while todo:
        module = todo.pop()
        closure.add(module)
        todo |= modules()[module] - closure
    assert closure == {"model.encoder", "model.layers", "model.attention", "model.layout"}
    lines = [len((ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8").splitlines()) for module in closure]
    assert max(lines) <= 300 and sum(lines) <= 675
