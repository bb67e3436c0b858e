// Exact sums of updates: the loops of federated/chunk_sum.py, which says what they do, with the same bits.
#pragma once
#include "rounding.h"

namespace fedhq {
namespace LEVEL {

constexpr int64_t TILE_VALUES = 2048;  // stay in the first cache
constexpr double SHIFT = 6755399441055744.0;  // 1.5 * 2^52

FEDHQ_INLINE uint64_t bits_of(double value) {
  uint64_t bits;
  memcpy(&bits, &value, 8);
  return bits;
}

struct Magnitudes {
  uint32_t largest, smallest;  // bits of absolute values; the smallest is that of those that are not zero
};

FEDHQ_INLINE Magnitudes magnitudes_of(const float* x, int64_t size) {
  uint32_t largest = 0, below_smallest = 0xffffffffu;
  for (int64_t i = 0; i < size; i++) {
    const uint32_t bits = magnitude_bits(x[i]), below = bits - 1;  // of a zero it is the largest there is
    largest = bits > largest ? bits : largest;
    below_smallest = below < below_smallest ? below : below_smallest;
  }
  return {largest, below_smallest + 1};
}

static void magnitudes(const float* x, int64_t size, int64_t* largest, int64_t* smallest) {
  const Magnitudes found = magnitudes_of(x, size);
  *largest = found.largest, *smallest = found.smallest;
}

static int64_t add_values(const float* x, int64_t size, double factor, int64_t lowest, int64_t highest, int64_t limit,
                          int64_t* units_, int32_t* places, int64_t* largest) {
  uint64_t* const units = reinterpret_cast<uint64_t*>(units_);  // they wrap
  const uint32_t low = static_cast<uint32_t>(lowest), high = static_cast<uint32_t>(highest);
  int64_t count = 0;
  uint32_t most = 0;
  alignas(64) float fitting[TILE_VALUES];
  for (int64_t start = 0; start < size; start += TILE_VALUES) {
    const int64_t some = smaller(TILE_VALUES, size - start);
    const float* part = x + start;
    const Magnitudes found = magnitudes_of(part, some);
    most = found.largest > most ? found.largest : most;
    if (found.largest && (found.smallest < low || found.largest >= high)) {
      for (int64_t i = 0; i < some; i++) {
        const uint32_t bits = magnitude_bits(part[i]);
        const bool fits = bits == 0 || (bits >= low && bits < high);
        fitting[i] = fits ? part[i] : 0.0f;
        if (!fits && bits < limit) places[count++] = static_cast<int32_t>(start + i);
      }
      part = fitting;
    }
    uint64_t* const to = units + start;
    for (int64_t i = 0; i < some; i++) to[i] += bits_of(SHIFT + static_cast<double>(part[i]) * factor);
  }
  *largest = most;
  return count;
}

// 2^exponent, of a normal number.
FEDHQ_INLINE double power_of_two(int64_t exponent) {
  const uint64_t bits = static_cast<uint64_t>(exponent + 1023) << 52;
  double value;
  memcpy(&value, &bits, 8);
  return value;
}

// Of an integer below 2^32, in two instructions that all levels have for vectors: 2^52 and it, less 2^52.
FEDHQ_INLINE double as_double(uint64_t digit) {
  const uint64_t bits = digit | 0x4330000000000000u;
  double value;
  memcpy(&value, &bits, 8);
  return value - 4503599627370496.0;
}

// Digits of 32 bits, the lowest first, added up in that order, as `_rounded` does.
static void mean_of_units(const int64_t* units, int64_t size, int64_t shifts, int64_t shift, int64_t unit,
                          double total_weight, float* mean) {
  const double lowest = power_of_two(unit), middle = power_of_two(unit + 32), highest = power_of_two(unit + 64);
  for (int64_t i = 0; i < size; i++) {
    const int64_t sum = static_cast<int64_t>(static_cast<uint64_t>(units[i]) - static_cast<uint64_t>(shifts));
    const uint64_t magnitude = sum < 0 ? 0 - static_cast<uint64_t>(sum) : static_cast<uint64_t>(sum);
    const uint64_t low = (magnitude << shift) & 0xffffffffu, rest = magnitude >> (32 - shift);
    double total = as_double(low) * lowest;
    total += as_double(rest & 0xffffffffu) * middle;
    total += as_double(rest >> 32) * highest;
    mean[i] = static_cast<float>((sum < 0 ? -total : total) / total_weight);
  }
}

}  // namespace LEVEL
}  // namespace fedhq
