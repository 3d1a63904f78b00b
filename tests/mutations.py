"""Mutation testing of the method files: a small change of meaning, and whether a test notices.

    python tests/mutations.py                                     # every method file, hours
    python tests/mutations.py dfke_jax/distillation/response.py   # some of them
    python tests/mutations.py --list FILE                         # what would be changed, without
    running anything

Signs, arithmetic operators, comparisons, ``and``/``or``/``not``, conditions, numbers, truth values
and pairs such as minimum and maximum are changed, and terms, factors and arguments dropped, one at
a time, in a copy of the package. Of every file a seeded sample is taken and only the file's own
tests are run, each in a process of its own, which is forked after the libraries are loaded. A
change is *found* when a test fails, and when the tests do not end in the time given; what python
refuses for want of an argument is no program and is not counted. Left out are messages of errors,
texts, type annotations, presets and the defaults of arguments and fields, which are settings and
not code, and numbers up to 1e-6, which only keep divisions and logarithms finite.

The exit code is 0 when at least 95% of all changes are found. Changes that alter no result are
listed by hand in `EQUIVALENT`, each with the reason, and are not drawn.
"""

import argparse
import ast
import contextlib
import copy
import dataclasses
import json
import multiprocessing
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("distillation", "extraction", "synthesis", "watermarking", "dataset_inference")
BAR = 0.95

# The tests of a file are `tests/PART/test_NAME.py` and what is named here.
TESTS: dict[str, tuple[str, ...]] = {
    "dataset_inference/case": ("dataset_inference/test_verdict.py",),
    "dataset_inference/judgement": (
        "dataset_inference/test_verdict.py",
        "dataset_inference/test_encoders.py",
    ),
    "distillation/degan": ("distillation/test_degan_and_dfka.py",),
    "distillation/dfka": ("distillation/test_degan_and_dfka.py",),
    "extraction/halfspaces": ("extraction/test_label_attacks.py",),
    "extraction/incomplete_trees": ("extraction/test_trees.py",),
    "extraction/labels": ("extraction/test_label_attacks.py",),
    "extraction/mixmatch": ("extraction/test_semi_supervised.py",),
    "extraction/rotation": ("extraction/test_semi_supervised.py",),
    "extraction/lowd_meek": ("extraction/test_label_attacks.py",),
    "extraction/piecewise_linear": ("extraction/test_relu_networks.py",),
    "extraction/relu_baseline": ("extraction/test_relu_networks.py",),
    "extraction/relu_gradients": ("extraction/test_relu_networks.py",),
    "extraction/relu_parts": ("extraction/test_relu_networks.py",),
    "extraction/relu_refinement": ("extraction/test_relu_networks.py",),
    "extraction/relu_search": ("extraction/test_relu_networks.py",),
    "extraction/retraining": ("extraction/test_label_attacks.py",),
    "extraction/token_reveals": ("extraction/test_last_layer.py",),
    "extraction/tree_model": ("extraction/test_trees.py",),
    "extraction/tree_search": ("extraction/test_trees.py",),
    "distillation/cost": ("distillation/test_duel.py",),
    "distillation/dafl": ("distillation/test_duel.py",),
    "distillation/dfad": ("distillation/test_duel.py",),
    "distillation/dfq": ("distillation/test_duel.py",),
    "distillation/zskt": ("distillation/test_duel.py",),
    "distillation/cmi": ("distillation/test_bank_methods.py",),
    "distillation/fast_dfkd": ("distillation/test_bank_methods.py",),
    "distillation/inversion_loss": ("distillation/test_bank_methods.py",),
    "distillation/nayer": ("distillation/test_bank_methods.py",),
    "distillation/knowledge_within": ("distillation/test_stored_statistics.py",),
    "distillation/statistics_generators": ("distillation/test_stored_statistics.py",),
    "distillation/observed": ("distillation/test_features.py",),
    "distillation/relations": ("distillation/test_features.py",),
    "distillation/transfer_sets": ("distillation/test_response.py",),
    "extraction/maze": ("extraction/test_maze_pd.py", "extraction/test_dfme.py"),
    "extraction/pool_attack": ("extraction/test_pool.py",),
    "extraction/random_queries": ("extraction/test_pool.py",),
    "synthesis/replay": ("extraction/test_common.py",),
    "synthesis/shapes": ("extraction/test_disagreement.py",),
    "watermarking/entangled_measures": ("watermarking/test_entangled.py",),
    "watermarking/entangled_settings": ("watermarking/test_entangled.py",),
    "watermarking/frontier_stitching": ("watermarking/test_mark_schemes.py",),
    "watermarking/margin_based": ("watermarking/test_mark_schemes.py",),
    "watermarking/radioactive": ("watermarking/test_mark_schemes.py",),
    "watermarking/uchida": ("watermarking/test_mark_schemes.py",),
    "watermarking/zhang": ("watermarking/test_mark_schemes.py",),
}

