"""Several processes, started by the command itself: they train as one, stop together, and leave nobody behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.commands import end, free_port, is_gone, ranks, signal_all, start, wait_for_steps
from tests.small_runs import SMALL, read_lines, write_data

TWO = ("--device", "cpu", "--nproc", "2")


def train(shapes: Path, output: Path, *more: object, **variables: str) -> subprocess.Popen[str]:
    return start("train", "--preset", SMALL, "--data", shapes, "--output-dir", output, *TWO, *more, **variables)


@pytest.fixture(scope="module")
def reference(shapes_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes that nothing disturbed."""
    output = tmp_path_factory.mktemp("ranks") / "run"
    code, out, err = end(train(shapes_tiny, output))
    assert code == 0, err
    assert out.count("device      cpu, 2 processes") == 1  # the first process alone speaks
    return output


@pytest.mark.slow
def test_an_interface_that_is_missing_ends_with_7_and_no_traceback_p09(shapes_tiny: Path, tmp_path: Path) -> None:
    code, _, err = end(train(shapes_tiny, tmp_path / "run", GLOO_SOCKET_IFNAME="nosuch0"))
    assert code == 7, err
    assert "Traceback" not in err
    assert "error[P09]: no network interface leads to the other processes (GLOO_SOCKET_IFNAME is nosuch0)" in err


@pytest.mark.slow
def test_two_processes_evaluate_as_one_and_carry_ids_of_63_bits_r5(
    reference: Path, shapes_tiny: Path, tmp_path: Path
) -> None:
    """One process on the data, and two on the same data with the largest, the smallest and neighbouring ids."""
    content = json.loads((shapes_tiny / "annotations" / "instances_val.json").read_text())
    ids = sorted(row["id"] for row in content["images"])
    far = {image_id: 2**63 - len(ids) + place for place, image_id in enumerate(ids)}
    far[ids[0]] = 1 - 2**63  # remains the smallest, so the order is that of the file
    for row in content["images"]:
        row["id"] = far[row["id"]]
    for row in content["annotations"]:
        row["image_id"] = far[row["image_id"]]
    moved = write_data(content, tmp_path / "moved.json", shapes_tiny / "val")
    found = []
    for data, processes in ((shapes_tiny, ("--device", "cpu")), (moved, TWO)):
        arguments = ("eval", reference, "--data", data, *processes, "--predictions", tmp_path / "found", "--workers", 0)
        code, out, err = end(start(*arguments, "--json"))
        assert code == 0, err
        found.append((json.loads(out), (tmp_path / "found").read_text()))
    (near, near_results), (other, far_results) = found
    assert other == near
    expected = json.loads(near_results)
    for row in expected:
        row["image_id"] = far[row["image_id"]]
    assert json.loads(far_results) == expected


