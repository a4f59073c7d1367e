"""The limits of style that hold by test: sizes, one-way imports, declared dependencies, nothing left unused."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "v2l").rglob("*.py"))
TREES = {path.relative_to(ROOT / "v2l"): ast.parse(path.read_text()) for path in SOURCES}

ORDER = [
    "__init__ errors options",
    "records files journal sampling prompt perceiver manifest scoring paper rubric judge sheet side_by_side optimise",
    "foreign lock hub sealed container packets picture decoder video decode_worker decoding",
    "model_config weights models tokenizer pickled hypernetwork adapter lessons",
    "vlm loading composition checkpoint",
    "lora asked_time watch misread estimate machine",
    "annotation pipeline answer ablation evaluate report sweep",
    "targets shard choice teacher steering pupil widen train ways bench arch verify export pull",
    "staleness session",
    "batch",
    "display demo bench_report plots",
    "info",
    "commands conversation running learning judging evaluating benching serving finevideo",
    "cli_learning cli_eval cli_bench cli_serving cli",
    "__main__",
]
"""Each line may import from the lines above it and from its own line's left; the README lists the files in the order
that the data flows."""

DISTRIBUTIONS = {"cv2": "opencv-python", "PIL": "pillow"}


def functions():
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield path, node


def code_lines(path: Path, node: ast.AST) -> int:
    """Non-blank, non-comment lines of the body, without the docstring."""
    body = node.body
    if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        body = body[1:]
    if not body:
        return 0
    lines = (ROOT / "v2l" / path).read_text().splitlines()[body[0].lineno - 1 : node.end_lineno]
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in lines)


def test_files_are_at_most_400_lines():
    sizes = {str(path): len((ROOT / "v2l" / path).read_text().splitlines()) for path in TREES}
    assert {path: size for path, size in sizes.items() if size > 400} == {}


def test_functions_are_at_most_60_lines_of_code_and_most_are_short():
    sizes = {f"{path}:{node.name}": code_lines(path, node) for path, node in functions()}
    assert {name: size for name, size in sizes.items() if size > 60} == {}
    assert sorted(sizes.values())[len(sizes) * 9 // 10] <= 25


def test_functions_take_at_most_8_parameters():
    def count(node):
        names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        return len([name for name in names if name not in ("self", "cls")])

    # the parameters of a command are its options
    own = [(str(path), node) for path, node in functions() if not path.name.startswith("cli")]
    assert [(path, node.name) for path, node in own if count(node) > 8] == []


def test_public_functions_are_annotated_and_documented():
    lacking = [
        f"{path}:{node.name}"
        for path, tree in TREES.items()
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
        if not ast.get_docstring(node)
    ]
    assert lacking == []
    bare = [
        f"{path}:{node.name}:{argument.arg}"
        for path, node in functions()
        for argument in (*node.args.args, *node.args.kwonlyargs)
        if argument.annotation is None and argument.arg not in ("self", "cls")
    ]
    assert bare == []


def imported(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names if node.module == "v2l"}
    return names


def test_imports_point_one_way():
    rank = {name: place for place, line in enumerate(ORDER) for name in line.split()}
    flat = [name for line in ORDER for name in line.split()]
    own = {path.stem: tree for path, tree in TREES.items() if path.parent == Path(".")}
    assert sorted(own) == sorted(flat), "a new file needs its place in ORDER"
    wrong = [
        f"{name} imports {other}"
        for name, tree in own.items()
        for other in {n.split(".")[1] for n in imported(tree) if n.startswith("v2l.")} & rank.keys()
        if flat.index(other) >= flat.index(name)
    ]
    assert wrong == []


def test_dependencies_are_those_imported():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [
        *project["dependencies"],
        *project["optional-dependencies"]["eval"],
        *project["optional-dependencies"]["train"],
        *project["optional-dependencies"]["plot"],
        *project["optional-dependencies"]["export"],
    ]
    declared = {re.split(r"[<>=!~ \[]", line)[0].replace("_", "-") for line in lines}
    names = {name.split(".")[0] for tree in TREES.values() for name in imported(tree)}
    outside = {DISTRIBUTIONS.get(n, n).replace("_", "-") for n in names - sys.stdlib_module_names - {"v2l"}}
    assert declared == outside


def test_every_setting_is_read_somewhere():
    text = "\n".join(path.read_text() for path in SOURCES)
    unread = []
    for path, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(d) for d in node.decorator_list):
                if node.name in ("Result", "Report"):  # written to files and printed whole
                    continue
                fields = [s.target.id for s in node.body if isinstance(s, ast.AnnAssign)]
                unread += [f"{path}:{node.name}.{f}" for f in fields if not re.search(rf"\.{f}\b", text)]
    assert unread == []


def imported_by(statement: str, names: tuple[str, ...]) -> list[str]:
    code = f"import sys; {statement}; print(*[name for name in {names} if name in sys.modules])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_importing_the_command_costs_nothing():
    assert imported_by("import v2l, v2l.cli", ("torch", "transformers", "cv2", "numpy", "rich.table")) == []
    assert imported_by("import v2l.sampling", ("numpy",)) == ["numpy"]


def test_decoding_imports_neither_torch_nor_transformers():
    assert imported_by("import v2l.video", ("torch", "transformers")) == []


def test_answering_needs_no_decoder():
    assert imported_by("import v2l.commands, v2l.answer, v2l.lora", ("cv2", "av")) == []


@pytest.mark.parametrize("path", ["pyproject.toml", "README.md", "LICENSE", ".ci/run"])
def test_the_top_level_holds(path):
    assert (ROOT / path).is_file()
