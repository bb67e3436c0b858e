"""The machine's description."""

import machine

X86 = """processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 143
model name\t: Intel(R) Xeon(R) Platinum 8480+
flags\t\t: fpu sse2 avx2 avx512f avx512_vnni amx_bf16 amx_tile amx_int8

processor\t: 1
model name\t: another
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm bf16\n"


def test_first_processor_and_its_telling_flags() -> None:
    name, flags = machine.processor(X86)
    assert name == "Intel(R) Xeon(R) Platinum 8480+ (family 6, model 143)"
    assert flags == ["avx2", "avx512f", "avx512_vnni", "amx_int8", "amx_bf16"]


def test_arm_and_nothing_at_all() -> None:
    assert machine.processor(ARM)[1] == ["asimddp", "i8mm", "bf16"]
    name, flags = machine.processor("")
    assert name
    assert flags == []


def test_description_of_this_machine() -> None:
    text = machine.describe(threads=1)
    assert all(line.startswith("- ") for line in text.splitlines())
    assert "threads: 1" in text
    assert "torchao 0" in text
