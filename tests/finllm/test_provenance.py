"""Where a run comes from is on record."""

from finllm.provenance import provenance


def test_provenance_names_commit_versions_and_machine():
    origin = provenance(seed=3)
    assert origin["seed"] == 3
    assert origin["packages"]["torch"] and origin["hardware"]["cores"] >= 1
    assert origin["git_commit"] is None or len(origin["git_commit"]) == 40
