"""The mutation run: what it changes, what it leaves alone, and that its sample is the same every time."""

import ast
import importlib.util
import sys
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location("mutations", Path(__file__).parent / "mutations.py")
assert spec is not None
assert spec.loader is not None
mutations = importlib.util.module_from_spec(spec)
sys.modules["mutations"] = mutations  # dataclasses look their module up
spec.loader.exec_module(mutations)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("a + b", {"a - b", "a"}),
        ("a - b", {"a + b", "a"}),
        ("a * b", {"a / b", "b"}),
        ("a / b", {"a * b"}),
        ("-a", {"a"}),
        ("not a", {"a"}),
        ("a < b", {"a <= b", "a >= b"}),
        ("a == b", {"a != b"}),
        ("a <= b < c", {"a < b < c", "a <= b <= c"}),
        ("a and b", {"a or b"}),
        ("a if b else c", {"c if b else a"}),
        ("3", {"4"}),
        ("0.25", {"0.5"}),
        ("0.0", {"1.0"}),
        ("1e-12", set()),
        ("True", {"False"}),
        ("'text'", set()),
        ("'a' + b", set()),
        ("jnp.maximum(a, b)", {"jnp.minimum(a, b)"}),
        ("min(a, b)", {"max(a, b)"}),
        ("f(a, rate=b)", {"f(a)"}),
        ("f(a, dtype=b)", set()),
    ],
)
def test_what_a_piece_of_code_becomes(expression, expected):
    node = ast.parse(expression, mode="eval").body
    assert {ast.unparse(new) for new in mutations.replacements(node)} == expected


SOURCE = '''"""Text with 1 + 1."""
LEVEL = 2
PRESET = Settings(rate=3)
class Settings:
    rate: float = 4
    def check(self):
        if self.rate:
            raise ValueError(f"{5 + 5}")
def f(x: "6", y=7):
    """8"""
    return g(
        x - 9,
    )
'''


def test_what_is_left_alone():
    """Texts, annotations, defaults, presets and messages; everything else is changed where it stands."""
    found = {m.name.removeprefix("file.py:"): m for m in mutations.mutations("file.py", SOURCE)}
    assert set(found) == {
        ": 2 -> 3",
        "Settings.check: self.rate -> not self.rate",
        "f: x - 9 -> x + 9",
        "f: x - 9 -> x",
        "f: 9 -> 10",
    }
    assert found["f: x - 9 -> x + 9"].source == SOURCE.replace("x - 9", "(x + 9)")
    assert found["f: 9 -> 10"].line == 12
    for mutation in found.values():
        ast.parse(mutation.source)


def test_the_order_is_drawn_from_seed_and_path():
    order = [m.name for m in mutations.shuffled("file.py", SOURCE, 0)]
    assert order == [m.name for m in mutations.shuffled("file.py", SOURCE, 0)]
    assert sorted(order) == sorted(m.name for m in mutations.mutations("file.py", SOURCE))
    assert any(order != [m.name for m in mutations.shuffled("file.py", SOURCE, seed)] for seed in range(1, 5))


def test_every_method_file_has_tests_and_every_equivalent_change_exists():
    known = set()
    for path in mutations.method_files():
        tests = [test for test in mutations.tests_of(path) if test.startswith("tests/")]
        assert tests, path
        assert all((mutations.ROOT / test).exists() for test in tests)
        known |= {m.name for m in mutations.mutations(path, (mutations.ROOT / path).read_text())}
    assert set(mutations.EQUIVALENT) <= known
    assert all(mutations.EQUIVALENT.values())
