"""The C++ header, built with the system's compiler and run under its sanitizers."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cpp_workers import BREACHES, FAKE, KEEPER, OBEDIENT, SUMMING
from models import INPUT_SPEC, OUTPUT_SPEC, onnx_add, torchscript_add, write

import ingot

HERE = Path(__file__).resolve().parent
INCLUDE = HERE.parent / "cpp"
WARNINGS = ("-std=c++17", "-Wall", "-Wextra", "-Werror")
STRICT = (*WARNINGS, "-Wpedantic", "-Wconversion", "-Wsign-conversion", "-Wshadow")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g1")

Run = Callable[..., subprocess.CompletedProcess]


def compiler() -> str:
    found = shutil.which("g++")
    if found is None:
        pytest.skip("there is no g++")
    return found


def compile_one(source: Path, program: Path, *flags: str) -> None:
    command = [compiler(), *flags, f"-I{INCLUDE}", "-pthread", str(source), "-o", str(program)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr


def run_program(*command: object, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(part) for part in command],
        env={**os.environ, "INGOT_PYTHON": sys.executable, **environment},
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "scenarios"
    compile_one(HERE / "cpp" / "scenarios.cpp", path, *STRICT, *SANITIZERS)
    return path


@pytest.fixture(scope="module")
def add(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxruntime")
    return onnx_add(tmp_path_factory.mktemp("add") / "add.onnx")


@pytest.fixture
def infer(program: Path) -> Run:
    def call(*arguments: object) -> subprocess.CompletedProcess:
        process = run_program(program, "infer", *arguments)
        assert "Sanitizer" not in process.stderr, process.stderr
        return process

    return call


@pytest.fixture
def scenario(program: Path) -> Callable[..., str]:
    def call(*arguments: object, **environment: str) -> str:
        process = run_program(program, *arguments, **environment)
        printed = process.stdout + process.stderr
        assert process.returncode == 0, printed
        assert process.stdout.endswith("ok\n"), printed
        return process.stdout

    return call


# --- the tutorial ---------------------------------------------------------------------------------

TUTORIAL = """
#include "neuropod/neuropod.hh"

