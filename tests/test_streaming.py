"""``ingot infer --batch-size``: large files in slices; and the ``.npz`` files that it reads."""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import onnx_add, write

import ingot
from ingot.runtime.golden import dump_npz, read_npz, read_npz_headers
from ingot.runtime.npz_stream import SlicedOutputs


@pytest.fixture(scope="module")
def add(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return onnx_add(tmp_path_factory.mktemp("add") / "add.onnx")


def python_model(folder: Path, body: str, inputs: str, outputs: str) -> Path:
    """Write a spec of a Python model that computes ``body`` (an expression); return its path."""
    names = [item.split(":")[0] for item in inputs.split("; ")]
    write(
        folder / "it.py",
        f"import numpy as np\n\ndef build():\n    return lambda {', '.join(names)}: {body}\n",
    )
    lines = ["name: it", "model: {framework: python, entrypoint: it:build}"]
    for kind, text in (("inputs", inputs), ("outputs", outputs)):
        lines.append(f"{kind}:")
        for item in text.split("; "):
            name, shape = item.split(":")
            lines.append(f"  - {{name: {name}, dtype: float32, shape: {shape}}}")
    return write(folder / "it.yaml", "\n".join(lines) + "\n")


def run(
    model: Path, folder: Path, arrays: dict[str, Any], inputs: Any = (), batch_size: int = 2
) -> dict[str, np.ndarray]:
    """Stream arrays through a model, in slices of two rows, and return its outputs."""
    np.savez(folder / "in.npz", **arrays)
    ingot.infer(
        model,
        inputs,
        inputs_file=str(folder / "in.npz"),
        output=str(folder / "out.npz"),
        batch_size=batch_size,
        force=True,
    )
    return read_npz(folder / "out.npz", "out.npz")


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).random(shape, np.float32)


def test_the_result_of_streaming_is_that_of_one_call(add: Path, tmp_path: Path, ingot_cli) -> None:
    x = np.arange(10, dtype=np.float32)
    np.savez(tmp_path / "in.npz", x=x, y=x)
    for rows in (1, 3, 10, 99):
        process = ingot_cli(
            "infer", add, "--inputs", "in.npz", "--batch-size", rows, "-o", f"{rows}.npz"
        )
        assert process.returncode == 0, process.stderr
        assert f"{rows}.npz (10 rows)" in process.stdout
        assert np.array_equal(np.load(tmp_path / f"{rows}.npz")["out"], 2 * x)
    np.savez(tmp_path / "uneven.npz", x=x, y=x[:4])
    process = ingot_cli(
        "infer", add, "--inputs", "uneven.npz", "--batch-size", 2, "-o", "uneven_out.npz"
    )
    assert process.returncode == 5
    assert "inputs of different lengths cannot be batched: x has 10, y has 4" in process.stderr
    assert not (tmp_path / "uneven_out.npz").exists()


