// Memory that a thread keeps from call to call.
#pragma once
#include <cstddef>

namespace fedhq {

enum class Scratch : int {
  rows, values, bounds, input, gradient, columns, filters, image, runs, starts, row_starts, sums, totals, partial, scales,
  bias, phases, count
};

// At least `bytes` bytes and some that may be read beyond, aligned to 64; what they held is lost.
void* scratch(Scratch which, size_t bytes);

}  // namespace fedhq
