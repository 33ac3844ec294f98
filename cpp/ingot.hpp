// Ingot for C++: load a package, or a bare model file, and run it.
//
//     #include "ingot.hpp"
//
//     ingot::Model model("addition.ingot");
//     auto x = model.allocate_tensor<float>({2});
//     x->copy_from({1, 2});
//     auto outputs = model.infer({{"x", x}});
//     std::vector<float> sum = outputs->at("sum")->as_typed_tensor<float>()->get_data_as_vector();
//
// C++17, the standard library and POSIX, nothing to link. The model runs in a worker process of its
// own (`python3 -m ingot.runtime.isolation`), whatever its framework is; tensors travel through
// shared memory. docs/cpp.md is the guide, docs/worker-protocol.md the protocol.
//
// SPDX-License-Identifier: Apache-2.0

#ifndef INGOT_HPP
#define INGOT_HPP

#if defined(_WIN32)
#error "ingot.hpp needs POSIX: Unix sockets that pass file descriptors, and mmap"
#endif

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <initializer_list>
#include <limits>
#include <locale>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <type_traits>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#if !defined(__GLIBC__)
extern "C" {
extern char** environ;
}
#endif

namespace ingot {

/// Version of the worker protocol that this header speaks.
constexpr int protocol_version = 1;

// ================================================================================================
// Errors
// ================================================================================================

/// Root of all errors that Ingot throws.
///
/// `what()` is the message and, on a second line, the hint, if there is one.
class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& message, const std::string& hint = "",
                 const std::string& type = "IngotError", int exit_code = 1)
      : std::runtime_error(hint.empty() ? message : message + "\nhint: " + hint),
        details_(std::make_shared<const Details>(Details{message, hint, type, exit_code})) {}

  /// What was found and what was expected, on one line.
  const std::string& message() const noexcept { return details_->message; }
  /// What to do about it; may be empty.
  const std::string& hint() const noexcept { return details_->hint; }
  /// Name of the error's class in Ingot (or in the worker's Python), such as "InputError".
  const std::string& type() const noexcept { return details_->type; }
  /// What the command line would exit with: 2 usage, 4 check, 5 model or input, 6 dependency, 1.
  int exit_code() const noexcept { return details_->exit_code; }

 private:
  struct Details {
    std::string message, hint, type;
    int exit_code;
  };
  std::shared_ptr<const Details> details_;  // shared: copying an exception must not throw
};

/// A function was called in a way that cannot work.
class UsageError : public Error {
 public:
  explicit UsageError(const std::string& message, const std::string& hint = "",
                      const std::string& type = "UsageError", int exit_code = 2)
      : Error(message, hint, type, exit_code) {}
};

/// A check failed: golden data, a hash.
class CheckError : public Error {
 public:
  explicit CheckError(const std::string& message, const std::string& hint = "",
                      const std::string& type = "CheckError", int exit_code = 4)
      : Error(message, hint, type, exit_code) {}
};

/// A model or package cannot be read, is invalid or not trusted, or failed.
class ModelError : public Error {
 public:
  explicit ModelError(const std::string& message, const std::string& hint = "",
                      const std::string& type = "ModelError", int exit_code = 5)
      : Error(message, hint, type, exit_code) {}
};

/// The model carries code, and `Options::trust_code` is false.
class UntrustedCodeError : public ModelError {
 public:
  explicit UntrustedCodeError(const std::string& message, const std::string& hint = "",
                              const std::string& type = "UntrustedCodeError", int exit_code = 5)
      : ModelError(message, hint, type, exit_code) {}
};

/// A tensor does not fit: its name, element type, shape or number of elements.
class InputError : public ModelError {
 public:
  explicit InputError(const std::string& message, const std::string& hint = "",
                      const std::string& type = "InputError", int exit_code = 5)
      : ModelError(message, hint, type, exit_code) {}
};

/// The framework of the model, or a locked requirement, is not installed for the worker's Python.
class MissingDependencyError : public Error {
 public:
  explicit MissingDependencyError(const std::string& message, const std::string& hint = "",
                                  const std::string& type = "MissingDependencyError",
                                  int exit_code = 6)
      : Error(message, hint, type, exit_code) {}
};

/// There is no shared memory left, here or in the worker.
class SharedMemoryError : public Error {
 public:
  explicit SharedMemoryError(const std::string& message, const std::string& hint = "",
                             const std::string& type = "SharedMemoryError", int exit_code = 1)
      : Error(message, hint, type, exit_code) {}
};

/// The worker process cannot be started, died, or took too long. The next call starts another.
class WorkerError : public Error {
 public:
  explicit WorkerError(const std::string& message, const std::string& hint = "",
                       const std::string& type = "WorkerError", int exit_code = 1)
      : Error(message, hint, type, exit_code) {}
};

/// The worker sent something that the protocol does not allow, and was ended.
class ProtocolError : public WorkerError {
 public:
  explicit ProtocolError(const std::string& message, const std::string& hint = "",
                         const std::string& type = "ProtocolError", int exit_code = 1)
      : WorkerError(message, hint, type, exit_code) {}
};

// ================================================================================================
// Element types
// ================================================================================================

/// Element type of a tensor; the names are Neuropod's, the last four are additions.
enum class TensorType {
  FLOAT_TENSOR,
  DOUBLE_TENSOR,
  STRING_TENSOR,
  INT8_TENSOR,
  INT16_TENSOR,
  INT32_TENSOR,
  INT64_TENSOR,
  UINT8_TENSOR,
  UINT16_TENSOR,
  UINT32_TENSOR,
  UINT64_TENSOR,
  BOOL_TENSOR,
  FLOAT16_TENSOR,
  BFLOAT16_TENSOR,
  ANY_TENSOR,  ///< in a TensorSpec only: the model does not say
};

