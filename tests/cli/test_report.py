"""``loradetr report``: the command, and its page in a browser."""

from __future__ import annotations

import html
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import Command, assert_told
from tests.html_pages import checked

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def test_a_run_gets_a_page(loradetr: Command, own_run: Path) -> None:
    ended = loradetr("report", own_run, "--device", "cpu")
    assert (ended.code, ended.err) == (0, "")
    first, last = ended.out.splitlines()
    assert re.fullmatch(r"step-\d+: 6 images of instances_val\.json", first)
    assert re.fullmatch(rf"wrote {re.escape(str(own_run))}/report\.html \(\d\.\d MB\)", last)
    checked((own_run / "report.html").read_text(encoding="utf-8"))


def test_another_file_checkpoint_and_data(loradetr: Command, own_run: Path, learned_data: Path) -> None:
    before = sorted(path.name for path in own_run.iterdir())
    options = ("--checkpoint", "last", "--no-ema", "--data", learned_data, "-o", "page.html")
    ended = loradetr("report", own_run, *options)
    assert ended.code == 0, ended.err
    assert "2 images of two.json" in checked(Path("page.html").read_text(encoding="utf-8")).text
    assert sorted(path.name for path in own_run.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (("{run}", "-o", "page.txt"), 2, ".html"),
        (("{run}", "-o", "absent/page.html"), 2, "absent"),
        (("{run}", "--checkpoint", "first"), 2, "best or last"),
        (("{run}", "--data", "absent"), 2, "absent"),
        (("absent",), 4, "absent"),
        (("model.pth",), 2, "expected a run directory or a checkpoint"),
    ],
)
def test_mistakes(loradetr: Command, small_run: Path, arguments: tuple[str, ...], code: int, part: str) -> None:
    Path("model.pth").write_bytes(b"")
    assert_told(loradetr("report", *(text.format(run=small_run) for text in arguments)), code, (part,))
    assert [path.name for path in Path().iterdir()] == ["model.pth"]


@pytest.fixture
def browser() -> str:
    """A browser that starts without a window."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    return found


def start(browser: str, address: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"]
    command += [f"--user-data-dir={folder}", "--host-resolver-rules=MAP * ~NOTFOUND", *options, f"file://{address}"]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=True, env={**os.environ, "HOME": str(folder)}
    )


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_window_and_the_console_is_empty(
    loradetr: Command, own_run: Path, tmp_path: Path, browser: str, width: int
) -> None:
    assert loradetr("report", own_run).code == 0
    text = (own_run / "report.html").read_text(encoding="utf-8")
    # A window cannot be as narrow as a phone, but a frame can.
    frame = tmp_path / "frame.html"
    script = (
        "const page = document.querySelector('iframe').contentDocument; const root = page.documentElement;"
        "const broken = [...page.images].filter(image => !image.naturalWidth).length;"
        "document.body.dataset.found = [root.clientWidth, root.scrollWidth, broken].join(' ');"
    )
    frame.write_text(
        f'<!DOCTYPE html><body><iframe style="border:0" width="{width}" height="3000" srcdoc="{html.escape(text)}" '
        f'onload="{html.escape(script)}"></iframe>',
        encoding="utf-8",
    )
    done = start(browser, frame, tmp_path / "profile", "--dump-dom", "--window-size=1400,3000")
    found = re.search(r'data-found="(\d+) (\d+) (\d+)"', done.stdout)
    assert found, done.stderr
    inner, content, broken = map(int, found.groups())
    assert width - 20 <= inner <= width  # less a scroll bar
    assert (content, broken) == (inner, 0)
    assert "CONSOLE" not in done.stderr
