// What lies between the lanes' products, as operators of torch: `torch.ops.fedhq`. Tensors as in lanes.cpp.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "kernels.h"
#include "once_differentiable.h"

namespace fedhq {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

Images shape_of(const Tensor& x) {
  return {x.size(0), x.size(1), x.size(2), x.size(3), x.suggest_memory_format() == at::MemoryFormat::ChannelsLast};
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

Tensor max_pool(const Tensor& x) { return MaxPool::apply(x); }

TORCH_LIBRARY_FRAGMENT(fedhq, library) {
  library.def("max_pool(Tensor x) -> Tensor", &max_pool);
}

}  // namespace
}  // namespace fedhq
