"""bench/engine without an engine: what it asks, compares and writes, and its part of the page."""

# ruff: noqa: F811, for the imported fixture

from __future__ import annotations

import json
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench_modules import BENCH, modules, programs  # noqa: F401, they are fixtures

SESSION = """
import json, os, sys
import numpy as np
spec = json.loads(sys.argv[1])
variant = spec["variant"]
def report(record, **fields):
    print("\\n@engine-record " + json.dumps({"record": record, **fields}), flush=True)
print("INFO Tessera serves", "nothing" if variant == "vllm" else "all", flush=True)
report("start", start_s={"vllm": 10.0, "router": 10.2, "tessera": 10.4}[variant], served=[variant])
names = ("machine", "build", "gpu", "driver", "clock_sm", "cuda", "torch", "vllm")
about = {"commit": spec["commit"], "modified": None, "date": "2026-01-02"}
report("about", about=dict.fromkeys(names, "x") | about)
slower = {"vllm": 1.0, "router": 1.0, "tessera": float(os.environ["SLOWER"])}[variant]
cases = ("prefill 16x2048", "decode 1", "decode 32", "decode 256")
for case in cases * ("throughput" in spec["parts"]):
    report("case", case=case, seconds=[slower] * spec["repeats"], tokens_sha1=variant, different=9)
if "values" in spec["parts"]:
    logprobs = np.array([[-1.0, -2.0]]) - {"vllm": 0, "router": 0, "tessera": 0.5}[variant]
    tokens = np.array([[1, 2, 3, {"vllm": 4, "router": 4, "tessera": 5}[variant]]])
    np.savez(spec["arrays"], logprobs=logprobs, tokens=tokens, logprobs_apart=logprobs,
             tokens_apart=tokens)
    report("values")
if "kernels" in spec["parts"]:
    roles = {"experts": 75.0, "rest": 25.0}
    report("kernels", case="decode 1", profiled=[1, 32, 32], us=100.0, roles_us=roles, kernels=[])
if os.environ.get("FAILS") == variant:
    sys.exit("no memory")
report("end")
"""


