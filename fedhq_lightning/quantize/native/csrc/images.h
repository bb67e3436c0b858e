// Images rounded to integers, in either order of their dimensions.
#pragma once
#include "kernels.h"
#include "level.h"
#include "rounding.h"
#include "scratch.h"

namespace fedhq {
namespace LEVEL {

// [rows][from_stride] to [columns][to_stride].
FEDHQ_INLINE void transpose_bytes(const int8_t* from, int64_t from_stride, int64_t rows, int64_t columns, int8_t* to,
                                  int64_t to_stride) {
  int64_t done = 0;
#if defined(__AVX2__)
  for (; done + 16 <= rows; done += 16) {
    int64_t c = 0;
    for (; c + 16 <= columns; c += 16) {
      __m128i a[16], b[16];
      for (int i = 0; i < 16; i++)
        a[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + (done + i) * from_stride + c));
      // Four times the first half interleaved with the second: each moves one bit of the place from row to column.
      for (int step = 0; step < 4; step++) {
        for (int i = 0; i < 8; i++) {
          b[2 * i] = _mm_unpacklo_epi8(a[i], a[i + 8]);
          b[2 * i + 1] = _mm_unpackhi_epi8(a[i], a[i + 8]);
        }
        for (int i = 0; i < 16; i++) a[i] = b[i];
      }
      for (int i = 0; i < 16; i++)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + (c + i) * to_stride + done), a[i]);
    }
    for (; c < columns; c++)
      for (int i = 0; i < 16; i++) to[c * to_stride + done + i] = from[(done + i) * from_stride + c];
  }
#endif
  for (int64_t r = done; r < rows; r++)
    for (int64_t c = 0; c < columns; c++) to[c * to_stride + r] = from[r * from_stride + c];
}

// One row of pixels of image `b`, rounded, to `to`: [channels][width] if the image has its channels first, else
// [width][channels].
template <class Round>
FEDHQ_INLINE void round_row(const float* image, const Convolution& s, int64_t channels, int64_t height, int64_t width,
                            int64_t b, int64_t h, const Round& round, int8_t* to) {
  if (s.channels_last) {
    const float* const from = image + (b * height + h) * width * channels;
    for (int64_t w = 0; w < width; w++) round.pixel(from + w * channels, channels, to + w * channels);
  } else {
    for (int64_t c = 0; c < channels; c++)
      round.channel(image + ((b * channels + c) * height + h) * width, width, c, to + c * width);
  }
}

// A scale for every channel, symmetric.
struct ByChannel {
  const float* inverse;
  int shift;
  float highest;
  FEDHQ_INLINE_MEMBER void pixel(const float* __restrict x, int64_t channels, int8_t* __restrict to) const {
    for (int64_t c = 0; c < channels; c++) to[c] = static_cast<int8_t>(nearest(x[c] * inverse[c], highest) + shift);
  }
  FEDHQ_INLINE_MEMBER void channel(const float* __restrict x, int64_t width, int64_t c, int8_t* __restrict to) const {
    const float inverse_scale = inverse[c];
    for (int64_t w = 0; w < width; w++) to[w] = static_cast<int8_t>(nearest(x[w] * inverse_scale, highest) + shift);
  }
};

// Steps to the largest value, by the byte that stands for 0.
FEDHQ_INLINE float highest_of(int32_t zero) { return zero ? HIGHEST : 255.0f; }

// One grid for the whole image.
struct OnGrid {
  float inverse, zero_point, lowest, highest;
  FEDHQ_INLINE_MEMBER void pixel(const float* __restrict x, int64_t size, int8_t* __restrict to) const {
    for (int64_t i = 0; i < size; i++)
      to[i] = static_cast<int8_t>(static_cast<int32_t>(on_grid(x[i], inverse, zero_point, lowest, highest)));
  }
  FEDHQ_INLINE_MEMBER void channel(const float* x, int64_t width, int64_t, int8_t* to) const { pixel(x, width, to); }
};

FEDHQ_INLINE void fill(Row* to, int64_t size, int value) {
  for (int64_t i = 0; i < size; i++) to[i] = static_cast<Row>(value + OFFSET);
}

// Image `b`, rounded, padded with `zero`, channels last: [height][width][channels] of the whole.
template <class Round>
FEDHQ_INLINE void round_image(const float* image, const Convolution& s, int64_t channels, int64_t height,
                              int64_t width, int64_t b, const Round& round, int zero, int64_t top, int64_t left,
                              int64_t whole_height, int64_t whole_width, Row* to) {
  int8_t* const row = static_cast<int8_t*>(scratch(Scratch::rows, 2 * channels * width));
  int8_t* const pixels = s.channels_last ? row : row + channels * width;
  fill(to, whole_height * whole_width * channels, zero);
  for (int64_t h = 0; h < height; h++) {
    round_row(image, s, channels, height, width, b, h, round, row);
    if (!s.channels_last) transpose_bytes(row, width, channels, width, pixels, channels);
    Row* const line = to + ((top + h) * whole_width + left) * channels;
    for (int64_t i = 0; i < width * channels; i++) line[i] = static_cast<Row>(pixels[i] + OFFSET);
  }
}

FEDHQ_INLINE int64_t padded_height(const Convolution& s) { return s.height + s.top + s.bottom; }
FEDHQ_INLINE int64_t padded_width(const Convolution& s) { return s.width + s.left + s.right; }

// Largest magnitude of every channel of images (batch, channels, height, width) in either order.
FEDHQ_INLINE void channel_magnitudes(const float* x, int64_t batch, int64_t channels, int64_t pixels,
                                     bool channels_last, uint32_t* __restrict largest) {
  memset(largest, 0, sizeof(uint32_t) * channels);
  if (channels_last) {
    for (int64_t p = 0; p < batch * pixels; p++) {
      const float* __restrict from = x + p * channels;
      for (int64_t c = 0; c < channels; c++) {
        const uint32_t bits = magnitude_bits(from[c]);
        largest[c] = bits > largest[c] ? bits : largest[c];
      }
    }
  } else {
    for (int64_t b = 0; b < batch; b++)
      for (int64_t c = 0; c < channels; c++) {
        const uint32_t bits = as_bits(largest_magnitude(x + (b * channels + c) * pixels, pixels));
        largest[c] = bits > largest[c] ? bits : largest[c];
      }
  }
}

FEDHQ_INLINE bool has_negative(const float* x, int64_t size) {
  // Minus zero is none; what is no number is none either, whatever its sign, as in torch.
  int32_t any = 0;
  for (int64_t i = 0; i < size; i++) any |= x[i] < 0.0f ? 1 : 0;
  return any != 0;
}

}  // namespace LEVEL
}  // namespace fedhq
