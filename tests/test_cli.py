"""The command line: what it prints, where, and with which exit code."""

import contextlib
import dataclasses
import json
import os
import shlex
import subprocess
import sys
import types

import jax
import pytest

from dfke_jax import cli
from dfke_jax.commands import running
from dfke_jax.commands.common import enable_compilation_cache
from dfke_jax.core.errors import InputError, Interrupted, MissingDataError
from dfke_jax.experiments.bench import registry
from dfke_jax.experiments.bench.result import Arm, Published, Result
from dfke_jax.experiments.bench.run import as_written
from dfke_jax.report import repeating


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the fake recipe."""

    dataset: str = "digits"
    """The data set."""
    seeds: int = 2
    """How many seeds."""
    seed: int = 0
    """The first seed."""
    learning_rate: float = 0.1
    """Step size of the student."""
    scales: tuple[float, ...] = (1.0, 0.1)
    """Scales of the concentration."""
    augment: bool = False
    """Shift the images."""

    def __post_init__(self):
        if self.seeds < 1:
            raise InputError(f"seeds must be at least 1, got {self.seeds}")


RECIPE = registry.Recipe(
    name="fake",
    title="A fake recipe",
    summary="It pretends [nothing].",
    paper="Nobody 2020",
    config=Config,
    arms=lambda config: [],
    measure=lambda run: None,
    published=(Published("made_up", "digits", 90.0, "Nobody 2020, Table 1", "code"),),
    time="no time at all",
    presets={"mnist": {"learning_rate": 0.5}},
)


def result_of(config):
    arms = [
        Arm("made_up", "Made up", "method", [90.0, 91.0]),
        Arm("control", "Control", "control", [50.0, 52.0]),
    ]
    return Result(
        "fake",
        "A fake recipe",
        config.dataset,
        dataclasses.asdict(config),
        [0, 1],
        arms,
        [],
        {"total": 1.0},
        {},
    )


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """The fake recipe alone in the registry, and what it was called with."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_FAMILIES", {})
    monkeypatch.setattr(registry, "_recipes", {"fake": RECIPE})
    seen = []

    def run_recipe(recipe, config, *, out, **options):
        seen.append(types.SimpleNamespace(config=config, out=out, **options))
        result = result_of(config)
        out.mkdir(parents=True, exist_ok=True)
        result.write(out)
        return result

    monkeypatch.setattr("dfke_jax.experiments.bench.run.run_recipe", run_recipe)
    return seen


def failing(monkeypatch, error):
    def run_recipe(*_, **__):
        raise error

    monkeypatch.setattr("dfke_jax.experiments.bench.run.run_recipe", run_recipe)


def said(capsys):
    out, err = capsys.readouterr()
    return " ".join(out.split()), " ".join(err.split())


def test_run_writes_a_result_and_a_report(calls, capsys, tmp_path):
    assert cli.main(["run", "fake"]) == 0
    out, err = said(capsys)
    assert "90.50 ± 0.71" in out
    assert "better on every seed (+40.00, +39.00)" in out
    assert "runs/fake-digits/report.html" in out
    assert err == ""
    assert (tmp_path / "runs/fake-digits/report.html").exists()
    (call,) = calls
    assert call.config == Config()
    assert (call.data_dir, call.resume, call.progress, call.track) == (None, False, True, ())


def test_every_field_is_an_option(calls, tmp_path):
    options = "--dataset mnist --seeds 5 --learning-rate 0.25 --scales 3 2 1 --augment"
    options += " --quiet --out there --data-dir here --track tensorboard wandb"
    assert cli.main(["run", "fake", *options.split()]) == 0
    (call,) = calls
    assert call.config == Config("mnist", 5, 0, 0.25, (3.0, 2.0, 1.0), True)
    assert (str(call.out), str(call.data_dir), call.progress) == ("there", "here", False)
    assert call.track == ("tensorboard", "wandb")


def test_the_settings_of_another_run_are_defaults(calls, tmp_path, capsys):
    written = {"recipe": "fake", "config": {"dataset": "mnist", "learning_rate": 0.125, "scales": [4.0, 5.0]}}
    (tmp_path / "config.json").write_text(json.dumps(written))
    assert cli.main(["run", "fake", "--config", "config.json", "--seeds", "7"]) == 0
    assert calls[0].config == Config("mnist", 7, learning_rate=0.125, scales=(4.0, 5.0))
    for change, message in (
        ({"recipe": "other"}, "is of the recipe 'other', not 'fake'"),
        ({"config": {"colour": 3}}, "there is no setting colour"),
        ({"config": 3}, "is no config.json of a run"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**written, **change}))
        assert cli.main(["run", "fake", "--config", "config.json"]) != 0
        assert message in said(capsys)[1]
    assert cli.main(["run", "fake", "--config", "nowhere.json"]) != 0
    assert "is no config.json of a run" in said(capsys)[1]


def test_every_recipe_takes_back_what_it_wrote():
    for name, recipe in registry.recipes().items():
        for dataset in (None, *recipe.presets):
            settings = recipe.settings(dataset)
            assert running.with_written(recipe.settings(), as_written(settings)) == settings, name


