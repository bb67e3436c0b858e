// What every level offers to the layers: functions over plain memory. All matrices are row by row without gaps, unless
// said otherwise; scratch that a function needs is its own.
#pragma once
#include <cstdint>

namespace fedhq {

// A convolution over two dimensions, one group. Images, weights and gradients of weights lie with channels first or last.
struct Convolution {
  int64_t batch, channels, height, width, out, kernel_height, kernel_width, out_height, out_width;
  int64_t stride_height, stride_width, dilation_height, dilation_width, left, right, top, bottom;
  bool channels_last, channels_last_out, channels_last_weight;
};

// Images without gaps, channels first or last.
struct Images {
  int64_t batch, channels, height, width;
  bool channels_last;
};

// Images with channels last that are normalized by groups of channels.
struct Normalized {
  int64_t batch, channels, pixels, groups;
  double epsilon;
  bool rectified;  // whether a ReLU follows
};

struct Kernels {
  const char* name;
  int64_t group;        // elements of a word
  int64_t row_bytes;    // of one element of rows
  int64_t column_bytes; // of one element of columns
  int64_t offset;       // what rows hold beside the integer

  // Input (rows, inner) to integers. `bits` 0: symmetric in 8 bits; else asymmetric, with a zero point. `integers` are
  // rows of `stride` elements; `panels` (or null) hold them as columns along the rows, with the sum of every column;
  // `plain` (or null) are the integers themselves.
  void (*quantize_input)(const float* x, int64_t rows, int64_t inner, int bits, void* integers, int64_t stride,
                         float* scale, int32_t* zero_point, void* panels, int32_t* sums, int8_t* plain);

  // Weight (out, inner) to integers: `bits` 0 as the input, else on the deployment grid. `across` (or null) are columns
  // over `inner`; `across_sums` are of every row of the weight; `along` (or null) are columns over `out`, with their sums.
  // `plain` (or null) are the integers themselves, int8.
  void (*quantize_weight)(const float* weight, int64_t out, int64_t inner, int bits, void* across, int32_t* across_sums,
                          void* along, int32_t* along_sums, int8_t* plain, float* scale);

  // int8 rows (rows, inner) to columns over `inner`, with their sums.
  void (*pack)(const int8_t* integers, int64_t rows, int64_t inner, void* across, int32_t* sums);

  // Output (rows, out) of a linear layer; `zero_point` or `bias` may be null.
  void (*linear_output)(const void* integers, int64_t stride, const float* scale, const int32_t* zero_point,
                        const void* weight, const int32_t* weight_sums, const float* weight_scale, const float* bias,
                        int64_t rows, int64_t out, int64_t inner, float* output);

  // Gradient (rows, out) in the two forms that its products take: `by_rows` (or null) with the weight's scale in it and
  // a scale for every row, as rows of `row_stride` elements; `by_columns` (or null) with the input's scale in it and a
  // scale for every column, as words [rows / group][column_stride / group], each row with room for a multiple of 16.
  // `corrections` (out) are what the input's zero points add to the sums of `by_columns`; both null where it has none.
  void (*quantize_gradient)(const float* gradient, int64_t rows, int64_t out, const float* weight_scale,
                            const float* x_scale, const int32_t* zero_point, void* by_rows, int64_t row_stride,
                            float* row_scale, void* by_columns, int64_t column_stride, float* column_scale,
                            int32_t* corrections);

  // Product of the gradient by rows and the weight along `out`: the input's gradient (rows, inner).
  void (*linear_input_gradient)(const void* by_rows, int64_t stride, const float* row_scale, const void* along,
                                const int32_t* along_sums, int64_t rows, int64_t out, int64_t inner, float* gradient);

  // Product of the gradient by columns and the input along the rows: the weight's gradient (out, inner).
  void (*linear_weight_gradient)(const void* by_columns, int64_t stride, const float* column_scale,
                                 const void* panels, const int32_t* sums, const int32_t* corrections, int64_t rows,
                                 int64_t out, int64_t inner, float* gradient);

  // int8 (rows, inner) less a zero point for every row (or null), times its scale: as floats, or as bfloat16.
  void (*dequantize)(const int8_t* integers, int64_t rows, int64_t inner, const float* scale,
                     const int32_t* zero_point, bool is_short, void* values);

