// The lanes' layers as operators of torch, with gradients of their own: `torch.ops.fedhq`.
//
// Tensors that come in are float32 on the CPU, as `native/lanes.py` sees to. One thread computes.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/basic_ops.h>
#include <torch/library.h>

#include "kernels.h"
#include "scratch.h"

namespace fedhq {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using OptionalTensor = std::optional<Tensor>;

constexpr int64_t PANEL = 16;
constexpr int64_t ROWS_AT_ONCE = 256;  // of a weight's gradient: in bfloat16 beside it are a few rows only
constexpr int64_t BEYOND = 256;  // bytes that kernels may read behind what they need

const Kernels* chosen = nullptr;

int64_t up(int64_t size, int64_t multiple) { return (size + multiple - 1) / multiple * multiple; }

Tensor memory(int64_t bytes) { return at::empty({bytes + BEYOND}, at::kByte); }
Tensor integers(int64_t count) { return at::empty({up(count, PANEL)}, at::kInt); }
Tensor floats(int64_t count) { return at::empty({count}, at::kFloat); }

Tensor columns(int64_t inner, int64_t count) {
  return memory(up(count, PANEL) * up(inner, chosen->group) * chosen->column_bytes);
}

// Rows that are a power of two apart would fall into the same lines of the cache.
int64_t row_stride(int64_t inner) { return up(inner, 64) + 64; }

void* row_scratch(Scratch which, int64_t rows, int64_t stride) {
  return scratch(which, rows * stride * chosen->row_bytes);
}

float* of_floats(const Tensor& t) { return t.defined() ? t.mutable_data_ptr<float>() : nullptr; }
int32_t* of_integers(const Tensor& t) { return t.defined() ? t.mutable_data_ptr<int32_t>() : nullptr; }
int8_t* of_bytes(const Tensor& t) { return t.defined() ? t.mutable_data_ptr<int8_t>() : nullptr; }
void* of_memory(const Tensor& t) { return t.defined() ? t.mutable_data_ptr() : nullptr; }

Tensor output_like(const Tensor& x, int64_t out) {
  auto shape = x.sizes().vec();
  shape.back() = out;
  return at::empty(shape, x.options());
}

// Gradients of gradients do not exist here: they fail when they are asked for, not before.
variable_list once_differentiable(const variable_list& given, variable_list gradients) {
  if (!at::GradMode::is_enabled() || !given[0].requires_grad()) return gradients;
  for (Tensor& each : gradients)
    if (each.defined()) each = each.detach().set_requires_grad(true);
  auto error = std::make_shared<torch::autograd::DelayedError>(
      "the int8 lanes have no gradient of a gradient", static_cast<int64_t>(gradients.size()));
  return (*error)(std::move(gradients));
}

// A bias that is not there is no input of the graph.
bool needs_bias(AutogradContext* ctx) { return ctx->saved_data["has_bias"].toBool() && ctx->needs_input_grad(2); }

// A linear layer of the PTQ lane: its three products are integers, symmetric in 8 bits.
struct Int8Linear : torch::autograd::Function<Int8Linear> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x_, const Tensor& weight_, const OptionalTensor& bias,
                        bool keeps) {
    const Kernels& k = *chosen;
    const Tensor x = x_.contiguous(), weight = weight_.contiguous();
    const int64_t inner = x.size(-1), rows = x.numel() / inner, out = weight.size(0), stride = row_stride(inner);
    const bool needs_weight = keeps && weight_.requires_grad(), needs_x = keeps && x_.requires_grad();
    const Tensor x_scale = floats(rows);
    const Tensor panels = needs_weight ? columns(rows, inner) : Tensor();
    const Tensor panel_sums = needs_weight ? integers(inner) : Tensor();
    const Tensor weight_scale = floats(out);
    const Tensor along = needs_x ? columns(out, inner) : Tensor(), along_sums = needs_x ? integers(inner) : Tensor();
    void* const input = row_scratch(Scratch::input, rows, stride);
    void* const across = scratch(Scratch::columns, up(out, PANEL) * up(inner, k.group) * k.column_bytes);
    int32_t* const across_sums = static_cast<int32_t*>(scratch(Scratch::gradient, sizeof(int32_t) * up(out, PANEL)));
    k.quantize_input(of_floats(x), rows, inner, 0, input, stride, of_floats(x_scale), nullptr, of_memory(panels),
                     of_integers(panel_sums), nullptr);
    k.quantize_weight(of_floats(weight), out, inner, 0, across, across_sums, of_memory(along),
                      of_integers(along_sums), nullptr, of_floats(weight_scale));
    const Tensor output = output_like(x, out);
    const Tensor held_bias = bias.has_value() ? bias->contiguous() : Tensor();
    k.linear_output(input, stride, of_floats(x_scale), nullptr, across, across_sums, of_floats(weight_scale),
                    of_floats(held_bias), rows, out, inner, of_floats(output));
    ctx->save_for_backward({x_scale, panels, panel_sums, weight_scale, along, along_sums});
    ctx->saved_data["rows"] = rows;
    ctx->saved_data["inner"] = inner;
    ctx->saved_data["out"] = out;
    ctx->saved_data["shape"] = x.sizes().vec();
    ctx->saved_data["has_bias"] = bias.has_value();
    return output;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const Kernels& k = *chosen;
    const auto saved = ctx->get_saved_variables();
    const Tensor &x_scale = saved[0], &panels = saved[1], &panel_sums = saved[2], &weight_scale = saved[3],
                 &along = saved[4], &along_sums = saved[5];
    const int64_t rows = ctx->saved_data["rows"].toInt(), inner = ctx->saved_data["inner"].toInt(),
                  out = ctx->saved_data["out"].toInt();
    const Tensor gradient = gradients[0].contiguous();
    const bool needs_x = ctx->needs_input_grad(0), needs_weight = ctx->needs_input_grad(1);
    const int64_t stride = row_stride(out), column_stride = row_stride(out) * k.group;
    void* const by_rows = needs_x ? row_scratch(Scratch::input, rows, stride) : nullptr;
    void* const by_columns =
        needs_weight ? row_scratch(Scratch::columns, up(rows, k.group) / k.group, column_stride) : nullptr;
    const Tensor row_scale = floats(rows), column_scale = floats(out);
    k.quantize_gradient(of_floats(gradient), rows, out, of_floats(weight_scale), of_floats(x_scale), by_rows, stride,
                        of_floats(row_scale), by_columns, column_stride, of_floats(column_scale));
    Tensor x_gradient, weight_gradient;
    if (needs_x) {
      x_gradient = at::empty(ctx->saved_data["shape"].toIntVector(), at::kFloat);
      k.linear_input_gradient(by_rows, stride, of_floats(row_scale), of_memory(along), of_integers(along_sums), rows,
                              out, inner, of_floats(x_gradient));
    }
    if (needs_weight) {
      weight_gradient = at::empty({out, inner}, at::kFloat);
      k.linear_weight_gradient(by_columns, column_stride, of_floats(column_scale), of_memory(panels),
                               of_integers(panel_sums), rows, out, inner, of_floats(weight_gradient));
    }
    return once_differentiable(
        gradients,
        {x_gradient, weight_gradient, needs_bias(ctx) ? gradient.view({rows, out}).sum(0) : Tensor(), Tensor()});
  }
};