namespace detail {

inline std::uint32_t float_bits(float value) noexcept {
  std::uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_of(std::uint32_t bits) noexcept {
  float value = 0;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace detail

/// IEEE 754 binary16, the element of a float16 tensor: 16 bits, and conversions.
struct float16 {
  std::uint16_t bits = 0;

  float16() = default;
  /// Round to the nearest value, ties to even; 65520 and more become infinite.
  explicit float16(float value) noexcept {
    std::uint32_t x = detail::float_bits(value);
    const std::uint32_t sign = (x >> 16) & 0x8000U;
    x &= 0x7fffffffU;
    std::uint32_t result = 0;
    if (x > 0x7f800000U) {
      result = 0x7e00U;
    } else if (x >= 0x477ff000U) {
      result = 0x7c00U;
    } else if (x < 0x38800000U) {  // subnormal: a multiple of 2^-24
      const float scaled = std::nearbyint(std::ldexp(detail::float_of(x), 24));
      result = static_cast<std::uint32_t>(scaled);
    } else {
      x += 0xfffU + ((x >> 13) & 1U);
      result = (x - 0x38000000U) >> 13;
    }
    bits = static_cast<std::uint16_t>(sign | result);
  }
  explicit operator float() const noexcept {
    const std::uint32_t sign = (bits & 0x8000U) << 16;
    const std::uint32_t exponent = (bits >> 10) & 0x1fU;
    const std::uint32_t mantissa = bits & 0x3ffU;
    if (exponent == 0) {
      const float value = std::ldexp(static_cast<float>(mantissa), -24);
      return sign != 0 ? -value : value;
    }
    const std::uint32_t wide = exponent == 31 ? 255U : exponent + 112U;
    return detail::float_of(sign | (wide << 23) | (mantissa << 13));
  }
};

/// The upper half of a float, the element of a bfloat16 tensor: 16 bits, and conversions.
struct bfloat16 {
  std::uint16_t bits = 0;

  bfloat16() = default;
  /// Round to the nearest value, ties to even.
  explicit bfloat16(float value) noexcept {
    const std::uint32_t x = detail::float_bits(value);
    const bool nan = (x & 0x7fffffffU) > 0x7f800000U;
    const std::uint32_t rounded = nan ? x | 0x400000U : x + 0x7fffU + ((x >> 16) & 1U);
    bits = static_cast<std::uint16_t>(rounded >> 16);
  }
  explicit operator float() const noexcept {
    return detail::float_of(static_cast<std::uint32_t>(bits) << 16);
  }
};

namespace detail {

/// The C++ type of the elements, and the type that they are stored as.
template <typename T>
struct Element;

template <TensorType tag, typename S>
struct ElementOf {
  static constexpr TensorType type = tag;
  using Storage = S;
};

template <>
struct Element<float> : ElementOf<TensorType::FLOAT_TENSOR, float> {};
template <>
struct Element<double> : ElementOf<TensorType::DOUBLE_TENSOR, double> {};
template <>
struct Element<std::string> : ElementOf<TensorType::STRING_TENSOR, std::string> {};
template <>
struct Element<std::int8_t> : ElementOf<TensorType::INT8_TENSOR, std::int8_t> {};
template <>
struct Element<std::int16_t> : ElementOf<TensorType::INT16_TENSOR, std::int16_t> {};
template <>
struct Element<std::int32_t> : ElementOf<TensorType::INT32_TENSOR, std::int32_t> {};
template <>
struct Element<std::int64_t> : ElementOf<TensorType::INT64_TENSOR, std::int64_t> {};
template <>
struct Element<std::uint8_t> : ElementOf<TensorType::UINT8_TENSOR, std::uint8_t> {};
template <>
struct Element<std::uint16_t> : ElementOf<TensorType::UINT16_TENSOR, std::uint16_t> {};
template <>
struct Element<std::uint32_t> : ElementOf<TensorType::UINT32_TENSOR, std::uint32_t> {};
template <>
struct Element<std::uint64_t> : ElementOf<TensorType::UINT64_TENSOR, std::uint64_t> {};
// A bool read from memory that holds neither 0 nor 1 is undefined behaviour: bytes are not.
template <>
struct Element<bool> : ElementOf<TensorType::BOOL_TENSOR, std::uint8_t> {};
template <>
struct Element<float16> : ElementOf<TensorType::FLOAT16_TENSOR, float16> {};
template <>
struct Element<bfloat16> : ElementOf<TensorType::BFLOAT16_TENSOR, bfloat16> {};

static_assert(sizeof(bool) == 1 && sizeof(float) == 4 && sizeof(double) == 8 &&
                  sizeof(float16) == 2 && sizeof(bfloat16) == 2,
              "the protocol's element sizes");

struct TypeRow {
  TensorType type;
  const char* name;
  std::size_t bytes;  // of one element; 0 for strings
};

inline constexpr std::array<TypeRow, 14> type_table{{
    {TensorType::FLOAT_TENSOR, "float32", 4},
    {TensorType::DOUBLE_TENSOR, "float64", 8},
    {TensorType::STRING_TENSOR, "string", 0},
    {TensorType::INT8_TENSOR, "int8", 1},
    {TensorType::INT16_TENSOR, "int16", 2},
    {TensorType::INT32_TENSOR, "int32", 4},
    {TensorType::INT64_TENSOR, "int64", 8},
    {TensorType::UINT8_TENSOR, "uint8", 1},
    {TensorType::UINT16_TENSOR, "uint16", 2},
    {TensorType::UINT32_TENSOR, "uint32", 4},
    {TensorType::UINT64_TENSOR, "uint64", 8},
    {TensorType::BOOL_TENSOR, "bool", 1},
    {TensorType::FLOAT16_TENSOR, "float16", 2},
    {TensorType::BFLOAT16_TENSOR, "bfloat16", 2},
}};

inline const TypeRow* find_type(TensorType type) noexcept {
  for (const TypeRow& row : type_table) {
    if (row.type == type) return &row;
  }
  return nullptr;
}

inline const TypeRow* find_type(std::string_view name) noexcept {
  for (const TypeRow& row : type_table) {
    if (name == row.name) return &row;
  }
  return nullptr;
}

}  // namespace detail

/// Ingot's name of an element type, such as "float32"; "any" for ANY_TENSOR.
inline std::string to_string(TensorType type) {
  const detail::TypeRow* row = detail::find_type(type);
  return row == nullptr ? "any" : row->name;
}

// ================================================================================================
// Options and specs
// ================================================================================================

/// Values of `Options::visible_device`; any other number of a GPU will do as well.
namespace Device {
constexpr int CPU = -1;
constexpr int GPU0 = 0;
constexpr int GPU1 = 1;
constexpr int GPU2 = 2;
constexpr int GPU3 = 3;
constexpr int GPU4 = 4;
constexpr int GPU5 = 5;
constexpr int GPU6 = 6;
constexpr int GPU7 = 7;
}  // namespace Device

/// How a model is loaded and run.
struct Options {
  /// A duration in seconds; `std::chrono::milliseconds(250)` and `2s` convert to it.
  using Seconds = std::chrono::duration<double>;

  /// `Device::CPU` or the number of a GPU; a missing GPU gives a warning, and the CPU.
  int visible_device = Device::CPU;
  /// Load in the constructor; otherwise with `load_model`, or whatever needs the model first.
  bool load_model_at_construction = true;
  /// Leave out the checks of names, element types and shapes. Hashes are always checked.
  bool disable_shape_and_type_checking = false;
  /// The package may run Python code, and load native operators, that it carries.
  bool trust_code = false;
  /// Run even if locked requirements differ from what is installed.
  bool ignore_lock = false;
  /// Threads of one operator; 0 leaves the framework's default.
  int threads = 0;
  /// CPUs that the worker may use (numbers from 0 on, Linux only); empty means all.
  std::vector<int> cpus;
  /// The longest that one call may take; then its worker is killed. 0 means for ever.
  Seconds timeout{0};
  /// The longest that starting a worker and loading the model may take. 0 means for ever.
  Seconds start_timeout{120};
  /// The Python in which Ingot is installed; empty means INGOT_PYTHON, or else "python3".
  std::string python;
  /// Connect to this socket file of a worker that listens, in place of starting one.
  std::string socket;
  /// Accepted for the sake of programs written for Neuropod: models always run in a process of
  /// their own.
  bool use_ope = true;
};

/// One dimension of a spec: a size, a symbol, or any size.
struct Dimension {
  /// The size; -1 when the dimension is a symbol or may be any.
  std::int64_t value = -1;
  /// A name, which stands for one size within a call; empty when there is none.
  std::string symbol;
};

/// What a model says of one of its inputs or outputs.
struct TensorSpec {
  std::string name;
  std::vector<Dimension> dims;
  TensorType type = TensorType::ANY_TENSOR;
  /// An input that may be left out.
  bool optional = false;
  /// Any number of dimensions will do; `dims` is empty then.
  bool any_rank = false;
};

// ================================================================================================
// Implementation: small things
// ================================================================================================

namespace detail {

using Clock = std::chrono::steady_clock;
using Deadline = std::optional<Clock::time_point>;

inline Deadline deadline_in(Options::Seconds seconds) {
  // A year is as good as for ever, and far from the overflow of the clock.
  constexpr double year = 3.2e7;
  if (!(seconds.count() > 0) || seconds.count() > year) return std::nullopt;
  return Clock::now() + std::chrono::duration_cast<Clock::duration>(seconds);
}

inline std::string system_message(int code) { return std::generic_category().message(code); }

/// A file descriptor that is closed with its owner.
class Fd {
 public:
  Fd() = default;
  explicit Fd(int fd) noexcept : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&& other) noexcept {
    if (this != &other) {
      reset();
      fd_ = std::exchange(other.fd_, -1);
    }
    return *this;
  }
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;
  ~Fd() { reset(); }

  int get() const noexcept { return fd_; }
  explicit operator bool() const noexcept { return fd_ >= 0; }
  void reset() noexcept {
    if (fd_ >= 0) ::close(fd_);  // not repeated on EINTR: Linux has closed it even then
    fd_ = -1;
  }

 private:
  int fd_ = -1;
};

inline void set_cloexec(int fd) noexcept { (void)::fcntl(fd, F_SETFD, FD_CLOEXEC); }

/// Multiply; false when the product does not fit.
inline bool multiply(std::size_t a, std::size_t b, std::size_t* product) noexcept {
  if (b != 0 && a > std::numeric_limits<std::size_t>::max() / b) return false;
  *product = a * b;
  return true;
}

/// Number of elements of a shape; nothing when a size is negative or the bytes do not fit.
inline std::optional<std::size_t> count_elements(const std::vector<std::int64_t>& dims,
                                                 std::size_t element_bytes) noexcept {
  // The sizes beside a 0 must not overflow either: strides are computed of them.
  std::size_t count = 1;
  bool empty = false;
  for (const std::int64_t size : dims) {
    if (size < 0) return std::nullopt;
    if (size == 0) {
      empty = true;
    } else if (!multiply(count, static_cast<std::size_t>(size), &count)) {
      return std::nullopt;
    }
  }
  std::size_t bytes = 0;
  constexpr auto most = static_cast<std::size_t>(std::numeric_limits<std::ptrdiff_t>::max());
  if (!multiply(count, std::max<std::size_t>(element_bytes, 1), &bytes) || bytes > most) {
    return std::nullopt;
  }
  return empty ? 0 : count;
}

inline std::string format_dims(const std::vector<std::int64_t>& dims) {
  std::string text = "[";
  for (const std::int64_t size : dims) {
    if (text.size() > 1) text += ", ";
    text += std::to_string(size);
  }
  return text + "]";
}

/// Length of the UTF-8 character at the start of `text`, or 0 if there is no valid one.
inline std::size_t utf8_length(std::string_view text) noexcept {
  const auto byte = [&](std::size_t i) {
    return i < text.size() ? static_cast<unsigned char>(text[i]) : 0U;
  };
  const auto follows = [&](std::size_t i) { return (byte(i) & 0xc0U) == 0x80U; };
  const unsigned first = byte(0);
  if (text.empty()) return 0;
  if (first < 0x80U) return 1;
  if (first >= 0xc2U && first <= 0xdfU) return follows(1) ? 2 : 0;
  if (first >= 0xe0U && first <= 0xefU) {
    const bool overlong = first == 0xe0U && byte(1) < 0xa0U;
    const bool surrogate = first == 0xedU && byte(1) >= 0xa0U;
    return follows(1) && follows(2) && !overlong && !surrogate ? 3 : 0;
  }
  if (first >= 0xf0U && first <= 0xf4U) {
    const bool overlong = first == 0xf0U && byte(1) < 0x90U;
    const bool too_large = first == 0xf4U && byte(1) >= 0x90U;
    return follows(1) && follows(2) && follows(3) && !overlong && !too_large ? 4 : 0;
  }
  return 0;
}

inline bool is_utf8(std::string_view text) noexcept {
  while (!text.empty()) {
    const std::size_t length = utf8_length(text);
    if (length == 0) return false;
    text.remove_prefix(length);
  }
  return true;
}

inline void append_utf8(std::string& out, std::uint32_t code) {
  const auto put = [&](std::uint32_t byte) { out += static_cast<char>(byte); };
  if (code < 0x80U) {
    put(code);
  } else if (code < 0x800U) {
    put(0xc0U | (code >> 6));
    put(0x80U | (code & 0x3fU));
  } else if (code < 0x10000U) {
    put(0xe0U | (code >> 12));
    put(0x80U | ((code >> 6) & 0x3fU));
    put(0x80U | (code & 0x3fU));
  } else {
    put(0xf0U | (code >> 18));
    put(0x80U | ((code >> 12) & 0x3fU));
    put(0x80U | ((code >> 6) & 0x3fU));
    put(0x80U | (code & 0x3fU));
  }
}

// ================================================================================================
// Implementation: JSON (RFC 8259)
// ================================================================================================

/// A JSON value that was read.
///
/// Bytes of a file name that are no UTF-8 travel as Python's lone surrogates (PEP 383): byte 0x80
/// is `\udc80`.
class Json {
 public:
  enum class Kind { null, boolean, integer, number, string, array, object };

  Kind kind = Kind::null;
  bool boolean = false;
  std::int64_t integer = 0;
  double number = 0;
  std::string string;
  std::vector<Json> items;        // of an array or an object
  std::vector<std::string> keys;  // of an object, one for each item

  /// Value of a key of an object; the last one counts, as in Python. Null when there is none.
  const Json* find(std::string_view key) const noexcept {
    for (std::size_t i = keys.size(); i-- > 0;) {
      if (keys[i] == key) return &items[i];
    }
    return nullptr;
  }

  bool is_null() const noexcept { return kind == Kind::null; }

  /// Read a document.
  ///
  /// @throws ProtocolError it is no JSON, is nested too deeply, or has too many values.
  static Json parse(std::string_view text) {
    Reader reader{text, 0, 0};
    Json value = reader.value(0);
    reader.blanks();
    if (reader.at != text.size()) reader.fail("text after the end");
    return value;
  }

  /// Append a string with its quotes.
  static void quote(std::string& out, std::string_view text) {
    static const char* const hex = "0123456789abcdef";
    out += '"';
    while (!text.empty()) {
      const std::size_t length = utf8_length(text);
      const auto byte = static_cast<unsigned char>(text.front());
      if (length == 0) {
        out += "\\udc";
        out += hex[byte >> 4];
        out += hex[byte & 15U];
      } else if (byte < 0x20U || byte == 0x7fU) {
        out += "\\u00";
        out += hex[byte >> 4];
        out += hex[byte & 15U];
      } else if (byte == '"' || byte == '\\') {
        out += '\\';
        out += text.front();
      } else {
        out.append(text.substr(0, length));
      }
      text.remove_prefix(std::max<std::size_t>(length, 1));
    }
    out += '"';
  }

 private:
  static constexpr int most_depth = 64;
  static constexpr std::size_t most_values = 1U << 20;

  struct Reader {
    std::string_view text;
    std::size_t at;
    std::size_t values;

    [[noreturn]] void fail(const char* what) const {
      throw ProtocolError("the worker sent no JSON: " + std::string(what) + " at byte " +
                          std::to_string(at));
    }

    void blanks() noexcept {
      while (at < text.size() &&
             (text[at] == ' ' || text[at] == '\t' || text[at] == '\n' || text[at] == '\r')) {
        ++at;
      }
    }

    bool take(char wanted) noexcept {
      blanks();
      if (at >= text.size() || text[at] != wanted) return false;
      ++at;
      return true;
    }

    bool take_word(std::string_view word) noexcept {
      if (text.substr(at, word.size()) != word) return false;
      at += word.size();
      return true;
    }

    Json value(int depth) {
      blanks();
      if (depth > most_depth) fail("values are nested too deeply");
      if (++values > most_values) fail("too many values");
      if (at >= text.size()) fail("the end");
      Json json;
      const char first = text[at];
      if (first == '{') {
        object(json, depth);
      } else if (first == '[') {
        array(json, depth);
      } else if (first == '"') {
        json.kind = Kind::string;
        json.string = quoted();
      } else if (take_word("true")) {
        json.kind = Kind::boolean;
        json.boolean = true;
      } else if (take_word("false")) {
        json.kind = Kind::boolean;
      } else if (!take_word("null")) {
        numeric(json);
      }
      return json;
    }

    void object(Json& json, int depth) {
      json.kind = Kind::object;
      ++at;
      if (take('}')) return;
      do {
        blanks();
        if (at >= text.size() || text[at] != '"') fail("no key");
        json.keys.push_back(quoted());
        if (!take(':')) fail("no colon");
        json.items.push_back(value(depth + 1));
      } while (take(','));
      if (!take('}')) fail("no end of an object");
    }

    void array(Json& json, int depth) {
      json.kind = Kind::array;
      ++at;
      if (take(']')) return;
      do {
        json.items.push_back(value(depth + 1));
      } while (take(','));
      if (!take(']')) fail("no end of an array");
    }

    bool digits() noexcept {
      const std::size_t start = at;
      while (at < text.size() && text[at] >= '0' && text[at] <= '9') ++at;
      return at > start;
    }

    void numeric(Json& json) {
      const std::size_t start = at;
      bool whole = true;
      if (at < text.size() && text[at] == '-') ++at;
      const std::size_t first = at;
      if (!digits() || (text[first] == '0' && at > first + 1)) fail("no value");
      if (at < text.size() && text[at] == '.') {
        ++at;
        whole = false;
        if (!digits()) fail("no digit");
      }
      if (at < text.size() && (text[at] == 'e' || text[at] == 'E')) {
        ++at;
        whole = false;
        if (at < text.size() && (text[at] == '+' || text[at] == '-')) ++at;
        if (!digits()) fail("no digit");
      }
      const char* const begin = text.data() + start;
      const char* const end = text.data() + at;
      if (whole && std::from_chars(begin, end, json.integer).ec == std::errc()) {
        json.kind = Kind::integer;
        return;
      }
      json.kind = Kind::number;
      std::istringstream stream(std::string(begin, end));
      stream.imbue(std::locale::classic());  // the program's locale may have a decimal comma
      stream >> json.number;
    }

    std::uint32_t hex4() {
      std::uint32_t code = 0;
      if (at + 4 > text.size()) fail("no escape");
      const char* const begin = text.data() + at;
      const auto result = std::from_chars(begin, begin + 4, code, 16);
      if (result.ec != std::errc() || result.ptr != begin + 4) fail("no escape");
      at += 4;
      return code;
    }

    void escape(std::string& out) {
      const char kind = at < text.size() ? text[at] : '\0';
      ++at;
      switch (kind) {
        case '"':
        case '\\':
        case '/':
          out += kind;
          return;
        case 'b':
          out += '\b';
          return;
        case 'f':
          out += '\f';
          return;
        case 'n':
          out += '\n';
          return;
        case 'r':
          out += '\r';
          return;
        case 't':
          out += '\t';
          return;
        case 'u':
          break;
        default:
          fail("no escape");
      }
      std::uint32_t code = hex4();
      if (code >= 0xd800U && code < 0xdc00U && text.substr(at, 2) == "\\u") {
        const std::size_t back = at;
        at += 2;
        const std::uint32_t low = hex4();
        if (low >= 0xdc00U && low < 0xe000U) {
          code = 0x10000U + ((code - 0xd800U) << 10) + (low - 0xdc00U);
        } else {
          at = back;
        }
      }
      if (code >= 0xdc80U && code <= 0xdcffU) {
        out += static_cast<char>(code & 0xffU);
      } else if (code >= 0xd800U && code < 0xe000U) {
        append_utf8(out, 0xfffdU);
      } else {
        append_utf8(out, code);
      }
    }

    std::string quoted() {
      std::string out;
      ++at;
      while (at < text.size() && text[at] != '"') {
        if (text[at] == '\\') {
          ++at;
          escape(out);
          continue;
        }
        const std::size_t length = utf8_length(text.substr(at, 4));
        if (length == 0) fail("text that is not UTF-8");
        if (static_cast<unsigned char>(text[at]) < 0x20U) fail("a control character");
        out.append(text.substr(at, length));
        at += length;
      }
      if (at >= text.size()) fail("no end of a string");
      ++at;
      return out;
    }
  };
};

// What follows takes values out of messages of the worker, of which nothing is believed.

[[noreturn]] inline void bad_message(const std::string& what) {
  throw ProtocolError("the worker sent a message that is not understood: " + what);
}

inline const Json& member(const Json& object, const char* key) {
  const Json* value = object.find(key);
  if (value == nullptr) bad_message("no key \"" + std::string(key) + "\"");
  return *value;
}

inline const std::string& text_of(const Json& value, const char* what) {
  if (value.kind != Json::Kind::string) bad_message(std::string(what) + " is no string");
  return value.string;
}

inline const std::vector<Json>& list_of(const Json& value, const char* what) {
  if (value.kind != Json::Kind::array) bad_message(std::string(what) + " is no list");
  return value.items;
}

/// An integer from `least` to 2^63 - 1.
inline std::uint64_t natural_of(const Json& value, std::int64_t least, const char* what) {
  if (value.kind != Json::Kind::integer || value.integer < least) {
    bad_message(std::string(what) + " is no integer of " + std::to_string(least) + " or more");
  }
  return static_cast<std::uint64_t>(value.integer);
}

/// A key that may be missing or null.
inline std::string text_or_empty(const Json& object, const char* key) {
  const Json* value = object.find(key);
  return value == nullptr || value->is_null() ? std::string() : text_of(*value, key);
}

// ================================================================================================
// Implementation: shared memory
// ================================================================================================

constexpr std::size_t alignment = 64;

inline std::size_t aligned(std::size_t size) noexcept {
  return (size + alignment - 1) / alignment * alignment;
}

/// Shared memory that this process has mapped.
class Mapping {
 public:
  /// @throws SharedMemoryError the system refuses.
  Mapping(int fd, std::size_t size) : size_(size) {
    void* address = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (address == MAP_FAILED) {
      throw SharedMemoryError("cannot map " + std::to_string(size) +
                              " bytes of shared memory: " + system_message(errno));
    }
    data_ = static_cast<char*>(address);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() { ::munmap(data_, size_); }

  char* data() const noexcept { return data_; }
  std::size_t size() const noexcept { return size_; }

 private:
  char* data_ = nullptr;
  std::size_t size_;
};

/// Make shared memory without a name, whose pages are reserved.
///
/// @throws SharedMemoryError there is not enough memory.
inline Fd create_shared_memory(std::size_t size) {
  const auto fail = [size](const char* what, int code) {
    throw SharedMemoryError("cannot make a block of " + std::to_string(size) +
                                " bytes for tensors: " + what + ": " + system_message(code),
                            "use smaller batches, or let go of tensors that are not needed");
  };
  // Asking for more than the machine has would not fail, but wake the out-of-memory killer.
  const long pages = ::sysconf(_SC_PHYS_PAGES);
  const long page = ::sysconf(_SC_PAGESIZE);
  if (pages > 0 && page > 0 &&
      size / static_cast<std::size_t>(page) > static_cast<std::size_t>(pages)) {
    fail("more than the memory of the machine", ENOMEM);
  }
#if defined(__linux__)
  Fd fd(::memfd_create("ingot", MFD_CLOEXEC));
  if (!fd) fail("memfd_create", errno);
#else
  static std::atomic<unsigned> counter{0};
  const std::string name =
      "/ingot-" + std::to_string(::getpid()) + "-" + std::to_string(counter.fetch_add(1));
  Fd fd(::shm_open(name.c_str(), O_RDWR | O_CREAT | O_EXCL, 0600));
  if (!fd) fail("shm_open", errno);
  ::shm_unlink(name.c_str());
  set_cloexec(fd.get());
#endif
  if (::ftruncate(fd.get(), static_cast<off_t>(size)) != 0) fail("ftruncate", errno);
#if !defined(__APPLE__)
  int code = EINTR;
  while (code == EINTR) code = ::posix_fallocate(fd.get(), 0, static_cast<off_t>(size));
  if (code != 0) fail("posix_fallocate", code);
#endif
  return fd;
}

/// Numbers of blocks that will never be used again; safe for threads.
class DroppedBlocks {
 public:
  void add(std::uint64_t number) noexcept {
    const std::lock_guard<std::mutex> lock(mutex_);
    try {
      numbers_.push_back(number);
    } catch (const std::bad_alloc&) {
      // The worker keeps its mapping for as long as it lives: nothing worse.
    }
  }
  std::vector<std::uint64_t> take() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return std::exchange(numbers_, {});
  }

 private:
  std::mutex mutex_;
  std::vector<std::uint64_t> numbers_;
};

/// A block that this side made. The descriptor stays open: the next worker has to get it, too.
struct Block {
  Block(std::uint64_t number_, std::size_t size, std::shared_ptr<DroppedBlocks> dropped_)
      : number(number_),
        fd(create_shared_memory(size)),
        memory(fd.get(), size),
        dropped(std::move(dropped_)) {}
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  ~Block() { dropped->add(number); }

  const std::uint64_t number;
  const Fd fd;
  const Mapping memory;
  const std::shared_ptr<DroppedBlocks> dropped;
  /// The model refers to inputs that lay in it: nothing else must ever be written there.
  std::atomic<bool> kept{false};
};

/// A part of a block, or all of it.
struct Slice {
  std::shared_ptr<Block> block;
  std::size_t offset = 0;
  std::size_t capacity = 0;

  char* data() const noexcept { return block->memory.data() + offset; }
};

/// The memory of this side's tensors, reused from call to call; safe for threads.
///
/// Small tensors share blocks: a block costs a file descriptor and a page at least. Tensors keep
/// the allocator alive, so that they may outlive their model.
class Allocator {
 public:
  /// Return memory of at least `size` bytes (not 0), whose contents are anything.
  ///
  /// @throws SharedMemoryError there is no memory left.
  Slice take(std::size_t size) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return size <= small_most ? take_small(size) : take_large(size);
  }

  /// Take memory back.
  void give(Slice slice) noexcept {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (closed_ || slice.block->kept) return;
    try {
      if (slice.capacity <= small_most) {
        small_[small_class(slice.capacity)].push_back(std::move(slice));
        return;
      }
      idle_bytes_ += slice.capacity;
      const std::size_t capacity = slice.capacity;
      idle_.push_back(std::move(slice));
      if (idle_.size() > idle_most || idle_bytes_ > idle_most_bytes) {
        trim(idle_most / 2, std::max(idle_most_bytes / 2, capacity));
      }
    } catch (const std::bad_alloc&) {
      // The slice is not reused; its memory goes with its last reference.
    }
  }

  /// Numbers of the blocks that will never be used again, since the last time.
  std::vector<std::uint64_t> take_dropped() { return dropped_->take(); }

  /// The model is gone: keep nothing for later.
  void close() noexcept {
    const std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
    idle_.clear();
    idle_bytes_ = 0;
    for (std::vector<Slice>& free : small_) free.clear();
    slab_ = nullptr;
  }

 private:
  static constexpr std::size_t small_most = 32U << 10;
  static constexpr std::size_t slab_bytes = 256U << 10;
  static constexpr std::size_t idle_most = 16;
  static constexpr std::size_t idle_most_bytes = 256U << 20;

  /// 64 bytes are class 0, 128 class 1, ... 32 KiB class 9.
  static std::size_t small_class(std::size_t size) noexcept {
    std::size_t index = 0;
    while ((alignment << index) < size) ++index;
    return index;
  }

  Slice take_small(std::size_t size) {
    const std::size_t index = small_class(size);
    std::vector<Slice>& free = small_[index];
    while (!free.empty()) {
      Slice slice = std::move(free.back());
      free.pop_back();
      if (!slice.block->kept) return slice;
    }
    const std::size_t capacity = alignment << index;
    if (slab_ == nullptr || slab_->kept || slab_used_ + capacity > slab_->memory.size()) {
      slab_ = make_block(slab_bytes);
      slab_used_ = 0;
    }
    Slice slice{slab_, slab_used_, capacity};
    slab_used_ += capacity;
    return slice;
  }

  Slice take_large(std::size_t size) {
    // Eight steps for each power of two, so that blocks fit tensors of about the same size.
    std::size_t step = 4096;
    while (step < size / 16) step *= 2;
    const std::size_t wanted = (size + step - 1) / step * step;
    auto best = idle_.end();
    for (auto it = idle_.begin(); it != idle_.end(); ++it) {
      if (it->capacity >= wanted && it->capacity / 2 <= wanted &&
          (best == idle_.end() || it->capacity < best->capacity)) {
        best = it;
      }
    }
    if (best != idle_.end()) {
      Slice slice = std::move(*best);
      idle_.erase(best);
      idle_bytes_ -= slice.capacity;
      return slice;
    }
    return Slice{make_block(wanted), 0, wanted};
  }

  std::shared_ptr<Block> make_block(std::size_t size) {
    const std::uint64_t number = ++last_number_;
    try {
      return std::make_shared<Block>(number, size, dropped_);
    } catch (const SharedMemoryError&) {
      if (idle_.empty()) throw;
    }
    trim(0, 0);
    return std::make_shared<Block>(number, size, dropped_);
  }

  /// Let go of the blocks that were used longest ago.
  void trim(std::size_t most, std::size_t most_bytes) noexcept {
    while (!idle_.empty() && (idle_.size() > most || idle_bytes_ > most_bytes)) {
      idle_bytes_ -= idle_.front().capacity;
      idle_.pop_front();
    }
  }

  std::mutex mutex_;
  std::array<std::vector<Slice>, 10> small_;
  std::shared_ptr<Block> slab_;
  std::size_t slab_used_ = 0;
  std::deque<Slice> idle_;  // large ones, the one used longest ago first
  std::size_t idle_bytes_ = 0;
  const std::shared_ptr<DroppedBlocks> dropped_ = std::make_shared<DroppedBlocks>();
  std::uint64_t last_number_ = 0;
  bool closed_ = false;
};

/// Use of a slice, until the last tensor or call that needs it is gone.
class Buffer {
 public:
  Buffer(std::shared_ptr<Allocator> allocator, std::size_t size)
      : allocator_(std::move(allocator)), slice_(allocator_->take(size)) {}
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { allocator_->give(std::move(slice_)); }

  const Slice& slice() const noexcept { return slice_; }
  const Allocator* allocator() const noexcept { return allocator_.get(); }

 private:
  std::shared_ptr<Allocator> allocator_;
  Slice slice_;
};

/// The blocks of one worker, and which of them tensors of this side still read; safe for threads.
class RemoteBlocks {
 public:
  struct Lease {
    Lease(std::shared_ptr<RemoteBlocks> owner_, std::shared_ptr<Mapping> memory_,
          std::uint64_t number_)
        : owner(std::move(owner_)), memory(std::move(memory_)), number(number_) {}
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    ~Lease() { owner->release(number); }

    const std::shared_ptr<RemoteBlocks> owner;
    const std::shared_ptr<Mapping> memory;  // stays even when the worker drops the block
    const std::uint64_t number;
  };

  /// Map a block that the worker introduced.
  ///
  /// @throws ProtocolError its number is taken, or it is smaller than the worker says.
  void add(std::uint64_t number, Fd fd, std::uint64_t size) {
    struct stat found{};
    if (::fstat(fd.get(), &found) != 0) bad_message("a block that cannot be examined");
    if (size == 0 || found.st_size < 0 || size > static_cast<std::uint64_t>(found.st_size)) {
      bad_message("a block of " + std::to_string(found.st_size) + " bytes; expected " +
                  std::to_string(size));
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    if (blocks_.count(number) != 0) bad_message("block " + std::to_string(number) + " twice");
    auto memory = std::make_shared<Mapping>(fd.get(), static_cast<std::size_t>(size));
    blocks_.emplace(number, Entry{std::move(memory), Use::free});
    released_.reserve(blocks_.size());  // so that release cannot fail
  }

  /// Forget a block that the worker will not use again.
  void drop(std::uint64_t number) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (blocks_.erase(number) == 0) bad_message("no block " + std::to_string(number) + " to drop");
  }

  /// @throws ProtocolError there is no such block, or a tensor of this side still reads it.
  static std::shared_ptr<Lease> lease(const std::shared_ptr<RemoteBlocks>& self,
                                      std::uint64_t number) {
    const std::lock_guard<std::mutex> lock(self->mutex_);
    const auto found = self->blocks_.find(number);
    if (found == self->blocks_.end()) bad_message("no block " + std::to_string(number));
    if (found->second.use != Use::free) {
      bad_message("block " + std::to_string(number) + ", which was not free");
    }
    auto result = std::make_shared<Lease>(self, found->second.memory, number);
    found->second.use = Use::leased;
    return result;
  }

  /// Numbers of the blocks that became free since the last time, for the worker to be told.
  std::vector<std::uint64_t> take_released() {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<std::uint64_t> fresh;
    fresh.reserve(blocks_.size());
    for (const std::uint64_t number : released_) {
      const auto found = blocks_.find(number);
      if (found != blocks_.end()) found->second.use = Use::free;
    }
    return std::exchange(released_, std::move(fresh));
  }

 private:
  enum class Use { free, leased, released };  // released: the worker does not know it yet
  struct Entry {
    std::shared_ptr<Mapping> memory;
    Use use;
  };

  void release(std::uint64_t number) noexcept {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = blocks_.find(number);
    if (found == blocks_.end() || found->second.use != Use::leased) return;
    found->second.use = Use::released;
    released_.push_back(number);
  }

  std::mutex mutex_;
  std::unordered_map<std::uint64_t, Entry> blocks_;
  std::vector<std::uint64_t> released_;
};

// ================================================================================================
// Implementation: the worker's process
// ================================================================================================

inline std::string describe_signal(int number) {
  const char* name = nullptr;
  switch (number) {
    case SIGABRT:
      name = "SIGABRT";
      break;
    case SIGBUS:
      name = "SIGBUS";
      break;
    case SIGFPE:
      name = "SIGFPE";
      break;
    case SIGILL:
      name = "SIGILL";
      break;
    case SIGINT:
      name = "SIGINT";
      break;
    case SIGKILL:
      name = "SIGKILL";
      break;
    case SIGSEGV:
      name = "SIGSEGV";
      break;
    case SIGTERM:
      name = "SIGTERM";
      break;
    default:
      return "signal " + std::to_string(number);
  }
  return "signal " + std::to_string(number) + " (" + name + ")";
}

/// A child process, which leads a process group; it is reaped in every case.
class Process {
 public:
  Process() = default;
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;
  ~Process() { end(std::chrono::milliseconds(0)); }

  pid_t pid() const noexcept { return pid_; }

  /// Start `python -m ingot.runtime.isolation` with a connected socket.
  ///
  /// @throws WorkerError it cannot be started.
  void start(const std::string& python, const Fd& socket, const std::vector<int>& cpus) {
    // The worker gets the socket as descriptor 3 and the lifeline as 4, which ours must not be: a
    // dup2 onto itself would keep the close-on-exec flag on older systems.
    constexpr int worker_fd = 3;
    constexpr int lifeline_fd = 4;
    int ends[2] = {-1, -1};
    if (::socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0) {
      throw WorkerError("cannot start a worker: " + system_message(errno));
    }
    // Nothing is sent on it: when our end is closed, however the program ends, the kernel kills
    // the worker's process group.
    Fd lifeline(ends[0]);
    const Fd their_lifeline(ends[1]);
    set_cloexec(ends[0]);
    set_cloexec(ends[1]);
    const Fd source(::fcntl(socket.get(), F_DUPFD_CLOEXEC, lifeline_fd + 1));
    const Fd lifeline_source(::fcntl(their_lifeline.get(), F_DUPFD_CLOEXEC, lifeline_fd + 1));
    if (!source || !lifeline_source) {
      throw WorkerError("cannot start a worker: " + system_message(errno));
    }
    std::vector<std::string> arguments{python,
                                       "-m",
                                       "ingot.runtime.isolation",
                                       "--fd",
                                       std::to_string(worker_fd),
                                       "--lifeline",
                                       std::to_string(lifeline_fd)};
    if (!cpus.empty()) {
      std::string list;
      for (const int cpu : cpus) list += (list.empty() ? "" : ",") + std::to_string(cpu);
      arguments.insert(arguments.end(), {"--cpus", list});
    }
    // A torch.py in the program's current folder must not be taken for the framework.
    std::vector<std::string> variables{"PYTHONSAFEPATH=1"};
    for (char** variable = environ; variable != nullptr && *variable != nullptr; ++variable) {
      const std::string_view text(*variable);
      if (text.rfind("PYTHONSAFEPATH=", 0) != 0) variables.emplace_back(text);
    }
    const auto pointers = [](std::vector<std::string>& strings) {
      std::vector<char*> result;
      for (std::string& text : strings) result.push_back(text.data());
      result.push_back(nullptr);
      return result;
    };
    Recipe recipe;
    recipe.check(::posix_spawn_file_actions_addopen(&recipe.actions, 0, "/dev/null", O_RDONLY, 0));
    recipe.check(::posix_spawn_file_actions_adddup2(&recipe.actions, source.get(), worker_fd));
    recipe.check(
        ::posix_spawn_file_actions_adddup2(&recipe.actions, lifeline_source.get(), lifeline_fd));
    sigset_t none;
    sigset_t defaults;
    sigemptyset(&none);
    sigemptyset(&defaults);
    for (const int number : {SIGPIPE, SIGCHLD, SIGINT, SIGTERM}) sigaddset(&defaults, number);
    recipe.check(::posix_spawnattr_setsigmask(&recipe.attributes, &none));
    recipe.check(::posix_spawnattr_setsigdefault(&recipe.attributes, &defaults));
    // A group of its own: Ctrl-C in a terminal is for the program, and whatever the worker starts
    // is ended with it.
    recipe.check(::posix_spawnattr_setpgroup(&recipe.attributes, 0));
    recipe.check(::posix_spawnattr_setflags(
        &recipe.attributes, static_cast<short>(POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK |
                                               POSIX_SPAWN_SETSIGDEF)));
    pid_t child = -1;
    const int code = ::posix_spawnp(&child, python.c_str(), &recipe.actions, &recipe.attributes,
                                    pointers(arguments).data(), pointers(variables).data());
    if (code != 0) {
      throw WorkerError("cannot start a worker with " + python + ": " + system_message(code),
                        "Options::python, or INGOT_PYTHON, names the Python that has Ingot");
    }
    pid_ = child;
    lifeline_ = std::move(lifeline);
    reaped_ = false;
  }

  /// Whether it has ended; it stays a zombie, so that its number is nobody else's yet.
  bool exited() noexcept {
    if (pid_ <= 0 || reaped_) return true;
    siginfo_t info{};
    int result = -1;
    do {
      result = ::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT);
    } while (result != 0 && errno == EINTR);
    if (result == 0) return info.si_pid == pid_;
    // Reaped elsewhere: by a handler of SIGCHLD, or because the program ignores that signal.
    reaped_ = true;
    return true;
  }

  /// Give it `grace` to end, then kill it, with all that it has started, and reap it.
  void end(std::chrono::milliseconds grace) noexcept {
    if (pid_ <= 0 || reaped_) return;
    const auto deadline = Clock::now() + grace;
    auto pause = std::chrono::microseconds(100);
    bool ended = exited();
    while (!ended && Clock::now() < deadline) {
      std::this_thread::sleep_for(pause);
      pause = std::min<std::chrono::microseconds>(pause * 2, std::chrono::milliseconds(10));
      ended = exited();
    }
    if (reaped_) return;
    killed_ = !ended;
    (void)::kill(-pid_, SIGKILL);
    (void)::kill(pid_, SIGKILL);
    pid_t found = -1;
    do {
      found = ::waitpid(pid_, &status_, 0);
    } while (found < 0 && errno == EINTR);
    status_known_ = found == pid_;
    reaped_ = true;
    lifeline_ = Fd();
  }

  /// It is no child of this process.
  void abandon() noexcept {
    reaped_ = true;
    lifeline_ = Fd();
  }

  /// How it ended, by itself: "was ended by signal 9 (SIGKILL)", "ended with exit code 1".
  std::string describe() const {
    if (killed_) return "closed its connection";
    if (!status_known_) return "is gone";
    if (WIFSIGNALED(status_)) return "was ended by " + describe_signal(WTERMSIG(status_));
    return "ended with exit code " + std::to_string(WEXITSTATUS(status_));
  }

 private:
  struct Recipe {
    posix_spawn_file_actions_t actions{};
    posix_spawnattr_t attributes{};

    Recipe() {
      check(::posix_spawn_file_actions_init(&actions));
      const int code = ::posix_spawnattr_init(&attributes);
      if (code != 0) {
        ::posix_spawn_file_actions_destroy(&actions);
        check(code);
      }
    }
    Recipe(const Recipe&) = delete;
    Recipe& operator=(const Recipe&) = delete;
    ~Recipe() {
      ::posix_spawn_file_actions_destroy(&actions);
      ::posix_spawnattr_destroy(&attributes);
    }
    static void check(int code) {
      if (code != 0) throw WorkerError("cannot start a worker: " + system_message(code));
    }
  };

  pid_t pid_ = -1;
  Fd lifeline_;
  int status_ = 0;
  bool reaped_ = true;
  bool status_known_ = false;
  bool killed_ = false;
};

// ================================================================================================
// Implementation: frames
// ================================================================================================

/// The other side of a connection is gone.
struct ConnectionClosed {};
/// The other side took too long.
struct TimedOut {};

enum class FrameKind : std::uint8_t { hello = 1, load, ready, infer, result, error };

struct Frame {
  FrameKind kind = FrameKind::error;
  std::uint32_t sequence = 0;
  Json payload;
  std::vector<Fd> fds;
};

/// A connected socket that sends and receives frames; for one thread at a time.
class Channel {
 public:
  static constexpr std::size_t most_payload = 64U << 20;
  static constexpr std::size_t most_fds = 64;

