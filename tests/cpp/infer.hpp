// The scenario `infer`: infer MODEL [--trust-code] [--no-check] [--timeout SECONDS]
//       [--socket PATH] [--times N]
//       [--output NAME]... [NAME=DTYPE[SIZES]:VALUES]...
//
// Runs a model and prints its outputs in the form of its inputs: out=float32[3]:11,22,33. An error
// is printed as TYPE|CODE|MESSAGE|HINT and ends the program with 1.

#pragma once

#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <map>
#include <sstream>
#include <string>
#include <type_traits>
#include <vector>

#include "ingot.hpp"

namespace infer {

inline std::vector<std::string> split(const std::string& text, char at) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, at);) parts.push_back(part);
  return parts;
}

template <typename T>
T parse(const std::string& text) {
  if constexpr (std::is_same_v<T, std::string>) {
    return text;
  } else if constexpr (std::is_same_v<T, bool>) {
    return text != "0";
  } else if constexpr (std::is_same_v<T, ingot::float16> || std::is_same_v<T, ingot::bfloat16>) {
    return T(std::stof(text));
  } else if constexpr (std::is_floating_point_v<T>) {
    return static_cast<T>(std::stod(text));
  } else if constexpr (std::is_signed_v<T>) {
    return static_cast<T>(std::stoll(text));
  } else {
    return static_cast<T>(std::stoull(text));
  }
}

template <typename T>
void print(const ingot::Tensor& tensor) {
  const char* comma = "";
  for (const auto& value : tensor.as_typed_tensor<T>()->get_data_as_vector()) {
    std::cout << comma;
    comma = ",";
    if constexpr (std::is_same_v<T, ingot::float16> || std::is_same_v<T, ingot::bfloat16>) {
      std::cout << static_cast<float>(value);
    } else if constexpr (sizeof(T) == 1) {
      std::cout << static_cast<int>(value);
    } else {
      std::cout << value;
    }
  }
}

/// Call `use` with a null pointer of the C++ type of the elements.
template <typename F>
void with_type(const std::string& dtype, F use) {
  if (dtype == "float32") return use(static_cast<float*>(nullptr));
  if (dtype == "float64") return use(static_cast<double*>(nullptr));
  if (dtype == "string") return use(static_cast<std::string*>(nullptr));
  if (dtype == "int8") return use(static_cast<std::int8_t*>(nullptr));
  if (dtype == "int16") return use(static_cast<std::int16_t*>(nullptr));
  if (dtype == "int32") return use(static_cast<std::int32_t*>(nullptr));
  if (dtype == "int64") return use(static_cast<std::int64_t*>(nullptr));
  if (dtype == "uint8") return use(static_cast<std::uint8_t*>(nullptr));
  if (dtype == "uint16") return use(static_cast<std::uint16_t*>(nullptr));
  if (dtype == "uint32") return use(static_cast<std::uint32_t*>(nullptr));
  if (dtype == "uint64") return use(static_cast<std::uint64_t*>(nullptr));
  if (dtype == "bool") return use(static_cast<bool*>(nullptr));
  if (dtype == "float16") return use(static_cast<ingot::float16*>(nullptr));
  if (dtype == "bfloat16") return use(static_cast<ingot::bfloat16*>(nullptr));
  throw std::runtime_error("no type: " + dtype);
}

inline std::string format(const std::vector<std::int64_t>& dims) {
  std::string text;
  for (const std::int64_t size : dims) text += (text.empty() ? "" : ",") + std::to_string(size);
  return "[" + text + "]";
}

inline void read_input(ingot::Model& model, const std::string& text, ingot::ValueMap& inputs) {
  const std::size_t equals = text.find('=');
  const std::size_t open = text.find('[', equals);
  const std::size_t close = text.find("]:", open);
  const std::string dtype = text.substr(equals + 1, open - equals - 1);
  std::vector<std::int64_t> dims;
  for (const std::string& size : split(text.substr(open + 1, close - open - 1), ',')) {
    dims.push_back(std::stoll(size));
  }
  with_type(dtype, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    std::vector<T> values;
    for (const std::string& value : split(text.substr(close + 2), ',')) {
      values.push_back(parse<T>(value));
    }
    auto tensor = model.allocate_tensor<T>(dims);
    tensor->copy_from(values);
    inputs[text.substr(0, equals)] = tensor;
  });
}

inline void describe(const char* what, const std::vector<ingot::TensorSpec>& specs) {
  for (const ingot::TensorSpec& spec : specs) {
    std::cout << what << " " << spec.name << " " << ingot::to_string(spec.type) << " [";
    const char* comma = "";
    for (const ingot::Dimension& dimension : spec.dims) {
      std::cout << comma;
      comma = ",";
      if (!dimension.symbol.empty()) {
        std::cout << dimension.symbol;
      } else if (dimension.value < 0) {
        std::cout << "any";
      } else {
        std::cout << dimension.value;
      }
    }
    std::cout << "]" << (spec.optional ? " optional" : "") << "\n";
  }
}

inline void run(const std::vector<std::string>& arguments) {
  ingot::Options options;
  std::vector<std::string> outputs;
  std::vector<std::string> values;
  int times = 1;
  for (std::size_t i = 1; i < arguments.size(); ++i) {
    if (arguments[i] == "--trust-code") {
      options.trust_code = true;
    } else if (arguments[i] == "--no-check") {
      options.disable_shape_and_type_checking = true;
    } else if (arguments[i] == "--timeout") {
      options.timeout = ingot::Options::Seconds(std::stod(arguments.at(++i)));
    } else if (arguments[i] == "--socket") {
      options.socket = arguments.at(++i);
    } else if (arguments[i] == "--times") {
      times = std::stoi(arguments.at(++i));
    } else if (arguments[i] == "--output") {
      outputs.push_back(arguments.at(++i));
    } else {
      values.push_back(arguments[i]);
    }
  }
  ingot::Model model(arguments.at(0), options);
  ingot::ValueMap inputs;
  for (const std::string& value : values) read_input(model, value, inputs);
  if (values.empty()) {
    std::cout << model.get_name() << " " << model.get_platform() << "\n";
    describe("input", model.get_inputs());
    describe("output", model.get_outputs());
    return;
  }
  std::unique_ptr<ingot::ValueMap> found;
  for (int i = 0; i < times; ++i) found = model.infer(inputs, outputs);
  for (const auto& [name, tensor] : std::map(found->begin(), found->end())) {
    const std::string dtype = ingot::to_string(tensor->get_tensor_type());
    std::cout << name << "=" << dtype << format(tensor->get_dims()) << ":";
    with_type(dtype, [&tensor = tensor](auto* null) {
      print<std::remove_pointer_t<decltype(null)>>(*tensor);
    });
    std::cout << "\n";
  }
}

inline void print_or_report(const std::vector<std::string>& arguments) {
  try {
    run(arguments);
  } catch (const ingot::Error& error) {
    std::cout << error.type() << "|" << error.exit_code() << "|" << error.message() << "|"
              << error.hint() << std::endl;
    std::exit(1);
  }
}

}  // namespace infer
