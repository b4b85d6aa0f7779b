import os
import platform

import pytest

from t2i.core.locks import holder, locked


def test_a_shared_lock_keeps_out_only_those_who_want_it_alone(tmp_path) -> None:
    refused = pytest.raises(ValueError, match=f"already in use by process {os.getpid()}; .* `kill {os.getpid()}`$")
    with locked(tmp_path, shared=True), locked(tmp_path, shared=True), refused, locked(tmp_path):
        pass
    with locked(tmp_path), refused, locked(tmp_path, shared=True):
        pass
    assert holder(tmp_path) is None


def test_the_holder_of_a_shared_lock_is_seen(tmp_path) -> None:
    with locked(tmp_path, shared=True):
        assert holder(tmp_path) == os.getpid()
    assert holder(tmp_path) is None


def test_a_holder_on_another_machine_is_named_with_it(tmp_path, monkeypatch) -> None:
    here = platform.node()
    with locked(tmp_path):
        assert holder(tmp_path) == os.getpid()
        monkeypatch.setattr(platform, "node", lambda: f"not-{here}")
        with pytest.raises(ValueError, match=f"by process {os.getpid()} on {here}; .* `kill {os.getpid()}` on {here}$"):
            locked(tmp_path).__enter__()