  explicit Channel(Fd socket) noexcept : socket_(std::move(socket)) {
#if defined(SO_NOSIGPIPE)
    const int on = 1;
    (void)::setsockopt(socket_.get(), SOL_SOCKET, SO_NOSIGPIPE, &on, sizeof on);
#endif
  }

  void close() noexcept { socket_.reset(); }

  /// @throws ConnectionClosed, TimedOut
  void send(FrameKind kind, std::uint32_t sequence, const std::string& payload,
            const std::vector<int>& fds, const Deadline& deadline, Process& process) {
    std::string data = "INGW";
    data += static_cast<char>(protocol_version);
    data += static_cast<char>(kind);
    put(data, fds.size(), 2);
    put(data, payload.size(), 4);
    put(data, sequence, 4);
    data += payload;
    alignas(cmsghdr) std::array<char, CMSG_SPACE(most_fds * sizeof(int))> control{};
    std::size_t at = 0;
    while (at < data.size()) {
      iovec part{data.data() + at, data.size() - at};
      msghdr message{};
      message.msg_iov = &part;
      message.msg_iovlen = 1;
      if (at == 0 && !fds.empty()) {
        const std::size_t bytes = fds.size() * sizeof(int);
        message.msg_control = control.data();
        message.msg_controllen = CMSG_SPACE(bytes);
        cmsghdr* rights = CMSG_FIRSTHDR(&message);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(bytes);
        std::memcpy(CMSG_DATA(rights), fds.data(), bytes);
      }
      const ssize_t sent = ::sendmsg(socket_.get(), &message, MSG_DONTWAIT | no_signal);
      if (sent > 0) {
        at += static_cast<std::size_t>(sent);
      } else if (!wait_or_fail(sent, POLLOUT, deadline, process)) {
        throw ConnectionClosed{};
      }
    }
  }

