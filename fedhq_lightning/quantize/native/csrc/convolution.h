// Convolutions as products: an output position is a row, the kernel's runs over the image its inner dimension.
//
// Images of integers lie channels last, so that a row of the kernel is one run of the image and nothing is copied. For
// the weight's gradient they lie channels first: there a position of the weight is a row, and what it met, output by
// output, is one run for each row of the output. Scales are those of int8_convolution.py and integer_forward.py.
#pragma once
#include "images.h"
#include "linear.h"

namespace fedhq {
namespace LEVEL {

constexpr int64_t MOST_RUNS = 1024;

// The runs of a kernel over an image with channels last.
struct Runs {
  int64_t starts[MOST_RUNS];
  int64_t count, words;  // of runs; of each
  int64_t positions;     // where the kernel is put
};

FEDHQ_INLINE void find_runs(int64_t channels, int64_t kernel_height, int64_t kernel_width, int64_t dilation_height,
                            int64_t dilation_width, int64_t width, Runs* runs) {
  const bool is_dense = dilation_width == 1;
  const int64_t across = is_dense ? 1 : kernel_width;
  runs->count = kernel_height * across;
  runs->words = words_of(is_dense ? kernel_width * channels : channels);
  for (int64_t i = 0; i < kernel_height; i++)
    for (int64_t j = 0; j < across; j++)
      runs->starts[i * across + j] = (i * dilation_height * width + j * dilation_width) * channels;
}

// A filter in the order (rows, columns, channels) becomes the inner dimension of `runs`.
FEDHQ_INLINE void spread_runs(const int8_t* filter, int64_t size, const Runs& runs, int8_t* to) {
  const int64_t run = size / runs.count, room = runs.words * GROUP;
  for (int64_t i = 0; i < runs.count; i++) {
    memcpy(to + i * room, filter + i * run, run);
    memset(to + i * room + run, 0, room - run);
  }
}

// A tile [rows][width] to [columns][stride].
FEDHQ_INLINE void store_columns(const float* values, int64_t rows, int64_t columns, int64_t width, float* to,
                                int64_t stride) {
#if defined(__AVX2__)
  if (rows == 8) {
    for (int64_t c = 0; c < columns; c += 8) {
      __m256 a[8], b[8];
      for (int i = 0; i < 8; i++) a[i] = _mm256_loadu_ps(values + i * width + c);
      // Rows are interleaved with their neighbours, then with the second next, then the halves of vectors change places.
      for (int i = 0; i < 8; i += 2) {
        b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
      }
      for (int i = 0; i < 8; i += 4) {
        a[i] = _mm256_shuffle_ps(b[i], b[i + 2], 0x44);
        a[i + 1] = _mm256_shuffle_ps(b[i], b[i + 2], 0xee);
        a[i + 2] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0x44);
        a[i + 3] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0xee);
      }
      for (int i = 0; i < 4; i++) {
        b[i] = _mm256_permute2f128_ps(a[i], a[i + 4], 0x20);
        b[i + 4] = _mm256_permute2f128_ps(a[i], a[i + 4], 0x31);
      }
      for (int i = 0; i < 8; i++)
        if (c + i < columns) _mm256_storeu_ps(to + (c + i) * stride, b[i]);
    }
    return;
  }
#endif
  for (int64_t c = 0; c < columns; c++)
    for (int64_t r = 0; r < rows; r++) to[c * stride + r] = values[r * width + c];
}

// A copy with room up to whole panels; null stays null.
FEDHQ_INLINE float* with_room(Scratch which, const float* from, int64_t size) {
  if (!from) return nullptr;
  float* const to = static_cast<float*>(scratch(which, sizeof(float) * up(size, PANEL)));
  memcpy(to, from, sizeof(float) * size);
  for (int64_t i = size; i < up(size, PANEL); i++) to[i] = 0.0f;
  return to;
}

// Where filter o's tap i of channel c lies in a weight.
FEDHQ_INLINE int64_t weight_place(const Convolution& s, int64_t o, int64_t c, int64_t i) {
  const int64_t kernel = s.kernel_height * s.kernel_width;
  return s.channels_last_weight ? (o * kernel + i) * s.channels + c : (o * s.channels + c) * kernel + i;
}

// Sums of one image's positions, times a scale for every filter and perhaps one for the image, with a bias.
struct Positions {
  float* output;  // of this image
  int64_t filters, count;
  bool channels_last;
  const int32_t* filter_sums;  // this and the next two have room up to whole panels
  const float* filter_scale;
  const float* bias;           // or null
  int32_t zero;  // what every element of the image holds beside its integer, the offset included
  float scale;
  bool has_scale;
  const int64_t* places;  // of the rows among the positions; null where they are all, in order

  FEDHQ_INLINE_MEMBER void operator()(int64_t m, int64_t rows, int64_t n, int64_t columns, const int32_t* sums,
                                      int64_t width) const {
    // Sizes that the compiler knows make the loops vectors.
    if (rows == TILE_ROWS && columns == width)
      write(m, TILE_ROWS, n, width, sums, width);
    else if (rows == TILE_ROWS)
      write(m, TILE_ROWS, n, columns, sums, width);
    else
      write(m, rows, n, columns, sums, width);
  }

