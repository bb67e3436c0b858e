// Random shapes and values through every kernel of a level, against the reference: for sanitizers, without torch.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "kernels.h"

using namespace fedhq;

static std::mt19937 generator(0);

static int64_t any(int64_t from, int64_t to) { return std::uniform_int_distribution<int64_t>(from, to)(generator); }

static std::vector<float> values(int64_t size) {
  std::vector<float> all(size);
  const float scale = std::pow(10.0f, static_cast<float>(any(-38, 30)));
  for (float& each : all) each = any(0, 9) ? std::normal_distribution<float>()(generator) * scale : 0.0f;
  return all;
}

static int64_t up(int64_t size, int64_t multiple) { return (size + multiple - 1) / multiple * multiple; }

using Bytes = std::vector<char>;
constexpr int64_t BEYOND = 256;  // as tensors.h allocates

struct Results {
  std::vector<std::vector<float>> floats;
  std::vector<std::vector<int32_t>> integers;
  bool operator==(const Results& other) const {
    if (floats.size() != other.floats.size() || integers != other.integers) return false;
    for (size_t i = 0; i < floats.size(); i++)
      if (!floats[i].empty() &&
          memcmp(floats[i].data(), other.floats[i].data(), floats[i].size() * sizeof(float)))
        return false;
    return true;
  }
};

static Results linear(const Kernels& k, int64_t rows, int64_t inner, int64_t out, int weight_bits, int bits,
                      const std::vector<float>& x, const std::vector<float>& weight, const std::vector<float>& bias,
                      const std::vector<float>& gradient) {
  const int64_t stride = up(inner, 64) + 64, out_stride = up(out, 64) + 64;
  Bytes input(rows * stride * k.row_bytes + BEYOND), by_rows(rows * out_stride * k.row_bytes + BEYOND);
  Bytes by_columns(up(rows, k.group) * out_stride * k.row_bytes + BEYOND);
  Bytes across(up(out, 16) * up(inner, k.group) * k.column_bytes + BEYOND);
  Bytes along(up(inner, 16) * up(out, k.group) * k.column_bytes + BEYOND);
  Bytes panels(up(inner, 16) * up(rows, k.group) * k.column_bytes + BEYOND);
  std::vector<float> x_scale(rows), weight_scale(out), row_scale(rows), column_scale(out);
  std::vector<float> output(rows * out), x_gradient(rows * inner), weight_gradient(out * inner), again(rows * inner);
  std::vector<int32_t> zero(rows), panel_sums(up(inner, 16)), across_sums(up(out, 16)), along_sums(up(inner, 16));
  std::vector<int32_t> packed_sums(up(out, 16)), corrections(out);
  std::vector<int8_t> plain(rows * inner), plain_weight(out * inner);
  k.quantize_input(x.data(), rows, inner, bits, input.data(), stride, x_scale.data(), zero.data(), panels.data(),
                   panel_sums.data(), plain.data());
  k.quantize_weight(weight.data(), out, inner, weight_bits, across.data(), across_sums.data(), along.data(),
                    along_sums.data(), plain_weight.data(), weight_scale.data());
  k.linear_output(input.data(), stride, x_scale.data(), bits ? zero.data() : nullptr, across.data(),
                  across_sums.data(), weight_scale.data(), bias.data(), rows, out, inner, output.data());
  k.quantize_gradient(gradient.data(), rows, out, weight_scale.data(), x_scale.data(), bits ? zero.data() : nullptr,
                      by_rows.data(), out_stride, row_scale.data(), by_columns.data(), out_stride * k.group,
                      column_scale.data(), bits ? corrections.data() : nullptr);
  k.linear_input_gradient(by_rows.data(), out_stride, row_scale.data(), along.data(), along_sums.data(), rows, out,
                          inner, x_gradient.data());
  k.linear_weight_gradient(by_columns.data(), out_stride * k.group, column_scale.data(), panels.data(),
                           panel_sums.data(), bits ? corrections.data() : nullptr, rows, out, inner,
                           weight_gradient.data());
  k.pack(plain_weight.data(), out, inner, across.data(), packed_sums.data());
  k.dequantize(plain.data(), rows, inner, x_scale.data(), bits ? zero.data() : nullptr, false, again.data());
  std::vector<uint16_t> half(rows * inner);
  k.dequantize(plain.data(), rows, inner, x_scale.data(), nullptr, true, half.data());
  std::vector<float> rounded(out * inner), rounded_input(rows * inner);
  k.round_weight(weight.data(), out, inner, weight_bits ? weight_bits : 8, rounded.data());
  k.round_input(x.data(), rows, inner, bits ? bits : 8, rounded_input.data());
  across_sums.resize(out), along_sums.resize(inner), panel_sums.resize(inner), packed_sums.resize(out);
  return {{output, x_gradient, weight_gradient, again, rounded, rounded_input},
          {across_sums, along_sums, panel_sums, packed_sums}};
}