# Files for which the tests marked slow run too: what they are about takes minutes to compile.
WITH_SLOW = ("dfke_jax/extraction/maze_pd.py",)

# Changes that cannot be noticed, with the reason. Names as `--list` prints them.
_D = "dfke_jax/distillation/"
_S = "dfke_jax/synthesis/"
_SPLIT = "jax.random.split(key, n)[i] does not depend on n"
EQUIVALENT: dict[str, str] = {
    f"{_D}activation_records.py:record_activations: 1 -> 2": "the shape of images that are never computed (eval_shape)",
    f"{_D}class_impressions.py:_Impressions.metrics: made.confidence >= wanted[1] -> made.confidence > wanted[1]": (
        "a softmax equal to a random threshold to the bit"
    ),
    f"{_D}class_impressions.py:_Impressions.objective: 0 -> 1 #2": "an index beyond the only element is clamped to it",
    f"{_D}class_impressions.py:_Impressions.rule: 1.0 -> 2.0": "what moves nothing is applied or not",
    f"{_D}class_impressions.py:_Impressions.rule: 1.0 -> 2.0 #2": "what moves nothing is applied or not",
    f"{_D}data_impressions.py:_Released.of_batch: 0 -> 1": "any row of a batch tells the batch's number",
    f"{_D}deep_inversion.py:adaptive_deep_inversion: 1 -> 2": "images that stand in until the pool's take their place",
    "dfke_jax/synthesis/fitting.py:fitted: 1 -> 2 #4": "what has its size already is resized to it",
    "dfke_jax/synthesis/fitting.py:fitted: 3 -> 4 #5": "what has its size already is resized to it",
    "dfke_jax/synthesis/fitting.py:fitted: 1 -> 2 #5": "resizing is a mean of pixels; the bound takes off rounding only",
    f"{_S}starts.py:smooth_noise: 4 -> 5": _SPLIT,
    f"{_S}noise.py:optimise_noise: 64 -> 65": "the size of groups, which are speed",
    f"{_S}noise.py:optimise_noise: 64 if jax.default_backend() == 'cpu' else batch -> "
    "batch if jax.default_backend() == 'cpu' else 64": "the size of groups, which are speed",
    f"{_S}noise.py:optimise_noise: jax.default_backend() == 'cpu' -> jax.default_backend() != 'cpu'": (
        "the size of groups, which are speed"
    ),
    f"{_S}noise.py:optimise_noise: groups > 1 -> groups >= 1": "one group is all samples",
    f"{_S}zeroth_order.py:_orthonormal: basis * signs[:, None] -> basis / signs[:, None]": "signs are 1 and -1",
    f"{_S}zeroth_order.py:estimate: 0 -> 1 #3": "all samples have the same size",
    f"{_S}zeroth_order.py:in_chunks: chunk >= count -> chunk > count": "one chunk of all rows, mapped",
    f"{_S}targets.py:dirichlet_targets: jax.nn.softmax(jax.random.loggamma(key, alpha), axis=-1) -> "
    "jax.nn.softmax(jax.random.loggamma(key, alpha))": "the default is the last axis",
    f"{_S}targets.py:dirichlet_targets: -1 -> 1": "the last of two axes",
}

