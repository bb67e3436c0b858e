// Convolutions of the lanes and of the deployed model, with gradients of their own.
#pragma once
#include <ATen/ops/convolution_backward.h>

#include "linear_layers.h"

namespace fedhq {
namespace {

// Of (batch, channels, height, width) and (out, channels, height, width); `padding` is left, right, top, bottom.
Convolution shape_of(const Tensor& x, at::IntArrayRef kernel, at::IntArrayRef stride, at::IntArrayRef padding,
                     at::IntArrayRef dilation, bool channels_last_out, bool channels_last_weight) {
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
  s.channels_last_weight = channels_last_weight;
  TORCH_CHECK(s.batch > 0, "no images");
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
    const Tensor x = dense(x_), weight = dense(weight_), x_scale = floats(x.size(1));
    const Convolution s =
        shape_of(x, weight.sizes(), stride, padding, dilation, channels_last_out, !weight.is_contiguous());
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
                                   !gradient.is_contiguous(), !weight.is_contiguous());
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
      weight_gradient = at::empty_like(weight);
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

// A convolution on the grid: output, and scale and zero point of every image. The weight's integers are
// (out, channels * kernel), or (out, kernel * channels); `kernel` is its shape.
std::tuple<Tensor, Tensor, Tensor> output_on_grid(const Tensor& x_, const Tensor& integers_, at::IntArrayRef kernel,
                                                  const Tensor& weight_scale, const OptionalTensor& bias, int64_t bits,
                                                  at::IntArrayRef stride, at::IntArrayRef padding,
                                                  at::IntArrayRef dilation, bool channels_last,
                                                  bool channels_last_weight) {
  const Tensor x = dense(x_), whole = integers_.contiguous(), held_scale = weight_scale.contiguous();
  const Tensor held_bias = bias.has_value() ? bias->contiguous() : Tensor();
  const Convolution s = shape_of(x, kernel, stride, padding, dilation, channels_last, channels_last_weight);
  const Tensor output = image_like(x, s.out, s.out_height, s.out_width, channels_last),
               scale = at::empty({s.batch, 1, 1, 1}, at::kFloat), zero = at::empty({s.batch, 1, 1, 1}, at::kFloat);
  chosen->grid_convolution_output(of_floats(x), of_bytes(whole), of_floats(held_scale), of_floats(held_bias), s,
                                  static_cast<int>(bits), of_floats(scale), of_floats(zero), of_floats(output));
  return {output, scale, zero};
}

// A convolution of the deployed model, whose weight has its channels first.
std::tuple<Tensor, Tensor, Tensor> deployed_convolution(const Tensor& x, const Tensor& integers, at::IntArrayRef kernel,
                                                        const Tensor& weight_scale, const OptionalTensor& bias,
                                                        int64_t bits, at::IntArrayRef stride, at::IntArrayRef padding,
                                                        at::IntArrayRef dilation, bool channels_last) {
  return output_on_grid(x, integers, kernel, weight_scale, bias, bits, stride, padding, dilation, channels_last, false);
}

// The QAT lane's convolution. Its gradients are products in `gradients`: float32 or bfloat16, of the values that the
// integers stand for, or int8, of the integers.
struct GridConvolution : torch::autograd::Function<GridConvolution> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x_, const Tensor& weight, const OptionalTensor& bias,
                        int64_t weight_bits, int64_t activation_bits, at::ScalarType gradients,
                        std::vector<int64_t> stride, std::vector<int64_t> padding, std::vector<int64_t> dilation,
                        bool channels_last_out) {
    const Tensor x = dense(x_), held_weight = dense(weight);
    const bool channels_last_weight = !held_weight.is_contiguous();
    const auto [integers, weight_scale, sums] = quantize_weight(
        (channels_last_weight ? held_weight.permute({0, 2, 3, 1}) : held_weight).flatten(1), weight_bits);
    const auto [output, scale, zero_point] =
        output_on_grid(x, integers, weight.sizes(), weight_scale, bias, activation_bits, stride, padding, dilation,
                       channels_last_out, channels_last_weight);
    ctx->save_for_backward({x, scale, zero_point, integers, weight_scale});
    ctx->saved_data["kernel"] = weight.sizes().vec();
    ctx->saved_data["channels_last_weight"] = channels_last_weight;
    ctx->saved_data["bits"] = activation_bits;
    ctx->saved_data["gradients"] = static_cast<int64_t>(gradients);
    ctx->saved_data["stride"] = std::move(stride);
    ctx->saved_data["padding"] = std::move(padding);
    ctx->saved_data["dilation"] = std::move(dilation);
    ctx->saved_data["has_bias"] = bias.has_value();
    return output;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const Tensor gradient = dense(gradients[0]);
    const bool is_integer = ctx->saved_data["gradients"].toInt() == static_cast<int64_t>(at::kChar);
    auto [x_gradient, weight_gradient] = is_integer ? integer_products(ctx, gradient) : products(ctx, gradient);
    const Tensor bias_gradient = needs_bias(ctx) ? gradient.sum({0, 2, 3}) : Tensor(), none;
    return once_differentiable(
        gradients, {x_gradient, weight_gradient, bias_gradient, none, none, none, none, none, none, none});
  }

