// scenarios NAME [MODEL...]: one story each, checked inside; prints "ok".

#include <dirent.h>
#include <sched.h>
#include <signal.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <iostream>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "infer.hpp"
#include "ingot.hpp"

namespace {

using Arguments = std::vector<std::string>;
using std::chrono::milliseconds;

#define CHECK(condition)                                                          \
  do {                                                                            \
    if (!(condition)) {                                                           \
      std::cout << "line " << __LINE__ << ": not true: " #condition << std::endl; \
      std::exit(1);                                                               \
    }                                                                             \
  } while (false)

template <typename E, typename F>
std::string message_of(F&& act) {
  try {
    act();
  } catch (const E& error) {
    return error.what();
  }
  std::cout << "no exception" << std::endl;
  std::exit(1);
}

bool contains(const std::string& text, const std::string& part) {
  if (text.find(part) != std::string::npos) return true;
  std::cout << "found: " << text << "\nexpected: " << part << std::endl;
  return false;
}

std::size_t open_files() {
  std::size_t count = 0;
  DIR* folder = ::opendir("/proc/self/fd");
  CHECK(folder != nullptr);
  while (::readdir(folder) != nullptr) ++count;
  ::closedir(folder);
  return count;
}

bool has_children() { return ::waitpid(-1, nullptr, WNOHANG) != -1 || errno != ECHILD; }

/// How often "memfd" is mapped.
std::size_t mapped_blocks() {
  std::ifstream maps("/proc/self/maps");
  std::size_t count = 0;
  for (std::string line; std::getline(maps, line);) {
    if (line.find("memfd:ingot") != std::string::npos) ++count;
  }
  return count;
}

ingot::Options trusting() {
  ingot::Options options;
  options.trust_code = true;
  return options;
}

ingot::ValueMap floats(ingot::Model& model, const std::vector<std::string>& names,
                       const std::vector<float>& values) {
  ingot::ValueMap inputs;
  for (const std::string& name : names) {
    auto tensor = model.allocate_tensor<float>({static_cast<std::int64_t>(values.size())});
    tensor->copy_from(values);
    inputs[name] = tensor;
  }
  return inputs;
}

std::vector<float> out_of(const ingot::ValueMap& outputs) {
  return outputs.at("out")->as_typed_tensor<float>()->get_data_as_vector();
}

const std::vector<float> ones{1, 1, 1};
const std::vector<float> twos{2, 2, 2};

// --- without a worker ---------------------------------------------------------------------------

void json(const Arguments&) {
  using ingot::detail::Json;
  const Json value = Json::parse(
      R"( {"a": [1, -2.5e1, true, false, null], "b": "\u00e9\ud83d\ude00\n\"", )"
      R"("a": 9223372036854775807} )");
  CHECK(value.find("a")->integer == INT64_MAX);
  CHECK(value.items[0].items.size() == 5 && value.items[0].items[1].number == -25);
  CHECK(value.find("b")->string == "\xc3\xa9\xf0\x9f\x98\x80\n\"");
  CHECK(value.find("c") == nullptr);
  CHECK(Json::parse("9223372036854775808").kind == Json::Kind::number);
  CHECK(Json::parse(R"("\ud800x\udc41")").string == "\xef\xbf\xbdx\xef\xbf\xbd");
  for (const char* bad :
       {"", "{", "[1,]", "{\"a\"}", "{\"a\":1,}", "[1 2]", "01", "-", "1.", "1e", "tru", "\"a",
        "\"\\x\"", "\"\\u12g4\"", "\"\x01\"", "\"\xff\"", "\"\xed\xa0\x80\"", "{1:2}", "1 2"}) {
    message_of<ingot::ProtocolError>([bad] { Json::parse(bad); });
  }
  message_of<ingot::ProtocolError>([] { Json::parse(std::string(1000, '[')); });
  std::string many = "[0";
  for (int i = 0; i < (1 << 20); ++i) many += ",0";
  message_of<ingot::ProtocolError>([&] { Json::parse(many + "]"); });
  // What is no UTF-8, in the name of a file say, comes back as it was.
  for (const std::string& text :
       std::vector<std::string>{"a\"\\\n\t\x7f\x01", "\xff\x80 \xc3\xa9 \xe4", ""}) {
    std::string quoted;
    Json::quote(quoted, text);
    CHECK(Json::parse(quoted).string == text);
  }
}

