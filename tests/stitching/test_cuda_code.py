"""What nvcc makes of the kernels: how many loads are under way together, registers, spills. Needs nvcc, cuobjdump and
nvdisasm (``pip install nvidia-cuda-nvcc nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm``), and no GPU."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from support.paths import SOURCES
from support.shares import share

ARCHITECTURES = {"75": (11, 0), "80": (11, 0), "90": (11, 8), "100": (12, 8)}
"""And the first nvcc that knows each."""
MOST_REGISTERS = 128
"""Two blocks of 256 threads find room in an SM's 65,536."""
WHEELS = Path(sysconfig.get_paths()["purelib"]) / "nvidia" / "cu13" / "bin"
SOME = """
template void add<Half>(const Queue&, const AddBody<Half>&);
template void add<float>(const Queue&, const AddBody<float>&);
template void commit<ToLabel<std::uint8_t>>(const Queue&, const CommitBody<ToLabel<std::uint8_t>>&);
template void interpolate<ToLabel<std::uint8_t>>(const Queue&, const InterpolateBody<ToLabel<std::uint8_t>>&);
template void interpolate<ToSoftmax<std::uint8_t>>(const Queue&, const InterpolateBody<ToSoftmax<std::uint8_t>>&);
template void instance_norm<Half, 8>(const Queue&, const NormBody<Half, 8>&);
template void interpolate<ToLogits<float>>(const Queue&, const InterpolateBody<ToLogits<float>>&);
template void interpolate<ToLogits<Half>>(const Queue&, const InterpolateBody<ToLogits<Half>>&);
template void resample<std::int16_t>(const Queue&, const ResampleBody<std::int16_t>&);
template void resample<float>(const Queue&, const ResampleBody<float>&);
template void put<Half, 8>(const Queue&, const PutBody<Half, 8>&);
"""


def tool(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path=f"{WHEELS}{os.pathsep}/usr/local/cuda/bin")
    if found is None:
        pytest.skip(f"{name} is neither on PATH nor in nvidia's wheels")
    return found


@pytest.fixture(scope="module", params=share(sorted(ARCHITECTURES, key=lambda number: number != 90)))
def compiled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[str, list[str]]]:
    """Of a few kernels: what the assembler says of each, and their instructions by mangled name."""
    nvcc, cuobjdump, nvdisasm = tool("nvcc"), tool("cuobjdump"), tool("nvdisasm")
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    known = tuple(int(n) for n in version.split("release ")[1].split(",")[0].split("."))
    if known < ARCHITECTURES[request.param]:
        pytest.skip(f"nvcc {known} does not know sm_{request.param}")
    folder = tmp_path_factory.mktemp("code")
    for source in SOURCES.glob("*.hpp"):
        shutil.copy(source, folder)
    text = (SOURCES / "launch_cuda.cu").read_text()
    assert text.count("\nHALO_INSTANTIATE_LAUNCHERS\n") == 1
    (folder / "some.cu").write_text(text.replace("\nHALO_INSTANTIATE_LAUNCHERS\n", SOME))
    command = [nvcc, "-std=c++17", "-O3", "--fmad=false", "-cubin", f"-arch=sm_{request.param}", "-Xptxas", "-v"]
    made = subprocess.run(
        [*command, "some.cu", "-o", "some.cubin"], capture_output=True, text=True, cwd=folder, check=False
    )
    assert made.returncode == 0, made.stderr
    path = os.pathsep.join([os.environ.get("PATH", ""), str(Path(nvdisasm).parent)])
    shown = subprocess.run(
        [cuobjdump, "-sass", "some.cubin"], capture_output=True, text=True, cwd=folder, check=True,
        env={**os.environ, "PATH": path},
    )  # fmt: skip
    return made.stderr + made.stdout, functions(shown.stdout)


