// What travels and is added up, as operators of torch without gradients: `torch.ops.fedhq`.
//
// Tensors that come in are on the CPU and without gaps, as those who call see to.
#pragma once
#include <torch/library.h>

#include "tensors.h"

namespace fedhq {
namespace {

std::tuple<Tensor, Tensor> pack_weight(const Tensor& rows, const std::optional<Tensor>& base, int64_t bits) {
  const int64_t count = rows.size(0), size = rows.size(1);
  const Tensor packed = at::empty({(count * size * bits + 7) / 8}, at::kByte),
               scale = at::empty({count, 1}, at::kFloat);
  chosen->pack_weight(rows.const_data_ptr<float>(), base.has_value() ? base->const_data_ptr<float>() : nullptr, count,
                      size, static_cast<int>(bits), packed.mutable_data_ptr<uint8_t>(),
                      scale.mutable_data_ptr<float>());
  return {packed, scale};
}

void unpack_weight(const Tensor& packed, int64_t bits, const Tensor& scale, int64_t group, int64_t begin,
                   const Tensor& values) {
  TORCH_CHECK(begin % 8 == 0 && begin + values.numel() <= scale.numel() * group, "values ", begin, " and on");
  TORCH_CHECK(packed.numel() * 8 >= (begin + values.numel()) * bits, packed.numel(), " bytes are too few");
  chosen->unpack_weight(packed.const_data_ptr<uint8_t>(), packed.numel(), static_cast<int>(bits),
                        scale.const_data_ptr<float>(), group, begin, values.numel(), values.mutable_data_ptr<float>());
}

std::tuple<int64_t, int64_t> magnitudes(const Tensor& values) {
  int64_t largest, smallest;
  chosen->magnitudes(values.const_data_ptr<float>(), values.numel(), &largest, &smallest);
  return {largest, smallest};
}

std::tuple<int64_t, int64_t> add_values(const Tensor& values, double factor, int64_t lowest, int64_t highest,
                                        int64_t limit, const Tensor& units, const Tensor& places) {
  TORCH_CHECK(units.numel() == values.numel() && places.numel() >= values.numel(), "unlike sizes");
  int64_t largest;
  const int64_t count = chosen->add_values(values.const_data_ptr<float>(), values.numel(), factor, lowest, highest,
                                           limit, units.mutable_data_ptr<int64_t>(),
                                           places.mutable_data_ptr<int32_t>(), &largest);
  return {largest, count};
}

void mean_of_units(const Tensor& units, int64_t shifts, int64_t shift, int64_t unit, double total_weight,
                   const Tensor& mean) {
  TORCH_CHECK(units.numel() == mean.numel(), "unlike sizes");
  chosen->mean_of_units(units.const_data_ptr<int64_t>(), units.numel(), shifts, shift, unit, total_weight,
                        mean.mutable_data_ptr<float>());
}

TORCH_LIBRARY_FRAGMENT(fedhq, library) {
  library.def("pack_weight(Tensor rows, Tensor? base, int bits) -> (Tensor, Tensor)", &pack_weight);
  library.def("unpack_weight(Tensor packed, int bits, Tensor scale, int group, int begin, Tensor(a!) values) -> ()",
              &unpack_weight);
  library.def("magnitudes(Tensor values) -> (int, int)", &magnitudes);
  library.def(
      "add_values(Tensor values, float factor, int lowest, int highest, int limit, Tensor(a!) units, "
      "Tensor(b!) places) -> (int, int)",
      &add_values);
  library.def(
      "mean_of_units(Tensor units, int shifts, int shift, int unit, float total_weight, Tensor(a!) mean) -> ()",
      &mean_of_units);
}

}  // namespace
}  // namespace fedhq