def changed(settings):
    """Settings with other numbers, texts and switches, as deep as they go."""
    changes = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if not field.init or field.name in ("dataset", "teacher_training"):
            continue
        if dataclasses.is_dataclass(value):
            changes[field.name] = changed(value)
        elif isinstance(value, bool):
            changes[field.name] = not value
        elif isinstance(value, int):
            changes[field.name] = value * 2
        elif isinstance(value, float):
            changes[field.name] = value / 2
    for name, value in changes.items():  # one that contradicts others stays as it is
        with contextlib.suppress(ValueError):
            settings = dataclasses.replace(settings, **{name: value})
    return settings


@pytest.mark.parametrize(
    "names",
    [("data-impressions", "dfme", "watermark-removal"), pytest.param(None, marks=pytest.mark.slow)],
    ids=["some", "all"],
)
def test_the_command_of_a_report_gives_the_same_settings(names, tmp_path, monkeypatch):
    """What a page tells to repeat a run is read as the settings that the run had."""
    monkeypatch.chdir(tmp_path)
    spelt = 0
    for name in names or registry.recipes():
        recipe = registry.recipe(name)
        for settings in (recipe.settings(), changed(recipe.settings(recipe.datasets[-1]))):
            written = {"recipe": name, "config": as_written(settings)}
            (tmp_path / "config.json").write_text(json.dumps(written))
            result = Result(name, "", settings.dataset, written["config"], [0], [], [], {}, {})
            first, second, third, *options = shlex.split(repeating.command(result))
            assert [first, second, third] == ["dfke", "run", name]
            assert running._parse_run(recipe, options).settings == settings, (name, options)
            spelt += "--config" not in options
    assert spelt >= 4


def test_a_budget_is_the_recipes_own_or_one_of_several():
    parsed = lambda name, *options: running._parse_run(registry.recipe(name), options).settings
    assert parsed("knockoff", "--budget", "700").budgets == (700,)
    assert parsed("defences", "--budget", "700").budget == 700
    assert parsed("api-theft", "--budget=700").budget == 700
    assert parsed("knockoff", "--victim=mlp_small").teacher == "mlp_small"


@pytest.mark.parametrize("option", [["--dataset", "mnist"], ["--dataset=mnist"]])
def test_defaults_are_those_of_the_data_set(calls, option):
    assert cli.main(["run", "fake", *option]) == 0
    assert calls[0].config == Config("mnist", learning_rate=0.5)
    assert str(calls[0].out) == "runs/fake-mnist"


@pytest.mark.parametrize(
    ("dataset", "slug"),
    [("emnist/letters", "emnist-letters"), ("/x/mine.npz", "mine"), ("mnist:3.0.1", "mnist-3.0.1")],
)
def test_default_directory(dataset, slug):
    assert running.slug(dataset) == slug


def test_help_of_a_recipe_shows_its_fields(calls, capsys):
    assert cli.main(["run", "fake", "--dataset", "mnist", "--help"]) == 0
    out, _ = said(capsys)
    for piece in (
        "--learning-rate",
        "Step size of the student.",
        "0.5",
        "--data-dir",
        "--resume",
        "--out",
        "Nobody 2020",
    ):
        assert piece in out
    assert "It pretends [nothing]." in out
    assert "no time at all" in out
    assert calls == []


def test_a_finished_run_is_not_overwritten(calls, capsys):
    assert cli.main(["run", "fake"]) == 0
    assert cli.main(["run", "fake"]) == 1
    _, err = said(capsys)
    assert "already holds a finished run" in err
    assert "--resume" in err
    assert "--out" in err
    assert len(calls) == 1
    assert cli.main(["run", "fake", "--resume"]) == 0
    assert calls[1].resume


def test_unknown_recipe(calls, capsys):
    assert cli.main(["run", "fakee"]) == 2
    _, err = said(capsys)
    assert "unknown recipe 'fakee'; nearest: fake" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "dfke run RECIPE"),
        (["run", "--seeds", "3", "fake"], "the recipe comes first"),
        (["run", "fake", "--sedes", "3"], "--sedes"),
        (["run", "fake", "--seeds", "many"], "many"),
        (["run", "fake", "--seeds", "0"], "seeds must be at least 1"),
        (["run", "fake", "--dataset"], "--dataset"),
        (["run", "fake", "--track", "mlflow"], "mlflow"),
        ([], "COMMAND"),
        (["sing"], "sing"),
        (["report"], "DIR"),
        (["list", "--data", "--models"], "--models"),
        (["reproduce", "--devices", "0"], "'0' is not a whole number"),
    ],
)
def test_wrong_commands_exit_with_two(calls, capsys, arguments, message):
    assert cli.main(arguments) == 2
    out, err = said(capsys)
    assert message in err
    assert "Traceback" not in err
    assert out == ""
    assert calls == []


def test_errors_are_one_message(calls, capsys, monkeypatch):
    failing(monkeypatch, MissingDataError("no mnist here; use --data-dir"))
    assert cli.main(["run", "fake"]) == 1
    assert said(capsys) == ("", "dfke: error: no mnist here; use --data-dir")
    assert cli.main(["run", "fake", "--debug"]) == 1
    assert "Traceback" in said(capsys)[1]