  FEDHQ_INLINE_MEMBER void write(int64_t m, int64_t rows, int64_t n, int64_t columns, const int32_t* sums,
                                 int64_t width) const {
    alignas(64) float values[TILE_ROWS * TILE_PANELS * PANEL];
    for (int64_t r = 0; r < rows; r++)
      for (int64_t c = 0; c < width; c++) {
        const int32_t exact = sums[r * width + c] - zero * filter_sums[n + c];
        float value = static_cast<float>(exact) * filter_scale[n + c];
        if (has_scale) value *= scale;
        values[r * width + c] = bias ? value + bias[n + c] : value;
      }
    if (channels_last) {
      for (int64_t r = 0; r < rows; r++)
        memcpy(output + (places ? places[m + r] : m + r) * filters + n, values + r * width, sizeof(float) * columns);
    } else if (places) {
      for (int64_t c = 0; c < columns; c++)
        for (int64_t r = 0; r < rows; r++) output[(n + c) * count + places[m + r]] = values[r * width + c];
    } else {
      store_columns(values, rows, columns, width, output + n * count + m, count);
    }
  }
};

// Where each output position begins in an image of `width` with `channels` last.
FEDHQ_INLINE int64_t* position_starts(int64_t height, int64_t width, int64_t stride_height, int64_t stride_width,
                                      int64_t image_width, int64_t channels) {
  int64_t* const starts = static_cast<int64_t*>(scratch(Scratch::starts, sizeof(int64_t) * height * width));
  for (int64_t h = 0; h < height; h++)
    for (int64_t w = 0; w < width; w++)
      starts[h * width + w] = (h * stride_height * image_width + w * stride_width) * channels;
  return starts;
}

FEDHQ_INLINE int64_t inner_of(const Runs& runs) { return runs.count * runs.words * GROUP; }

// Filters [count][size] of int8, each in the order (rows, columns, channels), to panels and their sums.
FEDHQ_INLINE void pack_filters(const int8_t* filters, int64_t count, int64_t size, const Runs& runs, Column* panels,
                               int32_t* sums) {
  const int64_t inner = inner_of(runs), wide = up(inner, WIDE);
  int8_t* const block = static_cast<int8_t*>(scratch(Scratch::rows, PANEL * wide));
  for (int64_t first = 0; first < count; first += PANEL) {
    memset(block, 0, PANEL * wide);
    for (int64_t i = 0; i < PANEL && first + i < count; i++)
      spread_runs(filters + (first + i) * size, size, runs, block + i * wide);
    pack_across(block, wide, inner, panels + first * inner, sums + first);
  }
}

// The same, into scratch.
FEDHQ_INLINE const Column* packed_filters(const int8_t* filters, int64_t count, int64_t size, const Runs& runs,
                                          int32_t* sums) {
  void* const panels = scratch(Scratch::columns, sizeof(Column) * up(count, PANEL) * inner_of(runs));
  pack_filters(filters, count, size, runs, static_cast<Column*>(panels), sums);
  return static_cast<Column*>(panels);
}

static void convolution_scales(const float* x, const Convolution& s, float* scale, int32_t* zero) {
  const int64_t pixels = s.height * s.width;
  uint32_t* const largest = static_cast<uint32_t*>(scratch(Scratch::bounds, sizeof(uint32_t) * s.channels));
  channel_magnitudes(x, s.batch, s.channels, pixels, s.channels_last, largest);
  const bool is_signed = has_negative(x, s.batch * s.channels * pixels);
  *zero = is_signed ? 128 : 0;
  for (int64_t c = 0; c < s.channels; c++)
    scale[c] = at_least(as_float(largest[c]) / static_cast<float>(highest_of(*zero)), SMALLEST_SCALE);
}

