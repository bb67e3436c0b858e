// What lies between the lanes' products, as operators of torch: `torch.ops.fedhq`. Tensors as in lanes.cpp.
#pragma once
#include <torch/library.h>

#include "tensors.h"

namespace fedhq {
namespace {

constexpr auto CHANNELS_LAST = at::MemoryFormat::ChannelsLast;

const float* data(const Tensor& t) { return t.defined() ? t.const_data_ptr<float>() : nullptr; }

Images shape_of(const Tensor& x) {
  return {x.size(0), x.size(1), x.size(2), x.size(3), x.suggest_memory_format() == CHANNELS_LAST};
}

// Of windows of 2 x 2 pixels, each beside the other: (batch, channels, height, width) to half of both, rounded down.
struct MaxPool : torch::autograd::Function<MaxPool> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x_) {
    const auto format = x_.suggest_memory_format();
    const Tensor x = x_.contiguous(format);
    TORCH_CHECK(x.size(2) > 1 && x.size(3) > 1, "the window is larger than the image");
    const Tensor output =
        at::empty({x.size(0), x.size(1), x.size(2) / 2, x.size(3) / 2}, x.options().memory_format(format));
    chosen->max_pool(x.const_data_ptr<float>(), shape_of(x), output.mutable_data_ptr<float>());
    ctx->save_for_backward({x});
    return output;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const Tensor x = ctx->get_saved_variables()[0], gradient = gradients[0].contiguous(x.suggest_memory_format()),
                 x_gradient = at::empty(x.sizes(), x.options().memory_format(x.suggest_memory_format()));
    chosen->max_pool_gradient(x.const_data_ptr<float>(), gradient.const_data_ptr<float>(), shape_of(x),
                              x_gradient.mutable_data_ptr<float>());
    return once_differentiable(gradients, {x_gradient});
  }
};

// Group normalization of images with channels last; then `shortcut` is added, and a ReLU taken, where they are given.
struct GroupNorm : torch::autograd::Function<GroupNorm> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x_, const Tensor& weight_, const Tensor& bias_,
                        const std::optional<Tensor>& shortcut, int64_t groups, double epsilon, bool rectified) {
    const Tensor x = x_.contiguous(CHANNELS_LAST), weight = weight_.contiguous(), bias = bias_.contiguous();
    const Tensor added = shortcut.has_value() ? shortcut->contiguous(CHANNELS_LAST) : Tensor();
    const Normalized shape = {x.size(0), x.size(1), x.size(2) * x.size(3), groups, epsilon, rectified};
    const Tensor output = at::empty(x.sizes(), x.options().memory_format(CHANNELS_LAST));
    const Tensor mean = at::empty({x.size(0), groups}, x.options()), inverse = at::empty_like(mean);
    chosen->group_norm(data(x), data(added), shape, data(weight), data(bias), mean.mutable_data_ptr<float>(),
                       inverse.mutable_data_ptr<float>(), output.mutable_data_ptr<float>());
    ctx->save_for_backward({x, weight, mean, inverse, rectified ? output : Tensor()});
    ctx->saved_data["has_shortcut"] = shortcut.has_value();
    ctx->saved_data["groups"] = groups;
    return output;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], &output = saved[4],
                 gradient = gradients[0].contiguous(CHANNELS_LAST);
    const Normalized shape = {x.size(0), x.size(1), x.size(2) * x.size(3), ctx->saved_data["groups"].toInt(), 0.0,
                              output.defined()};
    const bool has_shortcut = ctx->saved_data["has_shortcut"].toBool();
    const auto like_x = [&] { return at::empty(x.sizes(), x.options().memory_format(CHANNELS_LAST)); };
    const Tensor x_gradient = like_x(), weight_gradient = at::empty_like(weight), bias_gradient = at::empty_like(weight);
    // Without a ReLU the shortcut gets the gradient as it came.
    const bool is_other = has_shortcut && output.defined();
    const Tensor shortcut_gradient = is_other ? like_x() : has_shortcut ? gradient : Tensor();
    chosen->group_norm_gradients(data(x), data(output), data(gradient), shape, data(weight), data(saved[2]),
                                 data(saved[3]), x_gradient.mutable_data_ptr<float>(),
                                 is_other ? shortcut_gradient.mutable_data_ptr<float>() : nullptr,
                                 weight_gradient.mutable_data_ptr<float>(), bias_gradient.mutable_data_ptr<float>());
    return once_differentiable(gradients, {x_gradient, weight_gradient, bias_gradient, shortcut_gradient, Tensor(),
                                           Tensor(), Tensor()});
  }
};

Tensor max_pool(const Tensor& x) { return MaxPool::apply(x); }

Tensor group_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, const std::optional<Tensor>& shortcut,
                  int64_t groups, double epsilon, bool rectified) {
  return GroupNorm::apply(x, weight, bias, shortcut, groups, epsilon, rectified);
}

TORCH_LIBRARY_FRAGMENT(fedhq, library) {
  library.def("max_pool(Tensor x) -> Tensor", &max_pool);
  library.def(
      "group_norm(Tensor x, Tensor weight, Tensor bias, Tensor? shortcut, int groups, float epsilon, bool rectified) "
      "-> Tensor",
      &group_norm);
}

}  // namespace
}  // namespace fedhq