void half_floats(const Arguments&) {
  using ingot::bfloat16;
  using ingot::float16;
  for (unsigned i = 0; i < 0x10000U; ++i) {
    float16 half;
    half.bits = static_cast<std::uint16_t>(i);
    const auto value = static_cast<float>(half);
    CHECK(std::isnan(value) || float16(value).bits == half.bits);
    bfloat16 brain;
    brain.bits = half.bits;
    const auto wide = static_cast<float>(brain);
    CHECK(std::isnan(wide) || bfloat16(wide).bits == brain.bits);
  }
  CHECK(static_cast<float>(float16(0.1F)) == 0.0999755859375F);
  CHECK(float16(65519.0F).bits == 0x7bff && float16(65520.0F).bits == 0x7c00);
  CHECK(float16(1.0F + 0x1p-11F).bits == 0x3c00 && float16(1.0F + 0x3p-11F).bits == 0x3c02);
  CHECK(float16(0x1p-25F).bits == 0 && float16(0x1.8p-25F).bits == 1);
  CHECK(std::isnan(static_cast<float>(float16(NAN))) && float16(-0.0F).bits == 0x8000);
  CHECK(bfloat16(1.0F + 0x1p-8F).bits == 0x3f80 && bfloat16(1.0F + 0x3p-8F).bits == 0x3f82);
  CHECK(std::isnan(static_cast<float>(bfloat16(NAN))));
}