  /// @throws ConnectionClosed, TimedOut
  /// @throws ProtocolError what came is no frame.
  Frame receive(const Deadline& deadline, Process& process) {
    Frame frame;
    frame.fds.reserve(most_fds);
    std::array<unsigned char, 16> header{};
    read(reinterpret_cast<char*>(header.data()), header.size(), &frame.fds, deadline, process);
    const auto get = [&header](std::size_t at, std::size_t bytes) {
      std::uint32_t value = 0;
      while (bytes-- > 0) value = (value << 8) | header[at + bytes];
      return value;
    };
    if (std::memcmp(header.data(), "INGW", 4) != 0) {
      throw ProtocolError("the worker sent something that is no frame of Ingot's protocol");
    }
    if (header[4] != protocol_version) {
      throw ProtocolError("the worker speaks version " + std::to_string(header[4]) +
                              " of the protocol; expected " + std::to_string(protocol_version),
                          "use the ingot.hpp of the Ingot that the worker runs: g++ "
                          "-I\"$(ingot --include-dir)\"");
    }
    if (header[5] < 1 || header[5] > 6) {
      throw ProtocolError("the worker sent a frame of kind " + std::to_string(header[5]) +
                          "; expected 1 to 6");
    }
    const std::size_t count = get(6, 2);
    const std::size_t length = get(8, 4);
    if (length > most_payload || count > most_fds) {
      throw ProtocolError("the worker sent a frame of " + std::to_string(length) + " bytes and " +
                          std::to_string(count) + " file descriptors; expected at most " +
                          std::to_string(most_payload) + " and " + std::to_string(most_fds));
    }
    if (frame.fds.size() != count) {
      throw ProtocolError("the worker sent " + std::to_string(frame.fds.size()) +
                          " file descriptors; expected " + std::to_string(count));
    }
    frame.kind = static_cast<FrameKind>(header[5]);
    frame.sequence = get(12, 4);
    std::string payload(length, '\0');
    read(payload.data(), length, nullptr, deadline, process);
    frame.payload = Json::parse(payload);
    if (frame.payload.kind != Json::Kind::object) bad_message("no JSON object");
    return frame;
  }

 private:
#if defined(MSG_NOSIGNAL)
  static constexpr int no_signal = MSG_NOSIGNAL;
#else
  static constexpr int no_signal = 0;  // SO_NOSIGPIPE does it
#endif
#if defined(MSG_CMSG_CLOEXEC)
  static constexpr int cloexec = MSG_CMSG_CLOEXEC;
#else
  static constexpr int cloexec = 0;
#endif