static void int8_convolution_output(const float* x, const float* weight, const float* bias, const Convolution& s,
                                    const float* x_scale, int32_t zero, float* output) {
  const int64_t kernel = s.kernel_height * s.kernel_width, size = s.channels * kernel;
  const int64_t height = padded_height(s), width = padded_width(s), positions = s.out_height * s.out_width;
  // Filters take up the input's scales before they are rounded.
  float* const folded =
      static_cast<float*>(scratch(Scratch::values, sizeof(float) * (size + s.out + s.channels * (1 + s.width))));
  float *const filter_scale = folded + size, *const inverse = filter_scale + s.out;
  int8_t* const filters = static_cast<int8_t*>(scratch(Scratch::filters, s.out * size));
  for (int64_t o = 0; o < s.out; o++) {
    const float* const from = weight + o * size;
    if (s.channels_last_weight)
      for (int64_t i = 0; i < size; i += s.channels)
        for (int64_t c = 0; c < s.channels; c++) folded[i + c] = from[i + c] * x_scale[c];
    else
      for (int64_t c = 0; c < s.channels; c++)
        for (int64_t i = 0; i < kernel; i++) folded[i * s.channels + c] = from[c * kernel + i] * x_scale[c];
    filter_scale[o] = symmetric_scale(largest_magnitude(folded, size));
    round_symmetric(folded, size, 1.0f / filter_scale[o], filters + o * size);
  }
  Runs runs;
  find_runs(s.channels, s.kernel_height, s.kernel_width, s.dilation_height, s.dilation_width, width, &runs);
  int32_t* const sums = static_cast<int32_t*>(scratch(Scratch::sums, sizeof(int32_t) * up(s.out, PANEL)));
  const Column* const panels = packed_filters(filters, s.out, size, runs, sums);
  for (int64_t c = 0; c < s.channels; c++) inverse[c] = 1.0f / x_scale[c];
  const ByChannel round{repeated(inverse, s.channels, s.width, inverse + s.channels), zero - 128, highest_of(zero)};
  const int64_t* const starts =
      position_starts(s.out_height, s.out_width, s.stride_height, s.stride_width, width, s.channels);
  const float* const scales = with_room(Scratch::scales, filter_scale, s.out);
  const float* const biases = with_room(Scratch::bias, bias, s.out);
  Row* const image = static_cast<Row*>(scratch(Scratch::image, sizeof(Row) * height * width * s.channels));
  const Inner inner{runs.starts, runs.count, runs.words, GROUP};
  for (int64_t b = 0; b < s.batch; b++) {
    round_image(x, s, s.channels, s.height, s.width, b, round, zero - 128, s.top, s.left, height, width, image);
    product([=](int64_t m) { return image + starts[m]; }, positions, s.channels * sizeof(Row), inner, panels, s.out,
            Positions{output + b * s.out * positions, s.out, positions, s.channels_last_out, sums, scales, biases,
                      OFFSET + zero - 128, 1.0f, false, nullptr});
  }
}

static void grid_convolution_output(const float* x, const int8_t* integers, const float* filter_scale,
                                    const float* bias, const Convolution& s, int bits, float* x_scale,
                                    float* zero_point, float* output) {
  const int lowest = -(1 << (bits - 1)), highest = -lowest - 1;
  const int64_t kernel = s.kernel_height * s.kernel_width, size = s.channels * kernel;
  const int64_t height = padded_height(s), width = padded_width(s), positions = s.out_height * s.out_width;
  const int64_t pixels = s.height * s.width * s.channels;
  int8_t* const filters = static_cast<int8_t*>(scratch(Scratch::filters, s.out * size));
  if (s.channels_last_weight)
    memcpy(filters, integers, s.out * size);
  else
    for (int64_t o = 0; o < s.out; o++)
      for (int64_t c = 0; c < s.channels; c++)
        for (int64_t i = 0; i < kernel; i++)
          filters[o * size + i * s.channels + c] = integers[o * size + c * kernel + i];
  Runs runs;
  find_runs(s.channels, s.kernel_height, s.kernel_width, s.dilation_height, s.dilation_width, width, &runs);
  int32_t* const sums = static_cast<int32_t*>(scratch(Scratch::sums, sizeof(int32_t) * up(s.out, PANEL)));
  const Column* const panels = packed_filters(filters, s.out, size, runs, sums);
  const int64_t* const starts =
      position_starts(s.out_height, s.out_width, s.stride_height, s.stride_width, width, s.channels);
  const float* const scales = with_room(Scratch::scales, filter_scale, s.out);
  const float* const biases = with_room(Scratch::bias, bias, s.out);
  Row* const image = static_cast<Row*>(scratch(Scratch::image, sizeof(Row) * height * width * s.channels));
  const Inner inner{runs.starts, runs.count, runs.words, GROUP};
  for (int64_t b = 0; b < s.batch; b++) {
    const Grid grid = asymmetric_grid(x + b * pixels, pixels, lowest, highest);
    x_scale[b] = grid.scale, zero_point[b] = grid.zero_point;
    const int zero = static_cast<int>(grid.zero_point);
    const OnGrid round{1.0f / grid.scale, zero, lowest, highest};
    round_image(x, s, s.channels, s.height, s.width, b, round, zero, s.top, s.left, height, width, image);
    product([=](int64_t m) { return image + starts[m]; }, positions, s.channels * sizeof(Row), inner, panels, s.out,
            Positions{output + b * s.out * positions, s.out, positions, s.channels_last_out, sums, scales, biases,
                      OFFSET + zero, grid.scale, true, nullptr});
  }
}

static void grid_image_values(const float* x, const Convolution& s, int bits, const float* x_scale,
                              const float* zero_point, bool is_short, void* values) {
  const int lowest = -(1 << (bits - 1)), highest = -lowest - 1;
  const int64_t height = padded_height(s), width = padded_width(s), size = height * width * s.channels;
  Row* const image = static_cast<Row*>(scratch(Scratch::image, sizeof(Row) * size));
  for (int64_t b = 0; b < s.batch; b++) {
    const int zero = static_cast<int>(zero_point[b]);
    const OnGrid round{1.0f / x_scale[b], zero, lowest, highest};
    round_image(x, s, s.channels, s.height, s.width, b, round, zero, s.top, s.left, height, width, image);
    values_of(image, size, OFFSET + zero, x_scale[b], is_short, values, b * size);
  }
}

}  // namespace LEVEL
}  // namespace fedhq
