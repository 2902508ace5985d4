from __future__ import annotations

import json
import sys

import pytest

from benchmarks import attention


def test_all_kernels_are_measured_on_the_same_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(attention.SIZES, "small", attention.Size(1, ((3, 4), (2, 2)), 3))
    found = attention.rows("small", "cpu", 1)
    assert [row["kernel"] for row in found][:2] == ["grid-sample", "embedding-bag"]
    assert found[0]["ratio_forward"] == found[0]["ratio_with_backward"] == 1
    assert all(float(str(row["megabytes_kept"])) > 0 for row in found)


def test_a_kernel_that_is_wrong_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = attention.PLAIN["grid-sample"]
    monkeypatch.setitem(attention.PLAIN, "embedding-bag", lambda *given: wrong(*given) * 2)
    with pytest.raises(SystemExit, match="embedding-bag differs from the reference"):
        attention.kernels("cpu")


def test_json_alone_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["attention.py", "--size", "tiny-decoder", "--rounds", "1", "--json"])
    attention.main()
    assert {row["size"] for row in json.loads(capsys.readouterr().out)["rows"]} == {"tiny-decoder"}
