#include "model/tensor_types.h"

namespace firp {

std::string tensor_type_names() {
  std::string names;
  for (const ggml_type type : kMatrixTypes) {
    if (!names.empty()) names += ", ";
    names += ggml_type_name(type);
  }
  return names;
}

}  // namespace firp
