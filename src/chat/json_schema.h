#pragma once

#include <string>

namespace firp {

/// A grammar (GBNF) of the JSON texts that a JSON schema describes, by llama-common. An Error for
/// what is no schema, or says what a grammar cannot.
std::string grammar_of_schema(const std::string& schema);

}  // namespace firp