int main()
{
    using neuropod::Neuropod;

    const std::vector<int64_t> dims = {4};
    const float first[] = {1, 2, 3, 4};
    const std::vector<float> second = {5, 6, 7, 8};

    Neuropod model(ADDITION_MODEL_PATH);

    auto x = model.allocate_tensor<float>(dims);
    x->copy_from(first, 4);
    auto y = model.allocate_tensor<float>(dims);
    y->copy_from(second);

    const auto outputs = model.infer({{"x", x}, {"y", y}}, {"out"});
    const auto out_tensor = outputs->at("out");
    const auto out_vector = out_tensor->as_typed_tensor<float>()->get_data_as_vector();
    const auto out_shape = out_tensor->get_dims();
}
"""

SHOW = """
    for (const auto value : out_vector) std::cout << value << " ";
    for (const auto size : out_shape) std::cout << "| " << size << std::endl;
}
"""


def build_and_run(program: str, model: Path, folder: Path) -> str:
    """Build a program that ends where its results are in ``out_vector`` and ``out_shape``."""
    text = "#include <iostream>\n" + program.rstrip().removesuffix("}") + SHOW
    source = write(folder / "tutorial.cpp", text)
    path = f'-DADDITION_MODEL_PATH="{model}"'
    compile_one(source, folder / "tutorial", *WARNINGS, path, "-fsanitize=address")
    process = run_program(folder / "tutorial")
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.fixture(scope="module")
def package(add: Path) -> Path:
    path = add.with_name("addition.ingot")
    return ingot.create_onnx_package(path, "addition", INPUT_SPEC, OUTPUT_SPEC, model_path=add)


def test_a_program_in_the_names_of_neuropod(package: Path, tmp_path: Path) -> None:
    assert build_and_run(TUTORIAL, package, tmp_path) == "6 8 10 12 | 4\n"


def test_the_program_of_the_tutorial_itself(shared: Path, package: Path, tmp_path: Path) -> None:
    (tutorial,) = (shared / "seeds").glob("000_*.txt")
    (block,) = re.findall(r"^```cpp\n(.*?)^```$", tutorial.read_text("utf-8"), re.S | re.M)
    mended = re.sub(r"float\[\]( +)x_data", r"float\1x_data[]", block)
    mended = mended.replace("int main()", "using neuropod::Neuropod;\n\nint main()")
    assert build_and_run(mended, package, tmp_path) == "6 8 10 12 | 4\n"


def test_where_the_headers_are(ingot_cli) -> None:
    printed = Path(ingot_cli("--include-dir").stdout.removesuffix("\n"))
    assert printed.resolve() == INCLUDE
    assert (printed / "ingot.hpp").is_file()
    assert (printed / "neuropod" / "neuropod.hh").is_file()


def test_the_example(add: Path, tmp_path: Path) -> None:
    compiler()
    shutil.copytree(HERE.parent / "examples" / "cpp", tmp_path / "cpp")
    made = subprocess.run(
        ["make", "-C", str(tmp_path / "cpp"), f"INCLUDE={INCLUDE}", "CXXFLAGS=-O0 -Werror"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    process = run_program(tmp_path / "cpp" / "add", add)
    assert process.stdout == (
        "add runs on onnx\n"
        "input x: float32 [n]\n"
        "input y: float32 [n]\n"
        "output out: float32 [n]\n"
        "out: 6 8 10 12\n"
    ), process.stderr
    process = run_program(tmp_path / "cpp" / "add", "nothing.onnx")
    assert process.returncode == 5
    assert process.stderr.startswith("error: ")
    assert "nothing.onnx: no such file or folder" in process.stderr


# --- platforms ------------------------------------------------------------------------------------

X, Y = "x=float32[3]:1,2,3", "y=float32[3]:10,20,30.5"
SUM = "out=float32[3]:11,22,33.5\n"


def test_onnx(infer: Run, add: Path, package: Path) -> None:
    assert infer(add, X, Y).stdout == SUM
    assert infer(package, X, Y, "--output", "out", "--no-check").stdout == SUM
    assert infer(package).stdout == (
        "addition onnx\ninput x float32 [n]\ninput y float32 [n]\noutput out float32 [n]\n"
    )


@pytest.mark.slow
def test_torchscript(infer: Run, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    path = torchscript_add(tmp_path / "add.pt")
    assert infer(path, X, Y).stdout == SUM
    package = ingot.create_torchscript_package(
        tmp_path / "add.ingot", "add", INPUT_SPEC, OUTPUT_SPEC, module_path=path
    )
    assert infer(package, X, Y).stdout == SUM


@pytest.mark.slow
def test_keras_and_tensorflow(infer: Run, tmp_path: Path) -> None:
    keras = pytest.importorskip("keras")
    x, y = keras.Input((3,), name="x"), keras.Input((3,), name="y")
    model = keras.Model({"x": x, "y": y}, {"out": keras.layers.Add(name="out")([x, y])})
    arrays = ("x=float32[1,3]:1,2,3", "y=float32[1,3]:10,20,30.5")
    for platform in ("keras", "tensorflow"):
        path = tmp_path / f"{platform}.ingot"
        ingot.create_keras_package(path, "add", model=model, platform=platform)
        assert infer(path, *arrays).stdout == "out=float32[1,3]:11,22,33.5\n"
        assert infer(path).stdout.startswith(f"add {platform}\n")


def python_package(folder: Path, code: str, inputs: Any, outputs: Any) -> Path:
    write(folder / "code" / "model.py", code)
    return ingot.create_python_package(
        folder / "package.ingot",
        "python_model",
        inputs,
        outputs,
        code_path_spec=[{"python_root": folder / "code", "dirs_to_package": [""]}],
        entrypoint_package="model",
        entrypoint="load",
    )


def test_python_code_runs_only_when_it_is_trusted(infer: Run, tmp_path: Path) -> None:
    code = "def load(data):\n    return lambda x, y: {'out': x + y}\n"
    path = python_package(tmp_path, code, INPUT_SPEC, OUTPUT_SPEC)
    assert infer(path, X, Y, "--trust-code").stdout == SUM
    refused = infer(path, X, Y)
    assert refused.returncode == 1
    assert refused.stdout.startswith("UntrustedCodeError|5|"), refused.stdout


def python_spec(folder: Path, code: str, inputs: str, outputs: str) -> Path:
    write(folder / "model.py", code)
    text = "name: model\nmodel: {framework: python, entrypoint: model:build}\n"
    return write(folder / "model.yaml", f"{text}inputs: {inputs}\noutputs: {outputs}\n")


VALUES = {
    "float32": "1.5,-2",
    "float64": "0.1,1e+300",
    "string": "héllo,",
    "int8": "-128,127",
    "int16": "-32768,32767",
    "int32": "-2147483648,2147483647",
    "int64": "-9223372036854775808,9223372036854775807",
    "uint8": "0,255",
    "uint16": "0,65535",
    "uint32": "0,4294967295",
    "uint64": "0,18446744073709551615",
    "bool": "1,0",
    "float16": "0.5,-65504",
    "bfloat16": "0.5,3",
}


def test_every_element_type(infer: Run, tmp_path: Path) -> None:
    pytest.importorskip("ml_dtypes")
    specs = [{"name": f"a_{name}", "dtype": name, "shape": ["n"]} for name in VALUES]
    code = "def build():\n    return lambda **arrays: {n + '_out': a for n, a in arrays.items()}\n"
    out = [{**spec, "name": spec["name"] + "_out"} for spec in specs]
    path = python_spec(tmp_path, code, json.dumps(specs), json.dumps(out))
    values = {**VALUES, "string": "héllo,x"}
    arguments = [f"a_{name}={name}[2]:{value}" for name, value in values.items()]
    expected = sorted(f"a_{name}_out={name}[2]:{value}" for name, value in values.items())
    process = infer(path, *arguments)
    assert sorted(process.stdout.splitlines()) == expected, process.stderr
    arguments = [f"a_{name}={name}[0]:" for name in values]
    expected = sorted(f"a_{name}_out={name}[0]:" for name in values)
    assert sorted(infer(path, *arguments).stdout.splitlines()) == expected


STRINGS = """
    import numpy as np


    def build():
        def model(words, times):
            lengths = np.char.str_len(words).astype(np.int64)
            return {"shouted": np.char.upper(words), "lengths": lengths * times}

        return model