// The QAT lane with its backward in `gradients` (float32 or bfloat16): the values that the integers stand for, in
// ordinary products.
struct GridLinear : torch::autograd::Function<GridLinear> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x_, const Tensor& weight_, const OptionalTensor& bias,
                        int64_t weight_bits, int64_t activation_bits, at::ScalarType gradients, bool keeps) {
    const Kernels& k = *chosen;
    const Tensor x = x_.contiguous(), weight = weight_.contiguous();
    const int64_t inner = x.size(-1), rows = x.numel() / inner, out = weight.size(0), stride = row_stride(inner);
    const auto bytes = at::TensorOptions().dtype(at::kChar);
    const Tensor x_integers = keeps ? at::empty({rows, inner}, bytes) : Tensor(), x_scale = floats(rows),
                 zero_point = integers(rows), weight_scale = floats(out),
                 weight_integers = keeps ? at::empty({out, inner}, bytes) : Tensor();
    void* const input = row_scratch(Scratch::input, rows, stride);
    void* const across = scratch(Scratch::columns, up(out, PANEL) * up(inner, k.group) * k.column_bytes);
    int32_t* const across_sums = static_cast<int32_t*>(scratch(Scratch::gradient, sizeof(int32_t) * up(out, PANEL)));
    k.quantize_input(of_floats(x), rows, inner, static_cast<int>(activation_bits), input, stride, of_floats(x_scale),
                     of_integers(zero_point), nullptr, nullptr, of_bytes(x_integers));
    k.quantize_weight(of_floats(weight), out, inner, static_cast<int>(weight_bits), across, across_sums, nullptr,
                      nullptr, of_bytes(weight_integers), of_floats(weight_scale));
    const Tensor output = output_like(x, out);
    const Tensor held_bias = bias.has_value() ? bias->contiguous() : Tensor();
    k.linear_output(input, stride, of_floats(x_scale), of_integers(zero_point), across, across_sums,
                    of_floats(weight_scale), of_floats(held_bias), rows, out, inner, of_floats(output));
    ctx->save_for_backward({x_integers, x_scale, zero_point, weight_integers, weight_scale});
    ctx->saved_data["shape"] = x.sizes().vec();
    ctx->saved_data["has_bias"] = bias.has_value();
    ctx->saved_data["gradients"] = static_cast<int64_t>(gradients);
    return output;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const Kernels& k = *chosen;
    const auto saved = ctx->get_saved_variables();
    const Tensor &x_integers = saved[0], &weight_integers = saved[3];
    const auto dtype = static_cast<at::ScalarType>(ctx->saved_data["gradients"].toInt());
    const int64_t rows = x_integers.size(0), inner = x_integers.size(1), out = weight_integers.size(0);
    const Tensor gradient = gradients[0].contiguous().view({rows, out}), low = gradient.to(dtype);
    const bool is_short = dtype == at::kBFloat16;
    Tensor x_gradient, weight_gradient;
    if (ctx->needs_input_grad(0)) {
      const Tensor weight = at::empty({out, inner}, low.options());
      k.dequantize(of_bytes(weight_integers), out, inner, of_floats(saved[4]), nullptr, is_short, of_memory(weight));
      x_gradient = low.mm(weight).to(at::kFloat).view(ctx->saved_data["shape"].toIntVector());
    }
    if (ctx->needs_input_grad(1)) {
      const Tensor x = at::empty({rows, inner}, low.options());
      k.dequantize(of_bytes(x_integers), rows, inner, of_floats(saved[1]), of_integers(saved[2]), is_short,
                   of_memory(x));
      weight_gradient = at::empty({out, inner}, at::kFloat);
      for (int64_t start = 0; start < out; start += ROWS_AT_ONCE) {
        const int64_t count = std::min(ROWS_AT_ONCE, out - start);
        weight_gradient.narrow(0, start, count).copy_(low.narrow(1, start, count).t().mm(x));
      }
    }
    return once_differentiable(gradients, {x_gradient, weight_gradient, needs_bias(ctx) ? gradient.sum(0) : Tensor(),
                                Tensor(), Tensor(), Tensor(), Tensor()});
  }
};