void tensors(const Arguments&) {
  ingot::Options options;
  options.load_model_at_construction = false;
  ingot::Model model("nothing.onnx", options);
  auto tensor = model.allocate_tensor<std::int32_t>({2, 3});
  CHECK(reinterpret_cast<std::uintptr_t>(tensor->get_raw_data_ptr()) % 64 == 0);
  tensor->copy_from({1, 2, 3, 4, 5, 6});
  CHECK(tensor->accessor<2>()[1][0] == 4 && tensor->accessor<2>().size() == 2);
  tensor->accessor<2>()[1][2] = 60;
  CHECK((*tensor)[5] == 60 && *(tensor->end() - 1) == 60 && tensor->size() == 6);
  CHECK(tensor->get_tensor_type() == ingot::TensorType::INT32_TENSOR);
  const ingot::Tensor& plain = *tensor;
  CHECK(plain.as_tensor()->as_typed_tensor<std::int32_t>()->accessor<2>()[0][1] == 2);
  CHECK(contains(message_of<ingot::InputError>([&] { plain.as_typed_tensor<float>(); }),
                 "found a tensor of int32; expected float32"));
  CHECK(contains(message_of<ingot::InputError>([&] { tensor->copy_from({1, 2}); }),
                 "found 2 elements; expected 6, for the shape [2, 3]"));
  CHECK(contains(message_of<ingot::InputError>([&] { tensor->copy_from(nullptr, 6); }), "null"));
  CHECK(contains(message_of<ingot::InputError>([&] { tensor->accessor<1>(); }), "1 dimensions"));
  CHECK(contains(message_of<ingot::InputError>([&] { tensor->as_scalar(); }), "one element"));
  for (const std::vector<std::int64_t>& dims :
       std::vector<std::vector<std::int64_t>>{{-1}, {2, -3}, {1L << 40, 1L << 40}, {1L << 62}}) {
    CHECK(contains(message_of<ingot::InputError>([&] { model.allocate_tensor<double>(dims); }),
                   "sizes of 0 or more"));
  }
  CHECK(contains(
      message_of<ingot::SharedMemoryError>([&] { model.allocate_tensor<double>({1L << 50}); }),
      "9007199254740992 bytes"));
  auto scalar = model.allocate_tensor<double>({});
  scalar->as_scalar() = 2.5;
  CHECK(scalar->get_num_elements() == 1 && scalar->get_data_as_vector() == std::vector{2.5});
  auto empty = model.allocate_tensor<float>({0, 7});
  empty->copy_from(std::vector<float>());
  CHECK(empty->get_data_as_vector().empty() && empty->begin() == empty->end());
  auto flags = model.allocate_tensor<bool>({3});
  const bool some[] = {true, false, true};
  flags->copy_from(some, 3);
  CHECK(flags->get_data_as_vector() == (std::vector<bool>{true, false, true}));
  flags->copy_from(std::vector<bool>{false, true, true});
  CHECK(flags->get_raw_data_ptr()[0] == 0 && flags->get_raw_data_ptr()[2] == 1);
  auto words = model.allocate_tensor<std::string>({2});
  CHECK(words->get_data_as_vector() == (std::vector<std::string>{"", ""}));
  words->copy_from({"one", "two"});
  CHECK((*words)[1] == "two");
  for (int type = 0; type < static_cast<int>(ingot::TensorType::ANY_TENSOR); ++type) {
    const auto tag = static_cast<ingot::TensorType>(type);
    CHECK(model.allocate_tensor({3}, tag)->get_tensor_type() == tag);
  }
  message_of<ingot::UsageError>([&] { model.allocate_tensor({3}, ingot::TensorType::ANY_TENSOR); });
  int deleted = 0;
  const ingot::Deleter deleter = [&deleted](void* memory) {
    std::free(memory);
    ++deleted;
  };
  const auto memory = [] { return static_cast<float*>(std::malloc(16)); };
  float* const first = memory();
  auto wrapped = model.tensor_from_memory<float>({2, 2}, first, deleter);
  CHECK(wrapped->get_raw_data_ptr() == first && deleted == 0);
  wrapped.reset();
  CHECK(deleted == 1);
  model.tensor_from_memory<float>(memory(), {4}, deleter);
  CHECK(deleted == 2);
  message_of<ingot::InputError>([&] { model.tensor_from_memory<float>({-4}, memory(), deleter); });
  CHECK(deleted == 3);
  message_of<ingot::InputError>(
      [&] { model.tensor_from_memory<float>({4}, static_cast<float*>(nullptr)); });
}

void reuse_of_memory(const Arguments&) {
  ingot::Options options;
  options.load_model_at_construction = false;
  std::shared_ptr<ingot::TensorAllocator> allocator;
  const std::size_t before = open_files();
  {
    ingot::Model model("nothing.onnx", options);
    std::vector<std::shared_ptr<ingot::TypedTensor<float>>> small;
    for (int i = 0; i < 2000; ++i) small.push_back(model.allocate_tensor<float>({16}));
    for (std::size_t i = 0; i < small.size(); ++i) {
      small[i]->copy_from(std::vector<float>(16, static_cast<float>(i)));
    }
    for (std::size_t i = 0; i < small.size(); ++i) {
      CHECK(small[i]->get_data_as_vector() == std::vector<float>(16, static_cast<float>(i)));
    }
    CHECK(open_files() == before + 1);  // 2000 tensors of 64 bytes share one block
    small.clear();
    float* last = nullptr;
    for (int i = 0; i < 100; ++i) {
      auto large = model.allocate_tensor<float>({100000});
      CHECK(last == nullptr || last == large->get_raw_data_ptr());
      last = large->get_raw_data_ptr();
    }
    CHECK(open_files() == before + 2);
    std::vector<std::shared_ptr<ingot::TypedTensor<float>>> many;
    for (int i = 0; i < 40; ++i) many.push_back(model.allocate_tensor<float>({20000 + 9000 * i}));
    many.clear();  // only some are kept for later
    CHECK(open_files() <= before + 18);
    allocator = model.get_tensor_allocator();
  }
  CHECK(open_files() == before);
  auto late = allocator->allocate_tensor<float>({100000});
  late->copy_from(std::vector<float>(100000, 1));
  late.reset();
  CHECK(open_files() == before);
}

