"""The limits of style that hold by test: sizes, one-way imports, declared dependencies, nothing left unused."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from places import ROOT

import v2l

SOURCES = sorted((ROOT / "v2l").rglob("*.py"))
TREES = {path.relative_to(ROOT / "v2l"): ast.parse(path.read_text()) for path in SOURCES}

ORDER = "errors io video models adapters inference training evaluation tiny bench cli".split()
"""A folder imports from those before it and from its own files, never from those after it."""

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
    own = [(str(path), node) for path, node in functions() if path.parts[0] != "cli"]
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
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_the_top_level_is_the_table_of_contents():
    entries = {path.name for path in (ROOT / "v2l").iterdir() if path.name != "__pycache__"}
    assert entries == {*ORDER[1:], "integrations", "errors.py", "__init__.py", "__main__.py"}


def test_a_folder_says_in_one_sentence_what_it_holds():
    for path, tree in TREES.items():
        if path.name == "__init__.py" and path.parent != Path():
            assert [type(node) for node in tree.body] == [ast.Expr], path
            assert len(ast.get_docstring(tree).splitlines()) == 1, path


def modules() -> dict[str, set[str]]:
    """Every module's name and the modules of v2l that it imports, wherever in the file."""
    names = {".".join(["v2l", *path.with_suffix("").parts]).removesuffix(".__init__"): path for path in TREES}
    return {name: imported(TREES[path]) & names.keys() - {name, "v2l"} for name, path in names.items()}


def test_folders_import_one_way():
    rank = {name: place for place, name in enumerate(ORDER)}
    wrong = [
        f"{name} imports {other}"
        for name, others in modules().items()
        if name not in ("v2l", "v2l.__main__") and not name.startswith("v2l.integrations")
        for other in others
        if rank[other.split(".")[1]] > rank[name.split(".")[1]]
    ]
    assert wrong == []


def test_no_circle_of_imports():
    left = modules()
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    assert left == {}


def test_no_module_hides_a_public_function():
    """`import v2l.encode` would put a module in the place of the function of that name."""
    assert {path.stem for path in TREES if path.parent == Path()} & set(dir(v2l)) == set()


def test_no_class_name_stands_twice():
    classes = [node.name.strip("_") for tree in TREES.values() for node in tree.body if isinstance(node, ast.ClassDef)]
    assert [name for name in set(classes) if classes.count(name) > 1] == []


def test_dependencies_are_those_imported():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [
        *project["dependencies"],
        *project["optional-dependencies"]["eval"],
        *project["optional-dependencies"]["train"],
        *project["optional-dependencies"]["plot"],
        *project["optional-dependencies"]["export"],
        *project["optional-dependencies"]["lmms"],
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
    assert imported_by("import v2l, v2l.cli.app", ("torch", "transformers", "cv2", "numpy", "rich.table")) == []
    assert imported_by("import v2l.video.sampling", ("numpy",)) == ["numpy"]


def test_decoding_imports_neither_torch_nor_transformers():
    assert imported_by("import v2l.video.probe", ("torch", "transformers")) == []


def test_answering_needs_no_decoder():
    assert imported_by("import v2l.cli.ask, v2l.inference.ask, v2l.adapters.lora", ("cv2", "av", "PIL.Image")) == []


def test_loading_imports_no_compiler():
    """What torch imports for tensors on the meta device takes longer than to encode a short video."""
    loads = "import v2l; v2l.load_vlm('tiny', device='cpu'); v2l.load_hypernetwork('tiny', device='cpu')"
    assert imported_by(loads, ("torch._dynamo", "sympy", "transformers")) == []


@pytest.mark.parametrize("path", ["pyproject.toml", "README.md", "LICENSE", ".ci/run"])
def test_the_top_level_holds(path):
    assert (ROOT / path).is_file()
