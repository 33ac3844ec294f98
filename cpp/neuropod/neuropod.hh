// Neuropod's names for ingot.hpp, so that a program written for Neuropod compiles unchanged.
//
// docs/cpp.md says what differs.
//
// SPDX-License-Identifier: Apache-2.0

#ifndef INGOT_NEUROPOD_HH
#define INGOT_NEUROPOD_HH

#include "../ingot.hpp"

namespace neuropod {

namespace Device = ::ingot::Device;
using NeuropodDevice = int;
using RuntimeOptions = ::ingot::Options;

using Neuropod = ::ingot::Model;
using NeuropodTensor = ::ingot::Tensor;
using NeuropodTensorAllocator = ::ingot::TensorAllocator;
using NeuropodValue = ::ingot::Tensor;
using NeuropodValueMap = ::ingot::ValueMap;
template <typename T>
using TypedNeuropodTensor = ::ingot::TypedTensor<T>;

using ::ingot::Deleter;
using ::ingot::Dimension;
using ::ingot::TensorSpec;
using ::ingot::TensorType;

}  // namespace neuropod

#endif  // INGOT_NEUROPOD_HH