void bad_options(const Arguments&) {
  const auto refused = [](const std::function<void(ingot::Options&)>& change) {
    ingot::Options options;
    options.load_model_at_construction = false;
    change(options);
    return message_of<ingot::UsageError>([&] { ingot::Model("x.onnx", options); });
  };
  CHECK(contains(refused([](auto& o) { o.threads = -1; }), "threads: found -1"));
  CHECK(contains(refused([](auto& o) { o.visible_device = -2; }), "visible_device: found -2"));
  CHECK(contains(refused([](auto& o) { o.cpus = {-1}; }), "cpus: found -1"));
  message_of<ingot::UsageError>([] { ingot::Model(""); });
  ingot::Options options;
  options.python = "/nowhere/python";
  CHECK(contains(message_of<ingot::WorkerError>([&] { ingot::Model("x.onnx", options); }),
                 "/nowhere/python: No such file"));
  options.python = "/bin/false";
  CHECK(contains(message_of<ingot::WorkerError>([&] { ingot::Model("x.onnx", options); }),
                 "ended with exit code 1 before the model was loaded"));
  options.socket = "/nowhere/socket";
  CHECK(contains(message_of<ingot::WorkerError>([&] { ingot::Model("x.onnx", options); }),
                 "/nowhere/socket: cannot connect"));
  options.socket = std::string(300, 'x');
  CHECK(contains(message_of<ingot::UsageError>([&] { ingot::Model("x.onnx", options); }),
                 "too long"));
  CHECK(!has_children());
}

// --- with a model that computes out = x + y -----------------------------------------------------

void many_calls(const Arguments& a) {
  ingot::Model model(a.at(0));
  const std::size_t files = open_files();
  std::size_t mapped = 0;
  auto x = model.allocate_tensor<float>({100000});
  std::vector<float> y(100000);
  for (int i = 0; i < 300; ++i) {
    x->copy_from(std::vector<float>(100000, static_cast<float>(i)));
    std::fill(y.begin(), y.end(), 1.0F);
    auto outputs =
        model.infer({{"x", x}, {"y", model.tensor_from_memory<float>({100000}, y.data())}});
    CHECK(outputs->at("out")->as_typed_tensor<float>()->accessor<1>()[99999] ==
          static_cast<float>(i + 1));
    if (i == 10) mapped = mapped_blocks();
  }
  CHECK(mapped > 0 && mapped_blocks() == mapped);
  CHECK(open_files() <= files + 3);  // x, the copies of y, nothing more
}

void sizes_that_change(const Arguments& a) {
  ingot::Model model(a.at(0));
  const std::size_t files = open_files();
  for (int i = 1; i < 200; ++i) {
    const auto size = static_cast<std::size_t>(i * 7919 % 90000);
    const auto outputs = model.infer(floats(model, {"x", "y"}, std::vector<float>(size, 3)));
    CHECK(out_of(*outputs) == std::vector<float>(size, 6));
  }
  CHECK(open_files() <= files + 24);
  CHECK(mapped_blocks() < 100);
}

void outputs_outlive_the_model(const Arguments& a) {
  std::unique_ptr<ingot::ValueMap> large;
  std::unique_ptr<ingot::ValueMap> small;
  std::shared_ptr<ingot::Tensor> input;
  const std::size_t files = open_files();
  {
    ingot::Model model(a.at(0));
    large = model.infer(floats(model, {"x", "y"}, std::vector<float>(50000, 4)));
    auto inputs = floats(model, {"x", "y"}, ones);
    small = model.infer(inputs);
    input = inputs.at("x");
    // Later calls do not write over what is still held, and an output may be an input.
    for (int i = 0; i < 5; ++i) {
      model.infer(floats(model, {"x", "y"}, std::vector<float>(50000, 9)));
    }
    CHECK(out_of(*model.infer({{"x", large->at("out")}, {"y", large->at("out")}})) ==
          std::vector<float>(50000, 16));
  }
  CHECK(!has_children());
  CHECK(out_of(*large) == std::vector<float>(50000, 8));
  CHECK(out_of(*small) == twos);
  large->at("out")->as_typed_tensor<float>()->copy_from(std::vector<float>(50000, 1));
  CHECK(input->as_typed_tensor<float>()->get_data_as_vector() == ones);
  std::thread([&] { large.reset(); }).join();
  input.reset();
  CHECK(mapped_blocks() == 0 && open_files() == files);
}

