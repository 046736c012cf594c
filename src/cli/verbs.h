#pragma once

#include <CLI/CLI.hpp>
#include <functional>

namespace firp {

/// A verb of the program: its flags are added to `program`; `run` does the work once they are
/// parsed, and returns the exit status.
struct Verb {
  CLI::App* app;
  std::function<int()> run;
};

Verb add_generate(CLI::App& program);
Verb add_chat(CLI::App& program);
Verb add_serve(CLI::App& program);
Verb add_demo(CLI::App& program);
/// `arguments`: the program's own, ended by nullptr.
Verb add_train(CLI::App& program, char** arguments);
Verb add_bench(CLI::App& program);
Verb add_inspect(CLI::App& program);
Verb add_rpc_server(CLI::App& program);
Verb add_study(CLI::App& program, char** arguments);  ///< as add_train

}  // namespace firp
