# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import yolo
from yolo.machine import bf16_instructions, installed_version, machine_facts


def test_facts_name_what_a_fault_report_needs():
    facts = machine_facts()
    assert facts["yolo"] == yolo.__version__
    assert {"torch", "torchvision", "numpy", "python", "CPU", "CPU bf16", "CUDA"} <= set(facts)


def test_absent_package_is_said_to_be_absent():
    assert installed_version("no-such-distribution-here") == "not installed"


def test_bf16_is_read_from_the_processor_flags(tmp_path):
    info = tmp_path / "cpuinfo"
    info.write_text("flags\t: fpu avx512_bf16 amx_bf16 sse\n", encoding="utf-8")
    assert bf16_instructions(info) == "amx_bf16, avx512_bf16"
    info.write_text("flags\t: fpu avx512_bf16x\n", encoding="utf-8")
    assert bf16_instructions(info) == "none"
    assert bf16_instructions(tmp_path / "none") == "unknown on this system"
