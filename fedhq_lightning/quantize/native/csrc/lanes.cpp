// The lanes' layers and their rounding as operators of torch: `torch.ops.fedhq`. More of them are in `between.h` and
// `payload.h`; one file is compiled, since torch's headers take longer than what is in ours.
//
// Tensors that come in are float32 on the CPU, as `native/lanes.py` sees to. One thread computes.
#include <torch/library.h>

#include "between.h"
#include "convolution_layers.h"
#include "linear_layers.h"
#include "payload.h"

namespace fedhq {
namespace {

Tensor round_weight(const Tensor& rows_, int64_t bits) {
  const Tensor rows = rows_.contiguous(), rounded = at::empty_like(rows);
  chosen->round_weight(of_floats(rows), rows.size(0), rows.size(1), static_cast<int>(bits), of_floats(rounded));
  return rounded;
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
      "grid_convolution(Tensor x, Tensor weight, Tensor? bias, int weight_bits, int activation_bits, "
      "ScalarType gradients, int[] stride, int[] padding, int[] dilation, bool channels_last) -> Tensor",
      &grid_convolution);
  library.def(
      "deployed_convolution(Tensor x, Tensor integers, int[] kernel, Tensor weight_scale, Tensor? bias, int bits, "
      "int[] stride, int[] padding, int[] dilation, bool channels_last) -> (Tensor, Tensor, Tensor)",
      &deployed_convolution);
  library.def("quantize_weight(Tensor rows, int bits) -> (Tensor, Tensor, Tensor)", &quantize_weight);
  library.def("round_weight(Tensor rows, int bits) -> Tensor", &round_weight);
  library.def("round_input(Tensor rows, int bits) -> Tensor", &round_input);
}

}  // namespace
}  // namespace fedhq
