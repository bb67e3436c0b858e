// Scales and rounding, operation by operation as in int8_training.py and grid.py: the same bits.
//
// Plain loops, which the compiler turns into the level's vectors. Largest and smallest values are found on the bits of
// floats, as integers, so that the order of the search cannot matter and a value that is not a number counts as larger
// than all: it shows in the scale, as in torch.
#pragma once
#include "level.h"

namespace fedhq {
namespace LEVEL {

constexpr float SMALLEST_SCALE = 1.17549435e-38f;  // the smallest normal number
constexpr float HIGHEST = 127.0f;

FEDHQ_INLINE float as_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

FEDHQ_INLINE uint32_t as_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
}

FEDHQ_INLINE uint32_t magnitude_bits(float value) { return as_bits(value) & 0x7fffffffu; }

FEDHQ_INLINE float at_least(float value, float least) { return value < least ? least : value; }  // keeps what is no number

FEDHQ_INLINE float largest_magnitude(const float* x, int64_t size) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < size; i++) {
    const uint32_t bits = magnitude_bits(x[i]);
    largest = bits > largest ? bits : largest;
  }
  return as_float(largest);
}

// Smallest and largest value, zero among them.
FEDHQ_INLINE void value_range(const float* x, int64_t size, float* smallest, float* largest) {
  int32_t low = 0, high = 0;
  for (int64_t i = 0; i < size; i++) {
    const int32_t bits = static_cast<int32_t>(as_bits(x[i]));
    const int32_t in_order = bits ^ ((bits >> 31) & 0x7fffffff);
    low = in_order < low ? in_order : low;
    high = in_order > high ? in_order : high;
  }
  *smallest = as_float(static_cast<uint32_t>(low ^ ((low >> 31) & 0x7fffffff)));
  *largest = as_float(static_cast<uint32_t>(high));
  if (*smallest != *smallest) *largest = *smallest;  // whichever sign the bits of what is no number have
}

FEDHQ_INLINE float symmetric_scale(float magnitude) { return at_least(magnitude / HIGHEST, SMALLEST_SCALE); }

// Bounds are put on integers: on floats, of which one could be no number, they would take the compiler three times as
// many instructions. Steps fit into 32 bits wherever their scale is a number.
FEDHQ_INLINE int32_t bounded(int32_t value, int32_t lowest, int32_t highest) {
  const int32_t from_below = value > lowest ? value : lowest;
  return from_below < highest ? from_below : highest;
}

// To the nearest integer up to `highest`, halves to the even one. What is no number becomes some integer: its scale tells
// it already.
FEDHQ_INLINE int32_t nearest(float steps, int32_t highest = 127) {
  return bounded(__builtin_irintf(steps), -highest, highest);
}

FEDHQ_INLINE void round_symmetric(const float* __restrict x, int64_t size, float inverse, int offset, Row* __restrict to) {
  for (int64_t i = 0; i < size; i++) to[i] = static_cast<Row>(nearest(x[i] * inverse) + offset);
}

FEDHQ_INLINE void round_symmetric(const float* __restrict x, int64_t size, float inverse, int8_t* __restrict to) {
  for (int64_t i = 0; i < size; i++) to[i] = static_cast<int8_t>(nearest(x[i] * inverse));
}

struct Grid {
  float scale;
  float zero_point;
};

// `activation_integers` of grid.py.
FEDHQ_INLINE Grid asymmetric_grid(const float* x, int64_t size, int lowest, int highest) {
  float smallest, largest;
  value_range(x, size, &smallest, &largest);
  const float scale = at_least((largest - smallest) / static_cast<float>(highest - lowest), SMALLEST_SCALE);
  float zero = static_cast<float>(lowest) - __builtin_rintf(smallest / scale);
  zero = zero < lowest ? static_cast<float>(lowest) : (zero > highest ? static_cast<float>(highest) : zero);
  return {scale, zero == zero ? zero : 0.0f};
}

// A value's integer on a grid.
FEDHQ_INLINE int32_t on_grid(float value, float inverse, int32_t zero_point, int32_t lowest, int32_t highest) {
  // Bounds first: the integer of what is no number may be the smallest there is.
  return bounded(__builtin_irintf(value * inverse), lowest - zero_point, highest - zero_point) + zero_point;
}

FEDHQ_INLINE void round_asymmetric(const float* __restrict x, int64_t size, Grid grid, int lowest, int highest,
                                   int offset, Row* __restrict to) {
  const float inverse = 1.0f / grid.scale;
  const int32_t zero = static_cast<int32_t>(grid.zero_point);
  for (int64_t i = 0; i < size; i++)
    to[i] = static_cast<Row>(on_grid(x[i], inverse, zero, lowest, highest) + offset);
}

constexpr int NUM_SHARES = 6;
constexpr float SHARES[NUM_SHARES] = {0.9f, 0.8f, 0.7f, 0.6f, 0.5f, 0.4f};
constexpr int MOST_SEARCHED_BITS = 4;

// Squared error of rounding to `scale` in sixteenths of a step: an integer, so that no order of the sum rounds it. With
// few bits and finite values no value is more than 2^9 sixteenths off.
FEDHQ_INLINE float squared_sixteenths(const float* __restrict x, int64_t size, float scale, int lowest, int highest) {
  const float inverse = 1.0f / scale;  // times 16 it might overflow
  const int16_t top = static_cast<int16_t>(16 * highest), bottom = static_cast<int16_t>(16 * lowest);
  constexpr int64_t SOME = 1024;
  alignas(64) int16_t sixteenths[SOME];
  int64_t total = 0;
  for (int64_t start = 0; start < size; start += SOME) {
    const int64_t count = smaller(SOME, size - start);
    const float* __restrict part = x + start;
    for (int64_t i = 0; i < count; i++)
      sixteenths[i] = static_cast<int16_t>(__builtin_irintf(part[i] * inverse * 16.0f));
    int32_t sum = 0;
    for (int64_t i = 0; i < count; i++) {
      const int16_t t = sixteenths[i], above = t - top, below = t - bottom;
      int16_t miss = ((t + 8) & 15) - 8;
      miss = miss > above ? miss : above;
      miss = miss < below ? miss : below;
      sum += miss * miss;
    }
    total += sum;
  }
  return static_cast<float>(total);
}

// `weight_integers` of grid.py: the widest scale, or with few bits the share of it that errs least.
FEDHQ_INLINE float weight_scale(const float* x, int64_t size, int bits, int lowest, int highest) {
  float smallest, largest;
  value_range(x, size, &smallest, &largest);
  const float below = smallest / static_cast<float>(lowest), above = largest / static_cast<float>(highest);
  const float widest = below > above ? below : above;
  const float unit = at_least(widest, SMALLEST_SCALE);
  if (bits > MOST_SEARCHED_BITS || !(unit < INFINITY)) return unit;
  float best = unit, error = squared_sixteenths(x, size, unit, lowest, highest);
  for (int s = 0; s < NUM_SHARES; s++) {
    const float scale = at_least(widest * SHARES[s], SMALLEST_SCALE), ratio = scale / unit;
    const float candidate = squared_sixteenths(x, size, scale, lowest, highest) * (ratio * ratio);
    if (candidate < error) error = candidate, best = scale;
  }
  return best;
}

FEDHQ_INLINE void round_weight(const float* __restrict x, int64_t size, float scale, int lowest, int highest,
                               int8_t* __restrict to) {
  const float inverse = 1.0f / scale;
  for (int64_t i = 0; i < size; i++) to[i] = static_cast<int8_t>(on_grid(x[i], inverse, 0, lowest, highest));
}

}  // namespace LEVEL
}  // namespace fedhq
