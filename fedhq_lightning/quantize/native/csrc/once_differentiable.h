#pragma once
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/basic_ops.h>

namespace fedhq {

// Gradients of gradients do not exist here: they fail when they are asked for, not before.
inline torch::autograd::variable_list once_differentiable(const torch::autograd::variable_list& given,
                                                      torch::autograd::variable_list gradients) {
  if (!at::GradMode::is_enabled() || !given[0].requires_grad()) return gradients;
  for (at::Tensor& each : gradients)
    if (each.defined()) each = each.detach().set_requires_grad(true);
  auto error = std::make_shared<torch::autograd::DelayedError>(
      "the int8 lanes have no gradient of a gradient", static_cast<int64_t>(gradients.size()));
  return (*error)(std::move(gradients));
}

}  // namespace fedhq