def functions(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        if begins := re.search(r"Function : (\S+)", line):
            name = begins[1]
            found[name] = []
        elif name and (instruction := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?);", line)):
            found[name].append(re.sub(r"^@!?U?P\w+\s+", "", instruction[1].strip()))
    return found


def loads_together(code: list[str], kind: str) -> int:
    """The most loads from global memory that are issued before one of them is used. kind: pattern that the
    instruction begins with."""
    most, under_way = 0, set()
    for line in code:
        operation, _, rest = line.partition(" ")
        registers = re.findall(r"\bR\d+\b", rest)
        is_load = operation.startswith("LDG") and re.match(kind, line) is not None
        if under_way & set(registers[1:] if is_load else registers):
            under_way = set()
        if is_load:
            under_way.add(registers[0])
            most = max(most, len(under_way))
    return most


def test_counting_loads() -> None:
    code = ["LDG.E.U16 R1, [R10]", "LDG.E.U16 R2, [R10]", "LDG.E R7, [R11]", "FADD R3, R1, R2", "LDG.E.U16 R4, [R10]"]
    assert loads_together(code, r"LDG\S*\.U16") == 2
    assert loads_together(code, "LDG") == 3
    wide = ["LDG.E.64 R2, [R10]", "LDG.E.64 R4, [R10.64+0x8]", "LDG.E.64 R6, [R12.64]", "IADD R1, R1, R9"]
    assert loads_together(wide, FOUR_HALVES) == 2, "what lies behind another is part of a table"
    chained = ["LDG.E R1, [R10]", "LDG.E R2, [R1]", "LDG.E R3, [R2]"]
    assert loads_together(chained, "LDG") == 1, "an address that was loaded is a use"


FOUR_HALVES, FOUR_FLOATS = r"LDG\.E\.64\S* R\d+, [^+]*$", r"LDG\.E\.128\S* R\d+, [^+]*$"


@pytest.mark.parametrize(("kernel", "kind", "least"), [
    ("add_kernelINS_4HalfENS_5ApartE", r"LDG\S*\.U16", 16), ("add_kernelIfNS_5ApartE", "LDG", 16),
    # four voxels each; of float32 the weights as well
    ("add_kernelINS_4HalfENS_8TogetherE", FOUR_HALVES, 4), ("add_kernelIfNS_8TogetherE", FOUR_FLOATS, 5),
    ("commit_kernel", "LDG", 16),
    # of four classes, by so few registers that three blocks find room
    ("interpolate_kernelINS_7ToLabelIhEE", "LDG", 4), ("interpolate_kernelINS_9ToSoftmaxIhEE", "LDG", 4),
    # of four voxels
    ("resample_kernelIsE", r"LDG\S*\.S16|LDG\S*\.U16", 4), ("resample_kernelIfE", "LDG", 4),
    # eight halves each, by so few registers that four blocks find room
    ("norm_sums_kernel", r"LDG\.E\.128", 2), ("norm_apply_kernel", r"LDG\.E\.128", 2),
    ("put_kernel", r"LDG\.E\.128", 4),
])  # fmt: skip
def test_loads_are_under_way_together(
    compiled: tuple[str, dict[str, list[str]]], kernel: str, kind: str, least: int
) -> None:
    """Of one window 16 voxels a thread, and of a halo as many: with one at a time a GPU waits for memory most of the
    time."""
    (code,) = (found for name, found in compiled[1].items() if kernel in name)
    assert loads_together(code, kind) >= least


def test_nothing_is_spilled_and_two_blocks_find_room(compiled: tuple[str, dict[str, list[str]]]) -> None:
    """`add`, which has a window's loop inside, InstanceNorm and what interpolates spill nothing. The others may keep a few
    numbers a row in local memory, which the assembler does to fit one block more."""
    said = re.findall(
        r"Function properties for (\S+)\s+\d+ bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
        r".*?Used (\d+) registers",
        compiled[0],
        re.DOTALL,
    )
    assert {name for name, *_ in said} == set(compiled[1])
    for name, stores, loads, registers in said:
        few = 80 if "interpolate" in name else MOST_REGISTERS
        assert int(registers) <= few, name
        most = 0 if re.search("add_kernel|norm_|put_|interpolate_|resample_", name) else 16
        assert max(int(stores), int(loads)) <= most, name
