#include "kernels/ops/strings.h"

#include <cstdint>
#include <cstring>

#include "tensorflow/core/platform/tstring.h"

namespace whale {
namespace {

void PutNumber(int64_t number, std::vector<char>* packed) {
  const char* bytes = reinterpret_cast<const char*>(&number);
  packed->insert(packed->end(), bytes, bytes + sizeof(number));
}

// Takes numbers and strings from the front, and no more than there is.
class Reader {
 public:
  explicit Reader(const std::vector<char>& packed) : packed_(packed) {}

  size_t left() const { return packed_.size() - at_; }

  bool TakeNumber(int64_t* number) {
    if (left() < sizeof(*number)) return false;
    std::memcpy(number, packed_.data() + at_, sizeof(*number));
    at_ += sizeof(*number);
    return true;
  }
  bool TakeString(int64_t length, std::string* string) {
    if (length < 0 || static_cast<uint64_t>(length) > left()) return false;
    string->assign(packed_.data() + at_, length);
    at_ += length;
    return true;
  }

 private:
  const std::vector<char>& packed_;
  size_t at_ = 0;
};

}  // namespace

std::vector<char> PackStrings(const tensorflow::Tensor& value) {
  std::vector<char> packed;
  const auto strings = value.flat<tensorflow::tstring>();
  size_t bytes = sizeof(int64_t) * (1 + value.dims() + strings.size());
  for (int64_t i = 0; i < strings.size(); ++i) bytes += strings(i).size();
  packed.reserve(bytes);
  PutNumber(value.dims(), &packed);
  for (int i = 0; i < value.dims(); ++i) PutNumber(value.dim_size(i), &packed);
  for (int64_t i = 0; i < strings.size(); ++i) PutNumber(static_cast<int64_t>(strings(i).size()), &packed);
  for (int64_t i = 0; i < strings.size(); ++i) {
    packed.insert(packed.end(), strings(i).data(), strings(i).data() + strings(i).size());
  }
  return packed;
}

absl::Status UnpackStrings(const std::vector<char>& packed, tensorflow::TensorShape* shape,
                           std::vector<std::string>* strings) {
  const absl::Status wrong = absl::InvalidArgumentError(std::to_string(packed.size()) +
                                                        " bytes that are no packed strings");
  Reader reader(packed);
  int64_t dims = 0;
  if (!reader.TakeNumber(&dims) || dims < 0 || dims > tensorflow::TensorShape::MaxDimensions()) return wrong;
  std::vector<int64_t> sizes(dims);
  for (int64_t& size : sizes) {
    if (!reader.TakeNumber(&size)) return wrong;
  }
  TF_RETURN_IF_ERROR(tensorflow::TensorShape::BuildTensorShape(sizes, shape));
  const int64_t count = shape->num_elements();
  if (static_cast<uint64_t>(count) > reader.left() / sizeof(int64_t)) return wrong;
  std::vector<int64_t> lengths(count);
  for (int64_t& length : lengths) reader.TakeNumber(&length);
  strings->resize(count);
  for (int64_t i = 0; i < count; ++i) {
    if (!reader.TakeString(lengths[i], &(*strings)[i])) return wrong;
  }
  return reader.left() == 0 ? absl::OkStatus() : wrong;
}

}  // namespace whale
