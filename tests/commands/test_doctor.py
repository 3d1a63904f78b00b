"""What `dfke doctor` says of a machine."""

import jax

from dfke_jax import cli
from dfke_jax.commands import doctor


def said(capsys):
    out, err = capsys.readouterr()
    return " ".join(out.split()), " ".join(err.split())


def test_doctor(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["doctor", "--data-dir", str(tmp_path)]) == 0
    out, _ = said(capsys)
    for piece in (
        "jaxlib",
        jax.__version__,
        f"{jax.device_count()} × cpu",
        "compilation cache",
        "bundled with scikit-learn",
        "wandb",
        "writable",
    ):
        assert piece in out
    assert "--data-dir" in out
    assert "The main job can run." in out


def test_doctor_tells_when_the_main_job_cannot_run(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "_REQUIRED", {"not-a-package": "not_a_package"})
    assert cli.main(["doctor"]) == 1
    out, _ = said(capsys)
    assert "pip install not-a-package" in out
    assert "cannot run" in out


def test_a_system_without_a_wheel_of_array_record_is_sound(monkeypatch):
    present = doctor._present
    monkeypatch.setattr(doctor, "_present", lambda module: module != "array_record" and present(module))
    (finding,) = [row for row in [*doctor._software(), *doctor._extras()] if row.name == "array_record"]
    assert finding.state == "missing"
    assert "data sets of TensorFlow Datasets" in finding.detail
    assert doctor.sound([finding])


def test_doctor_in_a_directory_that_cannot_be_written_to(monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    finding = doctor._current_directory()
    assert finding.state == "broken"
    assert "Permission denied" in finding.detail