  static std::pair<Tensor, Tensor> integer_products(AutogradContext* ctx, const Tensor& gradient) {
    const Kernels& k = *chosen;
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &x_scale = saved[1], &zero_point = saved[2], &weight = saved[3],
                 &weight_scale = saved[4];
    const auto kernel = ctx->saved_data["kernel"].toIntVector();
    const bool channels_last_weight = ctx->saved_data["channels_last_weight"].toBool();
    const Convolution s = shape_of(x, kernel, ctx->saved_data["stride"].toIntVector(),
                                   ctx->saved_data["padding"].toIntVector(), ctx->saved_data["dilation"].toIntVector(),
                                   !gradient.is_contiguous(), channels_last_weight);
    const Tensor image_scale = floats(s.batch), channel_scale = floats(s.out);
    k.grid_gradient_scales(of_floats(gradient), s, of_floats(weight_scale), of_floats(x_scale), of_floats(image_scale),
                           of_floats(channel_scale));
    Tensor x_gradient, weight_gradient;
    if (ctx->needs_input_grad(0)) {
      x_gradient = image_like(x, s.channels, s.height, s.width, s.channels_last);
      k.grid_convolution_input_gradient(of_bytes(weight), of_floats(weight_scale), of_floats(gradient), s,
                                        of_floats(image_scale), of_floats(x_gradient));
    }
    if (ctx->needs_input_grad(1)) {
      weight_gradient = at::empty(kernel, x.options().memory_format(format(channels_last_weight)));
      k.grid_convolution_weight_gradient(of_floats(x), of_floats(gradient), s,
                                         static_cast<int>(ctx->saved_data["bits"].toInt()), of_floats(x_scale),
                                         of_floats(zero_point), of_floats(channel_scale), of_floats(weight_gradient));
    }
    return {x_gradient, weight_gradient};
  }

  static std::pair<Tensor, Tensor> products(AutogradContext* ctx, const Tensor& gradient) {
    const auto saved = ctx->get_saved_variables();
    const Tensor& x = saved[0];
    const auto kernel = ctx->saved_data["kernel"].toIntVector(), stride = ctx->saved_data["stride"].toIntVector(),
               padding = ctx->saved_data["padding"].toIntVector(), dilation = ctx->saved_data["dilation"].toIntVector();
    const auto dtype = static_cast<at::ScalarType>(ctx->saved_data["gradients"].toInt());
    const bool is_short = dtype == at::kBFloat16;
    const bool is_even = padding[0] == padding[1] && padding[2] == padding[3];
    // torch pads alike on both sides only.
    const bool channels_last_weight = ctx->saved_data["channels_last_weight"].toBool();
    Convolution s = shape_of(x, kernel, stride, padding, dilation, false, channels_last_weight);
    if (is_even) s.left = s.right = s.top = s.bottom = 0;
    const Tensor low = gradient.to(dtype).contiguous(at::MemoryFormat::ChannelsLast);
    const Tensor values = image_like(low, s.channels, s.height + s.top + s.bottom, s.width + s.left + s.right, true);
    chosen->grid_image_values(of_floats(x), s, static_cast<int>(ctx->saved_data["bits"].toInt()), of_floats(saved[1]),
                              of_floats(saved[2]), is_short, of_memory(values));
    const Tensor weight = at::empty(kernel, low.options().memory_format(format(channels_last_weight)));
    chosen->dequantize(of_bytes(saved[3]), kernel[0], saved[3].size(1), of_floats(saved[4]), nullptr, is_short,
                       of_memory(weight));
    const std::vector<int64_t> alike = {is_even ? padding[2] : 0, is_even ? padding[0] : 0};
    auto [x_gradient, weight_gradient, none] = at::convolution_backward(
        low, values, weight.contiguous(at::MemoryFormat::ChannelsLast), std::nullopt, stride, alike, dilation, false,
        {0, 0}, 1, {ctx->needs_input_grad(0), ctx->needs_input_grad(1), false});
    if (x_gradient.defined())
      x_gradient = x_gradient.narrow(2, s.top, s.height).narrow(3, s.left, s.width).to(at::kFloat)
                       .contiguous(format(s.channels_last));
    if (weight_gradient.defined()) weight_gradient = weight_gradient.to(at::kFloat);
    return {x_gradient, weight_gradient};
  }
};

Tensor grid_convolution(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, int64_t weight_bits,
                        int64_t activation_bits, at::ScalarType gradients, at::IntArrayRef stride,
                        at::IntArrayRef padding, at::IntArrayRef dilation, bool channels_last) {
  return GridConvolution::apply(x, weight, bias, weight_bits, activation_bits, gradients, stride.vec(), padding.vec(),
                                dilation.vec(), channels_last);
}

}  // namespace
}  // namespace fedhq