  static void put(std::string& out, std::size_t value, int bytes) {
    for (int i = 0; i < bytes; ++i) out += static_cast<char>((value >> (8 * i)) & 0xffU);
  }

  void read(char* to, std::size_t size, std::vector<Fd>* fds, const Deadline& deadline,
            Process& process) {
    alignas(cmsghdr) std::array<char, CMSG_SPACE(most_fds * sizeof(int))> control{};
    std::size_t at = 0;
    while (at < size) {
      iovec part{to + at, size - at};
      msghdr message{};
      message.msg_iov = &part;
      message.msg_iovlen = 1;
      if (fds != nullptr) {  // otherwise the system closes descriptors that come: they are no part
        message.msg_control = control.data();
        message.msg_controllen = control.size();
      }
      const ssize_t got = ::recvmsg(socket_.get(), &message, MSG_DONTWAIT | cloexec);
      if (got > 0) {
        at += static_cast<std::size_t>(got);
        if (fds != nullptr) take_fds(message, *fds);
      } else if (!wait_or_fail(got, POLLIN, deadline, process)) {
        throw ConnectionClosed{};
      }
    }
  }

  static void take_fds(msghdr& message, std::vector<Fd>& fds) {
    bool too_many = (message.msg_flags & MSG_CTRUNC) != 0;
    for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
      if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
      const std::size_t bytes = c->cmsg_len - static_cast<std::size_t>(CMSG_LEN(0));
      for (std::size_t i = 0; i + sizeof(int) <= bytes; i += sizeof(int)) {
        int raw = -1;
        std::memcpy(&raw, CMSG_DATA(c) + i, sizeof raw);
        Fd fd(raw);
        if (cloexec == 0) set_cloexec(raw);
        if (fds.size() < most_fds) {
          fds.push_back(std::move(fd));  // has room: this cannot throw
        } else {
          too_many = true;
        }
      }
    }
    if (too_many) throw ProtocolError("the worker sent too many file descriptors");
  }

  /// After a call that moved nothing: wait until it may. False when the connection is closed.
  bool wait_or_fail(ssize_t result, short events, const Deadline& deadline, Process& process) {
    if (result == 0) return false;
    if (errno == EINTR) return true;
#if EAGAIN == EWOULDBLOCK
    if (errno != EAGAIN) return false;
#else
    if (errno != EAGAIN && errno != EWOULDBLOCK) return false;
#endif
    bool last = false;
    while (true) {
      // The socket does not close when the worker dies while something that it started lives on:
      // that it still lives is looked up now and then.
      std::chrono::milliseconds slice(process.pid() > 0 ? 500 : 60000);
      if (deadline) {
        const auto left = std::chrono::ceil<std::chrono::milliseconds>(*deadline - Clock::now());
        if (left.count() <= 0) throw TimedOut{};
        slice = std::min(slice, left);
      }
      pollfd item{socket_.get(), events, 0};
      const int ready = ::poll(&item, 1, last ? 0 : static_cast<int>(slice.count()));
      if (ready > 0) return true;
      if (ready < 0 && errno != EINTR) return false;
      if (last && ready == 0) return false;
      // What it had sent before its end is still read: one more look.
      if (ready == 0 && process.pid() > 0 && process.exited()) last = true;
    }
  }

  Fd socket_;
};

// ================================================================================================
// Implementation: a worker with its model
// ================================================================================================

/// What READY tells.
struct ModelInfo {
  std::string name;
  std::string platform;
  std::string framework_version;
  std::vector<TensorSpec> inputs;
  std::vector<TensorSpec> outputs;
};

inline std::vector<TensorSpec> specs_of(const Json& list) {
  std::vector<TensorSpec> specs;
  for (const Json& item : list_of(list, "a list of specs")) {
    TensorSpec spec;
    spec.name = text_of(member(item, "name"), "a name");
    const Json& dtype = member(item, "dtype");
    if (!dtype.is_null()) {
      const TypeRow* row = find_type(std::string_view(text_of(dtype, "a dtype")));
      if (row == nullptr) bad_message("dtype \"" + dtype.string + "\"");
      spec.type = row->type;
    }
    const Json& shape = member(item, "shape");
    spec.any_rank = shape.is_null();
    if (!spec.any_rank) {
      for (const Json& size : list_of(shape, "a shape")) {
        Dimension dimension;
        if (size.kind == Json::Kind::string) {
          dimension.symbol = size.string;
        } else if (!size.is_null()) {
          dimension.value = static_cast<std::int64_t>(natural_of(size, 0, "a size"));
        }
        spec.dims.push_back(std::move(dimension));
      }
    }
    const Json* optional = item.find("optional");
    spec.optional = optional != nullptr && optional->boolean;
    specs.push_back(std::move(spec));
  }
  return specs;
}

/// Throw the exception that an ERROR message stands for.
[[noreturn]] inline void throw_error(const Json& payload) {
  const std::string& message = text_of(member(payload, "message"), "a message");
  const std::string type = text_or_empty(payload, "type");
  const std::string hint = text_or_empty(payload, "hint");
  const Json* code = payload.find("exit_code");
  const bool coded = code != nullptr && code->kind == Json::Kind::integer && code->integer >= 0 &&
                     code->integer <= 255;
  const int exit_code = coded ? static_cast<int>(code->integer) : 1;
  if (type == "InputError") throw InputError(message, hint, type, exit_code);
  if (type == "UntrustedCodeError") throw UntrustedCodeError(message, hint, type, exit_code);
  if (type == "MissingDependencyError") {
    throw MissingDependencyError(message, hint, type, exit_code);
  }
  if (type == "SharedMemoryError") throw SharedMemoryError(message, hint, type, exit_code);
  if (type == "ProtocolError") throw ProtocolError(message, hint, type, exit_code);
  if (type == "WorkerError") throw WorkerError(message, hint, type, exit_code);
  // Other classes, those of later versions too, are told by the exit code that they share.
  switch (exit_code) {
    case 2:
      throw UsageError(message, hint, type, exit_code);
    case 4:
      throw CheckError(message, hint, type, exit_code);
    case 5:
      throw ModelError(message, hint, type, exit_code);
    case 6:
      throw MissingDependencyError(message, hint, type, exit_code);
    default:
      throw Error(message, hint, type, exit_code);
  }
}

/// A connection to a worker that has loaded the model.
struct Worker {
  Worker() = default;
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;
  ~Worker() {
    channel.close();
    // In a process that was forked off the one that started it, it is not ours to end.
    if (::getpid() != owner) process.abandon();
    process.end(std::chrono::seconds(1));
  }

  const pid_t owner = ::getpid();
  Process process;
  Channel channel{Fd()};
  std::optional<Mapping> progress;
  std::shared_ptr<RemoteBlocks> remote = std::make_shared<RemoteBlocks>();
  std::unordered_set<std::uint64_t> introduced;  // our blocks that the worker has mapped
  std::uint32_t sequence = 0;

  std::uint32_t next_sequence() noexcept {
    if (++sequence == 0) ++sequence;
    return sequence;
  }

  /// Whether the worker has begun with the call `number`.
  bool began(std::uint32_t number) const noexcept {
    return *reinterpret_cast<const volatile std::uint64_t*>(progress->data()) == number;
  }

  std::string label() const {
    return process.pid() > 0 ? "the worker (process " + std::to_string(process.pid()) + ")"
                             : "the worker";
  }

  /// End it and tell how it ended.
  std::string how_it_ended() {
    channel.close();
    const bool own = process.pid() > 0;
    process.end(std::chrono::seconds(1));  // it is on its way: only so long to leave its status
    return label() + " " + (own ? process.describe() : std::string("closed its connection"));
  }
};

}  // namespace detail

// ================================================================================================
// Tensors
// ================================================================================================

template <typename T>
class TypedTensor;

/// A tensor of any element type, in C order.
///
/// Tensors are held by `std::shared_ptr` and may outlive the model that they come from. One tensor
/// must not be written by one thread while another, or a call to `infer`, uses it.
class Tensor {
 public:
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;
  virtual ~Tensor() = default;

  TensorType get_tensor_type() const noexcept { return type_; }
  /// The size of each dimension; empty for a scalar.
  const std::vector<std::int64_t>& get_dims() const noexcept { return dims_; }
  /// The product of the sizes; 1 for a scalar.
  std::size_t get_num_elements() const noexcept { return count_; }

  /// View it as a tensor of elements of type `T`. The view belongs to this tensor.
  ///
  /// @throws InputError its elements are of another type.
  template <typename T>
  TypedTensor<T>* as_typed_tensor() {
    check_type(detail::Element<T>::type);
    return static_cast<TypedTensor<T>*>(this);
  }
  template <typename T>
  const TypedTensor<T>* as_typed_tensor() const {
    check_type(detail::Element<T>::type);
    return static_cast<const TypedTensor<T>*>(this);
  }

  /// This tensor; for programs written for Neuropod, where a value need not be a tensor.
  Tensor* as_tensor() noexcept { return this; }
  const Tensor* as_tensor() const noexcept { return this; }

 protected:
  Tensor(TensorType type, std::vector<std::int64_t> dims, std::size_t count, void* data,
         std::shared_ptr<void> owner, std::shared_ptr<detail::Buffer> buffer)
      : type_(type),
        dims_(std::move(dims)),
        count_(count),
        data_(data),
        owner_(std::move(owner)),
        buffer_(std::move(buffer)) {}

 private:
  friend class Model;
  template <typename T>
  friend class TypedTensor;

  void check_type(TensorType wanted) const {
    if (type_ != wanted) {
      throw InputError("found a tensor of " + to_string(type_) + "; expected " + to_string(wanted));
    }
  }

  const TensorType type_;
  const std::vector<std::int64_t> dims_;
  const std::size_t count_;
  void* const data_;                              // null when there are no elements
  const std::shared_ptr<void> owner_;             // keeps the memory
  const std::shared_ptr<detail::Buffer> buffer_;  // set when it lies in a block of ours
};

/// A view of N dimensions, indexed as `view[i][j]`; indices are not checked.
template <typename S, std::size_t N>
class Accessor {
 public:
  Accessor(S* data, const std::int64_t* dims, const std::int64_t* strides) noexcept
      : data_(data), dims_(dims), strides_(strides) {}

  decltype(auto) operator[](std::int64_t index) const noexcept {
    if constexpr (N == 1) {
      return (data_[index]);
    } else {
      return Accessor<S, N - 1>(data_ + index * strides_[0], dims_ + 1, strides_ + 1);
    }
  }
  std::int64_t size() const noexcept { return dims_[0]; }

 private:
  S* data_;
  const std::int64_t* dims_;
  const std::int64_t* strides_;
};

/// A tensor of elements of type `T`: float, double, int8_t to int64_t, uint8_t to uint64_t,
/// `std::string` (UTF-8), bool (stored as uint8_t, 0 or 1), `ingot::float16`, `ingot::bfloat16`.
template <typename T>
class TypedTensor : public Tensor {
 public:
  /// What an element is in memory: `T`, but for bool.
  using Storage = typename detail::Element<T>::Storage;

  /// The elements in C order; may be null when there are none.
  Storage* get_raw_data_ptr() noexcept { return static_cast<Storage*>(data_); }
  const Storage* get_raw_data_ptr() const noexcept { return static_cast<const Storage*>(data_); }

  Storage* data() noexcept { return get_raw_data_ptr(); }
  const Storage* data() const noexcept { return get_raw_data_ptr(); }
  std::size_t size() const noexcept { return get_num_elements(); }
  Storage* begin() noexcept { return data(); }
  const Storage* begin() const noexcept { return data(); }
  Storage* end() noexcept { return data() + size(); }
  const Storage* end() const noexcept { return data() + size(); }

  /// Element `index` in C order; not checked.
  Storage& operator[](std::size_t index) noexcept { return data()[index]; }
  const Storage& operator[](std::size_t index) const noexcept { return data()[index]; }

  /// The only element.
  ///
  /// @throws InputError there is not exactly one.
  Storage& as_scalar() { return *(check_scalar(), data()); }
  const Storage& as_scalar() const { return *(check_scalar(), data()); }

  /// A view that is indexed by one index for each dimension: `accessor<2>()[row][column]`. It
  /// belongs to this tensor.
  ///
  /// @throws InputError the tensor has another number of dimensions than `N`.
  template <std::size_t N>
  Accessor<Storage, N> accessor() {
    static_assert(N >= 1, "a scalar has as_scalar");
    check_rank(N);
    return Accessor<Storage, N>(data(), get_dims().data(), strides_.data());
  }
  template <std::size_t N>
  Accessor<const Storage, N> accessor() const {
    static_assert(N >= 1, "a scalar has as_scalar");
    check_rank(N);
    return Accessor<const Storage, N>(data(), get_dims().data(), strides_.data());
  }

  /// Copy `size` elements, which must be as many as the tensor has.
  ///
  /// @throws InputError they are not.
  void copy_from(const T* source, std::size_t size) {
    check_count(size);
    if (size != 0 && source == nullptr) throw InputError("copy_from: found a null pointer");
    std::copy_n(source, size, data());
  }
  void copy_from(const std::vector<T>& source) {
    check_count(source.size());
    std::copy(source.begin(), source.end(), begin());
  }

