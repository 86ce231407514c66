"""The architectures of a build's CUDA code, and the message of a build without any."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CMAKE = shutil.which("cmake", path=f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin")
pytestmark = pytest.mark.skipif(CMAKE is None, reason="cmake is absent")

NO_GPU = "exit 9"
ALL = ["80-real", "90-real", "100", "120"]
PORTABLE = ["80-real", "90"]


def machine(folder: Path, nvidia_smi: str) -> dict[str, str]:
    """The environment of a machine without nvcc, whose nvidia-smi does this."""
    programs = folder / "programs"
    programs.mkdir()
    (programs / "nvidia-smi").write_text(f"#!/bin/sh\n{nvidia_smi}\n", encoding="utf-8")
    (programs / "nvidia-smi").chmod(0o755)
    return {"PATH": f"{programs}:/usr/bin:/bin"}


def cmake(*arguments: object, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """A run of CMake."""
    return subprocess.run(
        [str(CMAKE), *map(str, arguments)], env=env, capture_output=True, text=True, check=False
    )


def chosen(
    folder: Path, nvidia_smi: str, *definitions: str, cudaarchs: str | None = None
) -> list[str]:
    """What is built for on such a machine, with these options of CMake."""
    script = folder / "print.cmake"
    script.write_text(
        f'include("{ROOT}/cmake/cuda_architectures.cmake")\n'
        'message(NOTICE "${CMAKE_CUDA_ARCHITECTURES}")\n',
        encoding="utf-8",
    )
    env = machine(folder, nvidia_smi) | ({"CUDAARCHS": cudaarchs} if cudaarchs else {})
    done = cmake(*definitions, "-P", script, env=env)
    assert done.returncode == 0, done.stderr
    return [one for one in done.stderr.strip().split(";") if one]


@pytest.mark.parametrize(
    ("gpus", "architectures"),
    [
        (["8.0"], ["80"]),
        (["9.0", "9.0"], ["90"]),
        (["12.0", "7.5", "8.9", "10.3"], ["89", "103", "120"]),
    ],
)
@pytest.mark.parametrize("definitions", [(), ("-DCMAKE_CUDA_ARCHITECTURES=native",)])
def test_gpus_of_this_machine(
    tmp_path: Path, gpus: list[str], architectures: list[str], definitions: tuple[str, ...]
) -> None:
    """Each kind of GPU that Tessera runs on, once; the default if there is one."""
    printed = "; ".join(f"echo {gpu}" for gpu in gpus)
    assert chosen(tmp_path, printed, *definitions) == architectures


@pytest.mark.parametrize("nvidia_smi", [NO_GPU, "echo 7.5", "echo 9.0; exit 1"])
def test_no_gpu(tmp_path: Path, nvidia_smi: str) -> None:
    """Code that every GPU can run, unless only the GPUs of this machine are requested."""
    (tmp_path / "unset").mkdir()
    (tmp_path / "native").mkdir()
    native = "-DCMAKE_CUDA_ARCHITECTURES=native"
    assert chosen(tmp_path / "unset", nvidia_smi) == PORTABLE
    assert chosen(tmp_path / "native", nvidia_smi, native) == []


@pytest.mark.parametrize(
    ("value", "architectures"),
    [("all", ALL), ("90a-real;100f;80-virtual", ["90a-real", "100f", "80-virtual"])],
)
def test_given_architectures(tmp_path: Path, value: str, architectures: list[str]) -> None:
    """The option and the variable that CMake knows say the same; the option wins."""
    option = f"-DCMAKE_CUDA_ARCHITECTURES={value}"
    (tmp_path / "option").mkdir()
    (tmp_path / "variable").mkdir()
    assert chosen(tmp_path / "option", "echo 9.0", option, cudaarchs="80") == architectures
    assert chosen(tmp_path / "variable", "echo 9.0", cudaarchs=value) == architectures


@pytest.mark.parametrize("value", ["sm_90", "all-major", "90;native", "9.0"])
def test_unknown_architectures(tmp_path: Path, value: str) -> None:
    """Nothing is built for a value that the library could not tell a device from."""
    env = machine(tmp_path, NO_GPU)
    script = ROOT / "cmake/cuda_architectures.cmake"
    done = cmake(f"-DCMAKE_CUDA_ARCHITECTURES={value}", "-P", script, env=env)
    assert done.returncode != 0
    said = " ".join(done.stderr.split())
    assert "CMAKE_CUDA_ARCHITECTURES: expected native, all or a list such as 80-real;90" in said
    assert f"got '{value}'" in said


@pytest.mark.parametrize("value", ["75", "90;70-real", "9"])
def test_architectures_that_are_too_old(tmp_path: Path, value: str) -> None:
    """The kernels would compile for some of them, and run on none."""
    env = machine(tmp_path, NO_GPU) | {"CUDAARCHS": value}
    done = cmake("-P", ROOT / "cmake/cuda_architectures.cmake", env=env)
    assert done.returncode != 0
    said = " ".join(done.stderr.split())
    expected = "CMAKE_CUDA_ARCHITECTURES: expected compute capability 8.0 or newer, 80 and above, "
    assert f"{expected}got '{value.rpartition(';')[2]}'" in said


@pytest.mark.parametrize(
    ("options", "why", "remedy"),
    [
        (["-DTESSERA_CUDA=OFF"], "it was built with TESSERA_CUDA=OFF", "AUTO builds one"),
        (
            ["-DCMAKE_CUDA_ARCHITECTURES=native"],
            "no GPU of compute capability 8.0 or newer was found at build time",
            "CUDAARCHS=all in the environment",
        ),
        ([], "no nvcc was found at build time", "install the CUDA toolkit"),
        (["-DTESSERA_SANITIZE=address"], "it was built with TESSERA_SANITIZE", "without that"),
    ],
)
def test_a_build_without_cuda_says_why(
    tmp_path: Path, options: list[str], why: str, remedy: str
) -> None:
    """CMake prints the reason and compiles it into the library; TESSERA_CUDA=ON is an error."""
    env = machine(tmp_path, NO_GPU)
    configure = ["-S", ROOT, "-B", tmp_path / "build", *options]
    done = cmake(*configure, env=env)
    assert done.returncode == 0, done.stderr
    (reason,) = re.findall(r"^-- CUDA backend: left out: (.+)\. Everything", done.stdout, re.M)
    assert reason.startswith(why)
    assert remedy in reason
    compiled = json.loads((tmp_path / "build/compile_commands.json").read_text(encoding="utf-8"))
    (command,) = (one["command"] for one in compiled if one["file"].endswith("cuda/loader.cpp"))
    assert f'-DTESSERA_CUDA_LEFT_OUT="\\"{reason}\\""' in command
    if "-DTESSERA_CUDA=OFF" not in options:
        insisted = cmake(*configure, "-DTESSERA_CUDA=ON", env=env)
        assert insisted.returncode != 0
        said = " ".join(insisted.stderr.split())
        assert f"TESSERA_CUDA=ON: the CUDA backend cannot be built: {why}" in said


def test_an_nvcc_that_does_not_work_is_named(tmp_path: Path) -> None:
    """The message names the compiler that was tried."""
    env = machine(tmp_path, NO_GPU)
    nvcc = tmp_path / "programs/nvcc"
    nvcc.write_text("#!/bin/sh\necho 'release 11.8, V11.8.89'\n", encoding="utf-8")
    nvcc.chmod(0o755)
    done = cmake("-S", ROOT, "-B", tmp_path / "build", env=env)
    assert done.returncode == 0, done.stderr
    why = f"nvcc 12.8 or newer is needed, and {nvcc} could not compile a program"
    assert f"CUDA backend: left out: {why}" in done.stdout


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is absent")
def test_an_nvcc_that_was_not_there_at_first_is_found(tmp_path: Path) -> None:
    """In the same build folder, as the message says to build again."""
    env = machine(tmp_path, NO_GPU)
    configure = ["-S", ROOT, "-B", tmp_path / "build", "-DCMAKE_CUDA_ARCHITECTURES=90"]
    assert "CUDA backend: left out: no nvcc" in cmake(*configure, env=env).stdout
    folder = Path(str(shutil.which("nvcc"))).parent
    done = cmake(*configure, env=env | {"PATH": f"{folder}:{env['PATH']}"})
    assert "CUDA backend: built for 90" in done.stdout, done.stderr


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is absent")
@pytest.mark.parametrize(
    ("architectures", "targets", "has_90a"),
    [
        ("80-real;100f-real", ["sm_100f", "sm_80"], False),
        ("80-real;90", ["compute_90", "sm_80", "sm_90"], True),
        ("90a-real", ["sm_90a"], True),
        ("all", ["compute_100", "compute_120", "sm_100", "sm_120", "sm_80", "sm_90"], True),
    ],
)
def test_kernels_for_90a_alone(
    tmp_path: Path, architectures: str, targets: list[str], has_90a: bool
) -> None:
    """A list with a 90 has them; whatever links the backend's objects links each of theirs once."""
    build = tmp_path / "build"
    folders = [Path(str(shutil.which("nvcc"))).parent, "/usr/bin", "/bin"]
    env = {"PATH": ":".join(map(str, folders))}
    options = (f"-DCMAKE_CUDA_ARCHITECTURES={architectures}", "-DTESSERA_BUILD_GPU_CHECK=ON")
    done = cmake("-S", ROOT, "-B", build, "-G", "Unix Makefiles", *options, env=env)
    assert done.returncode == 0, done.stderr
    commands = json.loads((build / "compile_commands.json").read_text(encoding="utf-8"))
    found = {
        Path(one["file"]).name: sorted(set(re.findall(r"(?<=[\[,])\w+(?=[\],])", one["command"])))
        for one in commands
        if one["file"].endswith(".cu")
    }
    kernels = ["swap_ab.cu", "swap_ab_fp8.cu", "wgmma_down.cu", "wgmma_gate_up.cu"]
    checks = [f"check_{name}.cu" for name in ("copies", "wgmma", "wgmma_fp8", "wgmma_shapes")]
    expected = [*checks, *kernels] if has_90a else []
    assert {name for name in found if re.search("check_|wgmma|swap_ab", name)} == set(expected)
    assert found == {name: ["sm_90a"] if name in expected else targets for name in found}
    for target, folder in (("tessera_cuda", ""), ("tune_policy", "tests/cuda/")):
        link = (build / f"{folder}CMakeFiles/{target}.dir/link.txt").read_text(encoding="utf-8")
        objects = [Path(one) for one in link.split() if one.endswith(".o")]
        assert len(objects) == len(set(objects))
        of_90a = [one.name for one in objects if one.name.removesuffix(".o") in kernels]
        assert sorted(of_90a) == [f"{name}.o" for name in kernels if has_90a]
    if architectures == "90a-real":
        built = cmake("--build", build, "--target", "check_wgmma", env=env)
        assert built.returncode == 0, built.stdout + built.stderr


def test_unknown_choice_of_backend(tmp_path: Path) -> None:
    """A misspelt choice is not taken for the default."""
    env = machine(tmp_path, NO_GPU)
    done = cmake("-S", ROOT, "-B", tmp_path / "build", "-DTESSERA_CUDA=off", env=env)
    assert done.returncode != 0
    assert "TESSERA_CUDA: expected ON, OFF or AUTO, got 'off'" in done.stderr
