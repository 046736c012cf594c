#pragma once

#include <ggml.h>

#include <memory>
#include <span>
#include <vector>

#include "model/heads.h"

namespace firp {

/// Draft maps and adapters on the backend where libllama's residual stream lies: small ggml graphs
/// that read the stream and write pseudo rows into it, without a copy to the host. The CPU is a
/// backend like the others.
class DeviceMaps {
 public:
  /// A pseudo row of the batch that enters the stream now.
  struct Entry {
    int row;                           ///< of the batch, and of the stream
    int step;                          ///< j
    int source_row;                    ///< of the stream: where h_i^t is; -1: it is `source`
    std::span<const float> source;     ///< [d]
    std::span<const float> embedding;  ///< [d], of the token behind the anchor; else empty
  };

  /// `heads` must outlive it. `threads`: where the backend computes with the CPU's.
  DeviceMaps(const Heads& heads, int threads);
  ~DeviceMaps();

  /// Writes p_{i,j} of the entries into `stream`, [d x rows] F32 on any backend. std::runtime_error
  /// where the backend fails.
  void enter(ggml_tensor* stream, std::span<const Entry> entries);
  /// Applies the adapter before layer `layer`, if there is one, to some rows of the stream.
  void adapt(ggml_tensor* stream, int layer, std::span<const int> rows);

 private:
  struct Device;
  Device& device_of(const ggml_tensor* stream);

  const Heads& heads_;
  const int threads_;
  std::vector<std::unique_ptr<Device>> devices_;  ///< those that have held the stream so far
};

}  // namespace firp
