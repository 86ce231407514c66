"""The pictures in docs/pictures are those that `tessera inspect` draws today."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "docs/pictures"
TRACES = Path(os.environ.get("TESSERA_TRACES", ROOT / "../shared/traces"))
LOGS = {
    "olmoe": "olmoe-1b-7b_layer0.jsonl",
    "qwen0": "qwen1.5-moe-a2.7b_layer0.jsonl",
    "qwen12": "qwen1.5-moe-a2.7b_layer12.jsonl",
}


@pytest.mark.parametrize("folder", LOGS)
def test_pictures_are_drawn_from_the_log(folder: str, tmp_path: Path) -> None:
    """Each picture has the bytes that the log's inspection gives."""
    pytest.importorskip("jinja2", reason="jinja2 is not installed")
    log = TRACES / LOGS[folder]
    if not log.exists():
        pytest.skip(f"no {log}; TESSERA_TRACES names the folder of the recorded logs")
    command = [sys.executable, "-m", "tessera", "inspect", log, "--pictures", tmp_path / "drawn"]
    subprocess.run(command, capture_output=True, check=True, timeout=120)
    kept = sorted(PICTURES.joinpath(folder).iterdir())
    assert kept
    for picture in kept:
        drawn = (tmp_path / "drawn" / picture.name).read_text(encoding="utf-8")
        assert picture.read_text(encoding="utf-8") == drawn, (
            f"{picture} is not of this code: tessera inspect {log} --pictures "
            f"docs/pictures/{folder} --force"
        )


def test_every_log_has_pictures() -> None:
    assert {folder.name for folder in PICTURES.iterdir()} == set(LOGS)
