#include "chat/json_schema.h"

#include <fmt/format.h>
#include <json-schema-to-grammar.h>

#include <exception>

#include "base/error.h"
#include "model/ggml_log.h"

namespace firp {

std::string grammar_of_schema(const std::string& schema) {
  try {
    return json_schema_to_grammar(common_json::parse(schema));
  } catch (const std::exception& error) {
    throw Error(fmt::format("the JSON schema cannot be followed: {}", one_line(error.what())));
  }
}

}  // namespace firp
