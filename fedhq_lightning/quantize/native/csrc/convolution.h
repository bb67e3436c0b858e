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

// Sums of one image's positions, times a scale for every filter and perhaps one for the image, with a bias.
struct Positions {
  float* output;  // of this image
  int64_t filters, count;
  bool channels_last;
  const int32_t* filter_sums;
  const float* filter_scale;
  const float* bias;
  int32_t zero;  // what every element of the image holds beside its integer, the offset included
  float scale;
  bool has_scale;

  FEDHQ_INLINE_MEMBER void operator()(int64_t m, int64_t rows, int64_t n, int64_t columns, const int32_t* sums,
                                      int64_t width) const {
    float values[TILE_ROWS * TILE_PANELS * PANEL];
    for (int64_t r = 0; r < rows; r++)
      for (int64_t c = 0; c < columns; c++) {
        const int32_t exact = sums[r * width + c] - zero * filter_sums[n + c];
        float value = static_cast<float>(exact) * filter_scale[n + c];
        if (has_scale) value *= scale;
        values[r * width + c] = bias ? value + bias[n + c] : value;
      }
    if (channels_last) {
      for (int64_t r = 0; r < rows; r++)
        memcpy(output + (m + r) * filters + n, values + r * width, sizeof(float) * columns);
    } else {
      for (int64_t c = 0; c < columns; c++)
        for (int64_t r = 0; r < rows; r++) output[(n + c) * count + m + r] = values[r * width + c];
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

// Filters [count][size] of int8, each in the order (rows, columns, channels), to panels and their sums.
FEDHQ_INLINE const Column* pack_filters(const int8_t* filters, int64_t count, int64_t size, const Runs& runs,
                                        int32_t* sums) {
  const int64_t inner = runs.count * runs.words * GROUP, wide = up(inner, WIDE);
  Column* const panels = static_cast<Column*>(scratch(Scratch::columns, sizeof(Column) * up(count, PANEL) * inner));
  int8_t* const block = static_cast<int8_t*>(scratch(Scratch::rows, PANEL * wide));
  for (int64_t first = 0; first < count; first += PANEL) {
    memset(block, 0, PANEL * wide);
    for (int64_t i = 0; i < PANEL && first + i < count; i++)
      spread_runs(filters + (first + i) * size, size, runs, block + i * wide);
    pack_across(block, wide, inner, panels + first * inner, sums + first);
  }
  return panels;
}

static void convolution_scales(const float* x, const Convolution& s, float* scale, int32_t* zero) {
  const int64_t pixels = s.height * s.width;
  uint32_t* const largest = static_cast<uint32_t*>(scratch(Scratch::bounds, sizeof(uint32_t) * s.channels));
  channel_magnitudes(x, s.batch, s.channels, pixels, s.channels_last, largest);
  const bool is_signed = has_negative(x, s.batch * s.channels * pixels);
  *zero = is_signed ? 128 : 0;
  for (int64_t c = 0; c < s.channels; c++)
    scale[c] = at_least(as_float(largest[c]) / highest_of(*zero), SMALLEST_SCALE);
}

static void int8_convolution_output(const float* x, const float* weight, const float* bias, const Convolution& s,
                                    const float* x_scale, int32_t zero, float* output) {
  const int64_t kernel = s.kernel_height * s.kernel_width, size = s.channels * kernel;
  const int64_t height = padded_height(s), width = padded_width(s), positions = s.out_height * s.out_width;
  // Filters take up the input's scales before they are rounded.
  float* const folded = static_cast<float*>(scratch(Scratch::values, sizeof(float) * (size + s.out + s.channels)));
  float *const filter_scale = folded + size, *const inverse = filter_scale + s.out;
  int8_t* const filters = static_cast<int8_t*>(scratch(Scratch::filters, s.out * size));
  for (int64_t o = 0; o < s.out; o++) {
    const float* const from = weight + o * size;
    for (int64_t c = 0; c < s.channels; c++)
      for (int64_t i = 0; i < kernel; i++) folded[i * s.channels + c] = from[c * kernel + i] * x_scale[c];
    filter_scale[o] = symmetric_scale(largest_magnitude(folded, size));
    round_symmetric(folded, size, 1.0f / filter_scale[o], filters + o * size);
  }
  Runs runs;
  find_runs(s.channels, s.kernel_height, s.kernel_width, s.dilation_height, s.dilation_width, width, &runs);
  int32_t* const sums = static_cast<int32_t*>(scratch(Scratch::sums, sizeof(int32_t) * up(s.out, PANEL)));
  const Column* const panels = pack_filters(filters, s.out, size, runs, sums);
  for (int64_t c = 0; c < s.channels; c++) inverse[c] = 1.0f / x_scale[c];
  const ByChannel round{inverse, zero - 128, highest_of(zero)};
  const int64_t* const starts =
      position_starts(s.out_height, s.out_width, s.stride_height, s.stride_width, width, s.channels);
  Row* const image = static_cast<Row*>(scratch(Scratch::image, sizeof(Row) * height * width * s.channels));
  const Inner inner{runs.starts, runs.count, runs.words, GROUP};
  for (int64_t b = 0; b < s.batch; b++) {
    round_image(x, s, s.channels, s.height, s.width, b, round, zero - 128, s.top, s.left, 1, 1, height, width, image);
    product([=](int64_t m) { return image + starts[m]; }, positions, s.channels * sizeof(Row), inner, panels, s.out,
            Positions{output + b * s.out * positions, s.out, positions, s.channels_last_out, sums, filter_scale, bias,
                      OFFSET + zero - 128, 1.0f, false});
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
  for (int64_t o = 0; o < s.out; o++)
    for (int64_t c = 0; c < s.channels; c++)
      for (int64_t i = 0; i < kernel; i++)
        filters[o * size + i * s.channels + c] = integers[o * size + c * kernel + i];
  Runs runs;
  find_runs(s.channels, s.kernel_height, s.kernel_width, s.dilation_height, s.dilation_width, width, &runs);
  int32_t* const sums = static_cast<int32_t*>(scratch(Scratch::sums, sizeof(int32_t) * up(s.out, PANEL)));
  const Column* const panels = pack_filters(filters, s.out, size, runs, sums);
  const int64_t* const starts =
      position_starts(s.out_height, s.out_width, s.stride_height, s.stride_width, width, s.channels);
  Row* const image = static_cast<Row*>(scratch(Scratch::image, sizeof(Row) * height * width * s.channels));
  const Inner inner{runs.starts, runs.count, runs.words, GROUP};
  for (int64_t b = 0; b < s.batch; b++) {
    const Grid grid = asymmetric_grid(x + b * pixels, pixels, lowest, highest);
    x_scale[b] = grid.scale, zero_point[b] = grid.zero_point;
    const int zero = static_cast<int>(grid.zero_point);
    const OnGrid round{1.0f / grid.scale, grid.zero_point, static_cast<float>(lowest), static_cast<float>(highest)};
    round_image(x, s, s.channels, s.height, s.width, b, round, zero, s.top, s.left, 1, 1, height, width, image);
    product([=](int64_t m) { return image + starts[m]; }, positions, s.channels * sizeof(Row), inner, panels, s.out,
            Positions{output + b * s.out * positions, s.out, positions, s.channels_last_out, sums, filter_scale, bias,
                      OFFSET + zero, grid.scale, true});
  }
}

// Input's gradient: the gradient's integers, spread by the stride, convolved with the mirrored weight.
static void int8_convolution_input_gradient(const float* weight, const float* gradient, const Convolution& s,
                                            const float* gradient_scale, float* x_gradient) {
  const int64_t kernel = s.kernel_height * s.kernel_width, size = s.out * kernel;
  float* const folded = static_cast<float*>(scratch(Scratch::values, sizeof(float) * (size + s.channels + s.out)));
  float *const filter_scale = folded + size, *const inverse = filter_scale + s.channels;
  int8_t* const filters = static_cast<int8_t*>(scratch(Scratch::filters, s.channels * size));
  for (int64_t c = 0; c < s.channels; c++) {
    for (int64_t o = 0; o < s.out; o++)
      for (int64_t i = 0; i < kernel; i++)
        folded[(kernel - 1 - i) * s.out + o] = weight[(o * s.channels + c) * kernel + i] * gradient_scale[o];
    filter_scale[c] = symmetric_scale(largest_magnitude(folded, size));
    round_symmetric(folded, size, 1.0f / filter_scale[c], filters + c * size);
  }
  const int64_t reach_height = s.dilation_height * (s.kernel_height - 1),
                reach_width = s.dilation_width * (s.kernel_width - 1);
  const int64_t height = padded_height(s) + reach_height, width = padded_width(s) + reach_width;
  Runs runs;
  find_runs(s.out, s.kernel_height, s.kernel_width, s.dilation_height, s.dilation_width, width, &runs);
  int32_t* const sums = static_cast<int32_t*>(scratch(Scratch::sums, sizeof(int32_t) * up(s.channels, PANEL)));
  const Column* const panels = pack_filters(filters, s.channels, size, runs, sums);
  for (int64_t o = 0; o < s.out; o++) inverse[o] = 1.0f / gradient_scale[o];
  const ByChannel round{inverse, 0, HIGHEST};
  const int64_t* const starts = position_starts(s.height, s.width, 1, 1, width, s.out);
  Row* const image = static_cast<Row*>(scratch(Scratch::image, sizeof(Row) * height * width * s.out));
  const Row* const first = image + (s.top * width + s.left) * s.out;
  const Inner inner{runs.starts, runs.count, runs.words, GROUP};
  const int64_t pixels = s.height * s.width;
  Convolution of_gradient = s;
  of_gradient.channels_last = s.channels_last_out;
  for (int64_t b = 0; b < s.batch; b++) {
    round_image(gradient, of_gradient, s.out, s.out_height, s.out_width, b, round, 0, reach_height, reach_width,
                s.stride_height, s.stride_width, height, width, image);
    product([=](int64_t m) { return first + starts[m]; }, pixels, s.out * sizeof(Row), inner, panels, s.channels,
            Positions{x_gradient + b * s.channels * pixels, s.channels, pixels, s.channels_last, sums, filter_scale,
                      nullptr, OFFSET, 1.0f, false});
  }
}

constexpr int64_t MOST_POSITIONS = 65536;  // whose products stay within 32 bits
constexpr int64_t BYTES_OF_PANELS_AT_ONCE = 256 * 1024;

// Weight's gradient: rows are positions of the weight over the input with channels first, columns the filters over the
// gradient's integers.
static void int8_convolution_weight_gradient(const float* x, const float* gradient, const Convolution& s,
                                             const float* x_scale, int32_t zero, const float* gradient_scale,
                                             float* weight_gradient) {
  const int64_t kernel = s.kernel_height * s.kernel_width, size = s.channels * kernel;
  const int64_t positions = s.out_height * s.out_width, words = words_of(s.out_width), room = words * GROUP;
  const int64_t height = padded_height(s), width = padded_width(s), phases = s.stride_width;
  // A phase holds the columns that the outputs of one row meet one after the other.
  const int64_t phase_width = (width + phases - 1) / phases + room;
  const int64_t phase_size = height * phase_width, plane = phases * phase_size, image_size = s.channels * plane;
  const int64_t column = s.out_height * words * PANEL_ELEMENTS;  // a panel of one image
  const int64_t by_memory = BYTES_OF_PANELS_AT_ONCE / larger(1, column * TILE_PANELS * sizeof(Column));
  const int64_t some = larger(1, smaller(s.batch, smaller(larger(1, by_memory), MOST_POSITIONS / larger(1, positions))));
  const int64_t panels_count = up(s.out, PANEL) / PANEL;
  Row* const planes = static_cast<Row*>(scratch(Scratch::image, sizeof(Row) * some * image_size));
  Column* const panels = static_cast<Column*>(scratch(Scratch::columns, sizeof(Column) * some * column * panels_count));
  int64_t* const starts = static_cast<int64_t*>(scratch(Scratch::starts, sizeof(int64_t) * some * s.out_height));
  int64_t* const rows = static_cast<int64_t*>(scratch(Scratch::row_starts, sizeof(int64_t) * size));
  int64_t* const totals = static_cast<int64_t*>(scratch(Scratch::totals, sizeof(int64_t) * (s.out * size + s.out)));
  int64_t* const gradient_sums = totals + s.out * size;
  int32_t* const sums = static_cast<int32_t*>(scratch(Scratch::sums, sizeof(int32_t) * up(s.out, PANEL)));
  float* const inverse = static_cast<float*>(scratch(Scratch::values, sizeof(float) * (s.channels + s.out)));
  float* const gradient_inverse = inverse + s.channels;
  const int64_t wide = up(larger(s.out, PANEL), WIDE);
  // A row of the input in both orders, and one of the gradient with room for whole words.
  int8_t* const row = static_cast<int8_t*>(
      scratch(Scratch::rows, 2 * s.channels * s.width + s.out * s.out_width + (room + GROUP) * wide));
  int8_t* const ordered = row + s.channels * s.width;
  int8_t* const gradient_row = ordered + s.channels * s.width;
  int8_t* const gradient_pixels = gradient_row + s.out * s.out_width;
  memset(totals, 0, sizeof(int64_t) * (s.out * size + s.out));
  for (int64_t c = 0; c < s.channels; c++) inverse[c] = 1.0f / x_scale[c];
  for (int64_t o = 0; o < s.out; o++) gradient_inverse[o] = 1.0f / gradient_scale[o];
  const ByChannel round{inverse, zero - 128, highest_of(zero)}, round_gradient{gradient_inverse, 0, HIGHEST};
  Convolution of_gradient = s;
  of_gradient.channels_last = s.channels_last_out;
  for (int64_t c = 0; c < s.channels; c++)
    for (int64_t i = 0; i < s.kernel_height; i++)
      for (int64_t j = 0; j < s.kernel_width; j++) {
        const int64_t over = j * s.dilation_width;
        rows[(c * s.kernel_height + i) * s.kernel_width + j] =
            c * plane + (over % phases) * phase_size + i * s.dilation_height * phase_width + over / phases;
      }
  memset(gradient_pixels, 0, (room + GROUP) * wide);
  for (int64_t from = 0; from < s.batch; from += some) {
    const int64_t count = smaller(some, s.batch - from);
    for (int64_t b = 0; b < count; b++) {
      Row* const image = planes + b * image_size;
      fill(image, image_size, zero - 128);
      for (int64_t h = 0; h < s.height; h++) {
        round_row(x, s, s.channels, s.height, s.width, from + b, h, round, row);
        const int8_t* line = row;
        if (s.channels_last) {
          transpose_bytes(row, s.channels, s.width, s.channels, ordered, s.width);
          line = ordered;
        }
        for (int64_t c = 0; c < s.channels; c++) {
          Row* const to = image + c * plane + (s.top + h) * phase_width;
          if (phases == 1) {
            for (int64_t w = 0; w < s.width; w++) to[s.left + w] = static_cast<Row>(line[c * s.width + w] + OFFSET);
          } else {
            for (int64_t w = 0; w < s.width; w++) {
              const int64_t place = s.left + w;
              to[(place % phases) * phase_size + place / phases] = static_cast<Row>(line[c * s.width + w] + OFFSET);
            }
          }
        }
      }
      for (int64_t h = 0; h < s.out_height; h++) {
        starts[b * s.out_height + h] = b * image_size + h * s.stride_height * phase_width;
        round_row(gradient, of_gradient, s.out, s.out_height, s.out_width, from + b, h, round_gradient, gradient_row);
        if (s.channels_last_out)
          for (int64_t w = 0; w < s.out_width; w++) memcpy(gradient_pixels + w * wide, gradient_row + w * s.out, s.out);
        else
          transpose_bytes(gradient_row, s.out_width, s.out, s.out_width, gradient_pixels, wide);
        for (int64_t p = 0; p < panels_count; p++) {
          Column* const to = panels + (p * count + b) * column + h * words * PANEL_ELEMENTS;
          for (int64_t w = 0; w < words; w++)
            interleave(gradient_pixels + w * GROUP * wide + p * PANEL, wide, to + w * PANEL_ELEMENTS);
        }
      }
    }
    for (int64_t p = 0; p < panels_count; p++) {
      const Column* const panel = panels + p * count * column;
      for (int64_t c = 0; c < PANEL; c++) sums[p * PANEL + c] = 0;
      for (int64_t w = 0; w < count * column; w += PANEL_ELEMENTS) add_words(panel + w, sums + p * PANEL);
    }
    for (int64_t o = 0; o < s.out; o++) gradient_sums[o] += sums[o];
    const Inner inner{starts, count * s.out_height, words, GROUP};
    product([=](int64_t m) { return planes + rows[m]; }, size, plane * sizeof(Row) / larger(1, kernel), inner, panels,
            s.out, [=](int64_t m, int64_t lines, int64_t n, int64_t columns, const int32_t* found, int64_t across) {
              for (int64_t c = 0; c < columns; c++) {
                const int64_t offset = static_cast<int64_t>(OFFSET) * sums[n + c];
                for (int64_t r = 0; r < lines; r++)
                  totals[(n + c) * size + m + r] += found[r * across + c] - offset;
              }
            });
  }
  for (int64_t o = 0; o < s.out; o++)
    for (int64_t c = 0; c < s.channels; c++)
      for (int64_t i = 0; i < kernel; i++) {
        const int64_t place = o * size + c * kernel + i, total = totals[place] + (128 - zero) * gradient_sums[o];
        weight_gradient[place] = static_cast<float>(total) * gradient_scale[o] * x_scale[c];
      }
}

static void convolution_gradient_scales(const float* gradient, const Convolution& s, float* scale) {
  uint32_t* const largest = static_cast<uint32_t*>(scratch(Scratch::bounds, sizeof(uint32_t) * s.out));
  channel_magnitudes(gradient, s.batch, s.out, s.out_height * s.out_width, s.channels_last_out, largest);
  for (int64_t o = 0; o < s.out; o++) scale[o] = symmetric_scale(as_float(largest[o]));
}

}  // namespace LEVEL
}  // namespace fedhq
