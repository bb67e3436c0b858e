// Gradients of a convolution in integers: of its input and of its weight.
#pragma once
#include "convolution.h"

namespace fedhq {
namespace LEVEL {

FEDHQ_INLINE int64_t common_divisor(int64_t a, int64_t b) {
  while (b) {
    const int64_t rest = a % b;
    a = b, b = rest;
  }
  return a;
}

// What pixels of the input whose place leaves one rest by the stride have in common, along one dimension: the taps of the
// kernel that met them, as a kernel over the gradient, mirrored.
struct Phase {
  int64_t taps, first_tap, tap_step;  // of the forward kernel, from the last to the first
  int64_t first_pixel, pixels;        // pixels first_pixel, first_pixel + stride, ...
  int64_t start, dilation;            // where in the gradient the first pixel's kernel begins, and its dilation there
};

FEDHQ_INLINE Phase phase_of(int64_t rest, int64_t stride, int64_t dilation, int64_t kernel, int64_t before,
                            int64_t size) {
  Phase phase{0, 0, 0, 0, 0, 0, 1};
  const int64_t divisor = common_divisor(stride, dilation), step = stride / divisor;
  int64_t tap = 0;
  while (tap < step && tap < kernel && tap * dilation % stride != rest) tap++;
  phase.first_pixel = ((rest - before) % stride + stride) % stride;
  if (phase.first_pixel < size) phase.pixels = (size - phase.first_pixel + stride - 1) / stride;
  if (tap >= step || tap >= kernel) return phase;
  phase.taps = (kernel - tap + step - 1) / step;
  phase.tap_step = step;
  phase.first_tap = tap + (phase.taps - 1) * step;
  phase.dilation = dilation / divisor;
  phase.start = (phase.first_pixel + before - phase.first_tap * dilation) / stride;  // exact, perhaps negative
  return phase;
}

// One scale, symmetric, for values that take up a factor of their channel before; `factors` are for all pixels of a row.
struct FoldedByChannel {
  const float* factors;
  float inverse;
  template <class Integer>
  FEDHQ_INLINE_MEMBER void pixels(const float* __restrict x, int64_t size, int offset, Integer* __restrict to) const {
    for (int64_t i = 0; i < size; i++) to[i] = static_cast<Integer>(nearest(x[i] * factors[i] * inverse) + offset);
  }
  template <class Integer>
  FEDHQ_INLINE_MEMBER void channel(const float* __restrict x, int64_t width, int64_t c, int offset,
                                   Integer* __restrict to) const {
    const float factor = factors[c];
    for (int64_t w = 0; w < width; w++) to[w] = static_cast<Integer>(nearest(x[w] * factor * inverse) + offset);
  }
};

// A scale for every channel, symmetric, for values that take up one factor before.
struct FoldedByImage {
  float factor;
  const float* inverses;
  template <class Integer>
  FEDHQ_INLINE_MEMBER void pixels(const float* __restrict x, int64_t size, int offset, Integer* __restrict to) const {
    for (int64_t i = 0; i < size; i++) to[i] = static_cast<Integer>(nearest(x[i] * factor * inverses[i]) + offset);
  }
  template <class Integer>
  FEDHQ_INLINE_MEMBER void channel(const float* __restrict x, int64_t width, int64_t c, int offset,
                                   Integer* __restrict to) const {
    const float inverse = inverses[c];
    for (int64_t w = 0; w < width; w++) to[w] = static_cast<Integer>(nearest(x[w] * factor * inverse) + offset);
  }
};

// Filters [channels][kernel][out] and as much room behind them.
FEDHQ_INLINE int8_t* filters_of_input(const Convolution& s) {
  return static_cast<int8_t*>(
      scratch(Scratch::filters, 2 * s.channels * s.out * s.kernel_height * s.kernel_width));
}

// Input's gradient: pixels of one phase after the other, each a convolution of the gradient's integers with the mirrored
// taps that met them. `round_of(b)` rounds the gradient of image b; `image_scale` (or null) is of every image.
template <class RoundOf>
FEDHQ_INLINE void input_gradient(int8_t* filters, const float* filter_scale, const float* gradient,
                                 const Convolution& s, const RoundOf& round_of, const float* image_scale,
                                 float* x_gradient) {
  const int64_t kernel = s.kernel_height * s.kernel_width, size = s.out * kernel;
  const int64_t pixels = s.height * s.width, num_phases = s.stride_height * s.stride_width;
  int8_t* const some = filters + s.channels * size;  // taps of one phase
  // The gradient with zeros around it, as far as kernels reach.
  const int64_t top = s.dilation_height * (s.kernel_height - 1) / s.stride_height + 1,
                left = s.dilation_width * (s.kernel_width - 1) / s.stride_width + 1;
  const int64_t height = top + larger(s.out_height, padded_height(s) / s.stride_height + 1),
                width = left + larger(s.out_width, padded_width(s) / s.stride_width + 1);
  // All phases' panels, sums, and where their positions begin and end up.
  const int64_t room = up(s.channels, PANEL), most = (s.out * kernel + GROUP * kernel) * room;
  Column* const panels = static_cast<Column*>(scratch(Scratch::columns, sizeof(Column) * most));
  int32_t* const sums = static_cast<int32_t*>(scratch(Scratch::sums, sizeof(int32_t) * num_phases * room));
  int64_t* const starts = static_cast<int64_t*>(scratch(Scratch::starts, sizeof(int64_t) * 2 * pixels));
  int64_t* const places = starts + pixels;
  Runs* const runs = static_cast<Runs*>(scratch(Scratch::runs, sizeof(Runs) * num_phases));
  bool is_whole = true;
  int64_t done = 0, packed = 0;
  for (int64_t p = 0; p < num_phases; p++) {
    const Phase down = phase_of(p / s.stride_width, s.stride_height, s.dilation_height, s.kernel_height, s.top, s.height);
    const Phase right = phase_of(p % s.stride_width, s.stride_width, s.dilation_width, s.kernel_width, s.left, s.width);
    runs[p].positions = 0;
    if (!down.pixels || !right.pixels) continue;
    if (!down.taps || !right.taps) {
      is_whole = false;
      continue;
    }
    find_runs(s.out, down.taps, right.taps, down.dilation, right.dilation, width, &runs[p]);
    runs[p].positions = down.pixels * right.pixels;
    for (int64_t c = 0; c < s.channels; c++)
      for (int64_t i = 0; i < down.taps; i++)
        for (int64_t j = 0; j < right.taps; j++) {
          const int64_t tap = (down.first_tap - i * down.tap_step) * s.kernel_width + right.first_tap - j * right.tap_step;
          memcpy(some + ((c * down.taps + i) * right.taps + j) * s.out, filters + c * size + tap * s.out, s.out);
        }
    pack_filters(some, s.channels, down.taps * right.taps * s.out, runs[p], panels + packed, sums + p * room);
    packed += room * inner_of(runs[p]);
    for (int64_t h = 0; h < down.pixels; h++)
      for (int64_t w = 0; w < right.pixels; w++, done++) {
        starts[done] = ((top + down.start + h) * width + left + right.start + w) * s.out;
        places[done] = (down.first_pixel + h * s.stride_height) * s.width + right.first_pixel + w * s.stride_width;
      }
  }
  if (!is_whole) memset(x_gradient, 0, sizeof(float) * s.batch * s.channels * pixels);  // pixels that no output met
  const float* const scales = with_room(Scratch::scales, filter_scale, s.channels);
  Row* const image = static_cast<Row*>(scratch(Scratch::image, sizeof(Row) * height * width * s.out));
  Convolution of_gradient = s;
  of_gradient.channels_last = s.channels_last_out;
  for (int64_t b = 0; b < s.batch; b++) {
    round_image(gradient, of_gradient, s.out, s.out_height, s.out_width, b, round_of(b), 0, top, left, height, width,
                image);
    const int64_t* from = starts;
    const int64_t* to = places;
    const Column* panel = panels;
    for (int64_t p = 0; p < num_phases; p++) {
      if (!runs[p].positions) continue;
      const Inner inner{runs[p].starts, runs[p].count, runs[p].words, GROUP};
      product([=](int64_t m) { return image + from[m]; }, runs[p].positions, s.out * sizeof(Row), inner, panel,
              s.channels,
              Positions{x_gradient + b * s.channels * pixels, s.channels, pixels, s.channels_last, sums + p * room,
                        scales, nullptr, OFFSET, image_scale ? image_scale[b] : 1.0f, image_scale != nullptr,
                        num_phases == 1 ? nullptr : to});
      from += runs[p].positions, to += runs[p].positions, panel += room * inner_of(runs[p]);
    }
  }
}

static void int8_convolution_input_gradient(const float* weight, const float* gradient, const Convolution& s,
                                            const float* gradient_scale, float* x_gradient) {
  const int64_t kernel = s.kernel_height * s.kernel_width, size = s.out * kernel;
  float* const folded = static_cast<float*>(
      scratch(Scratch::values, sizeof(float) * ((PANEL + 1) * size + s.channels + s.out * (1 + s.out_width))));
  float* const factors = repeated(gradient_scale, s.out, kernel, folded + PANEL * size);
  float *const filter_scale = factors + size, *const inverse = filter_scale + s.channels;
  int8_t* const filters = filters_of_input(s);
  // Some channels at once, which lie beside each other where channels are last.
  for (int64_t first = 0; first < s.channels; first += PANEL) {
    const int64_t some = smaller(PANEL, s.channels - first);
    const int64_t step = some % 8 ? 1 : 8;  // nothing is read beyond the weight
    if (s.channels_last_weight)
      for (int64_t i = 0; i < kernel; i++)
        for (int64_t o = 0; o < s.out; o += step)
          store_columns(weight + (o * kernel + i) * s.channels + first, smaller(step, s.out - o), some,
                        kernel * s.channels, folded + i * s.out + o, size);
    else
      for (int64_t c = 0; c < some; c++)
        for (int64_t o = 0; o < s.out; o++)
          for (int64_t i = 0; i < kernel; i++)
            folded[c * size + i * s.out + o] = weight[(o * s.channels + first + c) * kernel + i];
    for (int64_t c = 0; c < some; c++) {
      float* const filter = folded + c * size;
      for (int64_t i = 0; i < size; i++) filter[i] *= factors[i];
      filter_scale[first + c] = symmetric_scale(largest_magnitude(filter, size));
      round_symmetric(filter, size, 1.0f / filter_scale[first + c], filters + (first + c) * size);
    }
  }
  for (int64_t o = 0; o < s.out; o++) inverse[o] = 1.0f / gradient_scale[o];
  const ByChannel round{repeated(inverse, s.out, s.out_width, inverse + s.out), 0, 127};
  input_gradient(filters, filter_scale, gradient, s, [=](int64_t) { return round; }, nullptr, x_gradient);
}

static void grid_convolution_input_gradient(const int8_t* weight, const float* weight_scale, const float* gradient,
                                            const Convolution& s, const float* image_scale, float* x_gradient) {
  const int64_t kernel = s.kernel_height * s.kernel_width, size = s.out * kernel;
  float* const ones =
      static_cast<float*>(scratch(Scratch::values, sizeof(float) * (s.channels + s.out * s.out_width)));
  const float* const factors = repeated(weight_scale, s.out, s.out_width, ones + s.channels);
  int8_t* const filters = filters_of_input(s);
  for (int64_t c = 0; c < s.channels; c++) {
    ones[c] = 1.0f;
    for (int64_t o = 0; o < s.out; o++)
      for (int64_t i = 0; i < kernel; i++)
        filters[c * size + i * s.out + o] = weight[weight_place(s, o, c, i)];
  }
  const auto round_of = [=](int64_t b) { return FoldedByChannel{factors, 1.0f / image_scale[b]}; };
  input_gradient(filters, ones, gradient, s, round_of, image_scale, x_gradient);
}

constexpr int64_t MOST_POSITIONS = 65536;  // whose products stay within 32 bits
constexpr int64_t BYTES_OF_PANELS_AT_ONCE = 32 * 1024;  // of which most stay in the first-level cache over all rows

// Whether a row (or column) of the padded input meets any output.
FEDHQ_INLINE bool is_met(int64_t place, int64_t kernel, int64_t dilation, int64_t stride) {
  for (int64_t i = 0; i < kernel; i++)
    if ((place - i * dilation) % stride == 0) return true;
  return false;
}

// The columns of the padded input that outputs meet one after the other, in one of `stride` phases.
struct ColumnPhase {
  int64_t first, count;  // columns of the input: first, first + stride, ...
  int64_t place;         // where the first one lies, in elements from the beginning of a channel's row
};

constexpr int64_t PIECE_OF_ROW = 16;

// Integers of one row, plus the offset.
FEDHQ_INLINE void copy_row(const int8_t* from, int64_t size, Row* to) {
  if (size < PIECE_OF_ROW) {
    for (int64_t w = 0; w < size; w++) to[w] = static_cast<Row>(from[w] + OFFSET);
    return;
  }
  // The last piece may overlap the one before.
  for (int64_t start = 0; start < size; start += PIECE_OF_ROW) {
    const int64_t w = smaller(start, size - PIECE_OF_ROW);
    for (int64_t i = 0; i < PIECE_OF_ROW; i++) to[w + i] = static_cast<Row>(from[w + i] + OFFSET);
  }
}

FEDHQ_INLINE void copy_phase(const int8_t* from, int64_t count, int64_t stride, Row* to) {
  if (stride == 1)
    copy_row(from, count, to);
  else if (stride == 2)  // a stride that the compiler knows makes vectors
    for (int64_t w = 0; w < count; w++) to[w] = static_cast<Row>(from[2 * w] + OFFSET);
  else
    for (int64_t w = 0; w < count; w++) to[w] = static_cast<Row>(from[stride * w] + OFFSET);
}

// How the input lies for the weight's gradient: channels first, in each row one phase after the other.
struct Planes {
  int64_t phase_width, phase_size, plane, image;  // elements; a phase holds all rows, a plane all phases of a channel
  const ColumnPhase* met;                         // phases that no output meets stay as they are
  int64_t num_met;
};

FEDHQ_INLINE Planes planes_of(const Convolution& s) {
  const int64_t phases = s.stride_width, room = words_of(s.out_width) * GROUP;
  Planes planes;
  planes.phase_width = (padded_width(s) + phases - 1) / phases + room;
  planes.phase_size = padded_height(s) * planes.phase_width;
  planes.plane = phases * planes.phase_size;
  planes.image = s.channels * planes.plane;
  ColumnPhase* const met = static_cast<ColumnPhase*>(scratch(Scratch::phases, sizeof(ColumnPhase) * phases));
  planes.met = met;
  planes.num_met = 0;
  for (int64_t phase = 0; phase < phases; phase++) {
    const int64_t first = ((phase - s.left) % phases + phases) % phases;
    if (first < s.width && is_met(phase, s.kernel_width, s.dilation_width, phases))
      met[planes.num_met++] = {first, (s.width - first + phases - 1) / phases,
                               phase * planes.phase_size + (s.left + first) / phases};
  }
  return planes;
}

// Bytes in which an image is rounded on its way to planes or panels.
FEDHQ_INLINE int64_t rounded_bytes(bool channels_last, int64_t channels, int64_t height, int64_t width) {
  const int64_t row = channels_last ? channels * up(width, BEYOND) : 0;  // once more, the other way round
  return channels * (channels_last ? width : height * width) + row + 2 * BEYOND;
}

// One image to integers in planes, `zero` around it.
template <class Round>
FEDHQ_INLINE void round_to_planes(const float* image, const Convolution& s, const Planes& planes, const Round& round,
                                  int zero, int8_t* rounded, Row* to) {
  const int64_t pixels = s.height * s.width, ordered_width = up(s.width, BEYOND);
  int8_t* const ordered = rounded + s.channels * s.width + BEYOND;
  fill(to, planes.image, zero);
  if (!s.channels_last) round_channels(image, s.channels, pixels, round, rounded);
  for (int64_t h = 0; h < s.height; h++) {
    if (!is_met(s.top + h, s.kernel_height, s.dilation_height, s.stride_height)) continue;
    if (s.channels_last) {
      round.pixels(image + h * s.width * s.channels, s.width * s.channels, 0, rounded);
      transpose_bytes(rounded, s.channels, s.width, s.channels, ordered, ordered_width);
    }
    Row* const row = to + (s.top + h) * planes.phase_width;
    for (int64_t c = 0; c < s.channels; c++) {
      const int8_t* const line = s.channels_last ? ordered + c * ordered_width : rounded + c * pixels + h * s.width;
      for (int64_t i = 0; i < planes.num_met; i++)
        copy_phase(line + planes.met[i].first, planes.met[i].count, s.stride_width,
                   row + c * planes.plane + planes.met[i].place);
    }
  }
}

// Gradient of one image to panels, `apart` elements from each other. `row` [words * GROUP][wide] holds one row of its
// pixels, zero beyond the last.
template <class Round>
FEDHQ_INLINE void round_to_panels(const float* gradient, const Convolution& s, const Round& round, int8_t* rounded,
                                  int8_t* row, int64_t wide, Column* to, int64_t apart) {
  const int64_t positions = s.out_height * s.out_width, words = words_of(s.out_width);
  if (!s.channels_last_out) round_channels(gradient, s.out, positions, round, rounded);
  for (int64_t h = 0; h < s.out_height; h++) {
    if (s.channels_last_out) {
      int8_t* const line = wide == s.out ? row : rounded;
      round.pixels(gradient + h * s.out_width * s.out, s.out_width * s.out, 0, line);
      if (line == rounded)
        for (int64_t w = 0; w < s.out_width; w++) memcpy(row + w * wide, rounded + w * s.out, s.out);
    } else {
      transpose_bytes(rounded + h * s.out_width, positions, s.out, s.out_width, row, wide);
    }
    for (int64_t n = 0; n < s.out; n += PANEL)
      for (int64_t w = 0; w < words; w++)
        interleave(row + w * GROUP * wide + n, wide, to + n / PANEL * apart + (h * words + w) * PANEL_ELEMENTS);
  }
}

// A tile's sums in 32 bits, [TILE_ROWS][across], less what the offset added. They are kept in `exact` [columns][size], or
// become the gradient, [columns][size], if that is wanted.
FEDHQ_INLINE void add_tile(const int32_t* found, int64_t across, int64_t rows, int64_t columns, const int64_t* sums,
                           const int64_t* corrections, const float* row_scale, const float* column_scale, int64_t size,
                           bool has_totals, float* gradient, int64_t* exact) {
  if (has_totals || !gradient)
    for (int64_t c = 0; c < columns; c++)
      for (int64_t r = 0; r < rows; r++) {
        const int64_t before = has_totals ? exact[c * size + r] : 0;
        exact[c * size + r] = before + found[r * across + c] - OFFSET * sums[c];
      }
  if (!gradient) return;
  alignas(64) float values[TILE_ROWS * TILE_PANELS * PANEL] = {};
  for (int64_t r = 0; r < rows; r++)
    for (int64_t c = 0; c < columns; c++) {
      const int64_t sum = has_totals ? exact[c * size + r] : found[r * across + c] - OFFSET * sums[c];
      values[r * across + c] = static_cast<float>(sum - corrections[c]) * column_scale[c] * row_scale[r];
    }
  store_columns(values, rows, columns, across, gradient, size);
}

// Weight's gradient: rows are positions of the weight over the input in planes, columns the filters over the gradient's
// integers. `round_of(b)` and `gradient_round_of(b)` round what belongs to image b, whose integers lie `zero_of(b)` above
// their values; `x_scale` (or null) is of every channel.
template <class RoundOf, class GradientRoundOf, class ZeroOf>
FEDHQ_INLINE void weight_gradient_of(const float* x, const float* gradient, const Convolution& s,
                                     const RoundOf& round_of, const GradientRoundOf& gradient_round_of,
                                     const ZeroOf& zero_of, const float* x_scale, const float* gradient_scale,
                                     float* weight_gradient) {
  const int64_t kernel = s.kernel_height * s.kernel_width, size = s.channels * kernel;
  const int64_t pixels = s.height * s.width, positions = s.out_height * s.out_width, words = words_of(s.out_width);
  const int64_t column = s.out_height * words * PANEL_ELEMENTS;  // a panel of one image
  const int64_t filters = up(s.out, PANEL), panels_count = filters / PANEL;
  // Images at once.
  const int64_t by_memory = BYTES_OF_PANELS_AT_ONCE / larger(1, column * TILE_PANELS * sizeof(Column));
  const int64_t within_32_bits = larger(1, MOST_POSITIONS / larger(1, positions));
  const int64_t some = larger(1, smaller(s.batch, smaller(by_memory, within_32_bits)));
  const Planes layout = planes_of(s);
  Row* const planes = static_cast<Row*>(scratch(Scratch::image, sizeof(Row) * some * layout.image));
  Column* const panels = static_cast<Column*>(scratch(Scratch::columns, sizeof(Column) * some * column * panels_count));
  // Where rows begin, and the words of one row after the other.
  int64_t* const rows = static_cast<int64_t*>(scratch(Scratch::row_starts, sizeof(int64_t) * size));
  int64_t* const starts = static_cast<int64_t*>(scratch(Scratch::starts, sizeof(int64_t) * some * s.out_height));
  float* const row_scale = static_cast<float*>(scratch(Scratch::scales, sizeof(float) * size));
  for (int64_t c = 0; c < s.channels; c++)
    for (int64_t i = 0; i < s.kernel_height; i++)
      for (int64_t j = 0; j < s.kernel_width; j++) {
        const int64_t over = j * s.dilation_width, place = weight_place(s, 0, c, i * s.kernel_width + j);
        rows[place] = c * layout.plane + over % s.stride_width * layout.phase_size +
                      i * s.dilation_height * layout.phase_width + over / s.stride_width;
        row_scale[place] = x_scale ? x_scale[c] : 1.0f;
      }
  for (int64_t b = 0; b < some; b++)
    for (int64_t h = 0; h < s.out_height; h++)
      starts[b * s.out_height + h] = b * layout.image + h * s.stride_height * layout.phase_width;
  // Sums in 32 bits, tile by tile; in 64 where those could overflow; and what is to be taken away.
  int32_t* const partial =
      static_cast<int32_t*>(scratch(Scratch::partial, sizeof(int32_t) * up(size, TILE_ROWS) * filters));
  int64_t* const sums =
      static_cast<int64_t*>(scratch(Scratch::totals, sizeof(int64_t) * (2 * filters + s.out * size)));
  int64_t *const corrections = sums + filters, *const exact = corrections + filters;
  memset(sums, 0, sizeof(int64_t) * 2 * filters);
  // Room for rounding: whichever needs more of the two, and a row of the gradient, whose filters fill whole panels.
  const int64_t rounded_size = larger(rounded_bytes(s.channels_last, s.channels, s.height, s.width),
                                      rounded_bytes(s.channels_last_out, s.out, s.out_height, s.out_width));
  const int64_t wide = s.out % PANEL == 0 ? s.out : up(s.out, WIDE), row_size = (words + 1) * GROUP * wide;
  int8_t* const rounded = static_cast<int8_t*>(scratch(Scratch::rows, rounded_size + row_size));
  int8_t* const row = rounded + rounded_size;
  memset(row, 0, row_size);
  bool is_first = true, has_totals = false;
  int64_t added = 0;  // images since the sums in 32 bits began
  for (int64_t from = 0; from < s.batch; from += some) {
    const int64_t count = smaller(some, s.batch - from);
    for (int64_t b = 0; b < count; b++) {
      round_to_planes(x + (from + b) * s.channels * pixels, s, layout, round_of(from + b), zero_of(from + b), rounded,
                      planes + b * layout.image);
      round_to_panels(gradient + (from + b) * s.out * positions, s, gradient_round_of(from + b), rounded, row, wide,
                      panels + b * column, count * column);
      for (int64_t p = 0; p < panels_count; p++) {
        alignas(64) int32_t of_image[PANEL] = {};
        const Column* const panel = panels + (p * count + b) * column;
        for (int64_t w = 0; w < column; w += PANEL_ELEMENTS) add_words(panel + w, of_image);
        for (int64_t c = 0; c < PANEL; c++) {
          sums[p * PANEL + c] += of_image[c];
          corrections[p * PANEL + c] += static_cast<int64_t>(zero_of(from + b)) * of_image[c];
        }
      }
    }
    const Inner inner{starts, count * s.out_height, words, GROUP};
    product([=](int64_t m) { return planes + rows[m]; }, size, layout.plane * sizeof(Row) / kernel, inner, panels, s.out,
            [=](int64_t m, int64_t, int64_t n, int64_t, const int32_t* found, int64_t across) {
              int32_t* const tile_sums = partial + up(size, TILE_ROWS) * n + m * across;
              for (int64_t i = 0; i < TILE_ROWS * across; i++)
                tile_sums[i] = found[i] + (is_first ? 0 : tile_sums[i]);
            });
    is_first = false;
    added += count;
    const bool is_last = from + count == s.batch;
    if (!is_last && added + some <= within_32_bits) continue;
    for (int64_t p = 0; p < panels_count; p += TILE_PANELS) {
      const int64_t n = p * PANEL, across = p + TILE_PANELS <= panels_count ? TILE_PANELS * PANEL : PANEL;
      for (int64_t m = 0; m < size; m += TILE_ROWS)
        add_tile(partial + up(size, TILE_ROWS) * n + m * across, across, smaller(TILE_ROWS, size - m),
                 smaller(across, s.out - n), sums + n, corrections + n, row_scale + m, gradient_scale + n, size,
                 has_totals, is_last ? weight_gradient + n * size + m : nullptr, exact + n * size + m);
    }
    memset(sums, 0, sizeof(int64_t) * filters);
    is_first = has_totals = true;
    added = 0;
  }
}

static void int8_convolution_weight_gradient(const float* x, const float* gradient, const Convolution& s,
                                             const float* x_scale, int32_t zero, const float* gradient_scale,
                                             float* weight_gradient) {
  float* const inverse = static_cast<float*>(
      scratch(Scratch::values, sizeof(float) * (s.channels * (1 + s.width) + s.out * (1 + s.out_width))));
  float* const inverses = inverse + s.channels;
  float* const gradient_inverse = inverses + s.channels * s.width;
  float* const gradient_inverses = gradient_inverse + s.out;
  for (int64_t c = 0; c < s.channels; c++) inverse[c] = 1.0f / x_scale[c];
  for (int64_t o = 0; o < s.out; o++) gradient_inverse[o] = 1.0f / gradient_scale[o];
  const ByChannel round{repeated(inverse, s.channels, s.width, inverses), zero - 128, highest_of(zero)};
  const ByChannel round_gradient{repeated(gradient_inverse, s.out, s.out_width, gradient_inverses), 0, 127};
  weight_gradient_of(
      x, gradient, s, [=](int64_t) { return round; }, [=](int64_t) { return round_gradient; },
      [=](int64_t) { return zero - 128; }, x_scale, gradient_scale, weight_gradient);
}

static void grid_convolution_weight_gradient(const float* x, const float* gradient, const Convolution& s, int bits,
                                             const float* x_scale, const float* zero_point,
                                             const float* channel_scale, float* weight_gradient) {
  float* const inverse = static_cast<float*>(scratch(Scratch::values, sizeof(float) * s.out * (1 + s.out_width)));
  for (int64_t o = 0; o < s.out; o++) inverse[o] = 1.0f / channel_scale[o];
  const float* const inverses = repeated(inverse, s.out, s.out_width, inverse + s.out);
  const int32_t lowest = -(1 << (bits - 1)), highest = -lowest - 1;
  const auto round_of = [=](int64_t b) {
    return OnGrid{1.0f / x_scale[b], static_cast<int32_t>(zero_point[b]), lowest, highest};
  };
  weight_gradient_of(
      x, gradient, s, round_of,
      [=](int64_t b) { return FoldedByImage{x_scale[b], inverses}; },
      [=](int64_t b) { return static_cast<int>(zero_point[b]); }, nullptr, channel_scale, weight_gradient);
}

static void convolution_gradient_scales(const float* gradient, const Convolution& s, float* scale) {
  uint32_t* const largest = static_cast<uint32_t*>(scratch(Scratch::bounds, sizeof(uint32_t) * s.out));
  channel_magnitudes(gradient, s.batch, s.out, s.out_height * s.out_width, s.channels_last_out, largest);
  for (int64_t o = 0; o < s.out; o++) scale[o] = symmetric_scale(as_float(largest[o]));
}

static void grid_gradient_scales(const float* gradient, const Convolution& s, const float* weight_scale,
                                 const float* x_scale, float* image_scale, float* channel_scale) {
  const int64_t positions = s.out_height * s.out_width;
  uint32_t* const largest = static_cast<uint32_t*>(scratch(Scratch::bounds, sizeof(uint32_t) * 2 * s.out));
  uint32_t* const of_channel = largest + s.out;
  memset(of_channel, 0, sizeof(uint32_t) * s.out);
  for (int64_t b = 0; b < s.batch; b++) {
    channel_magnitudes(gradient + b * s.out * positions, 1, s.out, positions, s.channels_last_out, largest);
    uint32_t of_image = 0;
    // The largest product is the largest value's.
    for (int64_t o = 0; o < s.out; o++) {
      const uint32_t with_weight = magnitude_bits(as_float(largest[o]) * weight_scale[o]);
      const uint32_t with_input = magnitude_bits(as_float(largest[o]) * x_scale[b]);
      of_image = with_weight > of_image ? with_weight : of_image;
      of_channel[o] = with_input > of_channel[o] ? with_input : of_channel[o];
    }
    image_scale[b] = symmetric_scale(as_float(of_image));
  }
  for (int64_t o = 0; o < s.out; o++) channel_scale[o] = symmetric_scale(as_float(of_channel[o]));
}

}  // namespace LEVEL
}  // namespace fedhq