Tensor int8_linear(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  return Int8Linear::apply(x, weight, bias, at::GradMode::is_enabled());
}

Tensor grid_linear(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, int64_t weight_bits,
                   int64_t activation_bits, at::ScalarType gradients) {
  return GridLinear::apply(x, weight, bias, weight_bits, activation_bits, gradients, at::GradMode::is_enabled());
}

// A linear layer of the deployed model: its weight's integers (out, inner) and scale (out, 1) are given.
Tensor deployed_linear(const Tensor& x_, const Tensor& integers_, const Tensor& scale, const OptionalTensor& bias,
                       int64_t activation_bits) {
  const Kernels& k = *chosen;
  const Tensor x = x_.contiguous(), weight = integers_.contiguous();
  const int64_t inner = x.size(-1), rows = x.numel() / inner, out = weight.size(0), stride = row_stride(inner);
  const Tensor x_scale = floats(rows), zero_point = integers(rows), held_scale = scale.contiguous();
  const Tensor held_bias = bias.has_value() ? bias->contiguous() : Tensor();
  void* const input = row_scratch(Scratch::input, rows, stride);
  void* const across = scratch(Scratch::columns, up(out, PANEL) * up(inner, k.group) * k.column_bytes);
  int32_t* const sums = static_cast<int32_t*>(scratch(Scratch::gradient, sizeof(int32_t) * up(out, PANEL)));
  k.quantize_input(of_floats(x), rows, inner, static_cast<int>(activation_bits), input, stride, of_floats(x_scale),
                   of_integers(zero_point), nullptr, nullptr, nullptr);
  k.pack(of_bytes(weight), out, inner, across, sums);
  const Tensor output = output_like(x, out);
  k.linear_output(input, stride, of_floats(x_scale), of_integers(zero_point), across, sums, of_floats(held_scale),
                  of_floats(held_bias), rows, out, inner, of_floats(output));
  return output;
}

