// What the layers share: memory for the kernels, and how torch sees their gradients.
#pragma once
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/basic_ops.h>

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

}  // namespace
}  // namespace fedhq