"""


def test_strings_and_requested_outputs(infer: Run, tmp_path: Path) -> None:
    path = python_spec(
        tmp_path,
        STRINGS,
        "[{name: words, dtype: string, shape: [n, 2]}, {name: times, dtype: int64, shape: []}]",
        "[{name: shouted, dtype: string, shape: [n, 2]},"
        " {name: lengths, dtype: int64, shape: [n, 2]}]",
    )
    inputs = ("words=string[2,2]:ab,ä€😀,,x", "times=int64[]:3")
    shouted, lengths = "shouted=string[2,2]:AB,Ä€😀,,X\n", "lengths=int64[2,2]:6,9,0,3\n"
    assert infer(path, *inputs).stdout == lengths + shouted
    assert infer(path, *inputs, "--output", "lengths").stdout == lengths
    assert infer(path, *inputs, "--output", "shouted", "--times", 3).stdout == shouted


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((X,), "InputError|5|{}: input 'y' is missing; expected float32 (n)|"),
        ((X, "y=float64[3]:1,2,3"), "InputError|5|{}: input 'y': found dtype float64; expected"),
        ((X, "y=float32[2]:1,2"), "InputError|5|{}: input 'y': dimension 0 is 2; expected 3"),
        ((X, Y, "--output", "oot"), "InputError|5|{}: requested the output 'oot'"),
        ((X, Y, "z=int8[1]:0"), "InputError|5|{}: unknown input 'z'"),
    ],
)
def test_errors(infer: Run, add: Path, arguments: tuple[str, ...], error: str) -> None:
    process = infer(add, *arguments)
    assert process.returncode == 1
    assert process.stdout.startswith(error.format(add)), process.stdout
    if "oot" in arguments:
        assert process.stdout.endswith("|did you mean 'out'?\n")


def test_what_cannot_be_loaded(infer: Run, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.ingot"
    damaged.write_bytes(b"PK\x03\x04 and no more")
    assert infer(damaged, X).stdout.split("|")[1] == "5"
    process = infer(tmp_path / "nothing.onnx", X)
    assert process.stdout.startswith(f"ModelError|5|{tmp_path}/nothing.onnx: no such file")


def test_odd_paths(infer: Run, add: Path, tmp_path: Path) -> None:
    folder = tmp_path / 'an "odd"\t\\name, ä'
    folder.mkdir()
    assert infer(shutil.copy(add, folder), X, Y).stdout == SUM
    not_utf8 = tmp_path / "odd\udcffname.onnx"
    process = infer(not_utf8, X)
    assert process.stdout.startswith(f"ModelError|5|{not_utf8}: no such file"), process.stdout


def test_a_worker_that_listens(infer: Run, add: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:  # the path of a socket has to be short
        path = Path(folder, "socket")
        command = [sys.executable, "-m", "ingot.runtime.isolation", "--listen", str(path)]
        worker = subprocess.Popen(command)
        try:
            deadline = time.monotonic() + 60
            while not is_served(path):
                assert worker.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            for _ in range(2):
                assert infer(add, X, Y, "--socket", path).stdout == SUM
        finally:
            worker.terminate()
            worker.wait()


def is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


# --- stories, each checked in tests/cpp/scenarios.cpp ---------------------------------------------


@pytest.mark.parametrize(
    "name", ["json", "half_floats", "tensors", "reuse_of_memory", "bad_options"]
)
def test_without_a_worker(scenario: Callable[..., str], name: str) -> None:
    scenario(name)


@pytest.mark.parametrize(
    "name",
    [
        "many_calls",
        "sizes_that_change",
        "outputs_outlive_the_model",
        "killed_between_calls",
        "several_threads",
        "lazy",
        "errors_leave_it_running",
        "nothing_is_left",
        "a_fork",
        "children_reaped_elsewhere",
        "signals_in_between",
    ],
)
def test_with_a_model(scenario: Callable[..., str], add: Path, name: str) -> None:
    scenario(name, add)


@pytest.fixture(scope="module")
def obedient(tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = "[{name: what, dtype: string, shape: [1]}]"
    return python_spec(tmp_path_factory.mktemp("obedient"), OBEDIENT, text, text)


@pytest.mark.parametrize("name", ["killed_during_a_call", "too_slow"])
def test_a_worker_that_fails(scenario: Callable[..., str], obedient: Path, name: str) -> None:
    assert scenario(name, obedient) == "ok\n"  # what the model prints is not on standard output


def test_a_model_that_keeps_its_inputs(scenario: Callable[..., str], tmp_path: Path) -> None:
    floats = "[{name: %s, dtype: float32, shape: [null]}]"
    scenario(
        "inputs_that_the_model_keeps", python_spec(tmp_path, KEEPER, floats % "x", floats % "out")
    )


def test_more_inputs_than_file_descriptors(scenario: Callable[..., str], tmp_path: Path) -> None:
    inputs = [{"name": f"x{i}", "dtype": "float32", "shape": ["n"]} for i in range(200)]
    path = python_spec(tmp_path, SUMMING, json.dumps(inputs), json.dumps(OUTPUT_SPEC))
    scenario("hundreds_of_inputs", path)


# --- a worker that breaks the protocol ------------------------------------------------------------


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    script = write(tmp_path_factory.mktemp("fake") / "fake.py", FAKE)
    path = write(script.with_name("python"), f'#!/bin/sh\nexec "{sys.executable}" "{script}" "$@"')
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("breach", BREACHES)
def test_a_worker_that_breaks_the_protocol(
    scenario: Callable[..., str], fake: Path, breach: str
) -> None:
    plan, message = BREACHES[breach]
    assert message in scenario("bad_worker", fake, FAKE=json.dumps(plan))
