"""The alarm over stored ratios."""

import importlib.util
import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def alarm(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("alarm", FOLDER / "alarm.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "STORED", tmp_path / "ratios.json")
    return module


def run(path, **ratios):
    rows = [
        {"fullname": f"benchmarks/bench_x.py::test[{k}]", "extra_info": {"ratio": v} if v else {}}
        for k, v in ratios.items()
    ]
    path.write_text(json.dumps({"benchmarks": rows}))
    return str(path)


def test_the_alarm_goes_off_beyond_half_as_much_again(alarm, tmp_path, capsys):
    stored = run(tmp_path / "a.json", fast=2.0, slow=10.0, untimed=None)
    assert alarm.main([stored]) == 2  # nothing to compare with
    assert alarm.main([stored, "--store"]) == 0
    assert alarm.main([run(tmp_path / "b.json", fast=2.9, slow=3.0, new=50.0)]) == 0
    capsys.readouterr()
    assert alarm.main([run(tmp_path / "c.json", fast=3.1, slow=14.0)]) == 1
    told = capsys.readouterr().out
    assert "[fast]: 3.10, was 2.00" in told
    assert "slow" not in told
    assert alarm.main([run(tmp_path / "d.json", other=1.0)]) == 2
    # What one run did not measure is kept.
    assert alarm.main([run(tmp_path / "e.json", slow=12.0), "--store"]) == 0
    assert json.loads(alarm.STORED.read_text())["bench_x.py::test[fast]"] == 2.0