def test_streaming_takes_bounded_memory(add: Path, tmp_path: Path) -> None:
    """400 MB of input and 200 MB of output go through in slices of 4 MB."""
    rows = 50_000_000
    with (tmp_path / "in.npz").open("wb") as file:
        np.savez(file, x=np.zeros(rows, np.float32), y=np.ones(rows, np.float32))
    program = (
        "import sys\n"
        "from ingot import infer\n"
        "files = {'inputs_file': sys.argv[2], 'output': sys.argv[3]}\n"
        "infer(sys.argv[1], (), **files, batch_size=1_000_000)\n"
        # ru_maxrss would count the memory of the process that started this one.
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", program, add, tmp_path / "in.npz", tmp_path / "out.npz"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(process.stdout) < 250_000
    out = np.load(tmp_path / "out.npz")["out"]
    assert out.shape == (rows,)
    assert out.min() == out.max() == 1


def test_streaming_strings(tmp_path: Path, ingot_cli) -> None:
    write(
        tmp_path / "upper.py",
        """
        import numpy as np

        def build():
            return lambda text: {"upper": np.char.upper(text)}
        """,
    )
    spec = write(
        tmp_path / "upper.yaml",
        """
        name: upper
        model: {framework: python, entrypoint: upper:build}
        inputs: [{name: text, dtype: string, shape: [n]}]
        outputs: [{name: upper, dtype: string, shape: [n]}]
        """,
    )
    np.savez(tmp_path / "in.npz", text=np.array(["a", "bc", "defghi"]))
    arguments = ("--inputs", "in.npz", "--batch-size", 1, "-o", "out.npz")
    process = ingot_cli("infer", spec, *arguments)
    assert process.returncode == 0, process.stderr
    assert np.load(tmp_path / "out.npz")["upper"].tolist() == ["A", "BC", "DEFGHI"]
    process = ingot_cli("infer", spec, "-i", 'text=["x", "é"]', "-o", "-")
    assert json.loads(process.stdout) == {"upper": ["X", "É"]}


PRODUCT = ('{"o": x @ w.T}', "x:[n, 3]; w:[m, 3]", "o:[n, m]")


def test_only_the_inputs_of_one_symbol_are_sliced(tmp_path: Path) -> None:
    """Slicing both factors of a product would give a block of its diagonal."""
    model = python_model(tmp_path, *PRODUCT)
    x, w = floats(4, 3), floats(4, 3)
    with pytest.raises(ingot.UsageError, match="'n' of 'x'; 'm' of 'w'; expected one") as info:
        run(model, tmp_path, {"x": x, "w": w})
    assert "with -i" in str(info.value.hint)
    assert not (tmp_path / "out.npz").exists()
    np.save(tmp_path / "w.npy", w)
    found = run(model, tmp_path, {"x": x, "w": np.zeros(3)}, [f"w={tmp_path / 'w.npy'}"])
    np.testing.assert_allclose(found["o"], x @ w.T, rtol=1e-6)
    with pytest.raises(ingot.UsageError, match=r"output 'o' is .n, m., so its slices cannot"):
        run(model, tmp_path, {"w": w}, {"x": x})


def test_an_input_of_any_size_stays_whole_beside_a_symbol(tmp_path: Path) -> None:
    model = python_model(tmp_path, '{"o": x + t.sum()}', "x:[n]; t:[null]", "o:[null]")
    x, t = floats(5), floats(5)
    found = run(model, tmp_path, {"x": x, "t": t})
    np.testing.assert_allclose(found["o"], x + t.sum(), rtol=1e-6)


def test_of_several_inputs_of_any_size_none_is_guessed(tmp_path: Path) -> None:
    model = python_model(tmp_path, '{"o": x + t.sum()}', "x:[null]; t:[null]", "o:[null]")
    x, t = floats(5), floats(5)
    with pytest.raises(ingot.UsageError, match="'x', 't' each have a first dimension of any size"):
        run(model, tmp_path, {"x": x, "t": t})
    found = run(model, tmp_path, {"x": x}, {"t": t})
    np.testing.assert_allclose(found["o"], x + t.sum(), rtol=1e-6)


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        ("x:[n, n]", "o:[n]", "input 'x' is .n, n.: the batch dimension 'n' is not only its first"),
        ("x:[n, 3]", "o:[n, n]", "output 'o' is .n, n.: the batch dimension 'n' is not only"),
        ("x:[n, 3]", "o:[4, 3]", "output 'o' is .4, 3., so its slices cannot .* dimension of 'n'"),
        ("x:[n, 3]", "o:[k, 3]", "output 'o' is .k, 3., so its slices cannot be joined"),
        ("x:[n, 3]", "o:[]", "output 'o' is scalar, so its slices cannot be joined"),
        ("x:[null, 3]", "o:[k, 3]", "cannot be joined; expected a first dimension of any size"),
        ("x:[4, 3]", "o:[4, 3]", "no input has a first dimension of any size"),
    ],
)
def test_what_cannot_be_sliced_or_joined(
    inputs: str, outputs: str, message: str, tmp_path: Path
) -> None:
    model = python_model(tmp_path, '{"o": x}', inputs, outputs)
    with pytest.raises(ingot.UsageError, match=message):
        run(model, tmp_path, {"x": floats(4, 3)})
    assert not (tmp_path / "out.npz").exists()


def test_assignments_come_on_top_of_the_file(add: Path, tmp_path: Path, ingot_cli) -> None:
    x = np.arange(3, dtype=np.float32)
    np.savez(tmp_path / "in.npz", x=x, y=x)
    arguments = ("infer", add, "--inputs", "in.npz", "--batch-size", 2, "-o", "out.npz")
    process = ingot_cli(*arguments, "-i", "y=[10, 20, 30]")
    assert process.returncode == 0, process.stderr
    assert np.load(tmp_path / "out.npz")["out"].tolist() == [10, 21, 32]
    process = ingot_cli(*arguments, "-i", "y=[10, 20]", "--force")
    assert process.returncode == 5
    assert "different lengths cannot be batched: x has 3, y has 2" in process.stderr
    with pytest.raises(ingot.InputError, match="input 'y': the nested lists"):
        run(add, tmp_path, {"x": x}, {"y": [[1], [1, 2]]})


def test_arrays_in_fortran_order_are_sliced_too(tmp_path: Path) -> None:
    model = python_model(tmp_path, '{"o": x + y}', "x:[n, 3]; y:[n, 3]", "o:[n, 3]")
    x, y = floats(5, 3), floats(5, 3)
    found = run(model, tmp_path, {"x": np.asfortranarray(x), "y": y})
    np.testing.assert_array_equal(found["o"], x + y)
    found = run(model, tmp_path, {"x": np.asfortranarray(x), "y": np.asfortranarray(y)})
    np.testing.assert_array_equal(found["o"], x + y)


def test_no_rows_give_outputs_of_no_rows(tmp_path: Path) -> None:
    model = python_model(tmp_path, '{"o": x[:, :2]}', "x:[n, 3]", "o:[n, 2]")
    found = run(model, tmp_path, {"x": floats(0, 3)})
    assert found["o"].shape == (0, 2)
    assert found["o"].dtype == np.float32