  /// A copy of the elements, in C order.
  std::vector<T> get_data_as_vector() const {
    if constexpr (std::is_same_v<T, bool>) {
      std::vector<bool> result(size());
      std::transform(begin(), end(), result.begin(), [](std::uint8_t byte) { return byte != 0; });
      return result;
    } else {
      std::vector<T> result(size());
      std::copy_n(data(), size(), result.begin());
      return result;
    }
  }

 private:
  friend class Model;
  friend class TensorAllocator;

  TypedTensor(std::vector<std::int64_t> dims, std::size_t count, Storage* data,
              std::shared_ptr<void> owner, std::shared_ptr<detail::Buffer> buffer)
      : Tensor(detail::Element<T>::type, std::move(dims), count, data, std::move(owner),
               std::move(buffer)),
        strides_(get_dims().size(), 1) {
    for (std::size_t i = strides_.size(); i-- > 1;) {
      strides_[i - 1] = strides_[i] * std::max<std::int64_t>(get_dims()[i], 1);
    }
  }

  void check_count(std::size_t found) const {
    if (found != size()) {
      throw InputError("copy_from: found " + std::to_string(found) + " elements; expected " +
                       std::to_string(size()) + ", for the shape " +
                       detail::format_dims(get_dims()));
    }
  }
  void check_rank(std::size_t rank) const {
    if (get_dims().size() != rank) {
      throw InputError("accessor: found the shape " + detail::format_dims(get_dims()) +
                       "; expected " + std::to_string(rank) + " dimensions");
    }
  }
  void check_scalar() const {
    if (size() != 1) {
      throw InputError("as_scalar: found the shape " + detail::format_dims(get_dims()) +
                       "; expected one element");
    }
  }

  std::vector<std::int64_t> strides_;  // in elements
};

/// Tensors by name: what goes into a call, and what comes out.
using ValueMap = std::unordered_map<std::string, std::shared_ptr<Tensor>>;

/// Is called with the memory that `tensor_from_memory` was given, when nothing needs it any more.
using Deleter = std::function<void(void*)>;

/// Makes tensors for one model; may outlive it, and be used by several threads.
class TensorAllocator {
 public:
  /// A tensor in memory that the worker maps: a call does not copy it. The memory starts at a
  /// multiple of 64 bytes; its contents are anything (strings are empty).
  ///
  /// @throws InputError a size is negative, or there are too many elements.
  /// @throws SharedMemoryError there is no memory left.
  template <typename T>
  std::shared_ptr<TypedTensor<T>> allocate_tensor(const std::vector<std::int64_t>& dims) {
    using Storage = typename detail::Element<T>::Storage;
    const std::size_t count = checked_count(dims, sizeof(Storage));
    if constexpr (std::is_same_v<T, std::string>) {
      auto strings = std::make_shared<std::vector<std::string>>(count);
      std::string* data = strings->data();
      return make<T>(dims, count, data, std::move(strings), nullptr);
    } else {
      if (count == 0) return make<T>(dims, 0, nullptr, nullptr, nullptr);
      auto buffer = std::make_shared<detail::Buffer>(memory_, count * sizeof(Storage));
      auto* data = reinterpret_cast<Storage*>(buffer->slice().data());
      return make<T>(dims, count, data, nullptr, std::move(buffer));
    }
  }

  /// The same, with the element type as a value.
  ///
  /// @throws UsageError the type is ANY_TENSOR.
  std::shared_ptr<Tensor> allocate_tensor(const std::vector<std::int64_t>& dims, TensorType type) {
    switch (type) {
      case TensorType::FLOAT_TENSOR:
        return allocate_tensor<float>(dims);
      case TensorType::DOUBLE_TENSOR:
        return allocate_tensor<double>(dims);
      case TensorType::STRING_TENSOR:
        return allocate_tensor<std::string>(dims);
      case TensorType::INT8_TENSOR:
        return allocate_tensor<std::int8_t>(dims);
      case TensorType::INT16_TENSOR:
        return allocate_tensor<std::int16_t>(dims);
      case TensorType::INT32_TENSOR:
        return allocate_tensor<std::int32_t>(dims);
      case TensorType::INT64_TENSOR:
        return allocate_tensor<std::int64_t>(dims);
      case TensorType::UINT8_TENSOR:
        return allocate_tensor<std::uint8_t>(dims);
      case TensorType::UINT16_TENSOR:
        return allocate_tensor<std::uint16_t>(dims);
      case TensorType::UINT32_TENSOR:
        return allocate_tensor<std::uint32_t>(dims);
      case TensorType::UINT64_TENSOR:
        return allocate_tensor<std::uint64_t>(dims);
      case TensorType::BOOL_TENSOR:
        return allocate_tensor<bool>(dims);
      case TensorType::FLOAT16_TENSOR:
        return allocate_tensor<float16>(dims);
      case TensorType::BFLOAT16_TENSOR:
        return allocate_tensor<bfloat16>(dims);
      case TensorType::ANY_TENSOR:
        break;
    }
    throw UsageError("allocate_tensor: found the type any; expected a type of elements");
  }

  /// A tensor around memory of the program's own, which each call copies once.
  ///
  /// @param dims the sizes.
  /// @param data as many elements as the sizes say, in C order; any alignment of `T` will do.
  /// @param deleter is called with `data` when nothing needs it any more, or when this throws;
  ///     may be empty.
  /// @throws InputError a size is negative, there are too many elements, or `data` is null.
  template <typename T>
  std::shared_ptr<TypedTensor<T>> tensor_from_memory(const std::vector<std::int64_t>& dims, T* data,
                                                     const Deleter& deleter = {}) {
    using Storage = typename detail::Element<T>::Storage;
    std::shared_ptr<void> owner(static_cast<void*>(data), [deleter](void* memory) {
      if (deleter) deleter(memory);
    });
    const std::size_t count = checked_count(dims, sizeof(Storage));
    if (count != 0 && data == nullptr) {
      throw InputError("tensor_from_memory: found a null pointer");
    }
    return make<T>(dims, count, reinterpret_cast<Storage*>(data), std::move(owner), nullptr);
  }

 private:
  friend class Model;
  explicit TensorAllocator(std::shared_ptr<detail::Allocator> memory)
      : memory_(std::move(memory)) {}

  static std::size_t checked_count(const std::vector<std::int64_t>& dims, std::size_t bytes) {
    const std::optional<std::size_t> count = detail::count_elements(dims, bytes);
    if (!count) {
      throw InputError("found the shape " + detail::format_dims(dims) +
                       "; expected sizes of 0 or more, and fewer elements than memory can hold");
    }
    return *count;
  }

  template <typename T, typename S>
  static std::shared_ptr<TypedTensor<T>> make(std::vector<std::int64_t> dims, std::size_t count,
                                              S* data, std::shared_ptr<void> owner,
                                              std::shared_ptr<detail::Buffer> buffer) {
    return std::shared_ptr<TypedTensor<T>>(
        new TypedTensor<T>(std::move(dims), count, data, std::move(owner), std::move(buffer)));
  }
  template <typename T>
  static std::shared_ptr<TypedTensor<T>> make(std::vector<std::int64_t> dims, std::size_t count,
                                              std::nullptr_t, std::shared_ptr<void> owner,
                                              std::shared_ptr<detail::Buffer> buffer) {
    using Storage = typename detail::Element<T>::Storage;
    return make<T>(std::move(dims), count, static_cast<Storage*>(nullptr), std::move(owner),
                   std::move(buffer));
  }

  std::shared_ptr<detail::Allocator> memory_;
};

// ================================================================================================
// The model
// ================================================================================================

/// A model that is loaded in a worker process of its own.
///
/// May be used by several threads: calls to `infer` wait for each other. A worker that died is
/// started again by the next call. A process that was forked off cannot use the model of its
/// parent.
class Model {
 public:
  /// Load a package (file or folder), a bare model file, or a spec.
  ///
  /// @param path where it is; `~` is expanded.
  /// @throws Error whatever loading raised: ModelError, UntrustedCodeError,
  ///     MissingDependencyError, ...
  /// @throws WorkerError the worker cannot be started, or died.
  explicit Model(const std::string& path, const Options& options = {})
      : state_(std::make_unique<State>(path, options)) {
    if (options.load_model_at_construction) load_model();
  }
  Model(Model&&) noexcept = default;
  Model& operator=(Model&&) noexcept = default;
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;
  /// End the worker. Tensors stay valid.
  ~Model() = default;

  /// Load the model, if that is not done; `infer` and the functions below do it when needed.
  ///
  /// @throws Error as the constructor.
  void load_model() const {
    const std::lock_guard<std::mutex> lock(state_->mutex);
    state_->ensure_worker();
  }

  /// Compute the outputs of one batch.
  ///
  /// @param inputs tensors by name; they are not changed, and not cast.
  /// @param requested_outputs the outputs wanted; empty means all.
  /// @return the outputs by name. Those of 32 KiB or more are views of memory that the worker
  ///     wrote; it will not use that again before the last reference to them is gone.
  /// @throws InputError a tensor does not fit the spec, or a requested output does not exist.
  /// @throws ModelError the model fails.
  /// @throws WorkerError the worker died, or took longer than `Options::timeout` and was killed.
  ///     The next call starts another one.
  std::unique_ptr<ValueMap> infer(const ValueMap& inputs,
                                  const std::vector<std::string>& requested_outputs = {}) {
    const std::lock_guard<std::mutex> lock(state_->mutex);
    return state_->infer(inputs, requested_outputs);
  }

  /// What it takes. Like the three below, of the model as it was first loaded.
  const std::vector<TensorSpec>& get_inputs() const { return info().inputs; }
  /// What it returns; empty for a bare TorchScript file, which does not say.
  const std::vector<TensorSpec>& get_outputs() const { return info().outputs; }
  const std::string& get_name() const { return info().name; }
  /// The platform of its package, or its framework: "onnx", "torchscript", ...
  const std::string& get_platform() const { return info().platform; }
  /// Version of the framework that runs it.
  const std::string& get_framework_version() const { return info().framework_version; }

  /// See TensorAllocator. This does not load the model.
  template <typename T>
  std::shared_ptr<TypedTensor<T>> allocate_tensor(const std::vector<std::int64_t>& dims) {
    return state_->allocator->allocate_tensor<T>(dims);
  }
  std::shared_ptr<Tensor> allocate_tensor(const std::vector<std::int64_t>& dims, TensorType type) {
    return state_->allocator->allocate_tensor(dims, type);
  }
  template <typename T>
  std::shared_ptr<TypedTensor<T>> tensor_from_memory(const std::vector<std::int64_t>& dims, T* data,
                                                     const Deleter& deleter = {}) {
    return state_->allocator->tensor_from_memory<T>(dims, data, deleter);
  }
  template <typename T>
  std::shared_ptr<TypedTensor<T>> tensor_from_memory(T* data, const std::vector<std::int64_t>& dims,
                                                     const Deleter& deleter = {}) {
    return state_->allocator->tensor_from_memory<T>(dims, data, deleter);
  }
  std::shared_ptr<TensorAllocator> get_tensor_allocator() { return state_->allocator; }

  /// Process number of the worker; nothing while there is none, or it was not started by us.
  std::optional<int> worker_pid() const {
    const std::lock_guard<std::mutex> lock(state_->mutex);
    if (state_->worker == nullptr || state_->worker->process.pid() <= 0) return std::nullopt;
    return static_cast<int>(state_->worker->process.pid());
  }

 private:
  using Json = detail::Json;
  using FrameKind = detail::FrameKind;

  /// One INFER: its text, the blocks that it introduces, and what has to live until the reply.
  struct Request {
    std::string payload;
    std::vector<std::shared_ptr<detail::Block>> introduced;
    std::unordered_map<std::uint64_t, std::shared_ptr<detail::Block>> used;
    std::shared_ptr<detail::Buffer> copies;
  };

  struct State {
    State(const std::string& path_, const Options& options_)
        : path(absolute(path_)), options(options_) {
      if (options.threads < 0) {
        throw UsageError("threads: found " + std::to_string(options.threads) +
                         "; expected 0 or more");
      }
      for (const int cpu : options.cpus) {
        if (cpu < 0) {
          throw UsageError("cpus: found " + std::to_string(cpu) + "; expected 0 or more");
        }
      }
      if (options.visible_device < Device::CPU) {
        throw UsageError("visible_device: found " + std::to_string(options.visible_device) +
                         "; expected Device::CPU (-1) or the number of a GPU");
      }
    }
    State(const State&) = delete;
    State& operator=(const State&) = delete;
    ~State() { memory->close(); }

    /// The worker may be started after the program has changed its folder.
    static std::string absolute(const std::string& path) {
      if (path.empty() || path.find('\0') != std::string::npos) {
        throw UsageError("found a path that is empty, or holds a null character");
      }
      if (path.front() == '/' || path.front() == '~') return path;
      std::string folder(256, '\0');
      while (::getcwd(folder.data(), folder.size()) == nullptr) {
        if (errno != ERANGE) {
          throw UsageError("cannot find the current folder: " + detail::system_message(errno));
        }
        folder.resize(folder.size() * 2);
      }
      folder.resize(std::strlen(folder.c_str()));
      return folder + "/" + path;
    }

