// A GPU that is none: CUDA's place in torch is taken by kernels that compute on the CPU. As on a GPU, an operation that
// is given tensors of both devices fails, unless one is a scalar on the CPU; so do products of int8 that CUDA refuses.

#include <ATen/DeviceAccelerator.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/library.h>

namespace {

using at::Tensor;
const c10::Device kGpu(c10::kCUDA, 0);
const c10::DispatchKeySet kKeys(c10::DispatchKey::CUDA);

struct Guard final : c10::impl::NoOpDeviceGuardImpl<c10::kCUDA> {
  c10::Device exchangeDevice(c10::Device) const override { return kGpu; }
  c10::Device getDevice() const override { return kGpu; }
  c10::Stream getStream(c10::Device) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, kGpu); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, kGpu); }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard)

struct CUDAHooks final : at::CUDAHooksInterface {
  explicit CUDAHooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
};
using at::CUDAHooksRegistry;
using at::RegistererCUDAHooksRegistry;
REGISTER_CUDA_HOOKS(CUDAHooks)

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t size) override {
    void* data = size ? c10::alloc_cpu(size) : nullptr;
    return {data, data, &c10::free_cpu, kGpu};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &c10::free_cpu; }
  void copy_data(void* to, const void* from, size_t size) const override { default_copy_data(to, from, size); }
};
Memory memory;
REGISTER_ALLOCATOR(c10::kCUDA, &memory)

Tensor empty(c10::IntArrayRef size, std::optional<c10::ScalarType> type, std::optional<c10::Layout>,
             std::optional<c10::Device>, std::optional<bool>, std::optional<c10::MemoryFormat> format) {
  return at::detail::empty_generic(size, &memory, kKeys, c10::dtype_or_default(type), format);
}

Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<c10::ScalarType> type,
                     std::optional<c10::Layout>, std::optional<c10::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &memory, kKeys,
                                           c10::dtype_or_default(type));
}

// The same memory as a tensor on the CPU, or the other way round.
Tensor moved(const Tensor& x, c10::Device from, c10::Device to, c10::Allocator* allocator) {
  if (!x.defined() || x.device().type() != from.type()) return x;
  auto* kept = new c10::Storage(x.storage());
  void* data = kept->mutable_data();
  c10::DataPtr same(data, kept, [](void* held) { delete static_cast<c10::Storage*>(held); }, to);
  c10::Storage storage(c10::Storage::use_byte_size_t(), kept->nbytes(), std::move(same), allocator, true);
  const auto keys = to.is_cuda() ? kKeys : c10::DispatchKeySet(c10::DispatchKey::CPU);
  Tensor result = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), keys, x.dtype());
  result.unsafeGetTensorImpl()->set_storage_offset(x.storage_offset());
  result.unsafeGetTensorImpl()->set_sizes_and_strides(x.sizes(), x.strides());
  return result;
}

Tensor on_cpu(const Tensor& x) { return moved(x, kGpu, c10::kCPU, c10::GetCPUAllocator()); }

Tensor on_gpu(const Tensor& x) { return moved(x, c10::kCPU, kGpu, &memory); }

// Make a tensor on the GPU what its counterpart on the CPU, that an operation wrote to, has become.
void take(const Tensor& self, const Tensor& written) {
  if (self.sizes() == written.sizes() && self.data_ptr() == written.data_ptr()) return;
  const Tensor now = on_gpu(written);
  self.unsafeGetTensorImpl()->set_storage_and_dtype(now.storage(), self.dtype());
  self.unsafeGetTensorImpl()->set_storage_offset(now.storage_offset());
  self.unsafeGetTensorImpl()->set_sizes_and_strides(now.sizes(), now.strides());
}

Tensor& copy_(Tensor& self, const Tensor& source, bool) {
  on_cpu(self).copy_(on_cpu(source));
  return self;
}

c10::Scalar local_scalar(const Tensor& self) { return on_cpu(self).item(); }

const Tensor& resize_(const Tensor& self, c10::IntArrayRef size, std::optional<c10::MemoryFormat> format) {
  const Tensor written = on_cpu(self);
  written.resize_(size, format);
  take(self, written);
  return self;
}

Tensor& set_place(Tensor& self, c10::Storage storage, int64_t offset, c10::IntArrayRef size, c10::IntArrayRef stride) {
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(storage));
  self.unsafeGetTensorImpl()->set_storage_offset(offset);
  if (stride.empty() && !size.empty())
    self.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  else
    self.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride);
  return self;
}