// Of (batch, channels, height, width) and (out, channels, height, width); `padding` is left, right, top, bottom.
Convolution shape_of(const Tensor& x, at::IntArrayRef kernel, at::IntArrayRef stride, at::IntArrayRef padding,
                     at::IntArrayRef dilation, bool channels_last_out) {
  Convolution s;
  s.batch = x.size(0), s.channels = x.size(1), s.height = x.size(2), s.width = x.size(3);
  s.out = kernel[0], s.kernel_height = kernel[2], s.kernel_width = kernel[3];
  s.stride_height = stride[0], s.stride_width = stride[1];
  s.dilation_height = dilation[0], s.dilation_width = dilation[1];
  s.left = padding[0], s.right = padding[1], s.top = padding[2], s.bottom = padding[3];
  s.out_height = (s.height + s.top + s.bottom - s.dilation_height * (s.kernel_height - 1) - 1) / s.stride_height + 1;
  s.out_width = (s.width + s.left + s.right - s.dilation_width * (s.kernel_width - 1) - 1) / s.stride_width + 1;
  s.channels_last = !x.is_contiguous();
  s.channels_last_out = channels_last_out;
  TORCH_CHECK(s.out_height > 0 && s.out_width > 0, "the kernel is larger than the padded input");
  return s;
}

// As it lies, where it lies without gaps.
Tensor dense(const Tensor& image) {
  return image.is_contiguous() || image.is_contiguous(at::MemoryFormat::ChannelsLast) ? image : image.contiguous();
}

at::MemoryFormat format(bool channels_last) {
  return channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
}

Tensor image_like(const Tensor& x, int64_t channels, int64_t height, int64_t width, bool channels_last) {
  return at::empty({x.size(0), channels, height, width}, x.options().memory_format(format(channels_last)));
}

// The PTQ lane's convolution. What it keeps of its input is the input itself, which the layer before often keeps too.
struct Int8Convolution : torch::autograd::Function<Int8Convolution> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x_, const Tensor& weight_, const OptionalTensor& bias,
                        std::vector<int64_t> stride, std::vector<int64_t> padding, std::vector<int64_t> dilation,
                        bool channels_last_out) {
    const Tensor x = dense(x_), weight = weight_.contiguous(), x_scale = floats(x.size(1));
    const Convolution s = shape_of(x, weight.sizes(), stride, padding, dilation, channels_last_out);
    int32_t zero = 0;
    chosen->convolution_scales(of_floats(x), s, of_floats(x_scale), &zero);
    const Tensor output = image_like(x, s.out, s.out_height, s.out_width, channels_last_out);
    const Tensor held_bias = bias.has_value() ? bias->contiguous() : Tensor();
    chosen->int8_convolution_output(of_floats(x), of_floats(weight), of_floats(held_bias), s, of_floats(x_scale), zero,
                                    of_floats(output));
    ctx->save_for_backward({x, weight, x_scale});
    ctx->saved_data["stride"] = std::move(stride);
    ctx->saved_data["padding"] = std::move(padding);
    ctx->saved_data["dilation"] = std::move(dilation);
    ctx->saved_data["zero"] = static_cast<int64_t>(zero);
    ctx->saved_data["has_bias"] = bias.has_value();
    return output;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], &x_scale = saved[2], gradient = dense(gradients[0]);
    const Convolution s = shape_of(x, weight.sizes(), ctx->saved_data["stride"].toIntVector(),
                                   ctx->saved_data["padding"].toIntVector(), ctx->saved_data["dilation"].toIntVector(),
                                   !gradient.is_contiguous());
    const int32_t zero = static_cast<int32_t>(ctx->saved_data["zero"].toInt());
    const Tensor scale = floats(s.out);
    chosen->convolution_gradient_scales(of_floats(gradient), s, of_floats(scale));
    Tensor x_gradient, weight_gradient;
    if (ctx->needs_input_grad(0)) {
      x_gradient = image_like(x, s.channels, s.height, s.width, s.channels_last);
      chosen->int8_convolution_input_gradient(of_floats(weight), of_floats(gradient), s, of_floats(scale),
                                              of_floats(x_gradient));
    }
    if (ctx->needs_input_grad(1)) {
      weight_gradient = at::empty(weight.sizes(), at::kFloat);
      chosen->int8_convolution_weight_gradient(of_floats(x), of_floats(gradient), s, of_floats(x_scale), zero,
                                               of_floats(scale), of_floats(weight_gradient));
    }
    return once_differentiable(gradients, {x_gradient, weight_gradient, needs_bias(ctx) ? gradient.sum({0, 2, 3}) : Tensor(),
                                Tensor(), Tensor(), Tensor(), Tensor()});
  }
};

Tensor int8_convolution(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, at::IntArrayRef stride,
                        at::IntArrayRef padding, at::IntArrayRef dilation, bool channels_last) {
  return Int8Convolution::apply(x, weight, bias, stride.vec(), padding.vec(), dilation.vec(), channels_last);
}