    // --- starting a worker ----------------------------------------------------------------------

    /// @throws Error
    void ensure_worker() {
      if (worker != nullptr && worker->owner != ::getpid()) {
        throw UsageError("the model was loaded by process " + std::to_string(worker->owner) +
                             ", which this one was forked off",
                         "load the model after the fork, in the process that uses it");
      }
      if (worker != nullptr) return;
      auto fresh = std::make_unique<detail::Worker>();
      const detail::Deadline deadline = detail::deadline_in(options.start_timeout);
      try {
        open(*fresh, deadline);
        const detail::Frame hello = fresh->channel.receive(deadline, fresh->process);
        if (hello.kind == FrameKind::error) detail::throw_error(hello.payload);
        if (hello.kind != FrameKind::hello) detail::bad_message("no HELLO");
        load(*fresh, deadline);
      } catch (const detail::ConnectionClosed&) {
        const bool own = options.socket.empty();
        throw WorkerError(path + ": " + fresh->how_it_ended() + " before the model was loaded",
                          own ? "what it printed is on standard error; it was started with " +
                                    interpreter() + ", where Ingot has to be installed: " +
                                    "Options::python, or INGOT_PYTHON, names another"
                              : "look at what the worker at " + options.socket + " printed");
      } catch (const detail::TimedOut&) {
        fresh->process.end(std::chrono::milliseconds(0));
        throw WorkerError(path + ": " + fresh->label() + " had not loaded the model after " +
                              seconds(options.start_timeout),
                          "Options::start_timeout sets the limit");
      }
      worker = std::move(fresh);
    }

    void open(detail::Worker& fresh, const detail::Deadline& deadline) {
      if (!options.socket.empty()) {
        fresh.channel = detail::Channel(connect(deadline));
        return;
      }
      int ends[2] = {-1, -1};
#if defined(SOCK_CLOEXEC)
      const int failed = ::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends);
#else
      const int failed = ::socketpair(AF_UNIX, SOCK_STREAM, 0, ends);
#endif
      if (failed != 0) {
        throw WorkerError("cannot start a worker: " + detail::system_message(errno));
      }
      detail::Fd ours(ends[0]);
      const detail::Fd theirs(ends[1]);
#if !defined(SOCK_CLOEXEC)
      detail::set_cloexec(ends[0]);
      detail::set_cloexec(ends[1]);
#endif
      fresh.channel = detail::Channel(std::move(ours));
      fresh.process.start(interpreter(), theirs, options.cpus);
    }

    std::string interpreter() const {
      if (!options.python.empty()) return options.python;
      const char* named = std::getenv("INGOT_PYTHON");
      return named != nullptr && *named != '\0' ? named : "python3";
    }

    detail::Fd connect(const detail::Deadline& deadline) const {
      sockaddr_un address{};
      address.sun_family = AF_UNIX;
      if (options.socket.size() >= sizeof address.sun_path) {
        throw UsageError(options.socket +
                         ": the path of a socket is too long; expected less than " +
                         std::to_string(sizeof address.sun_path) + " bytes");
      }
      std::memcpy(address.sun_path, options.socket.data(), options.socket.size());
      detail::Fd fd(::socket(AF_UNIX, SOCK_STREAM, 0));
      if (!fd) throw WorkerError("cannot make a socket: " + detail::system_message(errno));
      detail::set_cloexec(fd.get());
      // A worker with many callers in its queue answers EAGAIN, where a call that waits would
      // wait for ever.
      (void)::fcntl(fd.get(), F_SETFL, O_NONBLOCK);
      while (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) !=
             0) {
        if (errno == EISCONN) break;
        if (errno != EAGAIN && errno != EINTR && errno != EINPROGRESS && errno != EALREADY) {
          throw WorkerError(
              options.socket + ": cannot connect to a worker: " + detail::system_message(errno),
              "start one: python3 -m ingot.runtime.isolation --listen " + options.socket);
        }
        if (deadline && detail::Clock::now() >= *deadline) throw detail::TimedOut{};
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
      }
#if defined(SO_PEERCRED) && defined(__linux__)
      ucred peer{};
      socklen_t size = sizeof peer;
      if (::getsockopt(fd.get(), SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0 ||
          (peer.uid != ::geteuid() && peer.uid != 0)) {
        throw WorkerError(options.socket + ": the worker belongs to another user");
      }
#endif
      return fd;
    }

    /// Send LOAD, and read READY.
    void load(detail::Worker& fresh, const detail::Deadline& deadline) {
      const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
      const detail::Fd progress = detail::create_shared_memory(page);
      fresh.progress.emplace(progress.get(), page);
      const auto flag = [](bool value) { return value ? "true" : "false"; };
      const int device = options.visible_device;
      std::string payload = "{\"path\":";
      Json::quote(payload, path);
      payload += ",\"options\":{\"device\":";
      payload += device < 0 ? "\"cpu\"" : "\"gpu:" + std::to_string(device) + "\"";
      payload += ",\"threads\":";
      payload += options.threads == 0 ? "null" : std::to_string(options.threads);
      payload += ",\"check\":";
      payload += flag(!options.disable_shape_and_type_checking);
      payload += ",\"trust_code\":";
      payload += flag(options.trust_code);
      payload += ",\"ignore_lock\":";
      payload += flag(options.ignore_lock);
      payload += "}}";
      const detail::Frame reply = ask(fresh, FrameKind::load, FrameKind::ready, payload,
                                      {progress.get()}, deadline, fresh.next_sequence());
      if (reply.kind == FrameKind::error) detail::throw_error(reply.payload);
      if (info) return;  // callers hold references to it
      detail::ModelInfo found;
      found.name = detail::text_of(detail::member(reply.payload, "name"), "a name");
      found.platform = detail::text_of(detail::member(reply.payload, "platform"), "a platform");
      found.framework_version = detail::text_or_empty(reply.payload, "framework_version");
      found.inputs = detail::specs_of(detail::member(reply.payload, "inputs"));
      found.outputs = detail::specs_of(detail::member(reply.payload, "outputs"));
      info = std::move(found);
    }

    /// Send a request and return its answer, which is an ERROR or of the kind wanted.
    ///
    /// @throws ProtocolError the reply is no answer to the request.
    /// @throws detail::ConnectionClosed, detail::TimedOut
    static detail::Frame ask(detail::Worker& peer, FrameKind request, FrameKind wanted,
                             const std::string& payload, const std::vector<int>& fds,
                             const detail::Deadline& deadline, std::uint32_t sequence) {
      peer.channel.send(request, sequence, payload, fds, deadline, peer.process);
      detail::Frame reply = peer.channel.receive(deadline, peer.process);
      if (reply.kind == FrameKind::error) {
        const std::string& message =
            detail::text_of(detail::member(reply.payload, "message"), "a message");
        if (reply.sequence == 0) {
          throw ProtocolError("the worker refused a message: " + message);
        }
      } else if (reply.kind != wanted) {
        detail::bad_message("a frame of kind " + std::to_string(static_cast<int>(reply.kind)) +
                            "; expected " + std::to_string(static_cast<int>(wanted)));
      }
      if (reply.sequence != sequence) {
        detail::bad_message("an answer to request " + std::to_string(reply.sequence) +
                            "; expected " + std::to_string(sequence));
      }
      return reply;
    }

    static std::string seconds(Options::Seconds value) {
      std::ostringstream text;
      text.imbue(std::locale::classic());
      text << value.count() << " s";
      return text.str();
    }

    // --- one call -------------------------------------------------------------------------------

    std::unique_ptr<ValueMap> infer(const ValueMap& inputs,
                                    const std::vector<std::string>& requested) {
      for (bool repeated = false;; repeated = true) {
        ensure_worker();
        // What fails here has changed nothing in the worker.
        Request request = make_request(inputs, requested);
        const std::uint32_t sequence = worker->next_sequence();
        try {
          return call(request, requested, sequence);
        } catch (const detail::ConnectionClosed&) {
          const bool began = worker->began(sequence);
          const std::unique_ptr<detail::Worker> gone = std::move(worker);
          const std::string how = gone->how_it_ended();
          // It had died between two calls, and knows nothing of this one.
          if (!began && !repeated) continue;
          throw WorkerError(
              path + ": " + how + (began ? " in the middle of a call" : " before it began a call"),
              "the next call starts anew");
        } catch (const detail::TimedOut&) {
          const std::unique_ptr<detail::Worker> hung = std::move(worker);
          hung->process.end(std::chrono::milliseconds(0));
          throw WorkerError(path + ": " + hung->label() + " had not answered after " +
                                seconds(options.timeout) +
                                (options.socket.empty() ? ", and was ended" : ""),
                            "Options::timeout sets the limit; the next call starts anew");
        }
      }
    }

    /// Lay out the inputs and write the message, but for what changes when it is sent.
    Request make_request(const ValueMap& values, const std::vector<std::string>& requested) {
      // In a fixed order, so that of two errors it is always the same one that is told.
      std::vector<std::pair<std::string_view, const Tensor*>> inputs;
      for (const auto& [name, tensor] : values) inputs.emplace_back(name, tensor.get());
      std::sort(inputs.begin(), inputs.end());
      struct Copy {
        const Tensor* tensor;
        std::size_t offset;
        std::size_t bytes;
      };
      Request request;
      std::vector<Copy> copies;
      std::unordered_map<const Tensor*, std::size_t> copy_of;
      std::unordered_set<std::uint64_t> fresh;
      std::size_t end = 0;
      // One file descriptor is left for the copies.
      constexpr std::size_t most_fresh = detail::Channel::most_fds - 1;
      for (const auto& [name, tensor] : inputs) {
        if (tensor == nullptr) {
          throw InputError("input '" + std::string(name) + "': found a null pointer");
        }
        if (tensor->count_ == 0) continue;
        if (is_ours(*tensor)) {
          const std::shared_ptr<detail::Block>& block = tensor->buffer_->slice().block;
          if (worker->introduced.count(block->number) != 0 || fresh.count(block->number) != 0) {
            continue;
          }
          if (request.introduced.size() < most_fresh) {
            request.introduced.push_back(block);
            fresh.insert(block->number);
            continue;
          }
        }
        if (copy_of.count(tensor) != 0) continue;
        const std::size_t bytes = bytes_of(name, *tensor);
        copy_of.emplace(tensor, copies.size());
        copies.push_back({tensor, end, bytes});
        if (bytes > std::numeric_limits<std::size_t>::max() / 2 - end) {
          throw InputError("input '" + std::string(name) +
                           "': found more bytes than memory can hold");
        }
        end = detail::aligned(end + bytes);
      }
      if (!copies.empty()) {
        request.copies = std::make_shared<detail::Buffer>(memory, end);
        const detail::Slice& slice = request.copies->slice();
        for (const Copy& copy : copies) write_copy(*copy.tensor, slice.data() + copy.offset);
        if (worker->introduced.count(slice.block->number) == 0 &&
            fresh.count(slice.block->number) == 0) {
          request.introduced.push_back(slice.block);
        }
      }
      std::string& out = request.payload;
      out = "{\"tensors\":{";
      const char* comma = "";
      for (const auto& [name, tensor] : inputs) {
        out += comma;
        comma = ",";
        Json::quote(out, name);
        out += ":[";
        const auto copy = copy_of.find(tensor);
        std::size_t bytes = 0;
        if (tensor->count_ == 0) {
          out += "0,0";
        } else if (copy != copy_of.end()) {
          const detail::Slice& slice = request.copies->slice();
          request.used.emplace(slice.block->number, slice.block);
          bytes = copies[copy->second].bytes;
          out += std::to_string(slice.block->number) + "," +
                 std::to_string(slice.offset + copies[copy->second].offset);
        } else {
          const detail::Slice& slice = tensor->buffer_->slice();
          request.used.emplace(slice.block->number, slice.block);
          out += std::to_string(slice.block->number) + "," + std::to_string(slice.offset);
        }
        out += ",\"" + to_string(tensor->type_) + "\"," + detail::format_dims(tensor->dims_);
        if (tensor->type_ == TensorType::STRING_TENSOR) out += "," + std::to_string(bytes);
        out += "]";
      }
      out += "},\"outputs\":";
      if (requested.empty()) {
        out += "null";
      } else {
        comma = "[";
        for (const std::string& name : requested) {
          out += comma;
          comma = ",";
          Json::quote(out, name);
        }
        out += "]";
      }
      // What is added later, numbers of blocks, has room enough.
      if (out.size() > detail::Channel::most_payload / 2) {
        throw InputError("found names and shapes of " + std::to_string(out.size()) +
                         " bytes; expected at most " +
                         std::to_string(detail::Channel::most_payload / 2));
      }
      return request;
    }