  // Convolution of the PTQ lane. A scale for every channel, and the byte that stands for 0: 128, or 0 where no value is
  // negative.
  void (*convolution_scales)(const float* x, const Convolution& shape, float* scale, int32_t* zero);
  void (*convolution_gradient_scales)(const float* gradient, const Convolution& shape, float* scale);
  void (*int8_convolution_output)(const float* x, const float* weight, const float* bias, const Convolution& shape,
                                  const float* x_scale, int32_t zero, float* output);
  void (*int8_convolution_input_gradient)(const float* weight, const float* gradient, const Convolution& shape,
                                          const float* gradient_scale, float* x_gradient);
  void (*int8_convolution_weight_gradient)(const float* x, const float* gradient, const Convolution& shape,
                                           const float* x_scale, int32_t zero, const float* gradient_scale,
                                           float* weight_gradient);

  // Convolution on the deployment grid: the weight's integers are given, every image gets a grid of its own.
  void (*grid_convolution_output)(const float* x, const int8_t* weight, const float* weight_scale, const float* bias,
                                  const Convolution& shape, int bits, float* x_scale, float* zero_point, float* output);

  // The same layer's gradients in integers. The gradient takes up the weight's scale and gets a scale for every image,
  // for the input's; it takes up the images' scales and gets one for every channel, for the weight's.
  void (*grid_gradient_scales)(const float* gradient, const Convolution& shape, const float* weight_scale,
                               const float* x_scale, float* image_scale, float* channel_scale);
  void (*grid_convolution_input_gradient)(const int8_t* weight, const float* weight_scale, const float* gradient,
                                          const Convolution& shape, const float* image_scale, float* x_gradient);
  void (*grid_convolution_weight_gradient)(const float* x, const float* gradient, const Convolution& shape, int bits,
                                           const float* x_scale, const float* zero_point, const float* channel_scale,
                                           float* weight_gradient);

  // What the grids of images make of them, as `dequantize`: padded with zeros, channels last.
  void (*grid_image_values)(const float* x, const Convolution& shape, int bits, const float* x_scale,
                            const float* zero_point, bool is_short, void* values);

  // Weight (out, inner) on its grid, as floats.
  void (*round_weight)(const float* weight, int64_t out, int64_t inner, int bits, float* rounded);

  // Input (rows, inner) on a grid of its own for every row, as floats.
  void (*round_input)(const float* x, int64_t rows, int64_t inner, int bits, float* rounded);

  // The greatest of every 2 x 2 pixels of images at least that large, and its gradient.
  void (*max_pool)(const float* x, const Images& shape, float* output);
  void (*max_pool_gradient)(const float* x, const float* gradient, const Images& shape, float* x_gradient);

  // Group normalization, to which `shortcut` (or null) is added: output, and of every image and group its mean and the
  // inverse of its deviation. `shortcut_gradient` may be null; all other gradients are written.
  void (*group_norm)(const float* x, const float* shortcut, const Normalized& shape, const float* weight,
                     const float* bias, float* mean, float* inverse_deviation, float* output);
  void (*group_norm_gradients)(const float* x, const float* output, const float* gradient, const Normalized& shape,
                               const float* weight, const float* mean, const float* inverse_deviation,
                               float* x_gradient, float* shortcut_gradient, float* weight_gradient,
                               float* bias_gradient);

  // Weight (rows, size), less `base` (or null), on the grid of `bits`, packed: row after row, without gaps.
  void (*pack_weight)(const float* weight, const float* base, int64_t rows, int64_t size, int bits, uint8_t* packed,
                      float* scale);

  // `size` values from `begin` on, a multiple of 8, of a weight that was packed to `bytes` bytes, as floats; `group` of
  // them share a scale.
  void (*unpack_weight)(const uint8_t* packed, int64_t bytes, int bits, const float* scale, int64_t group,
                        int64_t begin, int64_t size, float* values);

  // Bits of the largest magnitude, and of the smallest one that is not zero (0 where all are).
  void (*magnitudes)(const float* values, int64_t size, int64_t* largest, int64_t* smallest);

  // Adds to `units` the values times `factor`, each with the bits of 1.5 * 2^52 on top, where the bits of its magnitude
  // are zero or from `lowest` to below `highest`, elsewhere a zero; `places` [size] are where magnitudes below `limit`
  // were not added. Returns how many.
  int64_t (*add_values)(const float* values, int64_t size, double factor, int64_t lowest, int64_t highest,
                        int64_t limit, int64_t* units, int32_t* places, int64_t* largest);

  // Units, less `shifts`, times 2^shift (shift 0 to 31) count multiples of 2^unit; over the total weight.
  void (*mean_of_units)(const int64_t* units, int64_t size, int64_t shifts, int64_t shift, int64_t unit,
                        double total_weight, float* mean);
};

// Those of this machine's levels that were built, best first, and null at the end.
extern const Kernels* const all_kernels[];

// The level that computes.
extern const Kernels* chosen;

}  // namespace fedhq