void killed_between_calls(const Arguments& a) {
  ingot::Model model(a.at(0));
  const auto inputs = floats(model, {"x", "y"}, ones);
  const auto held = model.infer(floats(model, {"x", "y"}, std::vector<float>(50000, 4)));
  CHECK(out_of(*model.infer(inputs)) == twos);
  const int pid = model.worker_pid().value();
  ::kill(pid, SIGKILL);
  CHECK(out_of(*model.infer(inputs)) == twos);
  CHECK(model.worker_pid().value() != pid && ::kill(pid, 0) != 0);
  ::kill(model.worker_pid().value(), SIGKILL);
  std::this_thread::sleep_for(milliseconds(50));
  CHECK(out_of(*model.infer(inputs)) == twos);
  CHECK(out_of(*held) == std::vector<float>(50000, 8));  // of a worker that is gone
  CHECK(model.get_inputs().size() == 2);
}

void several_threads(const Arguments& a) {
  ingot::Model model(a.at(0));
  std::vector<std::thread> threads;
  std::atomic<int> right{0};
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 50; ++i) {
        const auto size = static_cast<std::size_t>(1 + (t * 50 + i) * 131);
        const auto value = static_cast<float>(t);
        const auto outputs =
            model.infer(floats(model, {"x", "y"}, std::vector<float>(size, value)));
        if (out_of(*outputs) == std::vector<float>(size, 2 * value)) ++right;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(right == 200);
}

void lazy(const Arguments& a) {
  ingot::Options options;
  options.load_model_at_construction = false;
  options.cpus = {0};
  options.threads = 1;
  options.ignore_lock = true;
  options.timeout = milliseconds(60000);
  ingot::Model model(a.at(0), options);
  CHECK(!model.worker_pid() && !has_children());
  auto inputs = floats(model, {"x", "y"}, ones);
  CHECK(::chdir("/") == 0);  // a relative path is one of the folder that the program was in
  CHECK(out_of(*model.infer(inputs)) == twos);
  model.load_model();
  const int pid = model.worker_pid().value();
  cpu_set_t set;
  CHECK(::sched_getaffinity(pid, sizeof set, &set) == 0 && CPU_COUNT(&set) == 1);
  CHECK(model.get_outputs().at(0).name == "out" && model.worker_pid().value() == pid);
  ingot::Model moved = std::move(model);
  CHECK(out_of(*moved.infer(inputs)) == twos);
}

void errors_leave_it_running(const Arguments& a) {
  ingot::Model model(a.at(0));
  const int pid = model.worker_pid().value();
  auto inputs = floats(model, {"x", "y"}, ones);
  for (int i = 0; i < 20; ++i) {
    CHECK(contains(message_of<ingot::InputError>([&] {
                     model.infer({{"x", inputs.at("x")}, {"y", model.allocate_tensor<float>({4})}});
                   }),
                   "'y'"));
    CHECK(contains(message_of<ingot::InputError>([&] { model.infer(inputs, {"nothing"}); }),
                   "requested the output 'nothing'"));
    CHECK(contains(message_of<ingot::InputError>([&] { model.infer({{"x", inputs.at("x")}}); }),
                   "'y'"));
    CHECK(contains(message_of<ingot::InputError>([&] { model.infer({{"x", nullptr}}); }),
                   "input 'x': found a null pointer"));
    auto text = model.allocate_tensor<std::string>({1});
    text->copy_from({"\xff"});
    CHECK(
        contains(message_of<ingot::InputError>([&] { model.infer({{"x", text}}); }), "not UTF-8"));
  }
  CHECK(out_of(*model.infer(inputs)) == twos && model.worker_pid().value() == pid);
}

