// Run a model of two inputs, x and y, and print its outputs.
//
//     make && ./add addition.onnx

#include <iostream>

#include "ingot.hpp"

namespace {

void describe(const char* what, const std::vector<ingot::TensorSpec>& specs) {
  for (const ingot::TensorSpec& spec : specs) {
    std::cout << what << " " << spec.name << ": " << ingot::to_string(spec.type) << " [";
    const char* comma = "";
    for (const ingot::Dimension& dimension : spec.dims) {
      std::cout << comma;
      comma = ", ";
      if (!dimension.symbol.empty()) {
        std::cout << dimension.symbol;
      } else if (dimension.value >= 0) {
        std::cout << dimension.value;
      } else {
        std::cout << "any";
      }
    }
    std::cout << "]\n";
  }
}

void run(const std::string& path) {
  ingot::Options options;
  options.threads = 1;
  options.timeout = std::chrono::seconds(10);
  ingot::Model model(path, options);

  std::cout << model.get_name() << " runs on " << model.get_platform() << "\n";
  describe("input", model.get_inputs());
  describe("output", model.get_outputs());

  // This one is filled where the worker reads it.
  auto x = model.allocate_tensor<float>({4});
  x->copy_from({1, 2, 3, 4});
  // And this is memory of our own, which each call copies once.
  std::vector<float> values{5, 6, 7, 8};
  auto y = model.tensor_from_memory<float>({4}, values.data());

  const auto outputs = model.infer({{"x", x}, {"y", y}});
  for (const auto& [name, tensor] : *outputs) {
    std::cout << name << ":";
    for (const float value : *tensor->as_typed_tensor<float>()) std::cout << " " << value;
    std::cout << "\n";
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 2) {
    std::cerr << "usage: " << arguments[0] << " MODEL\n";
    return 2;
  }
  try {
    run(arguments[1]);
  } catch (const ingot::Error& error) {
    std::cerr << "error: " << error.what() << "\n";
    return error.exit_code();
  }
}