def broken_archives(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield files that are no good ``.npz`` of ``x`` and ``y``, and what is said of them."""
    good = dump_npz({"x": floats(100), "y": floats(100)})
    packed = io.BytesIO()
    np.savez_compressed(packed, x=np.arange(1000, dtype=np.float32), y=floats(1000))
    deflated = bytearray(packed.getvalue())
    deflated[60:400] = b"\xff" * 340
    flipped = bytearray(good)
    flipped[300] ^= 1
    bare = io.BytesIO()
    np.save(bare, floats(3))
    notes = io.BytesIO()
    with zipfile.ZipFile(notes, "w") as archive:
        archive.writestr("x", "hello")
    objects = io.BytesIO()
    np.savez(objects, x=np.array([{}], object), y=floats(3))
    twice = io.BytesIO()
    with zipfile.ZipFile(twice, "w") as archive:
        archive.writestr("x", "hello")
        archive.writestr("x.npy", "hello")
    for name, data, message in (
        ("deflate", deflated, "member 'x': damaged: Error -3 while decompressing"),
        ("crc", flipped, "member 'x': damaged: Bad CRC-32"),
        ("bare", bare.getvalue(), "found a single array; expected an .npz archive"),
        ("notes", notes.getvalue(), "member 'x': found 5 bytes that are no array"),
        ("objects", objects.getvalue(), "member 'x': holds Python objects"),
        ("twice", twice.getvalue(), "found two members named 'x'"),
        ("cut", good[:-30], "not a readable .npz file"),
        ("empty", b"", "not a readable .npz file"),
    ):
        path = folder / f"{name}.npz"
        path.write_bytes(data)
        yield path, message


def test_broken_archives(add: Path, tmp_path: Path) -> None:
    handles = set(os.listdir("/proc/self/fd"))
    for path, message in broken_archives(tmp_path):
        for batch_size, output in ((None, None), (10, f"{tmp_path}/out.npz")):
            files = {"inputs_file": str(path), "output": output}
            with pytest.raises(ingot.InputError) as info:
                ingot.infer(add, (), **files, batch_size=batch_size)
            assert info.value.message.startswith(f"{path}: {message}")
    with pytest.raises(ingot.InputError, match="cannot be read: No such file"):
        read_npz(tmp_path / "missing.npz", "missing.npz")
    assert not list(tmp_path.glob("*out.npz*"))
    # What an error keeps alive would hold its file open: nothing waits for the collector.
    assert set(os.listdir("/proc/self/fd")) <= handles


def test_damage_anywhere_is_an_input_error(tmp_path: Path) -> None:
    packed = io.BytesIO()
    np.savez_compressed(packed, x=np.arange(20, dtype=np.float32), y=np.array(["a", "bc"]))
    for good in (packed.getvalue(), dump_npz({"x": floats(3), "y": np.array(True)})):
        for place in range(len(good)):
            for value in (0, 0xFF, good[place] ^ 0x10):
                data = good[:place] + bytes([value]) + good[place + 1 :]
                for read in (read_npz, read_npz_headers):
                    with contextlib.suppress(ingot.InputError):
                        read(io.BytesIO(data), "x.npz")


def test_headers_are_read_without_values(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "big.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        zeros = np.zeros((300, 1 << 18), np.float32)
        with archive.open("input/x.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array(member, zeros)
    found = read_npz_headers(tmp_path / "big.npz", "big.npz")
    assert found == {"input/x": (np.dtype(np.float32), (300, 1 << 18))}
    with pytest.raises(ingot.InputError, match=r"big.npz: member 'input/x': .* bytes inflate to"):
        read_npz(tmp_path / "big.npz", "big.npz")


@contextlib.contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond ``size`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("size", [0, 20_000, 45_000])
def test_a_full_disk_names_the_target_and_leaves_nothing(size: int, tmp_path: Path) -> None:
    """It fills up with an output, with what is still buffered of it, or with their archive."""
    target = tmp_path / "out.npz"

    def write_both() -> None:
        with full_disk(size), SlicedOutputs(target, 10_000) as writer:
            writer.append(10_000, {"a": floats(10_000), "b": floats(10_000)})
            writer.commit()

    with pytest.raises(ingot.IngotError) as info:
        write_both()
    assert info.value.message == f"{target}: cannot be written: File too large"
    assert info.value.exit_code == 1
    assert not list(tmp_path.iterdir())


def test_the_joined_file_respects_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with SlicedOutputs(tmp_path / "out.npz", 3) as writer:
            writer.append(3, {"a": floats(3)})
            writer.commit()
    finally:
        os.umask(before)
    assert (tmp_path / "out.npz").stat().st_mode & 0o777 == 0o640
    with pytest.raises(ingot.IngotError, match=r"nowhere/out.npz: cannot be written: No such file"):
        SlicedOutputs(tmp_path / "nowhere" / "out.npz", 3)
