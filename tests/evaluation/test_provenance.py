"""Provenance names what is needed to run again, and nobody's home directory."""

from pathlib import Path

import torch

from transformers_griffin.evaluation.provenance import provenance, publishable


def test_paths_lose_what_lies_above_the_working_directory(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert publishable(tmp_path / "runs" / "a") == "runs/a"
    assert publishable(f"griffin={tmp_path}/runs/a") == "griffin=runs/a"
    assert publishable("/home/somebody/models/target") == "target"
    assert publishable(["user/target", Path("a/b"), 3, None]) == ["user/target", "a/b", 3, None]
    assert publishable("a=b") == "a=b"


def test_versions_device_commit_and_date_are_named():
    found = provenance({"repeats": 3})
    assert found["versions"]["torch"] == torch.__version__
    assert found["device"].startswith("CPU, ")
    assert found["arguments"] == {"repeats": 3}
    assert found["commit"] is None or len(found["commit"].removesuffix("-dirty")) == 40
    assert len(found["date"]) == len("2025-01-31")
