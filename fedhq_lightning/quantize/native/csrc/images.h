// Images rounded to integers, in either order of their dimensions.
#pragma once
#include "kernels.h"
#include "level.h"
#include "rounding.h"
#include "scratch.h"

namespace fedhq {
namespace LEVEL {

// [rows][from_stride] to [columns][to_stride]. Up to 15 bytes are read and written beyond the end of either.
FEDHQ_INLINE void transpose_bytes(const int8_t* from, int64_t from_stride, int64_t rows, int64_t columns, int8_t* to,
                                  int64_t to_stride) {
  int64_t done = 0;
#if defined(__AVX2__)
  // Fewer rows than 16 need room behind them, or be all: what is written too much, the next column overwrites.
  for (; done < rows && (done + 16 <= rows || done + 16 <= to_stride || done == 0); done += 16) {
    const int64_t height = smaller(16, rows - done);
    for (int64_t c = 0; c < columns; c += 16) {
      __m128i a[16], b[16];
      for (int i = 0; i < 16; i++)
        a[i] = i < height ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + (done + i) * from_stride + c))
                          : _mm_setzero_si128();
      // Four times the first half interleaved with the second: each moves one bit of the place from row to column.
      for (int step = 0; step < 4; step++) {
        for (int i = 0; i < 8; i++) {
          b[2 * i] = _mm_unpacklo_epi8(a[i], a[i + 8]);
          b[2 * i + 1] = _mm_unpackhi_epi8(a[i], a[i + 8]);
        }
        for (int i = 0; i < 16; i++) a[i] = b[i];
      }
      for (int i = 0; i < 16; i++)
        if (c + i < columns) _mm_storeu_si128(reinterpret_cast<__m128i*>(to + (c + i) * to_stride + done), a[i]);
    }
  }
#endif
  for (int64_t r = done; r < rows; r++)
    for (int64_t c = 0; c < columns; c++) to[c * to_stride + r] = from[r * from_stride + c];
}

constexpr int64_t BEYOND = 16;  // bytes that `transpose_bytes` may touch behind a place of its

// Images of integers [channels][pixels] of an image with channels first.
template <class Round>
FEDHQ_INLINE void round_channels(const float* image, int64_t channels, int64_t pixels, const Round& round, int8_t* to) {
  for (int64_t c = 0; c < channels; c++) round.channel(image + c * pixels, pixels, c, 0, to + c * pixels);
}

// What belongs to each channel, for every pixel of a row again: so a row of few channels is one long loop, too.
FEDHQ_INLINE float* repeated(const float* by_channel, int64_t channels, int64_t width, float* to) {
  for (int64_t w = 0; w < width; w++) memcpy(to + w * channels, by_channel, sizeof(float) * channels);
  return to;
}

// A scale for every channel, symmetric; `inverses` are those of the channels, for all pixels of a row.
struct ByChannel {
  const float* inverses;
  int shift;
  int32_t highest;
  template <class Integer>
  FEDHQ_INLINE_MEMBER void pixels(const float* __restrict x, int64_t size, int offset, Integer* __restrict to) const {
    for (int64_t i = 0; i < size; i++)
      to[i] = static_cast<Integer>(nearest(x[i] * inverses[i], highest) + shift + offset);
  }
  template <class Integer>
  FEDHQ_INLINE_MEMBER void channel(const float* __restrict x, int64_t width, int64_t c, int offset,
                                   Integer* __restrict to) const {
    const float inverse = inverses[c];
    for (int64_t w = 0; w < width; w++)
      to[w] = static_cast<Integer>(nearest(x[w] * inverse, highest) + shift + offset);
  }
};

// Steps to the largest value, by the byte that stands for 0.
FEDHQ_INLINE int32_t highest_of(int32_t zero) { return zero ? 127 : 255; }

// One grid for the whole image.
struct OnGrid {
  float inverse;
  int32_t zero_point, lowest, highest;
  template <class Integer>
  FEDHQ_INLINE_MEMBER void pixels(const float* __restrict x, int64_t size, int offset, Integer* __restrict to) const {
    for (int64_t i = 0; i < size; i++)
      to[i] = static_cast<Integer>(on_grid(x[i], inverse, zero_point, lowest, highest) + offset);
  }
  template <class Integer>
  FEDHQ_INLINE_MEMBER void channel(const float* x, int64_t width, int64_t, int offset, Integer* to) const {
    pixels(x, width, offset, to);
  }
};

FEDHQ_INLINE void fill(Row* to, int64_t size, int value) {
  for (int64_t i = 0; i < size; i++) to[i] = static_cast<Row>(value + OFFSET);
}

// Image `b`, rounded, padded with `zero`, channels last: [height][width][channels] of the whole.
template <class Round>
FEDHQ_INLINE void round_image(const float* image, const Convolution& s, int64_t channels, int64_t height,
                              int64_t width, int64_t b, const Round& round, int zero, int64_t top, int64_t left,
                              int64_t whole_height, int64_t whole_width, Row* to) {
  const int64_t size = height * width;
  int8_t* const planes = static_cast<int8_t*>(scratch(Scratch::rows, channels * (size + width) + BEYOND));
  int8_t* pixels = planes + channels * size;
  image += b * channels * size;
  fill(to, whole_height * whole_width * channels, zero);
  if (!s.channels_last) round_channels(image, channels, size, round, planes);
  for (int64_t h = 0; h < height; h++) {
    Row* const line = to + ((top + h) * whole_width + left) * channels;
    if (s.channels_last) {
      round.pixels(image + h * width * channels, width * channels, OFFSET, line);
      continue;
    }
    if (channels == 1)
      pixels = planes + h * width;
    else
      transpose_bytes(planes + h * width, size, channels, width, pixels, channels);
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
