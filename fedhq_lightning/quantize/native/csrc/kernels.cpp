// The kernels at one level; compiled once a level.
#include "kernels.h"

#include "convolution_gradients.h"
#include "norm.h"
#include "packed_weight.h"
#include "pooling.h"
#include "sums.h"

namespace fedhq {
namespace LEVEL {

#define FEDHQ_TEXT_OF(name) #name
#define FEDHQ_TEXT(name) FEDHQ_TEXT_OF(name)

extern const Kernels kernels;
const Kernels kernels = {
    FEDHQ_TEXT(LEVEL),
    GROUP,
    sizeof(Row),
    sizeof(Column),
    OFFSET,
    quantize_input,
    quantize_weight,
    pack,
    linear_output,
    quantize_gradient,
    linear_input_gradient,
    linear_weight_gradient,
    dequantize,
    convolution_scales,
    convolution_gradient_scales,
    int8_convolution_output,
    int8_convolution_input_gradient,
    int8_convolution_weight_gradient,
    grid_convolution_output,
    grid_gradient_scales,
    grid_convolution_input_gradient,
    grid_convolution_weight_gradient,
    grid_image_values,
    round_weight_values,
    round_input_values,
    max_pool,
    max_pool_gradient,
    group_norm,
    group_norm_gradients,
    pack_weight,
    unpack_weight,
    magnitudes,
    add_values,
    mean_of_units,
};

}  // namespace LEVEL
}  // namespace fedhq