void nothing_is_left(const Arguments& a) {
  const std::size_t files = open_files();
  for (int i = 0; i < 2; ++i) {
    ingot::Model model(a.at(0));
    const auto outputs = model.infer(floats(model, {"x", "y"}, std::vector<float>(20000, 1)));
    message_of<ingot::ModelError>([] { ingot::Model("nothing.onnx"); });
  }
  CHECK(open_files() == files && mapped_blocks() == 0 && !has_children());
}

void a_fork(const Arguments& a) {
  ingot::Model model(a.at(0));
  const auto inputs = floats(model, {"x", "y"}, ones);
  const pid_t child = ::fork();
  if (child == 0) {
    {
      const ingot::Model mine = std::move(model);
      CHECK(contains(
          message_of<ingot::UsageError>([&] { const_cast<ingot::Model&>(mine).infer(inputs); }),
          "forked"));
      ingot::Model own(a.at(0));
      CHECK(out_of(*own.infer(floats(own, {"x", "y"}, ones))) == twos);
    }  // ends the worker of `own`, and not that of the parent
    std::_Exit(0);
  }
  int status = -1;
  CHECK(::waitpid(child, &status, 0) == child && status == 0);
  CHECK(out_of(*model.infer(inputs)) == twos);
}

void children_reaped_elsewhere(const Arguments& a) {
  ::signal(SIGCHLD, SIG_IGN);
  ingot::Model model(a.at(0));
  const auto inputs = floats(model, {"x", "y"}, ones);
  ::kill(model.worker_pid().value(), SIGKILL);
  CHECK(out_of(*model.infer(inputs)) == twos);
}

void signals_in_between(const Arguments& a) {
  struct sigaction action{};
  action.sa_handler = [](int) {};  // without SA_RESTART: system calls end with EINTR
  ::sigaction(SIGALRM, &action, nullptr);
  ingot::Model model(a.at(0));
  itimerval every{{0, 300}, {0, 300}};
  ::setitimer(ITIMER_REAL, &every, nullptr);
  for (int i = 0; i < 200; ++i) {
    const auto outputs = model.infer(floats(model, {"x", "y"}, std::vector<float>(9000, 1)));
    CHECK(out_of(*outputs) == std::vector<float>(9000, 2));
  }
  itimerval never{};
  ::setitimer(ITIMER_REAL, &never, nullptr);
}

// --- with a package of Python code that does what its input says ---------------------------------

void do_it(ingot::Model& model, const std::string& what) {
  auto text = model.allocate_tensor<std::string>({1});
  text->copy_from({what});
  model.infer({{"what", text}});
}

void killed_during_a_call(const Arguments& a) {
  ingot::Model model(a.at(0), trusting());
  const int pid = model.worker_pid().value();
  const std::string label = "the worker (process " + std::to_string(pid) + ") ";
  CHECK(contains(message_of<ingot::WorkerError>([&] { do_it(model, "kill"); }),
                 label + "was ended by signal 9 (SIGKILL) in the middle of a call"));
  CHECK(!model.worker_pid() && !has_children());
  do_it(model, "nothing");
  CHECK(contains(message_of<ingot::WorkerError>([&] { do_it(model, "exit"); }),
                 "ended with exit code 7 in the middle of a call"));
  do_it(model, "nothing");
  CHECK(contains(message_of<ingot::ModelError>([&] { do_it(model, "raise"); }), "as you wish"));
  do_it(model, "nothing");
  // Dead, but what it started holds its socket open.
  const auto begin = std::chrono::steady_clock::now();
  CHECK(contains(message_of<ingot::WorkerError>([&] { do_it(model, "fork and kill"); }),
                 "was ended by signal 9 (SIGKILL) in the middle of a call"));
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(20));
  do_it(model, "nothing");
  do_it(model, "print");
  do_it(model, "read");
}

