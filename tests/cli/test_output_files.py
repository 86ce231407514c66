"""Files that commands write: nothing of the user's is lost, and they are whole or not there."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tessera.cli.main import main
from tessera.tools.output_files import Content, Output, check_outputs, write_files

META = '{"type": "meta", "model_id": "m", "num_experts": 4}\n'
ROUTE = '{"type": "route", "layer": 0, "topk_ids": [%d, 3]}\n'
TESSERA = str(Path(sys.executable).with_name("tessera"))

Refused = Callable[..., str]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the tests, with a log, ids and links to them."""
    monkeypatch.chdir(tmp_path)
    Path("log.jsonl").write_text(META + "".join(ROUTE % (row % 3) for row in range(9)))
    np.savez("ids.npz", topk_ids=np.array([[0, 1], [2, 1]]))
    for name in ("log.jsonl", "ids.npz"):
        Path(f"hard-{name}").hardlink_to(name)
        Path(f"soft-{name}").symlink_to(name)
    return tmp_path


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], folder: Path) -> Refused:
    """The message of a command that ends with exit code 2, and does not change the folder."""

    def run(*arguments: str) -> str:
        before = content(folder)
        assert main([*arguments]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert content(folder) == before
        (line,) = err.splitlines()
        return line.removeprefix(f"tessera {arguments[0]}: ")

    return run


def content(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("spelling", ["{}", "./{}", "hard-{}", "soft-{}", "../{here}/{}"])
@pytest.mark.parametrize(
    ("command", "name", "option"),
    [
        (("inspect", "log.jsonl"), "log.jsonl", "--html"),
        (("bench", "--log", "log.jsonl"), "log.jsonl", "--json"),
        (("align", "ids.npz"), "ids.npz", "--output"),
        (("align", "log.jsonl"), "log.jsonl", "--output"),
    ],
)
def test_an_input_is_never_an_output(
    command: tuple[str, ...], name: str, option: str, spelling: str, refused: Refused, folder: Path
) -> None:
    output = spelling.format(name, here=folder.name)
    assert refused(*command, option, output, "--force") == (
        f"{option}: expected another file than the input {name}, got {Path(output)}"
    )


@pytest.mark.parametrize("kind", ["hardlink_to", "symlink_to"])
def test_a_folder_of_pictures_does_not_hold_the_log(kind: str, refused: Refused) -> None:
    Path("pictures").mkdir()
    getattr(Path("pictures", "padding.svg"), kind)(Path("log.jsonl").absolute())
    assert refused("inspect", "log.jsonl", "--pictures", "pictures", "--force") == (
        "--pictures: expected a folder without the input log.jsonl, got pictures, where "
        "padding.svg is that file"
    )


def test_two_outputs_are_two_files(refused: Refused) -> None:
    Path("a.json").touch()
    Path("b.png").hardlink_to("a.json")
    Path("pictures").mkdir()
    same = "expected another file than"
    assert refused("bench", "--json", "a.png", "--plot", "./a.png") == (
        f"--plot: {same} --json writes, got a.png"
    )
    assert same in refused("bench", "--json", "a.json", "--plot", "b.png", "--force")
    pictures = ("--pictures", "pictures")
    assert refused("inspect", "log.jsonl", "--html", "pictures/load.svg", *pictures) == (
        f"--pictures: {same} --html writes, got pictures"
    )
    for name in ("new", "new/pictures"):  # neither a file nor a folder can be there for both
        assert refused("inspect", "log.jsonl", "--html", "new", "--pictures", name) == (
            f"--pictures: {same} --html writes, got {name}"
        )
    Path("pictures", "load.svg").touch()
    Path("a.html").symlink_to("pictures/load.svg")
    Path("b.html").hardlink_to("pictures/load.svg")
    assert same in refused("inspect", "log.jsonl", "--html", "b.html", *pictures, "--force")
    assert same in refused("inspect", "log.jsonl", "--html", "a.html", *pictures, "--force")


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_bench_overwrites_nothing_unasked(option: str, refused: Refused) -> None:
    Path("a.png").write_text("mine")
    assert refused("bench", option, "a.png") == "a.png: exists already; --force overwrites it"
    assert refused("bench", option, "no/a.png") == f"{option}: there is no folder no"
    Path("b.png").mkdir()
    assert refused("bench", option, "b.png", "--force") == (
        f"{option}: expected a file, got the folder b.png"
    )


@pytest.mark.parametrize("name", ["a.txt", "a", "a.npy", "a.NPZ", ".npz", "a.npz.gz"])
def test_align_writes_only_what_it_can_read_again(name: str, refused: Refused) -> None:
    message = f"--output: expected a .npz file, got {name}"
    assert refused("align", "none.npz", "--output", name) == message
    Path(name).write_text("mine")
    assert refused("align", "none.npz", "--output", name) == message
    assert refused("align", "none.npz", "--output", name, "--force") == message


def test_bench_writes_a_report_into_an_empty_folder(refused: Refused) -> None:
    Path("results").mkdir()
    Path("results", "cpu.json").write_text("mine")
    assert refused("bench", "--preset", "report", "--json", "results") == (
        "results: exists already, and is not empty; --force overwrites it"
    )


def test_what_was_written_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    bench = ["bench", "--device", "cpu", "--tokens", "1", "--peers", "none", "--json", "a.json"]
    for force in ([], ["--force"]):
        assert main([*bench, *force]) == 0
        out, err = capsys.readouterr()
        assert (out.splitlines()[-1], err) == ("wrote a.json", "")
        assert json.loads(Path("a.json").read_text())["rows"]
    assert main(["inspect", "log.jsonl", "--html", "a.html", "--pictures", "p", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["models"]
    pictures = [f"wrote {path}" for path in Path("p").iterdir()]
    assert sorted(err.splitlines()) == sorted(["wrote a.html", *pictures])
    assert len(pictures) > 3
    assert main(["align", "--tokens", "9", "--output", "a.npz"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "wrote a.npz"


def test_results_are_written_though_the_reader_has_gone() -> None:
    options = "--device cpu --tokens 1 --peers none --json a.json"
    subprocess.run(["sh", "-c", f"{TESSERA} bench {options} | true"], check=True, timeout=60)
    assert json.loads(Path("a.json").read_text())["rows"]


def test_a_file_keeps_its_mode_and_links_their_target() -> None:
    Path("a").write_text("old")
    Path("a").chmod(0o640)
    Path("link").symlink_to("a")
    Path("dangling").symlink_to("b")
    write_files({Path("link"): b"new", Path("dangling"): lambda file: file.write(b"b")}, force=True)
    assert Path("link").is_symlink()
    assert Path("a").read_bytes() == b"new"
    assert stat.S_IMODE(Path("a").stat().st_mode) == 0o640
    assert Path("dangling").is_symlink()
    assert Path("b").read_bytes() == b"b"
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(Path("b").stat().st_mode) == 0o666 & ~mask


def test_devices_and_pipes_are_written_to_in_place() -> None:
    check_outputs([Output("--html", Path("/dev/null"))], [], force=False)
    check_outputs([Output("--output", Path("/dev/null"), file_suffix=".npz")], [], force=False)
    write_files({Path("/dev/null"): b"a"}, force=False)
    assert Path("/dev/null").is_char_device()
    with pytest.raises(OSError, match=r"No space left on device: '/dev/full'$"):
        write_files({Path("/dev/full"): b"a"}, force=False)


def test_a_stream_that_leads_to_a_file_is_no_output(folder: Path) -> None:
    """The file would be replaced, and what is printed later would go to the old one."""
    with Path("shown").open("w") as shown:
        for path in (Path(f"/proc/self/fd/{shown.fileno()}"), Path(f"/dev/fd/{shown.fileno()}")):
            with pytest.raises(ValueError, match=r"^--html: expected the file's own name, got /"):
                check_outputs([Output("--html", path)], [], force=True)


def test_a_failure_leaves_neither_files_nor_folders(folder: Path) -> None:
    Path("kept").write_text("old")
    before = content(folder)

    def fail(file: object) -> None:
        raise KeyboardInterrupt

    files: dict[Path, Content] = {
        Path("kept"): b"new",
        Path("deep/er/a"): b"a",
        Path("deep/est/b"): fail,
    }
    with pytest.raises(KeyboardInterrupt):
        write_files(files, force=True)
    assert content(folder) == before


def test_what_comes_during_a_run_is_kept(folder: Path) -> None:
    """None of the files is written, whichever of them somebody else has made meanwhile."""

    def theirs(file: object) -> None:
        Path("second").write_text("theirs")

    files: dict[Path, Content] = {
        Path("new/first"): b"mine",
        Path("second"): theirs,
        Path("third"): b"mine",
    }
    with pytest.raises(ValueError, match=r"^second: exists already; --force overwrites it$"):
        write_files(files, force=False)
    assert Path("second").read_text() == "theirs"
    assert not Path("new").exists()
    assert not Path("third").exists()
    assert not list(folder.rglob(".tessera-*"))
    write_files({Path("second"): b"mine"}, force=True)
    assert Path("second").read_text() == "mine"


def test_a_move_that_fails_leaves_no_new_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(folder)
    move = Path.replace

    def fail_once(draft: Path, target: Path) -> Path:
        if target.name == "second":
            raise OSError(5, "")
        return move(draft, target)

    monkeypatch.setattr(Path, "replace", fail_once)
    with pytest.raises(OSError, match=r"Input/output error: 'second'$"):
        write_files({Path("first"): b"a", Path("second"): b"b"}, force=False)
    assert content(folder) == before


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ("inspect log.jsonl --html a.html", "a.html"),
        ("inspect log.jsonl --pictures pictures", "pictures/load.svg"),
        ("align --tokens 9 --output a.npz", "a.npz"),
        ("bench --device cpu --tokens 1 --peers none --json a.json", "a.json"),
        ("bench --device cpu --tokens 1 --peers none --plot a.svg", "a.svg"),
    ],
)
def test_commands_keep_what_comes_during_their_run(
    arguments: str, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Until `--force` says otherwise."""
    command = arguments.split()
    if "--plot" in command:
        pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    monkeypatch.setattr(f"tessera.cli.{command[0]}.check_outputs", lambda *_, **__: None)
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text("theirs")
    assert main(command) == 2
    line = f"tessera {command[0]}: {name}: exists already; --force overwrites it\n"
    assert capsys.readouterr().err == line
    assert Path(name).read_text() == "theirs"
    assert main([*command, "--force"]) == 0
    assert Path(name).read_bytes() != b"theirs"


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["inspect", "log.jsonl", "--html", "a.html"], "a.html"),
        (["inspect", "log.jsonl", "--pictures", "new/pictures"], "new/pictures/"),
        (["align", "--tokens", "4000", "--output", "a.npz"], "a.npz"),
        (["bench", "--device", "cpu", "--tokens", "1", "--json", "a.json"], "a.json"),
    ],
)
def test_a_full_disk(arguments: list[str], name: str, folder: Path) -> None:
    before = content(folder)
    done = subprocess.run(
        # Python ignores the signal, and gets an error. Bytecode must not be written either.
        ["prlimit", "--fsize=500:500", TESSERA, *arguments],
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"tessera {arguments[0]}: {name}")
    assert line.endswith(": File too large")
    assert content(folder) == before


def test_a_folder_without_permission(folder: Path) -> None:
    Path("closed").mkdir(mode=0o555)
    Path("open").mkdir()
    Path("open", "mine.html").write_text("mine")
    command = [sys.executable, "-c", "from tessera.cli.main import main; exit(main())"]
    prefix: list[str] = []
    if os.geteuid() == 0:  # to whom nothing is forbidden, but as somebody else
        setpriv = shutil.which("setpriv")
        if setpriv is None or not _can_others_import():
            pytest.skip("runs as root, without a way to run as somebody else")
        prefix = [setpriv, "--reuid=65534", "--regid=65534", "--clear-groups"]
        Path("open").chmod(0o777)
    Path("open", "mine.html").chmod(0o444)
    for above in (folder, *folder.parents[:2]):
        above.chmod(above.stat().st_mode | 0o055)

    def line(*arguments: str) -> str:
        done = subprocess.run(
            [*prefix, *command, *arguments], capture_output=True, text=True, timeout=120
        )
        assert (done.returncode, done.stdout) == (2, "")
        return done.stderr

    log = ("inspect", "none.jsonl")
    for option, name in (("--html", "closed/a.html"), ("--pictures", "closed/new/pictures")):
        assert line(*log, option, name) == f"tessera inspect: {name}: Permission denied\n"
    kept = line(*log, "--html", "open/mine.html", "--force")
    assert kept == "tessera inspect: open/mine.html: Permission denied\n"


def _can_others_import() -> bool:
    return all(path.stat().st_mode & 0o005 == 0o005 for path in Path(sys.prefix).parents)


def test_a_folder_where_nothing_can_be_made(refused: Refused) -> None:
    assert refused("inspect", "none.jsonl", "--html", "/proc/a.html") == (
        "/proc/a.html: No such file or directory"
    )
    assert refused("inspect", "none.jsonl", "--pictures", "log.jsonl/p") == (
        "log.jsonl/p: Not a directory"
    )


@pytest.mark.parametrize("command", [("inspect",), ("bench", "--log")])
def test_a_log_that_is_given_twice(command: tuple[str, ...], refused: Refused) -> None:
    name = "LOG" if command[0] == "inspect" else "--log"
    assert refused(*command, "log.jsonl", "log.jsonl") == (
        f"{name}: expected every file once, got log.jsonl twice"
    )
    for other in ("./log.jsonl", "hard-log.jsonl", "soft-log.jsonl"):
        assert refused(*command, "log.jsonl", other).startswith(f"{name}: expected every file once")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["align", "ids.npz", "--tokens", "5"], "--tokens: applies to synthetic ids; "),
        (["align", "ids.npz", "--top-k", "2"], "ids.npz: --top-k: does nothing to ids"),
        (["align", "log.jsonl", "--seed", "0"], "--seed: applies to synthetic ids; "),
        (
            ["align", "ids.npz", "--distribution", "zipf"],
            "--distribution: applies to synthetic ids; ",
        ),
        (["align", "--force"], "--force: expected --output beside it"),
        (["inspect", "log.jsonl", "--force"], "--force: expected --html or --pictures beside it"),
        (
            ["inspect", "ids.npz", "--skip-bad-lines"],
            "ids.npz: --skip-bad-lines: does nothing to ids",
        ),
        (["bench", "--force"], "--force: expected --json or --plot beside it"),
        (["bench", "--preset", "grid", "--block-size", "8"], "expected no --block-size beside it"),
        (
            ["bench", "--device", "cpu", "--method", "eager", "--plot", "a.png"],
            "--plot: expected one of the methods graph, chain, call, l2, got eager",
        ),
        (["bench", "--device", "cpu", "--skew", "zipf", "--plot", "a.png"], "nothing to draw"),
        (["info", "--device", "cpu"], "--device: expected --explain beside it"),
        (
            ["verify", "--cases", "random:1:4", "--max-ids", "5"],
            "--max-ids: applies to random cases; expected --random beside it",
        ),
        (["verify", "--random", "0", "--max-ids", "5"], "--max-ids: applies to random cases; "),
    ],
)
def test_options_that_would_do_nothing(
    arguments: list[str], message: str, refused: Refused
) -> None:
    assert message in refused(*arguments)