// A convolution on the deployment grid, without gradients: output, and scale and zero point of every image. The
// weight's integers are (out, channels * kernel), `kernel` is its shape.
std::tuple<Tensor, Tensor, Tensor> grid_convolution(const Tensor& x_, const Tensor& integers_, at::IntArrayRef kernel,
                                                    const Tensor& weight_scale, const OptionalTensor& bias,
                                                    int64_t bits, at::IntArrayRef stride, at::IntArrayRef padding,
                                                    at::IntArrayRef dilation, bool channels_last) {
  const Tensor x = dense(x_), whole = integers_.contiguous(), held_scale = weight_scale.contiguous();
  const Tensor held_bias = bias.has_value() ? bias->contiguous() : Tensor();
  const Convolution s = shape_of(x, kernel, stride, padding, dilation, channels_last);
  const Tensor output = image_like(x, s.out, s.out_height, s.out_width, channels_last),
               scale = at::empty({s.batch, 1, 1, 1}, at::kFloat), zero = at::empty({s.batch, 1, 1, 1}, at::kFloat);
  chosen->grid_convolution_output(of_floats(x), of_bytes(whole), of_floats(held_scale), of_floats(held_bias), s,
                                  static_cast<int>(bits), of_floats(scale), of_floats(zero), of_floats(output));
  return {output, scale, zero};
}

Tensor round_weight(const Tensor& rows_, int64_t bits) {
  const Tensor rows = rows_.contiguous(), rounded = at::empty_like(rows);
  chosen->round_weight(of_floats(rows), rows.size(0), rows.size(1), static_cast<int>(bits), of_floats(rounded));
  return rounded;
}

std::tuple<Tensor, Tensor, Tensor> quantize_weight(const Tensor& rows_, int64_t bits) {
  const Tensor rows = rows_.contiguous();
  const int64_t out = rows.size(0), inner = rows.size(1);
  const Tensor whole = at::empty({out, inner}, at::kChar), scale = at::empty({out, 1}, at::kFloat),
               sums = at::empty({out, 1}, at::kInt);
  chosen->quantize_weight(of_floats(rows), out, inner, static_cast<int>(bits), nullptr, of_integers(sums), nullptr,
                          nullptr, of_bytes(whole), of_floats(scale));
  return {whole, scale, sums};
}

Tensor round_input(const Tensor& rows_, int64_t bits) {
  const Tensor rows = rows_.contiguous(), rounded = at::empty_like(rows);
  chosen->round_input(of_floats(rows), rows.size(0), rows.size(1), static_cast<int>(bits), of_floats(rounded));
  return rounded;
}

std::vector<std::string> levels() {
  std::vector<std::string> names;
  for (const Kernels* const* each = all_kernels; *each; each++) names.emplace_back((*each)->name);
  return names;
}

void use_level(const std::string& name) {
  for (const Kernels* const* each = all_kernels; *each; each++)
    if (name == (*each)->name) {
      chosen = *each;
      return;
    }
  TORCH_CHECK(false, "no kernels of level ", name, " were built");
}

TORCH_LIBRARY(fedhq, library) {
  library.def("levels() -> str[]", &levels);
  library.def("use_level(str name) -> ()", &use_level);
  library.def("int8_linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor", &int8_linear);
  library.def(
      "grid_linear(Tensor x, Tensor weight, Tensor? bias, int weight_bits, int activation_bits, ScalarType gradients) "
      "-> Tensor",
      &grid_linear);
  library.def(
      "deployed_linear(Tensor x, Tensor integers, Tensor scale, Tensor? bias, int activation_bits) -> Tensor",
      &deployed_linear);
  library.def(
      "int8_convolution(Tensor x, Tensor weight, Tensor? bias, int[] stride, int[] padding, int[] dilation, "
      "bool channels_last) -> Tensor",
      &int8_convolution);
  library.def(
      "grid_convolution(Tensor x, Tensor integers, int[] kernel, Tensor weight_scale, Tensor? bias, int bits, "
      "int[] stride, int[] padding, int[] dilation, bool channels_last) -> (Tensor, Tensor, Tensor)",
      &grid_convolution);
  library.def("quantize_weight(Tensor rows, int bits) -> (Tensor, Tensor, Tensor)", &quantize_weight);
  library.def("round_weight(Tensor rows, int bits) -> Tensor", &round_weight);
  library.def("round_input(Tensor rows, int bits) -> Tensor", &round_input);
}

}  // namespace
}  // namespace fedhq
