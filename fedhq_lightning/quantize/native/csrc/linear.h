// The three products of a linear layer, and what is done to their factors before and to their sums after.
//
// Sums come back to floats as in int8_training.py and integer_forward.py: one scale after the other.
#pragma once
#include "packing.h"
#include "product.h"
#include "rounding.h"
#include "scratch.h"

namespace fedhq {
namespace LEVEL {

static void quantize_input(const float* x, int64_t rows, int64_t inner, int bits, void* integers_, int64_t stride,
                           float* scale, int32_t* zero_point, void* panels_, int32_t* sums, int8_t* plain) {
  Row* const integers = static_cast<Row*>(integers_);
  Column* const panels = static_cast<Column*>(panels_);
  const int lowest = -(1 << (larger(bits, 1) - 1)), highest = -lowest - 1;
  const int64_t wide = up(inner, WIDE), words = words_of(rows);
  int8_t* const block = static_cast<int8_t*>(scratch(Scratch::rows, PANEL * wide));
  if (panels) {
    memset(sums, 0, sizeof(int32_t) * up(inner, PANEL));
    memset(block, 0, PANEL * wide);
  }
  for (int64_t first = 0; first < rows; first += PANEL) {
    const int64_t last = smaller(rows, first + PANEL), some = words_of(last - first);
    for (int64_t m = first; m < last; m++) {
      int8_t* const kept = block + (m - first) * wide;
      const float* const from = x + m * inner;
      Row* const to = integers + m * stride;
      if (bits) {
        const Grid grid = asymmetric_grid(from, inner, lowest, highest);
        scale[m] = grid.scale, zero_point[m] = static_cast<int32_t>(grid.zero_point);
        round_asymmetric(from, inner, grid, lowest, highest, OFFSET, to);
      } else {
        scale[m] = symmetric_scale(largest_magnitude(from, inner));
        round_symmetric(from, inner, 1.0f / scale[m], OFFSET, to);
      }
      for (int64_t k = inner; k < up(inner, GROUP); k++) to[k] = 0;
      if (panels || plain)
        for (int64_t k = 0; k < inner; k++) kept[k] = static_cast<int8_t>(to[k] - OFFSET);
      if (plain) memcpy(plain + m * inner, kept, inner);
    }
    if (panels) {
      memset(block + (last - first) * wide, 0, (some * GROUP - (last - first)) * wide);
      pack_along(block, wide, inner, first / GROUP, some, words, panels, sums);
    }
  }
}

FEDHQ_INLINE int32_t sum_of(const int8_t* row, int64_t size) {
  int32_t sum = 0;
  for (int64_t i = 0; i < size; i++) sum += row[i];
  return sum;
}

static void pack(const int8_t* integers, int64_t rows, int64_t inner, void* across_, int32_t* sums) {
  Column* const across = static_cast<Column*>(across_);
  const int64_t wide = up(inner, WIDE), panel_size = words_of(inner) * PANEL_ELEMENTS;
  int8_t* const some = static_cast<int8_t*>(scratch(Scratch::rows, PANEL * wide));
  for (int64_t first = 0; first < rows; first += PANEL) {
    for (int i = 0; i < PANEL; i++) {
      const int64_t count = first + i < rows ? inner : 0;
      if (count) memcpy(some + i * wide, integers + (first + i) * inner, count);
      memset(some + i * wide + count, 0, wide - count);
    }
    pack_across(some, wide, inner, across + first / PANEL * panel_size, sums + first);
  }
}

static void quantize_weight(const float* weight, int64_t out, int64_t inner, int bits, void* across_,
                            int32_t* across_sums, void* along_, int32_t* along_sums, int8_t* plain, float* scale) {
  Column* const across = static_cast<Column*>(across_);
  Column* const along = static_cast<Column*>(along_);
  const int lowest = -(1 << (larger(bits, 1) - 1)), highest = -lowest - 1;
  const int64_t wide = up(inner, WIDE), panel_size = words_of(inner) * PANEL_ELEMENTS, words = words_of(out);
  int8_t* const some = static_cast<int8_t*>(scratch(Scratch::rows, PANEL * wide));
  if (along) memset(along_sums, 0, sizeof(int32_t) * up(inner, PANEL));
  for (int64_t first = 0; first < out; first += PANEL) {
    for (int i = 0; i < PANEL; i++) {
      int8_t* const row = some + i * wide;
      const int64_t n = first + i, count = n < out ? inner : 0;
      memset(row + count, 0, wide - count);
      if (!count) continue;
      const float* const from = weight + n * inner;
      if (bits) {
        scale[n] = weight_scale(from, inner, bits, lowest, highest);
        round_weight(from, inner, scale[n], lowest, highest, row);
      } else {
        scale[n] = symmetric_scale(largest_magnitude(from, inner));
        round_symmetric(from, inner, 1.0f / scale[n], row);
      }
      if (plain) memcpy(plain + n * inner, row, inner);
    }
    if (across)
      pack_across(some, wide, inner, across + first / PANEL * panel_size, across_sums + first);
    else
      for (int64_t n = first; n < smaller(out, first + PANEL); n++) across_sums[n] = sum_of(some + (n - first) * wide, inner);
    if (along)
      pack_along(some, wide, inner, first / GROUP, words_of(smaller(PANEL, out - first)), words, along, along_sums);
  }
}

static void linear_output(const void* integers_, int64_t stride, const float* scale, const int32_t* zero_point,
                          const void* weight, const int32_t* weight_sums, const float* weight_scale, const float* bias,
                          int64_t rows, int64_t out, int64_t inner, float* output) {
  const Row* const integers = static_cast<const Row*>(integers_);
  const int64_t start = 0;
  const Inner all{&start, 1, words_of(inner), GROUP};
  product([=](int64_t m) { return integers + m * stride; }, rows, stride * sizeof(Row), all,
          static_cast<const Column*>(weight), out,
          [=](int64_t m, int64_t count, int64_t n, int64_t columns, const int32_t* sums, int64_t width) {
            for (int64_t r = 0; r < count; r++) {
              const int32_t zero = OFFSET + (zero_point ? zero_point[m + r] : 0);
              const float row_scale = scale[m + r];
              float* const to = output + (m + r) * out + n;
              const int32_t* const of = sums + r * width;
              for (int64_t c = 0; c < columns; c++) {
                const int32_t exact = of[c] - zero * weight_sums[n + c];
                const float value = static_cast<float>(exact) * weight_scale[n + c] * row_scale;
                to[c] = bias ? value + bias[n + c] : value;
              }
            }
          });
}

static void quantize_gradient(const float* gradient, int64_t rows, int64_t out, const float* weight_scale,
                              const float* x_scale, const int32_t* zero_point, void* by_rows_, int64_t row_stride,
                              float* row_scale, void* by_columns_, int64_t column_stride, float* column_scale,
                              int32_t* corrections) {
  Row* const by_rows = static_cast<Row*>(by_rows_);
  Row* const by_columns = static_cast<Row*>(by_columns_);
  float* const folded = static_cast<float*>(scratch(Scratch::values, sizeof(float) * out));
  uint32_t* const largest = static_cast<uint32_t*>(scratch(Scratch::bounds, sizeof(uint32_t) * out));
  memset(largest, 0, sizeof(uint32_t) * out);
  for (int64_t m = 0; m < rows; m++) {
    const float* __restrict from = gradient + m * out;
    const float input_scale = x_scale[m];
    for (int64_t n = 0; n < out; n++) {
      const uint32_t bits = magnitude_bits(from[n] * input_scale);
      largest[n] = bits > largest[n] ? bits : largest[n];
    }
    if (by_rows) {
      for (int64_t n = 0; n < out; n++) folded[n] = from[n] * weight_scale[n];
      row_scale[m] = symmetric_scale(largest_magnitude(folded, out));
      Row* const to = by_rows + m * row_stride;
      round_symmetric(folded, out, 1.0f / row_scale[m], OFFSET, to);
      for (int64_t n = out; n < up(out, GROUP); n++) to[n] = 0;
    }
  }
  if (!by_columns) return;
  for (int64_t n = 0; n < out; n++) {
    column_scale[n] = symmetric_scale(as_float(largest[n]));
    folded[n] = 1.0f / column_scale[n];
  }
  if (zero_point) memset(corrections, 0, sizeof(int32_t) * out);
  const int64_t wide = up(out, PANEL);
  int8_t* const block = static_cast<int8_t*>(scratch(Scratch::rows, GROUP * wide));
  for (int64_t first = 0; first < rows; first += GROUP) {
    const int64_t some = smaller(GROUP, rows - first);
    for (int64_t i = 0; i < some; i++) {
      const float* __restrict from = gradient + (first + i) * out;
      int8_t* __restrict const integers = block + i * wide;
      const float input_scale = x_scale[first + i];
      for (int64_t n = 0; n < out; n++) integers[n] = static_cast<int8_t>(nearest(from[n] * input_scale * folded[n]));
      if (zero_point) {
        const int32_t zero = zero_point[first + i];
        for (int64_t n = 0; n < out; n++) corrections[n] += integers[n] * zero;
      }
      if (OFFSET)
        for (int64_t n = 0; n < out; n++) integers[n] = static_cast<int8_t>(integers[n] + OFFSET);
    }
    memset(block + some * wide, 0, (GROUP - some) * wide);
    Row* const to = by_columns + first / GROUP * column_stride;
    for (int64_t n = 0; n < out; n += PANEL)
      interleave(block + n, wide, reinterpret_cast<Column*>(to + n * GROUP));
  }
}

// Sums of rows of the gradient times columns, to floats: less what the offset adds and a correction of every row, times
// a scale.
FEDHQ_INLINE void rescale_rows(int64_t m, int64_t count, int64_t n, int64_t columns, const int32_t* sums, int64_t width,
                               const int32_t* column_sums, const int32_t* corrections, const float* scale,
                               float* output, int64_t size) {
  for (int64_t r = 0; r < count; r++) {
    const int32_t correction = corrections ? corrections[m + r] : 0;
    const float row_scale = scale[m + r];
    float* const to = output + (m + r) * size + n;
    const int32_t* const of = sums + r * width;
    for (int64_t c = 0; c < columns; c++)
      to[c] = static_cast<float>(of[c] - OFFSET * column_sums[n + c] - correction) * row_scale;
  }
}

static void linear_input_gradient(const void* by_rows_, int64_t stride, const float* row_scale, const void* along,
                                  const int32_t* along_sums, int64_t rows, int64_t out, int64_t inner, float* gradient) {
  const Row* const by_rows = static_cast<const Row*>(by_rows_);
  const int64_t start = 0;
  const Inner all{&start, 1, words_of(out), GROUP};
  product([=](int64_t m) { return by_rows + m * stride; }, rows, stride * sizeof(Row), all,
          static_cast<const Column*>(along), inner,
          [=](int64_t m, int64_t count, int64_t n, int64_t columns, const int32_t* sums, int64_t width) {
            rescale_rows(m, count, n, columns, sums, width, along_sums, nullptr, row_scale, gradient, inner);
          });
}

static void linear_weight_gradient(const void* by_columns_, int64_t stride, const float* column_scale,
                                   const void* panels, const int32_t* column_sums, const int32_t* corrections,
                                   int64_t rows, int64_t out, int64_t inner, float* gradient) {
  const Row* const by_columns = static_cast<const Row*>(by_columns_);
  const int64_t start = 0;
  const Inner all{&start, 1, words_of(rows), stride};
  product([=](int64_t n) { return by_columns + n * GROUP; }, out, words_of(rows) * GROUP * sizeof(Row), all,
          static_cast<const Column*>(panels), inner,
          [=](int64_t m, int64_t count, int64_t n, int64_t columns, const int32_t* sums, int64_t width) {
            rescale_rows(m, count, n, columns, sums, width, column_sums, corrections, column_scale, gradient, inner);
          });
}

// The nearest bfloat16, halves to the even one.
FEDHQ_INLINE uint16_t shortened(float value) {
  const uint32_t bits = as_bits(value);
  const uint16_t rounded = static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
  return value == value ? rounded : static_cast<uint16_t>(0x7fc0u);
}

// `size` integers less `zero`, times their scale, as value `place` and on of floats or bfloat16.
template <class Integer>
FEDHQ_INLINE void values_of(const Integer* __restrict from, int64_t size, int32_t zero, float scale, bool is_short,
                            void* values, int64_t place) {
  if (is_short) {
    uint16_t* __restrict to = static_cast<uint16_t*>(values) + place;
    for (int64_t k = 0; k < size; k++) to[k] = shortened(static_cast<float>(from[k] - zero) * scale);
  } else {
    float* __restrict to = static_cast<float*>(values) + place;
    for (int64_t k = 0; k < size; k++) to[k] = static_cast<float>(from[k] - zero) * scale;
  }
}

static void dequantize(const int8_t* integers, int64_t rows, int64_t inner, const float* scale,
                       const int32_t* zero_point, bool is_short, void* values) {
  for (int64_t m = 0; m < rows; m++)
    values_of(integers + m * inner, inner, zero_point ? zero_point[m] : 0, scale[m], is_short, values, m * inner);
}

static void round_weight_values(const float* weight, int64_t out, int64_t inner, int bits, float* rounded) {
  const int lowest = -(1 << (bits - 1)), highest = -lowest - 1;
  int8_t* const integers = static_cast<int8_t*>(scratch(Scratch::rows, inner));
  for (int64_t n = 0; n < out; n++) {
    const float scale = weight_scale(weight + n * inner, inner, bits, lowest, highest);
    round_weight(weight + n * inner, inner, scale, lowest, highest, integers);
    for (int64_t k = 0; k < inner; k++) rounded[n * inner + k] = static_cast<float>(integers[k]) * scale;
  }
}

static void round_input_values(const float* x, int64_t rows, int64_t inner, int bits, float* rounded) {
  const int lowest = -(1 << (bits - 1)), highest = -lowest - 1;
  for (int64_t m = 0; m < rows; m++) {
    const float* __restrict from = x + m * inner;
    float* __restrict to = rounded + m * inner;
    const Grid grid = asymmetric_grid(from, inner, lowest, highest);
    const float inverse = 1.0f / grid.scale;
    const int32_t zero = static_cast<int32_t>(grid.zero_point);
    for (int64_t k = 0; k < inner; k++)
      to[k] = static_cast<float>(on_grid(from[k], inverse, zero, lowest, highest) - zero) * grid.scale;
  }
}

}  // namespace LEVEL
}  // namespace fedhq