@pytest.mark.slow
def test_two_processes_refuse_to_resume_on_other_boxes_c08(shapes_tiny: Path, tmp_path: Path) -> None:
    data = shutil.copytree(shapes_tiny, tmp_path / "data")
    run = tmp_path / "run"
    process = train(data, run)
    wait_for_steps(run, 1)
    os.kill(process.pid, signal.SIGTERM)
    assert end(process)[0] == 75
    file = data / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"] = [1, 1, 9, 9]
    file.write_text(json.dumps(content))
    code, _, err = end(start("train", "--resume", run, *TWO))
    assert (code, err.count("error[")) == (2, 1), err
    assert "what differs: training split: annotations" in err


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["launcher", "rank 1"])  # the whole group: below, with processes that read images
def test_sigterm_saves_once_and_everybody_goes_p02_p03_p05(
    whom: str, reference: Path, shapes_tiny: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = train(shapes_tiny, run)
    wait_for_steps(run, 1)
    begun = time.monotonic()
    os.kill(process.pid if whom == "launcher" else ranks(process.pid)[1], signal.SIGTERM)
    code, _, err = end(process)
    assert (code, time.monotonic() - begun < 40) == (75, True), err
    assert is_gone(process.pid)
    ended = json.loads((run / "exit.json").read_text())
    assert ended["code"] == 75
    assert ended["last_checkpoint"] == f"step-{ended['step']:08d}"
    code, _, err = end(start("train", "--resume", run, *TWO))
    assert code == 0, err
    assert [line["loss_hex"] for line in read_lines(run / "metrics.jsonl")] == [
        line["loss_hex"] for line in read_lines(reference / "metrics.jsonl")
    ]


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_run_by_name_p06(shapes_tiny: Path, tmp_path: Path) -> None:
    process = train(shapes_tiny, tmp_path / "run")
    wait_for_steps(tmp_path / "run", 1)
    os.kill(ranks(process.pid)[1], signal.SIGKILL)
    begun = time.monotonic()
    code, _, err = end(process)
    assert (code, time.monotonic() - begun < 30) == (7, True), err
    assert "rank 1 (process" in err
    assert "SIGKILL" in err
    assert is_gone(process.pid)


@pytest.mark.slow
def test_a_rank_that_hangs_is_named_and_killed_p07(shapes_tiny: Path, tmp_path: Path) -> None:
    process = train(shapes_tiny, tmp_path / "run", "--set", "train.rank_timeout=5")
    wait_for_steps(tmp_path / "run", 1)
    os.kill(ranks(process.pid)[1], signal.SIGSTOP)
    begun = time.monotonic()
    code, _, err = end(process)
    assert (code, time.monotonic() - begun < 5 + 30) == (7, True), err
    assert "rank 1 gives no sign of life" in err
    assert json.loads((tmp_path / "run" / "exit.json").read_text())["code"] == 7
    assert is_gone(process.pid)


@pytest.mark.slow
def test_a_users_mistake_is_told_once_also_if_rank_1_meets_it_first(shapes_tiny: Path, tmp_path: Path) -> None:
    code = "import os, time\ntime.sleep(3 * (os.environ.get('RANK') == '0'))\n"
    (tmp_path / "sitecustomize.py").write_text(code)  # Python runs it before anything else
    process = train(shapes_tiny, tmp_path / "run", "--set", "train.epochz=3", PYTHONPATH=str(tmp_path))
    code, _, err = end(process)
    assert code == 2
    assert err.startswith("error[C01]: `train.epochz`: unknown key; did you mean 'epochs'?")
    assert len(err.splitlines()) == 2, err  # the message and its remedy, once, and nothing of torch's
    assert is_gone(process.pid)


@pytest.mark.slow
def test_two_agents_of_torchrun_form_one_run(reference: Path, shapes_tiny: Path, tmp_path: Path) -> None:
    """As on two machines: each agent starts one process, and they find each other by address alone."""
    address = f"127.0.0.1:{free_port()}"
    run = tmp_path / "run"
    torchrun = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d"]
    torchrun += [f"--rdzv-endpoint={address}", "--rdzv-id=test", "--local-addr=localhost"]
    command = ["train", "--preset", SMALL, "--data", shapes_tiny, "--output-dir", run, "--device", "cpu"]
    agents = [start(*command, before=torchrun) for _ in range(2)]
    ended = [end(agent) for agent in agents]
    assert [code for code, _, _ in ended] == [0, 0], ended
    assert sorted(out.count("output ") for _, out, _ in ended) == [0, 1]  # one process speaks
    losses = [line["loss_hex"] for line in read_lines(run / "metrics.jsonl")]
    assert losses == [line["loss_hex"] for line in read_lines(reference / "metrics.jsonl")]


@pytest.mark.slow
def test_processes_that_read_images_outlive_a_signal_to_the_group_p03(shapes_tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = train(shapes_tiny, run, "--workers", 2, "--epochs", 40)
    wait_for_steps(run, 3)
    signal_all(process.pid, signal.SIGTERM)
    code, _, err = end(process)
    assert code == 75, err
    assert "worker" not in err.lower().replace("workers", "")
    assert is_gone(process.pid)
    assert json.loads((run / "exit.json").read_text())["last_checkpoint"]


@pytest.mark.slow
def test_another_number_of_processes_is_refused_c08(reference: Path) -> None:
    code, _, err = end(start("train", "--resume", reference, "--epochs", 3, "--device", "cpu"))
    assert (code, "the run was on 2 processes, this is on 1" in err) == (2, True), err
