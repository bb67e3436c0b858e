"""The lanes' arithmetic in C++: the same bits as `int8_training` and `integer_forward` compute, in fewer passes.

`csrc/` holds the kernels, each compiled once for every level of instructions that the processor has (`level.h` says how
they differ), and the layers as operators of torch (`lanes.cpp`), beside them what travels and is added up
(`payload.h`). `build` compiles them, once per machine; `lanes` loads them, tests every level against the plain one,
and says which tensors they take. Where there is no compiler, or a level fails its test, the kernels that torch compiles
compute instead.
"""
