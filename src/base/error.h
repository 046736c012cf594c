#pragma once

#include <stdexcept>

namespace firp {

/// What the user can do something about: bad files, bad flags, limits reached. The message is one
/// line that names the thing and what to do. The front doors print it and exit with 1.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// A model that is sound but has what our own forward pass does not know: llama.cpp may run it.
struct Unsupported : Error {
  using Error::Error;
};

/// Work that ended early because it was asked to (a signal, a server that stops). Nothing is wrong,
/// and what was there before that work still is.
struct Cancelled : Error {
  Cancelled() : Error("interrupted") {}
};

}  // namespace firp