static Results convolution(const Kernels& k, const Convolution& s, const std::vector<float>& x,
                           const std::vector<float>& weight, const std::vector<float>& bias,
                           const std::vector<float>& gradient, const std::vector<int8_t>& integers) {
  std::vector<float> x_scale(s.channels), gradient_scale(s.out), output(gradient.size()), x_gradient(x.size());
  std::vector<float> weight_gradient(weight.size()), grid_scale(s.batch), grid_zero(s.batch), grid_output(output.size());
  int32_t zero = 0;
  k.convolution_scales(x.data(), s, x_scale.data(), &zero);
  k.int8_convolution_output(x.data(), weight.data(), bias.data(), s, x_scale.data(), zero, output.data());
  k.convolution_gradient_scales(gradient.data(), s, gradient_scale.data());
  k.int8_convolution_input_gradient(weight.data(), gradient.data(), s, gradient_scale.data(), x_gradient.data());
  k.int8_convolution_weight_gradient(x.data(), gradient.data(), s, x_scale.data(), zero, gradient_scale.data(),
                                     weight_gradient.data());
  const std::vector<float> filter_scale(s.out, 0.5f);
  k.grid_convolution_output(x.data(), integers.data(), filter_scale.data(), nullptr, s, 8, grid_scale.data(),
                            grid_zero.data(), grid_output.data());
  std::vector<float> image_scale(s.batch), channel_scale(s.out), grid_x(x.size()), grid_weight(weight.size());
  k.grid_gradient_scales(gradient.data(), s, filter_scale.data(), grid_scale.data(), image_scale.data(),
                         channel_scale.data());
  k.grid_convolution_input_gradient(integers.data(), filter_scale.data(), gradient.data(), s, image_scale.data(),
                                    grid_x.data());
  k.grid_convolution_weight_gradient(x.data(), gradient.data(), s, 8, grid_scale.data(), grid_zero.data(),
                                     channel_scale.data(), grid_weight.data());
  std::vector<float> on_grid(s.batch * s.channels * (s.height + s.top + s.bottom) * (s.width + s.left + s.right));
  std::vector<uint16_t> half(on_grid.size());
  k.grid_image_values(x.data(), s, 8, grid_scale.data(), grid_zero.data(), false, on_grid.data());
  k.grid_image_values(x.data(), s, 8, grid_scale.data(), grid_zero.data(), true, half.data());
  return {{output, x_gradient, weight_gradient, grid_scale, grid_zero, grid_output, grid_x, grid_weight, on_grid},
          {{zero}, std::vector<int32_t>(half.begin(), half.end())}};
}

static Results pooling(const Kernels& k, const Images& s, const std::vector<float>& x,
                       const std::vector<float>& gradient) {
  std::vector<float> output(gradient.size()), x_gradient(x.size());
  k.max_pool(x.data(), s, output.data());
  k.max_pool_gradient(x.data(), gradient.data(), s, x_gradient.data());
  return {{output, x_gradient}, {}};
}

static Results normalization(const Kernels& k, const Normalized& s, const std::vector<float>& x,
                             const std::vector<float>& shortcut, const std::vector<float>& gradient,
                             const std::vector<float>& weight, const std::vector<float>& bias) {
  std::vector<float> mean(s.batch * s.groups), inverse(mean), output(x.size()), x_gradient(x.size());
  std::vector<float> shortcut_gradient(x.size()), weight_gradient(s.channels), bias_gradient(s.channels);
  const bool has_shortcut = s.batch != 2;
  k.group_norm(x.data(), has_shortcut ? shortcut.data() : nullptr, s, weight.data(), bias.data(), mean.data(),
               inverse.data(), output.data());
  k.group_norm_gradients(x.data(), s.rectified ? output.data() : nullptr, gradient.data(), s, weight.data(),
                         mean.data(), inverse.data(), x_gradient.data(),
                         has_shortcut ? shortcut_gradient.data() : nullptr, weight_gradient.data(),
                         bias_gradient.data());
  return {{mean, inverse, output, x_gradient, shortcut_gradient, weight_gradient, bias_gradient}, {}};
}

// Memory that ends where what is in it ends, for sanitizers.
static Results payload(const Kernels& k, int64_t rows, int64_t size, int bits, const std::vector<float>& weight,
                       const std::vector<float>& base, bool has_base, int64_t begin) {
  const int64_t count = rows * size, bytes = (count * bits + 7) / 8;
  std::vector<uint8_t> packed(bytes);
  std::vector<float> scale(rows), part(count - begin), mean(count);
  k.pack_weight(weight.data(), has_base ? base.data() : nullptr, rows, size, bits, packed.data(), scale.data());
  k.unpack_weight(packed.data(), bytes, bits, scale.data(), size, begin, count - begin, part.data());
  int64_t largest, smallest, added = 0;
  k.magnitudes(weight.data(), count, &largest, &smallest);
  std::vector<int64_t> units(count);
  std::vector<int32_t> places(count), results(packed.begin(), packed.end());
  const int64_t unit = (largest >> 23) - 127 - 40;
  for (int64_t lowest : {int64_t{1}, largest - (int64_t{16} << 23)})
    added += k.add_values(weight.data(), count, std::ldexp(50.0, -unit), lowest > 0 ? lowest : 1,
                          largest - (int64_t{1} << 22), 0x50000000, units.data(), places.data(), &smallest);
  k.mean_of_units(units.data(), count, 2 * 0x4338000000000000u, 5, -90, 17.0, mean.data());
  results.push_back(static_cast<int32_t>(largest)), results.push_back(static_cast<int32_t>(added));
  return {{scale, part, mean}, {results, places}};
}