def test_a_bug_is_not_hidden(calls, monkeypatch):
    failing(monkeypatch, ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        cli.main(["run", "fake"])


@pytest.mark.parametrize("error", [Interrupted("stopped after step 3 of 9"), KeyboardInterrupt()])
def test_interruption_says_how_to_go_on(calls, capsys, monkeypatch, error):
    failing(monkeypatch, error)
    assert cli.main(["run", "fake", "--out", "my run", "--seeds", "3"]) == 130
    _, err = said(capsys)
    assert "to go on: dfke run fake --out 'my run' --seeds 3 --resume" in err
    assert cli.main(["run", "fake", "--resume"]) == 130
    assert said(capsys)[1].count("--resume") == 1


def test_devices_come_before_jax_starts(calls, capsys):
    jax.devices()
    assert cli.main(["run", "fake", "--devices", str(jax.config.jax_num_cpu_devices)]) == 0
    assert cli.main(["run", "fake", "--devices", "7", "--out", "other"]) == 1
    assert "come too late" in said(capsys)[1]
    assert cli.main(["run", "fake", "--devices", "0", "--out", "other"]) == 1


def test_list(calls, capsys):
    assert cli.main(["list"]) == 0
    out, _ = said(capsys)
    for piece in ("fake", "A fake recipe", "It pretends", "digits: made_up 90", "no time"):
        assert piece in out
    assert cli.main(["list", "--methods"]) == 0
    assert said(capsys)[0] == out


def test_list_models_and_data(capsys, tmp_path):
    assert cli.main(["list", "--models"]) == 0
    out, _ = said(capsys)
    assert "lenet5" in out
    assert "61,706" in out
    assert cli.main(["list", "--data", "--data-dir", str(tmp_path)]) == 0
    out, _ = said(capsys)
    assert "bundled with scikit-learn" in out
    assert "mnist" in out


def test_report(calls, capsys):
    assert cli.main(["run", "fake", "--out", "all/one"]) == 0
    capsys.readouterr()
    assert cli.main(["report", "all/one"]) == 0
    assert "all/one/report.html" in said(capsys)[0]
    assert cli.main(["report", "all"]) == 0
    out, _ = said(capsys)
    assert "all/index.html" in out
    assert "90.50 ± 0.71" in out
    assert cli.main(["report", "nowhere"]) == 1
    assert "there is no directory nowhere" in said(capsys)[1]


def test_reproduce(monkeypatch, capsys, tmp_path):
    seen = []
    module = types.ModuleType("dfke_jax.experiments.reproduce")
    module.EXPERIMENTS = {"table_one": types.SimpleNamespace(description="all [methods]", time="2 min")}

    def main(names, **options):
        seen.append((names, options))
        written = result_of(RECIPE.config()).write(options["out"])
        written.rename(options["out"] / "table_one.json")

    module.main = main
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("dfke_jax.experiments.reproduce", module, raising=False)
    assert cli.main(["reproduce", "--list"]) == 0
    out, _ = said(capsys)
    assert "table_one all [methods] 2 min" in out
    assert cli.main(["reproduce", "table_one", "--out", str(tmp_path)]) == 0
    assert seen == [(["table_one"], {"out": tmp_path, "data_dir": None, "jobs": None})]
    assert "90.50 ± 0.71 (2)" in (tmp_path / "table_one.md").read_text()
    assert (tmp_path / "figures" / "table_one.png").stat().st_size > 1000
    assert cli.main(["reproduce", "table_one", "--seed", "1", "--jobs", "2"]) == 1
    assert "--seed goes with the name of one experiment" in said(capsys)[1]
    assert cli.main(["reproduce", "table_two"]) == 1
    assert "unknown experiment 'table_two'; nearest: table_one" in said(capsys)[1]


def test_compilation_cache(monkeypatch, tmp_path):
    before = jax.config.jax_compilation_cache_dir
    seconds = jax.config.jax_persistent_cache_min_compile_time_secs
    assert str(enable_compilation_cache()) == before  # what is set already stays
    monkeypatch.setenv("DFKE_CACHE_DIR", str(tmp_path / "cache"))
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        directory = enable_compilation_cache()
        assert directory.parent == tmp_path / "cache"
        assert directory.name.startswith("programs-")
        assert jax.config.jax_compilation_cache_dir == str(directory)
        assert jax.config.jax_persistent_cache_min_compile_time_secs == 0.5
        jax.config.update("jax_compilation_cache_dir", None)
        (tmp_path / "file").touch()
        monkeypatch.setenv("DFKE_CACHE_DIR", str(tmp_path / "file"))
        assert enable_compilation_cache() is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)


@pytest.mark.parametrize("arguments", ["--version", "list --help", "run --help", "--help"])
def test_light_commands_do_not_import_jax(arguments):
    program = f"import sys; from dfke_jax import cli; code = cli.main({arguments.split()})\n"
    program += "sys.exit(code or 'jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr
    assert "dfke" in done.stdout
