// Linear layers of the lanes and of the deployed model, with gradients of their own.
#pragma once
#include "tensors.h"

namespace fedhq {
namespace {

// A linear layer whose three products are integers: of the PTQ lane, symmetric in 8 bits, where bits are 0; else of the
// QAT lane, whose input and weight are on their grids.
struct Int8Linear : torch::autograd::Function<Int8Linear> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x_, const Tensor& weight_, const OptionalTensor& bias,
                        int64_t weight_bits, int64_t activation_bits, bool keeps) {
    const Kernels& k = *chosen;
    const Tensor x = x_.contiguous(), weight = weight_.contiguous();
    const int64_t inner = x.size(-1), rows = x.numel() / inner, out = weight.size(0), stride = row_stride(inner);
    const bool needs_weight = keeps && weight_.requires_grad(), needs_x = keeps && x_.requires_grad();
    const Tensor x_scale = floats(rows), zero_point = activation_bits ? integers(rows) : Tensor();
    const Tensor panels = needs_weight ? columns(rows, inner) : Tensor();
    const Tensor panel_sums = needs_weight ? integers(inner) : Tensor();
    const Tensor weight_scale = floats(out);
    const Tensor along = needs_x ? columns(out, inner) : Tensor(), along_sums = needs_x ? integers(inner) : Tensor();
    void* const input = row_scratch(Scratch::input, rows, stride);
    void* const across = scratch(Scratch::columns, up(out, PANEL) * up(inner, k.group) * k.column_bytes);
    int32_t* const across_sums = static_cast<int32_t*>(scratch(Scratch::gradient, sizeof(int32_t) * up(out, PANEL)));
    k.quantize_input(of_floats(x), rows, inner, static_cast<int>(activation_bits), input, stride, of_floats(x_scale),
                     of_integers(zero_point), of_memory(panels), of_integers(panel_sums), nullptr);
    k.quantize_weight(of_floats(weight), out, inner, static_cast<int>(weight_bits), across, across_sums,
                      of_memory(along), of_integers(along_sums), nullptr, of_floats(weight_scale));
    const Tensor output = output_like(x, out);
    const Tensor held_bias = bias.has_value() ? bias->contiguous() : Tensor();
    k.linear_output(input, stride, of_floats(x_scale), of_integers(zero_point), across, across_sums,
                    of_floats(weight_scale), of_floats(held_bias), rows, out, inner, of_floats(output));
    ctx->save_for_backward({x_scale, panels, panel_sums, weight_scale, along, along_sums, zero_point});
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
                 &along = saved[4], &along_sums = saved[5], &zero_point = saved[6];
    const int64_t rows = ctx->saved_data["rows"].toInt(), inner = ctx->saved_data["inner"].toInt(),
                  out = ctx->saved_data["out"].toInt();
    const Tensor gradient = gradients[0].contiguous();
    const bool needs_x = ctx->needs_input_grad(0), needs_weight = ctx->needs_input_grad(1);
    const int64_t stride = row_stride(out), column_stride = row_stride(out) * k.group;
    void* const by_rows = needs_x ? row_scratch(Scratch::input, rows, stride) : nullptr;
    void* const by_columns =
        needs_weight ? row_scratch(Scratch::columns, up(rows, k.group) / k.group, column_stride) : nullptr;
    const Tensor row_scale = floats(rows), column_scale = floats(out),
                 corrections = zero_point.defined() ? integers(out) : Tensor();
    k.quantize_gradient(of_floats(gradient), rows, out, of_floats(weight_scale), of_floats(x_scale),
                        of_integers(zero_point), by_rows, stride, of_floats(row_scale), by_columns, column_stride,
                        of_floats(column_scale), of_integers(corrections));
    Tensor x_gradient, weight_gradient;
    if (needs_x) {
      x_gradient = at::empty(ctx->saved_data["shape"].toIntVector(), at::kFloat);
      k.linear_input_gradient(by_rows, stride, of_floats(row_scale), of_memory(along), of_integers(along_sums), rows,
                              out, inner, of_floats(x_gradient));
    }
    if (needs_weight) {
      weight_gradient = at::empty({out, inner}, at::kFloat);
      k.linear_weight_gradient(by_columns, column_stride, of_floats(column_scale), of_memory(panels),
                               of_integers(panel_sums), of_integers(corrections), rows, out, inner,
                               of_floats(weight_gradient));
    }
    return once_differentiable(
        gradients,
        {x_gradient, weight_gradient, needs_bias(ctx) ? gradient.view({rows, out}).sum(0) : Tensor(), Tensor(),
         Tensor(), Tensor()});
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
  return Int8Linear::apply(x, weight, bias, 0, 0, at::GradMode::is_enabled());
}

Tensor grid_linear(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, int64_t weight_bits,
                   int64_t activation_bits, at::ScalarType gradients) {
  if (gradients == at::kChar)
    return Int8Linear::apply(x, weight, bias, weight_bits, activation_bits, at::GradMode::is_enabled());
  return GridLinear::apply(x, weight, bias, weight_bits, activation_bits, gradients, at::GradMode::is_enabled());
}

// Weight (out, inner) on its grid: integers, scale and sums of every row.
std::tuple<Tensor, Tensor, Tensor> quantize_weight(const Tensor& rows_, int64_t bits) {
  const Tensor rows = rows_.contiguous();
  const int64_t out = rows.size(0), inner = rows.size(1);
  const Tensor whole = at::empty({out, inner}, at::kChar), scale = at::empty({out, 1}, at::kFloat),
               sums = at::empty({out, 1}, at::kInt);
  chosen->quantize_weight(of_floats(rows), out, inner, static_cast<int>(bits), nullptr, of_integers(sums), nullptr,
                          nullptr, of_bytes(whole), of_floats(scale));
  return {whole, scale, sums};
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

}  // namespace
}  // namespace fedhq