Tensor& set_(Tensor& self, c10::Storage storage) {
  const auto count = static_cast<int64_t>(storage.nbytes() / self.itemsize());
  return set_place(self, std::move(storage), 0, {count}, {});
}

int64_t attention_in_steps(const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>&, double, bool,
                           std::optional<double>, bool) {
  return 0;
}

struct Seen {
  bool gpu = false;
  bool cpu = false;

  void look(const Tensor& x) {
    if (!x.defined()) return;
    gpu |= x.is_cuda();
    cpu |= x.is_cpu() && x.dim() > 0;
  }
};

// What torch 2.13 refuses on CUDA (aten/src/ATen/native/cuda/Blas.cpp).
void check_product(const Tensor& a, const Tensor& b) {
  TORCH_CHECK(a.size(0) > 16, "_int_mm of ", a.size(0), " rows: CUDA takes more than 16");
  for (int64_t size : {a.size(1), b.size(1)})
    TORCH_CHECK(size && size % 8 == 0, "_int_mm of ", a.sizes(), " and ", b.sizes(), ": CUDA takes multiples of 8");
}

void compute(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const size_t count = schema.arguments().size(), begin = stack->size() - count;
  std::vector<c10::IValue> given(stack->begin() + static_cast<ptrdiff_t>(begin), stack->end());
  Seen seen;
  for (size_t i = 0; i < count; ++i) {
    c10::IValue& value = (*stack)[begin + i];
    if (value.isTensor()) {
      seen.look(value.toTensor());
      value = on_cpu(value.toTensor());
    } else if (value.isTensorList()) {
      c10::List<Tensor> list;
      for (const Tensor& each : value.toTensorVector()) seen.look(each), list.push_back(on_cpu(each));
      value = list;
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> list;
      for (const std::optional<Tensor>& each : value.toOptionalTensorVector()) {
        // An index may be on the CPU, as torch allows.
        list.push_back(each ? std::optional(on_cpu(*each)) : std::nullopt);
      }
      value = list;
    } else if (value.isDevice()) {
      value = c10::Device(c10::kCPU);
    }
  }
  TORCH_CHECK(!(seen.gpu && seen.cpu), schema.name(), ": tensors on cuda:0 and on cpu");
  if (schema.name() == "aten::_int_mm") check_product(given[0].toTensor(), given[1].toTensor());
  const std::vector<c10::IValue> taken(stack->begin() + static_cast<ptrdiff_t>(begin), stack->end());
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  for (size_t i = 0; i < count; ++i) {
    const auto* alias = schema.arguments()[i].alias_info();
    if (alias != nullptr && alias->isWrite() && given[i].isTensor() && given[i].toTensor().is_cuda())
      take(given[i].toTensor(), taken[i].toTensor());
  }
  const size_t results = schema.returns().size(), end = stack->size() - results;
  for (size_t i = 0; i < results; ++i) {
    c10::IValue& value = (*stack)[end + i];
    const auto* alias = schema.returns()[i].alias_info();
    if (alias != nullptr && alias->isWrite()) {
      // What was changed in place is the tensor that was given.
      for (size_t j = 0; j < count; ++j) {
        const auto* other = schema.arguments()[j].alias_info();
        if (other != nullptr && *other == *alias) value = given[j];
      }
    } else if (value.isTensor()) {
      value = on_gpu(value.toTensor());
    } else if (value.isTensorList()) {
      c10::List<Tensor> list;
      for (const Tensor& each : value.toTensorVector()) list.push_back(on_gpu(each));
      value = list;
    }
  }
}

TORCH_LIBRARY_IMPL(_, CUDA, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&compute>());
}

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("_reshape_alias", &at::native::_reshape_alias);
  m.impl("view", &at::native::view);
  m.impl("unfold", &at::native::unfold);
  m.impl("copy_", &copy_);
  m.impl("resize_", &resize_);
  m.impl("set_.source_Storage", &set_);
  m.impl("set_.source_Storage_storage_offset", &set_place);
  m.impl("_local_scalar_dense", &local_scalar);
  m.impl("_fused_sdp_choice", &attention_in_steps);
  // Of many kernels torch would choose one by the device.
  m.impl("convolution", torch::CppFunction::makeFromBoxedFunction<&compute>());
  m.impl("convolution_backward", torch::CppFunction::makeFromBoxedFunction<&compute>());
}

}  // namespace