    /// Send a request, and make tensors of the reply.
    std::unique_ptr<ValueMap> call(Request& request, const std::vector<std::string>& requested,
                                   std::uint32_t sequence) {
      detail::Worker& peer = *worker;
      detail::Frame reply;
      try {
        std::string& out = request.payload;
        std::vector<int> fds;
        std::vector<std::string> entries;
        for (const auto& block : request.introduced) {
          entries.push_back("[" + std::to_string(block->number) + "," +
                            std::to_string(block->memory.size()) + "]");
          fds.push_back(block->fd.get());
          peer.introduced.insert(block->number);
        }
        append_list(out, "map", entries);
        entries.clear();
        for (const std::uint64_t number : memory->take_dropped()) {
          if (peer.introduced.erase(number) != 0) entries.push_back(std::to_string(number));
        }
        append_list(out, "drop", entries);
        entries.clear();
        for (const std::uint64_t number : peer.remote->take_released()) {
          entries.push_back(std::to_string(number));
        }
        append_list(out, "free", entries);
        out += "}";
        reply = ask(peer, FrameKind::infer, FrameKind::result, out, fds,
                    detail::deadline_in(options.timeout), sequence);
        if (const Json* kept = reply.payload.find("kept")) {
          for (const Json& number : detail::list_of(*kept, "kept")) {
            const auto found =
                request.used.find(detail::natural_of(number, 1, "the number of a block"));
            if (found != request.used.end()) found->second->kept = true;
          }
        }
        if (reply.kind == FrameKind::result) return read_result(peer, reply, requested);
        if (detail::text_or_empty(reply.payload, "type") == "ProtocolError") {
          detail::throw_error(reply.payload);
        }
      } catch (const detail::ConnectionClosed&) {
        throw;
      } catch (const detail::TimedOut&) {
        throw;
      } catch (...) {
        // The two sides may disagree about blocks from here on.
        const std::unique_ptr<detail::Worker> failed = std::move(worker);
        failed->process.end(std::chrono::milliseconds(0));
        throw;
      }
      detail::throw_error(reply.payload);  // the connection goes on
    }

    static void append_list(std::string& out, const char* key,
                            const std::vector<std::string>& entries) {
      out += std::string(",\"") + key + "\":[";
      for (std::size_t i = 0; i < entries.size(); ++i) out += (i == 0 ? "" : ",") + entries[i];
      out += "]";
    }

    bool is_ours(const Tensor& tensor) const noexcept {
      return tensor.buffer_ != nullptr && tensor.buffer_->allocator() == memory.get();
    }

    /// Bytes of a tensor in a message.
    static std::size_t bytes_of(std::string_view name, const Tensor& tensor) {
      if (tensor.type_ != TensorType::STRING_TENSOR) {
        return tensor.count_ * detail::find_type(tensor.type_)->bytes;
      }
      std::size_t bytes = (tensor.count_ + 1) * sizeof(std::uint64_t);
      const auto* strings = static_cast<const std::string*>(tensor.data_);
      for (std::size_t i = 0; i < tensor.count_; ++i) {
        if (!detail::is_utf8(strings[i])) {
          throw InputError("input '" + std::string(name) + "': element " + std::to_string(i) +
                           ": found text that is not UTF-8");
        }
        bytes += strings[i].size();
      }
      return bytes;
    }

    static void write_copy(const Tensor& tensor, char* to) {
      if (tensor.type_ != TensorType::STRING_TENSOR) {
        std::memcpy(to, tensor.data_, tensor.count_ * detail::find_type(tensor.type_)->bytes);
        return;
      }
      const auto* strings = static_cast<const std::string*>(tensor.data_);
      char* text = to + (tensor.count_ + 1) * sizeof(std::uint64_t);
      std::uint64_t at = 0;
      std::memcpy(to, &at, sizeof at);
      for (std::size_t i = 0; i < tensor.count_; ++i) {
        std::memcpy(text + at, strings[i].data(), strings[i].size());
        at += strings[i].size();
        std::memcpy(to + (i + 1) * sizeof at, &at, sizeof at);
      }
    }

    // --- the reply ------------------------------------------------------------------------------

    static std::unique_ptr<ValueMap> read_result(detail::Worker& peer, detail::Frame& reply,
                                                 const std::vector<std::string>& requested) {
      using detail::bad_message;
      const std::vector<Json>& map = detail::list_of(detail::member(reply.payload, "map"), "map");
      if (map.size() != reply.fds.size()) {
        bad_message(std::to_string(map.size()) + " blocks and " + std::to_string(reply.fds.size()) +
                    " file descriptors");
      }
      for (std::size_t i = 0; i < map.size(); ++i) {
        const std::vector<Json>& pair = detail::list_of(map[i], "a block");
        if (pair.size() != 2) bad_message("a block that is no pair");
        peer.remote->add(detail::natural_of(pair[0], 1, "the number of a block"),
                         std::move(reply.fds[i]), detail::natural_of(pair[1], 1, "a size"));
      }
      const Json& tensors = detail::member(reply.payload, "tensors");
      if (tensors.kind != Json::Kind::object) bad_message("tensors are no object");
      auto outputs = std::make_unique<ValueMap>();
      std::unordered_map<std::uint64_t, std::shared_ptr<detail::RemoteBlocks::Lease>> leases;
      for (std::size_t i = 0; i < tensors.keys.size(); ++i) {
        auto tensor = read_tensor(peer, tensors.keys[i], tensors.items[i], leases);
        if (!outputs->emplace(tensors.keys[i], std::move(tensor)).second) {
          bad_message("output '" + tensors.keys[i] + "' twice");
        }
      }
      for (const std::string& name : requested) {
        if (outputs->count(name) == 0) bad_message("no output '" + name + "'");
      }
      for (const Json& number : detail::list_of(detail::member(reply.payload, "drop"), "drop")) {
        peer.remote->drop(detail::natural_of(number, 1, "the number of a block"));
      }
      return outputs;
    }

    static std::shared_ptr<Tensor> read_tensor(
        detail::Worker& peer, const std::string& name, const Json& item,
        std::unordered_map<std::uint64_t, std::shared_ptr<detail::RemoteBlocks::Lease>>& leases) {
      const auto fail = [&name](const std::string& what) {
        detail::bad_message("output '" + name + "': " + what);
      };
      const std::vector<Json>& parts = detail::list_of(item, "a tensor");
      if (parts.size() < 4) fail("found " + std::to_string(parts.size()) + " entries; expected 4");
      const std::uint64_t block = detail::natural_of(parts[0], 0, "the number of a block");
      const std::uint64_t offset = detail::natural_of(parts[1], 0, "an offset");
      const detail::TypeRow* type =
          detail::find_type(std::string_view(detail::text_of(parts[2], "a dtype")));
      if (type == nullptr) fail("dtype '" + parts[2].string + "'");
      std::vector<std::int64_t> dims;
      for (const Json& size : detail::list_of(parts[3], "a shape")) {
        dims.push_back(static_cast<std::int64_t>(detail::natural_of(size, 0, "a size")));
      }
      const bool strings = type->type == TensorType::STRING_TENSOR;
      const std::size_t width = strings ? sizeof(std::uint64_t) : type->bytes;
      const std::optional<std::size_t> count = detail::count_elements(dims, width);
      if (!count) fail("shape " + detail::format_dims(dims));
      if (*count == 0) return make_output(type->type, std::move(dims), 0, nullptr, nullptr);
      std::uint64_t bytes = static_cast<std::uint64_t>(*count) * width;
      if (strings) {
        if (parts.size() < 5) fail("no number of bytes");
        const std::uint64_t said = detail::natural_of(parts[4], 0, "a number of bytes");
        if (said < bytes + width) fail("strings of " + std::to_string(said) + " bytes");
        bytes = said;
      }
      std::shared_ptr<detail::RemoteBlocks::Lease>& lease = leases[block];
      if (lease == nullptr) lease = detail::RemoteBlocks::lease(peer.remote, block);
      const std::uint64_t size = lease->memory->size();
      if (offset % detail::alignment != 0 || offset > size || bytes > size - offset) {
        fail("bytes " + std::to_string(offset) + " to " + std::to_string(offset) + " + " +
             std::to_string(bytes) + " of a block of " + std::to_string(size) +
             "; expected a multiple of 64, and all within the block");
      }
      char* data = lease->memory->data() + offset;
      if (!strings && bytes < copy_below) {
        std::shared_ptr<void> copy = copy_of(data, static_cast<std::size_t>(bytes));
        auto* first = static_cast<char*>(copy.get());
        return make_output(type->type, std::move(dims), *count, first, std::move(copy));
      }
      if (!strings) return make_output(type->type, std::move(dims), *count, data, lease);
      auto decoded = decode_strings(name, data, *count, bytes);
      std::string* first = decoded->data();
      return std::shared_ptr<Tensor>(new TypedTensor<std::string>(std::move(dims), *count, first,
                                                                  std::move(decoded), nullptr));
    }

    /// Smaller outputs are copied: a program that gathers thousands of them must not hold as many
    /// blocks.
    static constexpr std::uint64_t copy_below = 32U << 10;

    static std::shared_ptr<void> copy_of(const char* data, std::size_t bytes) {
      constexpr std::align_val_t alignment{detail::alignment};
      std::shared_ptr<void> copy(::operator new(bytes, alignment), [](void* memory) {
        ::operator delete(memory, std::align_val_t{detail::alignment});
      });
      std::memcpy(copy.get(), data, bytes);
      return copy;
    }

    static std::shared_ptr<std::vector<std::string>> decode_strings(const std::string& name,
                                                                    const char* data,
                                                                    std::size_t count,
                                                                    std::uint64_t bytes) {
      const std::uint64_t entries = (static_cast<std::uint64_t>(count) + 1) * sizeof(std::uint64_t);
      const std::uint64_t most = bytes - entries;
      // Each entry is read once: the worker could change it between a check and its use.
      const auto entry = [data](std::size_t i) {
        std::uint64_t value = 0;
        std::memcpy(&value, data + i * sizeof value, sizeof value);
        return value;
      };
      auto strings = std::make_shared<std::vector<std::string>>();
      strings->reserve(count);
      std::uint64_t from = entry(0);
      for (std::size_t i = 0; i < count; ++i) {
        const std::uint64_t to = entry(i + 1);
        if (from > to || to > most) {
          detail::bad_message("output '" + name + "': string " + std::to_string(i) +
                              " is not within the " + std::to_string(most) + " bytes of text");
        }
        strings->emplace_back(data + entries + from, static_cast<std::size_t>(to - from));
        from = to;
      }
      return strings;
    }

    template <typename T>
    static std::shared_ptr<Tensor> make_typed(std::vector<std::int64_t> dims, std::size_t count,
                                              char* data, std::shared_ptr<void> owner) {
      using Storage = typename detail::Element<T>::Storage;
      return std::shared_ptr<Tensor>(new TypedTensor<T>(
          std::move(dims), count, reinterpret_cast<Storage*>(data), std::move(owner), nullptr));
    }

    static std::shared_ptr<Tensor> make_output(TensorType type, std::vector<std::int64_t> dims,
                                               std::size_t count, char* data,
                                               std::shared_ptr<void> owner) {
      switch (type) {
        case TensorType::FLOAT_TENSOR:
          return make_typed<float>(std::move(dims), count, data, std::move(owner));
        case TensorType::DOUBLE_TENSOR:
          return make_typed<double>(std::move(dims), count, data, std::move(owner));
        case TensorType::STRING_TENSOR:
          return make_typed<std::string>(std::move(dims), count, data, std::move(owner));
        case TensorType::INT8_TENSOR:
          return make_typed<std::int8_t>(std::move(dims), count, data, std::move(owner));
        case TensorType::INT16_TENSOR:
          return make_typed<std::int16_t>(std::move(dims), count, data, std::move(owner));
        case TensorType::INT32_TENSOR:
          return make_typed<std::int32_t>(std::move(dims), count, data, std::move(owner));
        case TensorType::INT64_TENSOR:
          return make_typed<std::int64_t>(std::move(dims), count, data, std::move(owner));
        case TensorType::UINT8_TENSOR:
          return make_typed<std::uint8_t>(std::move(dims), count, data, std::move(owner));
        case TensorType::UINT16_TENSOR:
          return make_typed<std::uint16_t>(std::move(dims), count, data, std::move(owner));
        case TensorType::UINT32_TENSOR:
          return make_typed<std::uint32_t>(std::move(dims), count, data, std::move(owner));
        case TensorType::UINT64_TENSOR:
          return make_typed<std::uint64_t>(std::move(dims), count, data, std::move(owner));
        case TensorType::BOOL_TENSOR:
          return make_typed<bool>(std::move(dims), count, data, std::move(owner));
        case TensorType::FLOAT16_TENSOR:
          return make_typed<float16>(std::move(dims), count, data, std::move(owner));
        case TensorType::BFLOAT16_TENSOR:
          return make_typed<bfloat16>(std::move(dims), count, data, std::move(owner));
        case TensorType::ANY_TENSOR:
          break;
      }
      detail::bad_message("a tensor of no type");
    }

    const std::string path;
    const Options options;
    std::mutex mutex;
    std::shared_ptr<detail::Allocator> memory = std::make_shared<detail::Allocator>();
    std::shared_ptr<TensorAllocator> allocator{new TensorAllocator(memory)};
    std::optional<detail::ModelInfo> info;
    std::unique_ptr<detail::Worker> worker;
  };

  const detail::ModelInfo& info() const {
    const std::lock_guard<std::mutex> lock(state_->mutex);
    if (!state_->info) state_->ensure_worker();
    return *state_->info;
  }

  std::unique_ptr<State> state_;
};

/// Neuropod's name of it; `neuropod/neuropod.hh` has the others.
using Neuropod = Model;

}  // namespace ingot

#endif  // INGOT_HPP