int main(int, char** arguments) {
  const Kernels &tested = *all_kernels[0], *last = &tested;
  for (const Kernels* const* each = all_kernels; *each; each++) last = *each;
  const Kernels& reference = *last;
  const int64_t shapes = atoll(arguments[1]);
  for (int64_t i = 0; i < shapes; i++) {
    const int64_t rows = any(1, 70), inner = any(1, 140), out = any(1, 70);
    const int bits = any(0, 1) ? static_cast<int>(any(2, 8)) : 0, weight_bits = bits ? static_cast<int>(any(2, 8)) : 0;
    const auto x = values(rows * inner), weight = values(out * inner), bias = values(out), gradient = values(rows * out);
    if (!(linear(tested, rows, inner, out, weight_bits, bits, x, weight, bias, gradient) ==
          linear(reference, rows, inner, out, weight_bits, bits, x, weight, bias, gradient)))
      return printf("linear %ld %ld %ld, bits %d %d\n", (long)rows, (long)inner, (long)out, weight_bits, bits), 1;
    const int packed_bits = static_cast<int>(any(2, 8));
    const bool has_base = any(0, 1);
    const int64_t begin = any(0, out * inner) / 8 * 8;
    const auto base = values(out * inner);
    if (!(payload(tested, out, inner, packed_bits, weight, base, has_base, begin) ==
          payload(reference, out, inner, packed_bits, weight, base, has_base, begin)))
      return printf("payload %ld %ld, bits %d\n", (long)out, (long)inner, packed_bits), 1;
    Convolution s{};
    s.batch = any(1, 3), s.channels = any(1, 40), s.out = any(1, 40), s.kernel_height = any(1, 5);
    s.kernel_width = any(1, 5), s.stride_height = any(1, 3), s.stride_width = any(1, 3);
    s.dilation_height = any(1, 2), s.dilation_width = any(1, 2);
    s.left = any(0, 2), s.right = any(0, 2), s.top = any(0, 2), s.bottom = any(0, 2);
    s.height = any(1, 12) + s.dilation_height * (s.kernel_height - 1);
    s.width = any(1, 20) + s.dilation_width * (s.kernel_width - 1);
    s.out_height = (s.height + s.top + s.bottom - s.dilation_height * (s.kernel_height - 1) - 1) / s.stride_height + 1;
    s.out_width = (s.width + s.left + s.right - s.dilation_width * (s.kernel_width - 1) - 1) / s.stride_width + 1;
    s.channels_last = any(0, 1), s.channels_last_out = any(0, 1), s.channels_last_weight = any(0, 1);
    const int64_t size = s.channels * s.kernel_height * s.kernel_width;
    std::vector<int8_t> integers(s.out * size);
    for (int8_t& each : integers) each = static_cast<int8_t>(any(-128, 127));
    const auto image = values(s.batch * s.channels * s.height * s.width), filters = values(s.out * size);
    const auto offsets = values(s.out), back = values(s.batch * s.out * s.out_height * s.out_width);
    if (!(convolution(tested, s, image, filters, offsets, back, integers) ==
          convolution(reference, s, image, filters, offsets, back, integers)))
      return printf("convolution %ld -> %ld, kernel %ld x %ld\n", (long)s.channels, (long)s.out, (long)s.kernel_height,
                    (long)s.kernel_width), 1;
    const Images images = {any(1, 3), any(1, 40), any(2, 20), any(2, 20), any(0, 1) == 1};
    const auto pixels = values(images.batch * images.channels * images.height * images.width);
    const auto pooled = values(images.batch * images.channels * (images.height / 2) * (images.width / 2));
    if (!(pooling(tested, images, pixels, pooled) == pooling(reference, images, pixels, pooled)))
      return printf("pooling of %ld x %ld\n", (long)images.height, (long)images.width), 1;
    Normalized group{any(1, 3), 0, any(1, 90), any(1, 9), 1e-5, any(0, 1) == 1};
    group.channels = group.groups * any(1, 9);
    const int64_t whole = group.batch * group.channels * group.pixels;
    const auto normalized = values(whole), beside = values(whole), above = values(whole);
    const auto factors = values(group.channels), terms = values(group.channels);
    if (!(normalization(tested, group, normalized, beside, above, factors, terms) ==
          normalization(reference, group, normalized, beside, above, factors, terms)))
      return printf("norm of %ld channels in %ld groups, %ld pixels\n", (long)group.channels, (long)group.groups,
                    (long)group.pixels), 1;
  }
  return printf("%ld shapes\n", (long)shapes), 0;
}
