// Group normalization of images with channels last, and what follows it in a residual network: a shortcut's addition,
// and a ReLU. Sums are made in an order that no level changes; variances from distances to the mean, so that a large
// mean takes nothing from their precision.
#pragma once
#include "kernels.h"
#include "level.h"
#include "scratch.h"

namespace fedhq {
namespace LEVEL {

constexpr int64_t CHANNELS_AT_ONCE = 16, PIXELS_AT_ONCE = 32;  // of float32, before they are added to sums of sums

// For `count` channels that begin at `first`: of every pixel what `value` gives, twice, added up to two totals.
template <class Value>
FEDHQ_INLINE void add_up_channels(int64_t pixels, int64_t first, int64_t count, const Value& value,
                                  float* __restrict total, float* __restrict second_total) {
  float all[CHANNELS_AT_ONCE] = {}, second_all[CHANNELS_AT_ONCE] = {};
  for (int64_t start = 0; start < pixels; start += PIXELS_AT_ONCE) {
    float sum[CHANNELS_AT_ONCE] = {}, second_sum[CHANNELS_AT_ONCE] = {};
    const int64_t end = smaller(pixels, start + PIXELS_AT_ONCE);
    for (int64_t p = start; p < end; p++)
      for (int64_t c = 0; c < count; c++) value(p, first + c, &sum[c], &second_sum[c]);
    for (int64_t c = 0; c < count; c++) all[c] += sum[c], second_all[c] += second_sum[c];
  }
  for (int64_t c = 0; c < count; c++) total[first + c] = all[c], second_total[first + c] = second_all[c];
}

template <class Value>
FEDHQ_INLINE void add_up(int64_t pixels, int64_t channels, const Value& value, float* total, float* second_total) {
  int64_t first = 0;
  for (; first + CHANNELS_AT_ONCE <= channels; first += CHANNELS_AT_ONCE)
    add_up_channels(pixels, first, CHANNELS_AT_ONCE, value, total, second_total);
  if (first < channels) add_up_channels(pixels, first, channels - first, value, total, second_total);
}

struct SumOf {
  const float* __restrict x;
  int64_t channels;
  FEDHQ_INLINE_MEMBER void operator()(int64_t p, int64_t c, float* sum, float*) const { *sum += x[p * channels + c]; }
};

// Distances to the mean; what they add up to is what rounding took from the mean.
struct SpreadOf {
  const float* __restrict x;
  const float* __restrict mean;
  int64_t channels;
  FEDHQ_INLINE_MEMBER void operator()(int64_t p, int64_t c, float* sum, float* squares) const {
    const float distance = x[p * channels + c] - mean[c];
    *sum += distance;
    *squares += distance * distance;
  }
};

// The gradient where the ReLU let something through, as torch has it: also where the output is no number.
FEDHQ_INLINE float passed(float gradient, float output) { return output <= 0.0f ? 0.0f : gradient; }

template <bool RECTIFIED>
struct GradientsOf {
  const float* __restrict x;
  const float* __restrict output;
  const float* __restrict gradient;
  const float* __restrict mean;
  int64_t channels;
  FEDHQ_INLINE_MEMBER void operator()(int64_t p, int64_t c, float* sum, float* products) const {
    const int64_t i = p * channels + c;
    const float g = RECTIFIED ? passed(gradient[i], output[i]) : gradient[i];
    *sum += g;
    *products += g * (x[i] - mean[c]);
  }
};

// (x - mean) * factor + offset, by channel; then the shortcut, then the ReLU, each only if it is there.
template <bool SHORTCUT, bool RECTIFIED>
FEDHQ_INLINE void normalize(const float* __restrict x, const float* __restrict shortcut, int64_t pixels,
                            int64_t channels, const float* __restrict mean, const float* __restrict factor,
                            const float* __restrict offset, float* __restrict output) {
  for (int64_t p = 0; p < pixels; p++)
    for (int64_t c = 0; c < channels; c++) {
      const int64_t i = p * channels + c;
      float value = (x[i] - mean[c]) * factor[c] + offset[c];
      if (SHORTCUT) value += shortcut[i];
      if (RECTIFIED) value = value < 0.0f ? 0.0f : value;
      output[i] = value;
    }
}

static void group_norm(const float* x, const float* shortcut, const Normalized& s, const float* weight,
                       const float* bias, float* means, float* inverse_deviations, float* output) {
  const int64_t members = s.channels / s.groups, size = s.pixels * s.channels;
  const double count = static_cast<double>(members * s.pixels);
  float* const mean = static_cast<float*>(scratch(Scratch::sums, sizeof(float) * 4 * s.channels));
  float *const total = mean + s.channels, *const squares = total + s.channels, *const unused = squares + s.channels;
  for (int64_t b = 0; b < s.batch; b++, x += size, output += size) {
    add_up(s.pixels, s.channels, SumOf{x, s.channels}, total, unused);
    for (int64_t g = 0; g < s.groups; g++) {
      double sum = 0.0;
      for (int64_t c = g * members; c < (g + 1) * members; c++) sum += total[c];
      for (int64_t c = g * members; c < (g + 1) * members; c++) mean[c] = static_cast<float>(sum / count);
    }
    add_up(s.pixels, s.channels, SpreadOf{x, mean, s.channels}, total, squares);
    for (int64_t g = 0; g < s.groups; g++) {
      double sum = 0.0, square = 0.0;
      for (int64_t c = g * members; c < (g + 1) * members; c++) sum += total[c], square += squares[c];
      const double variance = square / count - sum / count * (sum / count);
      const float inverse = static_cast<float>(1.0 / std::sqrt((variance < 0.0 ? 0.0 : variance) + s.epsilon));
      means[b * s.groups + g] = mean[g * members];
      inverse_deviations[b * s.groups + g] = inverse;
      for (int64_t c = g * members; c < (g + 1) * members; c++) squares[c] = inverse * weight[c];
    }
    if (shortcut) {
      if (s.rectified)
        normalize<true, true>(x, shortcut, s.pixels, s.channels, mean, squares, bias, output);
      else
        normalize<true, false>(x, shortcut, s.pixels, s.channels, mean, squares, bias, output);
      shortcut += size;
    } else if (s.rectified) {
      normalize<false, true>(x, nullptr, s.pixels, s.channels, mean, squares, bias, output);
    } else {
      normalize<false, false>(x, nullptr, s.pixels, s.channels, mean, squares, bias, output);
    }
  }
}

// What reaches x: factor * gradient + slope * (x - mean) + shift; what reaches the shortcut is the gradient itself.
template <bool SHORTCUT, bool RECTIFIED>
FEDHQ_INLINE void denormalize(const float* __restrict x, const float* __restrict output,
                              const float* __restrict gradient, int64_t pixels, int64_t channels,
                              const float* __restrict mean, const float* __restrict factor,
                              const float* __restrict slope, const float* __restrict shift,
                              float* __restrict x_gradient, float* __restrict shortcut_gradient) {
  for (int64_t p = 0; p < pixels; p++)
    for (int64_t c = 0; c < channels; c++) {
      const int64_t i = p * channels + c;
      const float g = RECTIFIED ? passed(gradient[i], output[i]) : gradient[i];
      x_gradient[i] = factor[c] * g + (slope[c] * (x[i] - mean[c]) + shift[c]);
      if (SHORTCUT) shortcut_gradient[i] = g;
    }
}

template <bool RECTIFIED>
FEDHQ_INLINE void gradients_of(const float* x, const float* output, const float* gradient, const Normalized& s,
                               const float* weight, const float* means, const float* inverse_deviations,
                               float* x_gradient, float* shortcut_gradient, float* weight_gradient,
                               float* bias_gradient) {
  const int64_t members = s.channels / s.groups, size = s.pixels * s.channels;
  const double count = static_cast<double>(members * s.pixels);
  float* const mean = static_cast<float*>(scratch(Scratch::sums, sizeof(float) * 6 * s.channels));
  float *const sums = mean + s.channels, *const products = sums + s.channels, *const factor = products + s.channels;
  float *const slope = factor + s.channels, *const shift = slope + s.channels;
  double* const weights = static_cast<double*>(scratch(Scratch::totals, sizeof(double) * 2 * s.channels));
  double* const biases = weights + s.channels;
  for (int64_t c = 0; c < s.channels; c++) weights[c] = biases[c] = 0.0;
  for (int64_t b = 0; b < s.batch; b++) {
    for (int64_t c = 0; c < s.channels; c++) mean[c] = means[b * s.groups + c / members];
    add_up(s.pixels, s.channels, GradientsOf<RECTIFIED>{x, output, gradient, mean, s.channels}, sums, products);
    for (int64_t g = 0; g < s.groups; g++) {
      const double inverse = inverse_deviations[b * s.groups + g];
      double along_weight = 0.0, along_spread = 0.0;
      for (int64_t c = g * members; c < (g + 1) * members; c++) {
        along_weight += static_cast<double>(sums[c]) * weight[c];
        along_spread += static_cast<double>(products[c]) * weight[c];
        weights[c] += products[c] * inverse;
        biases[c] += sums[c];
      }
      for (int64_t c = g * members; c < (g + 1) * members; c++) {
        factor[c] = static_cast<float>(weight[c] * inverse);
        slope[c] = static_cast<float>(-along_spread * inverse * inverse * inverse / count);
        shift[c] = static_cast<float>(-along_weight * inverse / count);
      }
    }
    if (shortcut_gradient) {
      denormalize<true, RECTIFIED>(x, output, gradient, s.pixels, s.channels, mean, factor, slope, shift, x_gradient,
                                   shortcut_gradient);
      shortcut_gradient += size;
    } else {
      denormalize<false, RECTIFIED>(x, output, gradient, s.pixels, s.channels, mean, factor, slope, shift, x_gradient,
                                    nullptr);
    }
    x += size, output += RECTIFIED ? size : 0, gradient += size, x_gradient += size;
  }
  for (int64_t c = 0; c < s.channels; c++) {
    weight_gradient[c] = static_cast<float>(weights[c]);
    bias_gradient[c] = static_cast<float>(biases[c]);
  }
}

static void group_norm_gradients(const float* x, const float* output, const float* gradient, const Normalized& s,
                                 const float* weight, const float* means, const float* inverse_deviations,
                                 float* x_gradient, float* shortcut_gradient, float* weight_gradient,
                                 float* bias_gradient) {
  if (s.rectified)
    gradients_of<true>(x, output, gradient, s, weight, means, inverse_deviations, x_gradient, shortcut_gradient,
                       weight_gradient, bias_gradient);
  else
    gradients_of<false>(x, nullptr, gradient, s, weight, means, inverse_deviations, x_gradient, shortcut_gradient,
                        weight_gradient, bias_gradient);
}

}  // namespace LEVEL
}  // namespace fedhq
