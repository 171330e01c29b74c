"""What is saved appears whole or not at all, with the permissions of any file."""

import dataclasses
import os

import numpy as np
import pandas as pd
import pytest

from kltarget import cli
from kltarget.diagnosis import diagnose
from kltarget.policies import save_params
from kltarget.recipes import Recipe
from kltarget.verification import Report


def a_diagnosis():
    answers = ["1", "2"]
    frame = pd.DataFrame({"answer": answers, "completion": answers, "reward": [1.0, 0.0]})
    frame = frame.assign(prompt="a digit?", step=1, group_id=0, logp=None, ref_logp=None)
    return diagnose(frame, Recipe("loss", "k3"), beta=0.3)


def a_report():
    return Report("two words", (), {}, (), ())


def save_two(path, second):
    save_params(path, {"first": np.zeros(1000), "second": np.asarray(second)})


SAVED = {
    "params": (lambda path: save_two(path, 1.0), lambda path: save_two(path, [lambda: None])),
    "report": (
        lambda path: a_report().save(path),
        lambda path: dataclasses.replace(a_report(), settings={"x": object()}).save(path),
    ),
    "diagnosis": (
        lambda path: a_diagnosis().save(path),
        lambda path: dataclasses.replace(a_diagnosis(), title=object()).save(path),
    ),
}


@pytest.mark.parametrize("what", SAVED)
def test_a_file_that_breaks_off_leaves_the_old_one(tmp_path, what):
    save, save_broken = SAVED[what]
    path = tmp_path / "saved"
    with pytest.raises(Exception, match=r"pickle|serializable"):
        save_broken(path)
    assert not list(tmp_path.iterdir())
    save(path)
    before = path.read_bytes()
    with pytest.raises(Exception, match=r"pickle|serializable"):
        save_broken(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_permissions_are_those_of_any_file(tmp_path):
    path, other = tmp_path / "saved", tmp_path / "other"
    other.touch()
    a_report().save(path)
    assert path.stat().st_mode == other.stat().st_mode
    path.chmod(0o600)
    a_report().save(path)
    assert path.stat().st_mode & 0o777 == 0o600


def test_links_are_followed_and_devices_written_to(tmp_path):
    path = tmp_path / "saved"
    path.symlink_to(tmp_path / "target")
    a_report().save(path)
    assert path.is_symlink()
    assert path.read_text().startswith("{")
    a_report().save(os.devnull)
    assert not os.path.isfile(os.devnull)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    path = tmp_path / "none" / "saved"
    with pytest.raises(FileNotFoundError) as caught:
        a_report().save(path)
    assert caught.value.filename == str(path)


@pytest.mark.slow
def test_a_command_leaves_the_old_file(tmp_path, monkeypatch, capsys):
    path = tmp_path / "found.json"
    path.write_text("as it was")
    monkeypatch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(OSError(28, "disk full")))
    assert cli.main(["solve", "one-two", "--beta", "1", "--json", str(path)]) != 0
    assert "found.json: cannot be written: disk full" in capsys.readouterr().err
    assert path.read_text() == "as it was"
    assert list(tmp_path.iterdir()) == [path]