@pytest.fixture
def engine(programs: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """The modules of bench/engine by their name."""
    monkeypatch.syspath_prepend(str(BENCH / "engine"))
    return programs


@pytest.fixture
def measure(
    engine: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Any]:
    """Runs throughput.py with made-up engines, and gives its file."""
    program = engine("throughput")
    session = tmp_path / "session.py"
    session.write_text(SESSION)
    monkeypatch.setattr(program, "SESSION", session)

    def run(*options: str, slower: float = 0.8, model: str = "Qwen3-30B-A3B") -> Any:
        path = tmp_path / "engine" / "result.json"
        monkeypatch.setenv("SLOWER", str(slower))
        arguments = ["throughput.py", model, "--json", str(path), "--commit", "0123456789abc"]
        monkeypatch.setattr(sys, "argv", [*arguments, *options])
        program.main()
        return json.loads(path.read_text())

    return run


def test_variants_take_turns_in_their_own_environment(measure: Callable[..., Any]) -> None:
    found = measure("--layers", "3", "--repeats", "2")
    assert [(row["variant"], row["turn"]) for row in found["sessions"]] == [
        (variant, turn) for turn in (0, 1) for variant in ("vllm", "router", "tessera")
    ]
    assert found["sessions"][0]["seconds"]["decode 1"] == [1.0, 1.0]
    assert found["sessions"][2]["log"] == ["INFO Tessera serves all"]
    assert found["sizes"] | {"layers": 3, "layers_of_model": 48} == found["sizes"]
    assert found["cases"]["prefill 16x2048"]["tokens"] == 16 * 2048
    assert found["cases"]["decode 256"]["tokens"] == 256 * 128
    # Values and kernels are taken once.
    assert [(row["run"], row["against"]) for row in found["values"]] == [
        ("vllm, other batches", "vllm"),
        ("router, other batches", "router"),
        ("router", "vllm"),
        ("tessera, other batches", "tessera"),
        ("tessera", "vllm"),
    ]
    assert found["values"][-1]["logprobs"]["mean"] == -0.5
    assert found["values"][-1]["greedy"]["share_before_first_difference"] == 0.75
    assert len(found["kernels"]) == 3


def test_an_engine_that_fails_has_no_further_turn_and_the_others_run(
    measure: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FAILS", "router")
    with pytest.raises(SystemExit):
        measure("--turns", "2", "--parts", "throughput", "--logs", str(tmp_path / "logs"))
    found = json.loads((tmp_path / "engine/result.json").read_text())
    assert [row.get("failure") for row in found["sessions"]] == [None, "exit code 1", *[None] * 3]
    assert "no memory" in capfd.readouterr().err
    assert "no memory" in (tmp_path / "logs/router_0.log").read_text()


def test_an_engine_that_takes_too_long_is_killed(
    engine: Callable[[str], Any], tmp_path: Path
) -> None:
    records: list[Any] = []
    failure, _ = engine("engine_process").run(
        [
            sys.executable,
            "-c",
            'import time; print(\'@ {"record": "case"}\', flush=True); time.sleep(60)',
        ],
        environment={},
        mark="@ ",
        take=records.append,
        log=tmp_path / "log",
        limit_s=1,
    )
    assert failure == "took longer than 1 s"
    assert records == [{"record": "case"}]


def test_environments(engine: Callable[[str], Any]) -> None:
    environment_of = engine("engine_models").environment_of
    inherited = {"TESSERA_VLLM": "0", "TESSERA_VLLM_EXPERTS": "0", "HF_HUB_OFFLINE": "0", "A": "1"}
    assert "TESSERA_VLLM" not in environment_of("tessera", inherited)
    assert "TESSERA_VLLM_EXPERTS" not in environment_of("tessera", inherited)
    assert environment_of("vllm", {})["TESSERA_VLLM"] == "0"
    assert environment_of("router", {})["TESSERA_VLLM_EXPERTS"] == "0"
    assert environment_of("router", inherited)["HF_HUB_OFFLINE"] == "0"
    assert environment_of("vllm", inherited)["A"] == "1"


def test_a_session_asks_the_engine_for_all_cases(
    engine: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With an engine that gives every prompt its first token, again and again."""
    session = engine("engine_session")

    class Engine:
        def __init__(self, model: str, **options: Any) -> None:
            assert json.loads((Path(model) / "config.json").read_text())["num_hidden_layers"] == 2
            assert options["enforce_eager"]

        def apply_model(self, function: Any) -> None:
            assert function is engine("engine_models").initialise

        def generate(self, asked: list[Any], sampling: Any, use_tqdm: bool) -> list[Any]:
            return [
                types.SimpleNamespace(
                    prompt_token_ids=ids,
                    prompt_logprobs=[None]
                    + [{one: types.SimpleNamespace(logprob=-float(one))} for one in ids[1:]],
                    outputs=[types.SimpleNamespace(token_ids=ids[:1] * sampling["max_tokens"])],
                )
                for ids in (one["prompt_token_ids"] for one in asked)
            ]

    vllm: Any = types.ModuleType("vllm")
    vllm.__version__, vllm.LLM, vllm.SamplingParams = "0.24.0", Engine, dict
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setattr(
        "tessera.tools.bench.machine.description", lambda *_: {"commit": None, "environment": {}}
    )
    spec = {
        "model": "OLMoE-1B-7B",
        "layers": 2,
        "execution": "eager",
        "variant": "vllm",
        "parts": ["throughput", "values"],
        "repeats": 2,
        "arrays": str(tmp_path / "arrays.npz"),
        "commit": None,
    }
    one = session.Session(spec)
    one.start()
    one.throughput()
    one.values()
    records = [
        json.loads(line.removeprefix(session.MARK))
        for line in capsys.readouterr().out.splitlines()
        if line.startswith(session.MARK)
    ]
    kinds = [record["record"] for record in records]
    assert kinds == ["start", "about", *["case"] * 4, "values"]
    assert records[1]["about"] == {"commit": None, "vllm": "0.24.0"}
    assert [len(record["seconds"]) for record in records[2:6]] == [2] * 4
    arrays = np.load(tmp_path / "arrays.npz")
    assert arrays["logprobs"].shape == (64, 127)
    assert arrays["tokens"].shape == (64, 64)
    for name in ("logprobs", "tokens"):  # in other batches, but in the same order
        np.testing.assert_array_equal(arrays[name], arrays[f"{name}_apart"])
    spec["variant"] = "tessera"
    with pytest.raises(SystemExit, match="tessera: expected vLLM with Tessera, got no served"):
        session.Session(spec).start()


def test_differences_of_values(engine: Callable[[str], Any]) -> None:
    values = engine("value_differences")
    found = values.logprob_differences(np.array([[1.0, 2.0]]), np.array([[1.0, 2.5]]))
    assert (found["tokens"], found["equal"], found["mean"]) == (2, 0.5, -0.25)
    assert found["quantiles"]["1.0"] == 0.5
    found = values.greedy_agreement([[1, 2, 3], [1, 2, 3]], [[1, 2, 3], [1, 9, 3]])
    assert found == {"prompts": 2, "share_before_first_difference": 4 / 6, "prompts_equal": 1}


def test_requests_have_mixed_lengths(engine: Callable[[str], Any]) -> None:
    program = engine("serve_requests")
    prompts, answers = zip(*program.request_sizes(1000), strict=True)
    assert (min(prompts), min(answers)) == (1, 1)
    assert 1000 < max(prompts) <= program.MAX_PROMPT
    assert 200 < max(answers) <= program.MAX_GENERATED
    command = program.server_command(Path("model"), 8000, "decode-graphs")
    assert "--no-enable-prefix-caching" in command
    assert "--skip-tokenizer-init" in command
    options = command[command.index("--compilation-config") + 1]
    assert json.loads(options)["cudagraph_mode"] == "FULL_DECODE_ONLY"


SERVER = """
import json, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
print("INFO Tessera serves all", flush=True)
class Handler(BaseHTTPRequestHandler):
    def answer(self, status, body):
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
    def do_GET(self):
        self.answer(200, {})
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/v1/completions" and asked["ignore_eos"] and asked["model"] == "model"
        assert all(1000 <= one < 150936 for one in asked["prompt"])
        number = asked["max_tokens"]
        if number == 256:
            return self.answer(500, {"error": "no memory"})
        self.answer(200, {"usage": {"completion_tokens": number - (number == 255)}})
    def log_message(self, *arguments):
        pass
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_requests_to_a_server(
    engine: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = engine("serve_requests")
    sizes = [(3, 2), (1, 1), (5, 256), (4, 255)]
    monkeypatch.setattr(program, "server_command", lambda _, port, __: [
        sys.executable, "-c", SERVER, str(port)
    ])  # fmt: skip
    monkeypatch.setattr(program, "request_sizes", lambda number: sizes * (number // 4))
    monkeypatch.setattr(program, "used_mb", lambda: 70)
    monkeypatch.setattr(program, "version", lambda _: "0.24.0")
    monkeypatch.setattr(program, "ABOUT", "print('{\"commit\": null}')")
    path = tmp_path / "serve.json"
    arguments = ["Qwen3-30B-A3B", "--json", str(path), "--requests", "200", "--concurrency", "8"]
    monkeypatch.setattr(sys, "argv", ["serve_requests.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        program.main()
    assert ended.value.code == 1
    found = json.loads(path.read_text())
    assert (found["answered"], found["failed"], found["is_alive"]) == (200, 100, True)
    assert [row["answered"] for row in found["memory"]] == [0, 100, 200, 200]
    assert set(found["failures"]) == {
        'status 500: {"error": "no memory"}',
        "expected 255 tokens, got 254",
    }
    assert found["log"] == ["INFO Tessera serves all"]
    sizes[2:] = [(2, 3), (3, 4)]
    program.main()
    assert json.loads(path.read_text())["failed"] == 0
    assert not program.is_ready(program.free_port())


@pytest.fixture
def page(modules: Callable[[str], Any], tmp_path: Path) -> Callable[..., str]:
    """The page's part from these results."""

    def make(**results: Any) -> str:
        (tmp_path / "engine").mkdir(exist_ok=True)
        for name, result in results.items():
            (tmp_path / "engine" / f"{name}.json").write_text(json.dumps(result))
        return str(modules("page_engine").engine_section())

    return make


def row(text: str, start: str) -> list[str]:
    (found,) = [one for one in text.splitlines() if one.startswith(f"| {start} ")]
    return re.split(r" *\| *", found.strip("| "))


def test_the_page_without_results_has_no_section(page: Callable[..., str]) -> None:
    assert page(notes={}) == ""


def test_the_page_shows_what_is_met(measure: Callable[..., Any], page: Callable[..., str]) -> None:
    text = page(result=measure())
    assert "### Qwen3-30B-A3B, CUDA graphs for decoding, nothing compiled" in text
    assert "24 of 48 layers, hidden size 2048, 128 experts of size 768, 8 for each token" in text
    assert row(text, "prefill") == [
        "prefill 16x2048", "32768", "32768", "1.000", "40960", "1.250", "1.15", "target met",
        "1.000",
    ]  # fmt: skip
    assert (
        "- Engine start: vLLM 10.0 s, alignment and router 10.2 s, all of Tessera 10.4 s; " in text
    )
    assert "+0.40 s: target met." in text
    assert "- vLLM: the same tokens as vLLM's first run in 4 of 4 cases: prefill 16x2048, " in text
    assert "- all of Tessera: the same tokens as vLLM's first run in 0 of 4 cases." in text
    assert row(text, "decode 1, vLLM") == ["decode 1, vLLM", "0.10", "75.0%", "25.0%"]
    assert row(text, "all of Tessera | vLLM")[2:] == [
        "0.0%", "-5.0e-01", *["5.0e-01"] * 5, "75.0%", "0 of 1",
    ]  # fmt: skip
    assert "missed" not in text


def test_the_page_explains_what_is_missed(
    measure: Callable[..., Any], page: Callable[..., str]
) -> None:
    found = measure("--turns", "1", "--parts", "throughput", slower=0.93)
    name = "Qwen3-30B-A3B, CUDA graphs for decoding, nothing compiled"
    text = page(result=found, notes={f"{name}, decode 1": "The host is slow."})
    assert row(text, "prefill")[7] == "**missed by 0.06 (7%)**"
    assert row(text, "decode 32")[7] == "target met"
    assert f"- time over vLLM's, {name}, decode 1: 0.93, missed by 0.02 (2%). The host" in text
    # Of other models and of eager engines no case may be slower.
    found["model"] = "Mixtral-8x7B"
    assert row(page(result=found), "decode 1")[6:8] == ["0.99", "target met"]
    slow = measure("--turns", "1", "--parts", "throughput", "--execution", "eager", slower=1.02)
    assert row(page(result=slow), "decode 1")[7] == "**missed by 0.01 (1%)**"


def test_starts_alone(measure: Callable[..., Any], page: Callable[..., str]) -> None:
    starts = measure("--parts", "starts", "--turns", "3", "--variants", "vllm", "tessera")
    assert [row["variant"] for row in starts["sessions"]] == ["vllm", "tessera"] * 3
    assert all(row["seconds"] == {} and "start_s" in row for row in starts["sessions"])
    text = page(result=measure("--turns", "1", "--parts", "throughput"), starts=starts)
    of = "the least of 3 starts of each in turns, on a x, commit 0123456789, 2026-01-02"
    assert (
        f"- Engine start ({of}): vLLM 10.0 s, all of Tessera 10.4 s; +0.40 s: target met." in text
    )


def test_the_page_shows_a_model_with_fp8_experts(
    measure: Callable[..., Any], page: Callable[..., str]
) -> None:
    model = "Qwen3-30B-A3B-FP8"
    found = measure("--turns", "1", "--parts", "throughput", model=model)
    text = page(result=found)
    assert f"### {model}, CUDA graphs for decoding, nothing compiled" in text
    assert "8 for each token, experts in fp8 with a scale for each block of 128 x 128, all " in text
    least_of = {"prefill": "1.30", "decode 1": "1.10", "decode 32": "1.06", "decode 256": "1.08"}
    for case, least in least_of.items():
        verdict = "**missed by 0.03 (4%)**" if case == "prefill" else "target met"
        assert row(text, case)[6:8] == [least, verdict]
    # Results of before there were such models are of bfloat16.
    del found["sizes"]["quantization"]
    assert "8 for each token, bfloat16." in page(result=found)


def test_the_page_shows_requests(measure: Callable[..., Any], page: Callable[..., str]) -> None:
    about = measure("--turns", "1", "--parts", "throughput")
    served = about | {
        "kind": "serve", "execution": "default", "variant": "tessera", "requests": 1000,
        "answered": 1000, "failed": 0, "seconds": 31.5, "concurrency": 64, "prompt_tokens": 4,
        "generated_tokens": 5, "methods": {"requests": "meaning"},
        "memory": [{"answered": n, "mb": mb} for n, mb in ((0, 90), (100, 99), (1000, 101))],
    }  # fmt: skip
    text = page(serve=served)
    assert "### Requests to vLLM's server, Qwen3-30B-A3B, vLLM's defaults: compiled" in text
    assert "- Failed: 0: target met." in text
    assert (
        "99 MB after 100, 101 MB at the end, at most 2 MB more than after 100: target met" in text
    )
    served |= {"failed": 1, "memory": [*served["memory"], {"answered": 1000, "mb": 199}]}
    text = page(serve=served)
    assert "- Failed: 1: **missed**." in text
    assert "at most 100 MB more than after 100: **missed by 36.0 (56%)**." in text