BINARY = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
COMPARISONS = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
NAMES = {
    "maximum": "minimum",
    "minimum": "maximum",
    "max": "min",
    "min": "max",
    "argmax": "argmin",
    "argmin": "argmax",
    "all": "any",
    "any": "all",
    "floor": "ceil",
    "ceil": "floor",
    "sum": "mean",
    "mean": "sum",
    "log": "log1p",
    "log1p": "log",
}
HINTS = (None, "dtype", "strict", "unique_indices")  # arguments that change no number; None stands for **
GUARD = 1e-6  # numbers up to this only keep a division, a root or a logarithm finite
BUILTIN = ("max", "min", "all", "any")
# What python says of a change that took away an argument without a default: that is no program, and is not counted.
STILLBORN = re.compile(
    r"TypeError: .*(missing .* required|takes (at least|from)|expected (at least|exactly)|not enough)"
)


@dataclasses.dataclass(frozen=True)
class Mutation:
    """One change: where, what it was, what it became, and the whole changed source."""

    path: str
    name: str
    line: int
    source: str


def replacements(node: ast.AST) -> Iterator[ast.AST]:
    """What a node of the syntax tree is replaced by, one after another."""
    match node:
        case ast.BinOp(left, operator, right) if type(operator) in BINARY and not _is_text(left):
            yield ast.BinOp(left, BINARY[type(operator)](), right)
            if isinstance(operator, ast.Add | ast.Sub):
                yield left
            if isinstance(operator, ast.Mult):
                yield right
        case ast.UnaryOp(ast.USub() | ast.Not(), operand):
            yield operand
        case ast.Compare(left, [operator], rest) if type(operator) in COMPARISONS:
            for other in COMPARISONS[type(operator)]:
                yield ast.Compare(left, [other()], rest)
        case ast.Compare(left, [first, second], rest):
            for other in COMPARISONS.get(type(first), ())[:1]:
                yield ast.Compare(left, [other(), second], rest)
            for other in COMPARISONS.get(type(second), ())[:1]:
                yield ast.Compare(left, [first, other()], rest)
        case ast.BoolOp(operator, values):
            yield ast.BoolOp(ast.Or() if isinstance(operator, ast.And) else ast.And(), values)
        case ast.If(test, body, otherwise) if not isinstance(test, ast.Compare | ast.UnaryOp):
            yield ast.If(ast.UnaryOp(ast.Not(), test), body, otherwise)
        case ast.IfExp(test, body, otherwise):
            yield ast.IfExp(test, otherwise, body)
        case ast.Constant(bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(int() as value):
            yield ast.Constant(value + 1)
        case ast.Constant(float() as value) if value == 0 or abs(value) > GUARD:
            yield ast.Constant(2 * value if value else 1.0)
        case ast.Call(ast.Attribute(value, name, context), positional, keywords) if name in NAMES:
            yield ast.Call(ast.Attribute(value, NAMES[name], context), positional, keywords)
        case ast.Call(ast.Name(name, context), positional, keywords) if name in BUILTIN:
            yield ast.Call(ast.Name(NAMES[name], context), positional, keywords)
    match node:
        case ast.Call(function, positional, keywords):  # to drop an argument by position seldom leaves a program
            for place in range(len(keywords)):
                if keywords[place].arg not in HINTS:
                    yield ast.Call(function, positional, keywords[:place] + keywords[place + 1 :])


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def mutations(path: str, source: str) -> list[Mutation]:
    """Every change of a file, in the order of the source; names are unique."""
    tree = ast.parse(source)
    lines = source.encode().splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    found: list[Mutation] = []
    names: dict[str, int] = {}

    def visit(node: ast.AST, function: str) -> None:
        if isinstance(node, ast.FunctionDef):
            function = f"{function}.{node.name}".lstrip(".")
        if isinstance(node, ast.ClassDef):
            function = f"{function}.{node.name}".lstrip(".")
        for new in () if isinstance(node, ast.If) and function == "" else replacements(node):
            # Only the piece that changes is written anew: the rest keeps its lines.
            old = node.test if isinstance(node, ast.If) else node
            new = new.test if isinstance(new, ast.If) else new
            text = ast.unparse(ast.fix_missing_locations(copy.deepcopy(new)))
            assert isinstance(old, ast.expr)
            assert old.end_lineno is not None
            assert old.end_col_offset is not None
            begin = starts[old.lineno - 1] + old.col_offset
            end = starts[old.end_lineno - 1] + old.end_col_offset
            changed = (source.encode()[:begin] + f"({text})".encode() + source.encode()[end:]).decode()
            name = f"{path}:{function}: {ast.unparse(old)} -> {text}"
            names[name] = names.get(name, 0) + 1
            if names[name] > 1:
                name = f"{name} #{names[name]}"
            found.append(Mutation(path, name, old.lineno, changed))
        for child in _children(node):
            visit(child, function)

    visit(tree, "")
    return found


def _children(node: ast.AST) -> Iterator[ast.AST]:
    """Without messages of errors, annotations, defaults and what stands for itself in a class or module."""
    match node:
        case ast.Module(body=body):  # without presets: a dictionary or settings under a name
            yield from (
                part
                for part in body
                if not (isinstance(part, ast.Assign | ast.AnnAssign) and isinstance(part.value, ast.Dict | ast.Call))
            )
        case ast.Raise() | ast.Import() | ast.ImportFrom() | ast.JoinedStr() | ast.Assert():
            return
        case ast.FunctionDef(body=body):
            yield from body
        case ast.AnnAssign(value=value):
            if value is not None:
                yield value
        case ast.ClassDef(body=body):
            yield from (part for part in body if isinstance(part, ast.FunctionDef))
        case ast.Lambda(body=body):
            yield body
        case ast.keyword(arg=name) if name in HINTS:
            return
        case _:
            yield from ast.iter_child_nodes(node)


def shuffled(path: str, source: str, seed: int) -> list[Mutation]:
    """The changes of a file in the order in which they are tried."""
    possible = [mutation for mutation in mutations(path, source) if mutation.name not in EQUIVALENT]
    random.Random(f"{seed} {path}").shuffle(possible)
    return possible


def tests_of(path: str) -> list[str]:
    """What pytest is given for a method file: the test files that there are, and whether the slow ones run."""
    key = path.removeprefix("dfke_jax/").removesuffix(".py")
    part, name = key.rsplit("/", 1)
    own = f"{part}/test_{name}.py"
    tests = [own] if (ROOT / "tests" / own).exists() else []
    slow = ["-m", "slow or not slow"] if path in WITH_SLOW else []
    return [*(f"tests/{test}" for test in (*tests, *TESTS.get(key, ()))), *slow]


class _BestFirst:
    """A pytest plugin: tests that noticed the most changes so far run first, so that most changes end with the first."""

    def __init__(self, file: Path):
        self.file = file
        self.noticed: dict[str, int] = json.loads(file.read_text()) if file.exists() else {}

    def pytest_collection_modifyitems(self, items: list) -> None:
        items.sort(key=lambda item: -self.noticed.get(item.nodeid, 0))

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.noticed[report.nodeid] = self.noticed.get(report.nodeid, 0) + 1
            self.file.write_text(json.dumps(self.noticed))


def _run(copy_of: str, tests: list[str], log: str) -> None:
    """In a process of its own: the tests against the copy of the package."""
    import pytest

    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(copy_of)
    sys.path.insert(0, copy_of)
    sys.dont_write_bytecode = True
    options = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider"]
    os._exit(int(pytest.main([*options, *tests], plugins=[_BestFirst(Path("noticed.json"))])))


def verdict(context: multiprocessing.context.BaseContext, copy_of: Path, tests: list[str], limit: float) -> int | None:
    """Exit code of pytest, None when it took longer than the limit."""
    process = context.Process(target=_run, args=(str(copy_of), tests, str(copy_of / "log.txt")))  # type: ignore[attr-defined]
    process.start()
    process.join(limit)
    if process.is_alive():
        process.kill()
        process.join()
        return None
    return process.exitcode


def measure(path: str, count: int, seed: int, limit: float, only: str = "") -> dict:
    """Tries a sample of a file's changes; the numbers, and the names of those that survived."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "jax", "flax.linen", "optax", "scipy.stats", "sklearn"])
    tests, survived, found = tests_of(path), [], 0
    if not tests:
        return {"path": path, "tests": [], "found": 0, "tried": 0, "survived": []}
    source = (ROOT / path).read_text()
    possible = [mutation for mutation in shuffled(path, source, seed) if only in mutation.name]
    with tempfile.TemporaryDirectory() as directory:
        copy_of = Path(directory)
        log = copy_of / "log.txt"
        ignore = shutil.ignore_patterns("__pycache__")
        for part in ("dfke_jax", "tests", "benchmarks", "docs"):
            shutil.copytree(ROOT / part, copy_of / part, ignore=ignore)
        for file in ("pyproject.toml", "README.md", "CHANGELOG.md"):
            shutil.copy(ROOT / file, copy_of / file)
        began = time.monotonic()
        if verdict(context, copy_of, tests, 4 * limit) != 0:
            raise SystemExit(f"{path}: its tests fail without any change\n{log.read_text()[-3000:]}")
        print(f"{path}: {len(possible)} changes possible, tests take {time.monotonic() - began:.0f} s", flush=True)
        for mutation in possible:
            if found + len(survived) == count:
                break
            (copy_of / path).write_text(mutation.source)
            began = time.monotonic()
            code = verdict(context, copy_of, tests, limit)
            if code not in (None, 0, 1, 2) and code > 0:
                raise SystemExit(f"pytest ended with {code}: {log.read_text()[-3000:]}")
            word = "found"  # a test failed, or the process ended, or did not end
            if code == 0:
                survived.append(mutation.name)
                word = "SURVIVED"
            elif code is not None and STILLBORN.search(log.read_text()):
                word = "no program"
            else:
                found += 1
            change = mutation.name.split(":", 1)[1]
            print(f"  {word:10} {time.monotonic() - began:4.0f} s  line {mutation.line}: {change}", flush=True)
    tried = found + len(survived)
    return {"path": path, "tests": tests, "found": found, "tried": tried, "survived": survived}


def method_files() -> list[str]:
    """Every method file, the smallest first."""
    files = [path for part in PARTS for path in (ROOT / "dfke_jax" / part).glob("*.py") if path.name != "__init__.py"]
    return [str(path.relative_to(ROOT)) for path in sorted(files, key=lambda path: path.stat().st_size)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="method files; all by default")
    parser.add_argument("--count", type=int, default=12, help="changes per file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for the tests of one change")
    parser.add_argument("--only", default="", help="only changes whose name contains this")
    parser.add_argument("--list", action="store_true", help="print every change and run nothing")
    parser.add_argument("--json", type=Path, help="write the result there, after every file")
    options = parser.parse_args()
    files = options.files or method_files()
    if options.list:
        for path in files:
            for mutation in mutations(path, (ROOT / path).read_text()):
                print(f"{mutation.line:5} {mutation.name}" + (" (equivalent)" if mutation.name in EQUIVALENT else ""))
        return 0
    os.environ.setdefault("PYTHONDONTWRITEBYTECODE", "1")
    os.environ["PYTHONPATH"] = ""  # the copy, and not the tree that a path of the environment names
    results = []
    for path in files:
        results.append(measure(path, options.count, options.seed, options.limit, options.only))
        if options.json:
            options.json.write_text(json.dumps(results, indent=1))
    print("\n  found  tried  file")
    for result in results:
        print(f"{result['found']:7}{result['tried']:7}  {result['path']}" + ("" if result["tests"] else "  no tests"))
    found, tried = (sum(result[key] for result in results) for key in ("found", "tried"))
    print(f"{found:7}{tried:7}  together: {found / max(tried, 1):.1%}")
    with contextlib.suppress(ZeroDivisionError):
        return 0 if found / tried >= BAR else 1
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
