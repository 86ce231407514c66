#include "core/errors.hpp"

#include <array>
#include <charconv>

#include "tessera/schema.hpp"

namespace tessera::core {

Status refuse(StatusCode code, std::string_view op, std::string_view argument,
              std::string_view expected, std::string_view got) {
  std::string message;
  message.append(op).append(": ").append(argument);
  message.append(": expected ").append(expected).append(", got ").append(got);
  return {code, std::move(message)};
}

std::string alternatives(std::span<const std::string_view> names) {
  std::string text;
  for (std::size_t i = 0; i < names.size(); ++i) {
    text.append(i == 0 ? "" : i + 1 == names.size() ? " or " : ", ").append(names[i]);
  }
  return text;
}

std::string to_string(DLDataType dtype) {
  std::string name;
  switch (dtype.code) {
    case kDLInt:
      name = "int";
      break;
    case kDLUInt:
      name = "uint";
      break;
    case kDLFloat:
      name = "float";
      break;
    case kDLBfloat:
      name = "bfloat";
      break;
    case kDLComplex:
      name = "complex";
      break;
    case 6:  // kDLBool, which dlpack.h names from 0.8 on
      return "bool";
    case dtypes::kFloat8E4m3Code:
      return "float8_e4m3fn";
    case 11:  // these and others dlpack.h names from 1.1 on
      return "float8_e4m3fnuz";
    case 12:
      return "float8_e5m2";
    case 13:
      return "float8_e5m2fnuz";
    case 14:
      return "float8_e8m0fnu";
    default:
      name = "dtype code " + std::to_string(dtype.code) + " of bits ";
  }
  name += std::to_string(dtype.bits);
  if (dtype.lanes != 1) name.append("x").append(std::to_string(dtype.lanes));
  return name;
}

std::string to_string(DLDevice device) {
  switch (device.device_type) {
    case kDLCPU:
      return "cpu";
    case kDLCUDA:
      return "cuda:" + std::to_string(device.device_id);
    default:
      return "device type " + std::to_string(device.device_type) + ":" +
             std::to_string(device.device_id);
  }
}

std::string to_string(float value) {
  std::array<char, 32> text{};
  return {text.data(), std::to_chars(text.data(), text.data() + text.size(), value).ptr};
}

}  // namespace tessera::core
