"""Compile every Triton kernel for sm_80 and sm_90 without a GPU, and print what each costs (run by tests/test_kernels.py).

For d_in 2304, d_sae 65536, k 64, with the alignment that real tensors have. A stack frame means registers spilled to memory.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from saebench.kernels import bags, nested, rows, select

MAX_STACK = 64  # bytes of stack frame a program may have
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


class Case(NamedTuple):
    """A specialisation: the types of the arguments in order, then the constants and compiler options of a launch.

    `:16` marks an integer that 16 divides; `none` and `one` are the constants that a launch makes of None and 1.
    """

    name: str
    kernel: Any
    types: str
    options: dict[str, Any]
    targets: tuple[int, ...] = (90,)


def bag_cases(table: str) -> list[Case]:
    """The bag sums' two kernels."""
    constants, before = {"SPAN": bags.SPAN} | bags.TILING.options(), f"*{table} *i64 *fp32 *i64"
    spans = Case("span_sums", bags.span_sums_kernel, f"{before} *i64 *fp32 i32 i32:16 i32:16 i32:16", constants)
    sums = Case("bag_sums", bags.bag_sums_kernel, f"{before} *fp32 *fp32 i32 i32:16 i32:16 i32:16 i32:16", constants)
    return [case._replace(name=f"{case.name} {table}") for case in (spans, sums)]


def nested_cases(table: str) -> list[Case]:
    """The nested loss with one level and with several."""
    after = f"*fp64 *{table} *fp32 *fp32 *fp32 *{table} *fp32 *fp32 *fp32 i32:16 i32:16 i32:16 i32 i32:16 i32:16"
    one, levels = f"*fp32 *i64 *i64 none {after} one i32:16", f"*fp32 *i64 *i64 *i64 {after} i32 i32:16"
    return [
        Case(f"one_level {table}", nested.one_level_kernel, one, nested.ONE_LEVEL.options()),
        Case(f"levels {table}", nested.levels_kernel, levels, nested.LEVELS.options()),
    ]


def adam_case(d: int) -> Case:
    """Adam on unit rows of d columns, with a copy."""
    types = f"*fp32 *fp32 *fp32 *fp32 *bf16 i32:16 {'fp32 ' * 7}"
    return Case(f"adam_rows {d}", rows.adam_rows_kernel, types, rows.options(d, unit=True))


def select_cases() -> list[Case]:
    """Selection among 65536 bfloat16 activations."""
    sizes = " i32:16 i32:16 i32:16"
    return [
        Case("select_rows", select.select_rows_kernel, "*i16 *i64" + sizes, select.whole_options(2048, 16)),
        Case("select_in_chunks", select.select_in_chunks_kernel, "*bf16 *i64 *i64" + sizes, select.chosen_options(64, 32, 16)),
        Case("chunk_maxima", select.chunk_maxima_kernel, "*bf16 *i16" + sizes, select.maxima_options(32, 16)),
    ]  # fmt: skip


def cases() -> list[Case]:
    """Every kernel in mixed precision for both targets; those with sums in their loops in float32 too, for one."""
    mixed = [*bag_cases("bf16"), *nested_cases("bf16"), adam_case(2304), *select_cases()]
    single = [*bag_cases("fp32")[1:], *nested_cases("fp32"), adam_case(16384)]
    return [case._replace(targets=(80, 90)) for case in mixed] + single


def source(case: Case) -> ASTSource:
    """The kernel with the case's types and constants."""
    names, types = case.kernel.arg_names, case.types.split()
    constants = {name: value for name, value in case.options.items() if name.isupper()}
    assert len(names) == len(types) + len(constants), f"{case.name}: {names} {types}"
    typed = dict(zip(names, types, strict=False))
    constants |= {name: {"none": None, "one": 1}[t] for name, t in typed.items() if t in ("none", "one")}
    signature = {name: t.split(":")[0] for name, t in typed.items()} | dict.fromkeys(constants, "constexpr")
    aligned = [i for i, t in enumerate(types) if t.startswith("*") or t.endswith(":16")]
    return ASTSource(case.kernel, signature, constants, {(i,): [["tt.divisibility", 16]] for i in aligned})


def inspect(cubin: Path, flag: str) -> str:
    """What cuobjdump says of a cubin."""
    return subprocess.run([str(CUOBJDUMP), flag, str(cubin)], capture_output=True, text=True, check=True).stdout


def usage(cubin: bytes) -> dict[str, int]:
    """Registers a thread, bytes of stack frame a thread, and 16-byte loads in the machine code."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        resources, code = inspect(path, "--dump-resource-usage"), inspect(path, "-sass")
    found = dict(re.findall(r"(REG|STACK):(\d+)", resources))
    return {"regs": int(found["REG"]), "stack": int(found["STACK"]), "wide": code.count("LDG.E.128")}


def main() -> None:
    """Compile all cases; fail on a stack frame."""
    spilled = []
    print(f"{'kernel':16s} {'arch':>5s} {'warps':>5s} {'regs':>5s} {'stack':>6s} {'shared':>7s} {'16 B loads':>10s}")
    for case in cases():
        options = {name: value for name, value in case.options.items() if not name.isupper()}
        for arch in case.targets:
            compiled = triton.compile(source(case), GPUTarget("cuda", arch, 32), options)
            cubin = compiled.asm["cubin"]
            assert cubin[:4] == b"\x7fELF", case.name
            cost = usage(cubin)
            print(
                f"{case.name:16s} {arch:5d} {case.options['num_warps']:5d} {cost['regs']:5d} {cost['stack']:6d} "
                f"{compiled.metadata.shared:7d} {cost['wide']:10d}",
                flush=True,
            )
            spilled += [f"{case.name} sm_{arch}"] if cost["stack"] > MAX_STACK else []
    if spilled:
        sys.exit(f"registers spill in {', '.join(spilled)}")


if __name__ == "__main__":
    main()