void too_slow(const Arguments& a) {
  ingot::Options options = trusting();
  options.timeout = std::chrono::seconds(1);
  ingot::Model model(a.at(0), options);
  const int pid = model.worker_pid().value();
  CHECK(contains(message_of<ingot::WorkerError>([&] { do_it(model, "sleep"); }),
                 "had not answered after 1 s, and was ended"));
  CHECK(::kill(pid, 0) != 0 && !has_children());
  do_it(model, "nothing");
  options.start_timeout = milliseconds(1);
  CHECK(contains(message_of<ingot::WorkerError>([&] { ingot::Model(a.at(0), options); }),
                 "had not loaded the model after 0.001 s"));
  CHECK(!has_children() || model.worker_pid());
}

void inputs_that_the_model_keeps(const Arguments& a) {
  ingot::Model model(a.at(0), trusting());  // returns the sum of all inputs so far
  float sum = 0;
  for (int i = 1; i < 40; ++i) {
    // Each is freed after its call; its memory must not be used for the next.
    const std::size_t size = i % 2 == 0 ? 3 : 20000;
    auto x = model.allocate_tensor<float>({static_cast<std::int64_t>(size)});
    x->copy_from(std::vector<float>(size, static_cast<float>(i)));
    sum += static_cast<float>(i);
    CHECK(out_of(*model.infer({{"x", x}})).at(0) == sum);
  }
}

void hundreds_of_inputs(const Arguments& a) {
  ingot::Model model(a.at(0), trusting());  // out = the sum of x0 to x199
  ingot::ValueMap inputs;
  for (int i = 0; i < 200; ++i) {  // more blocks than file descriptors fit in a message
    auto x = model.allocate_tensor<float>({9000});
    x->copy_from(std::vector<float>(9000, static_cast<float>(i)));
    inputs["x" + std::to_string(i)] = x;
  }
  for (int i = 0; i < 5; ++i) {
    CHECK(out_of(*model.infer(inputs)) == std::vector<float>(9000, 19900));
  }
}

// --- with a worker that breaks the protocol ------------------------------------------------------

void bad_worker(const Arguments& a) {
  const std::size_t files = open_files();
  {
    ingot::Options options;
    options.python = a.at(0);
    options.load_model_at_construction = false;
    ingot::Model model("model.onnx", options);
    for (int i = 0; i < 2; ++i) {
      const std::string text = message_of<ingot::WorkerError>([&] {
        auto x = model.allocate_tensor<float>({3});
        x->copy_from({1, 2, 3});
        model.infer({{"x", x}}, {"out"});
      });
      if (i == 0) std::cout << text << "\n";
      CHECK(!model.worker_pid() && !has_children());
    }
  }
  CHECK(open_files() == files && mapped_blocks() == 0);
}

}  // namespace

int main(int count, char** values) {
  const std::map<std::string, void (*)(const Arguments&)> scenarios{
#define SCENARIO(name) \
  {                    \
    #name, name        \
  }
      {"infer", infer::print_or_report},
      SCENARIO(json),
      SCENARIO(half_floats),
      SCENARIO(tensors),
      SCENARIO(reuse_of_memory),
      SCENARIO(bad_options),
      SCENARIO(many_calls),
      SCENARIO(sizes_that_change),
      SCENARIO(outputs_outlive_the_model),
      SCENARIO(killed_between_calls),
      SCENARIO(several_threads),
      SCENARIO(lazy),
      SCENARIO(errors_leave_it_running),
      SCENARIO(nothing_is_left),
      SCENARIO(a_fork),
      SCENARIO(children_reaped_elsewhere),
      SCENARIO(signals_in_between),
      SCENARIO(killed_during_a_call),
      SCENARIO(too_slow),
      SCENARIO(inputs_that_the_model_keeps),
      SCENARIO(hundreds_of_inputs),
      SCENARIO(bad_worker),
  };
  const Arguments arguments(values + 2, values + count);
  scenarios.at(values[1])(arguments);
  if (std::string(values[1]) != "infer") std::cout << "ok" << std::endl;
}
