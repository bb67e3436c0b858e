// The greatest of every 2 x 2 pixels, as torch has it: the first of equal ones; what is no number counts as greater.
#pragma once
#include "kernels.h"
#include "level.h"
#include "rounding.h"

namespace fedhq {
namespace LEVEL {

FEDHQ_INLINE float if_exceeds(float second, float first, float yes, float no) {
  // As a mask, because branches on what an image holds are guessed wrong half the time.
  const uint32_t mask = (0u - static_cast<uint32_t>(second > first)) | (0u - static_cast<uint32_t>(second != second));
  return as_float((as_bits(yes) & mask) | (as_bits(no) & ~mask));
}
FEDHQ_INLINE float greater(float first, float second) { return if_exceeds(second, first, second, first); }

constexpr int64_t PIECE = 8;

// Calls `one(i)` for every i below `count`, for some twice: in loops whose length the compiler knows.
template <class One>
FEDHQ_INLINE void in_pieces(int64_t count, const One& one) {
  if (count < PIECE) {
    for (int64_t i = 0; i < count; i++) one(i);
    return;
  }
  for (int64_t start = 0; start < count; start += PIECE) {
    const int64_t first = smaller(start, count - PIECE);
    for (int64_t i = first; i < first + PIECE; i++) one(i);
  }
}

// `count` neighbouring outputs of two rows of pixels. With channels last their windows begin one float from each other,
// and the pixel to the right lies `step` floats away; else they begin two floats from each other, and it is the next one.
template <bool CHANNELS_LAST>
FEDHQ_INLINE void greatest(const float* __restrict row, const float* __restrict below, int64_t step, int64_t count,
                           float* __restrict output) {
  const int64_t right = CHANNELS_LAST ? step : 1, apart = CHANNELS_LAST ? 1 : 2;
  const auto one = [&](int64_t i) FEDHQ_INLINE_LAMBDA {
    output[i] = greater(greater(row[i * apart], row[i * apart + right]),
                        greater(below[i * apart], below[i * apart + right]));
  };
  in_pieces(count, one);
}

// Which of the four was the greatest is found again: so nothing is kept but the input, which most layers before keep too.
template <bool CHANNELS_LAST>
FEDHQ_INLINE void to_greatest(const float* __restrict row, const float* __restrict below,
                              const float* __restrict gradient, int64_t step, int64_t count,
                              float* __restrict row_gradient, float* __restrict below_gradient) {
  const int64_t right = CHANNELS_LAST ? step : 1, apart = CHANNELS_LAST ? 1 : 2;
  const auto one = [&](int64_t i) FEDHQ_INLINE_LAMBDA {
    const float a = row[i * apart], b = row[i * apart + right];
    const float c = below[i * apart], d = below[i * apart + right];
    const float value = 0.0f + gradient[i];  // torch adds to zeros: minus zero becomes zero
    const float first = greater(a, b), second = greater(c, d);
    const float above = if_exceeds(second, first, 0.0f, value), beneath = if_exceeds(second, first, value, 0.0f);
    row_gradient[i * apart] = if_exceeds(b, a, 0.0f, above);
    row_gradient[i * apart + right] = if_exceeds(b, a, above, 0.0f);
    below_gradient[i * apart] = if_exceeds(d, c, 0.0f, beneath);
    below_gradient[i * apart + right] = if_exceeds(d, c, beneath, 0.0f);
  };
  in_pieces(count, one);
}

// Where the windows of a row of outputs begin: the rows of all images are counted through.
FEDHQ_INLINE int64_t first_pixel(const Images& s, int64_t row) {
  const int64_t height = s.height / 2;
  return (row / height * s.height + row % height * 2) * s.width;
}

static void max_pool(const float* x, const Images& s, float* output) {
  const int64_t height = s.height / 2, width = s.width / 2, line = s.width * s.channels;
  if (s.channels_last) {
    for (int64_t row = 0; row < s.batch * height; row++) {
      const float* const from = x + first_pixel(s, row) * s.channels;
      for (int64_t w = 0; w < 2 * width * s.channels; w += 2 * s.channels)
        greatest<true>(from + w, from + w + line, s.channels, s.channels, output + row * width * s.channels + w / 2);
    }
  } else {
    for (int64_t row = 0; row < s.batch * s.channels * height; row++) {
      const float* const from = x + first_pixel(s, row);
      greatest<false>(from, from + s.width, 1, width, output + row * width);
    }
  }
}

static void max_pool_gradient(const float* x, const float* gradient, const Images& s, float* x_gradient) {
  const int64_t height = s.height / 2, width = s.width / 2, line = s.width * s.channels;
  // Pixels of a last odd row or column are in no window.
  if (s.height % 2 || s.width % 2) memset(x_gradient, 0, sizeof(float) * s.batch * s.height * line);
  if (s.channels_last) {
    for (int64_t row = 0; row < s.batch * height; row++) {
      const int64_t start = first_pixel(s, row) * s.channels;
      const float* const given = gradient + row * width * s.channels;
      for (int64_t w = 0; w < 2 * width * s.channels; w += 2 * s.channels)
        to_greatest<true>(x + start + w, x + start + line + w, given + w / 2, s.channels, s.channels,
                          x_gradient + start + w, x_gradient + start + line + w);
    }
  } else {
    for (int64_t row = 0; row < s.batch * s.channels * height; row++) {
      const int64_t start = first_pixel(s, row);
      to_greatest<false>(x + start, x + start + s.width, gradient + row * width, 1, width, x_gradient + start,
                         x_gradient + start + s.width);
    }
  }
}

}  // namespace LEVEL
}  // namespace fedhq
