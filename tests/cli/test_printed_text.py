"""Text from files is shown as it is: a terminal finds nothing in it to obey."""

from __future__ import annotations

import importlib.util
import json
import unicodedata
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from tessera.cli.main import main
from tessera.tools.printable import printable

EVIL = "\x1b[31mred\x07\x9b2J\r\nb\u202ec\u2028[bold]d"
SHOWN = r"\x1b[31mred\x07\x9b2J\r\nb\u202ec\u2028[bold]d"


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A log whose name, model and layers have such text, and drift between its halves."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(1)
    lines = [{"type": "meta", "model_id": EVIL + "m", "num_experts": 8}]
    for row in range(800):
        ids = rng.choice(8, 2, replace=False) if row < 400 else [row % 2, 7]
        for layer in ("1", "2"):
            lines.append({"type": "route", "layer": EVIL + layer, "topk_ids": [*map(int, ids)]})
    name = f"{EVIL}.jsonl"
    Path(name).write_text("".join(json.dumps(line) + "\n" for line in lines) + "{bad\n")
    return name


def assert_plain(text: str) -> None:
    bad = {one for one in text if unicodedata.category(one) in ("Cc", "Cf", "Zl", "Zp")}
    assert bad <= {"\n"}


@pytest.mark.parametrize(
    "command",
    [
        ["inspect", "{}"],
        ["inspect", "{}", "copy.jsonl", "--compare"],
        ["inspect", "{}", "copy.jsonl", "--files", "ranks"],
        ["align", "{}"],
        ["bench", "--device", "cpu", "--tokens", "1", "--peers", "none", "--log", "{}"],
    ],
)
def test_what_commands_print(
    command: list[str], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("copy.jsonl").write_bytes(Path(name).read_bytes())
    words = [word.format(name) for word in command]
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert_plain(err)
    (line,) = err.splitlines()
    assert line.startswith(f"tessera {command[0]}: ") and f"{SHOWN}.jsonl:1602: expected" in line
    assert main([*words, "--skip-bad-lines"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert_plain(out)
    assert r"\x1b[31mred" in out


def test_names_of_what_is_written(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    output = f"{EVIL}.npz"
    assert main(["align", name, "--skip-bad-lines", "--output", output]) == 0
    out = capsys.readouterr().out
    assert_plain(out)
    assert out.splitlines()[-1] == f"wrote {SHOWN}.npz"
    assert main(["inspect", f"{EVIL}\t.jsonl"]) == 2
    assert_plain(capsys.readouterr().err)
    with pytest.raises(SystemExit):
        main(["inspect", "--no\x1bsuch"])
    assert_plain(capsys.readouterr().err)


def test_pictures_stay_xml(name: str) -> None:
    if importlib.util.find_spec("jinja2") is None:
        pytest.skip("jinja2 is not installed")
    options = ["--skip-bad-lines", "--pictures", "pictures", "--html", "a.html"]
    assert main(["inspect", name, *options]) == 0
    pictures = list(Path("pictures").iterdir())
    assert len(pictures) > 3
    for picture in pictures:
        ET.parse(picture)
        assert_plain(picture.read_text())


def test_printable() -> None:
    assert printable(EVIL) == SHOWN
    for text in ("layer 3", "Schicht 3 – größte", "専門家", "a\\b"):
        assert printable(text) == text
