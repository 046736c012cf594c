#pragma once

#include "serve/front.h"
#include "serve/server.h"

namespace firp {

/// Adds what Google's Vertex AI asks of a container that serves predictions
/// (https://cloud.google.com/vertex-ai/docs/predictions/custom-container-requirements), in
/// llama-server's form: `{"instances": [...]}` holds requests of other endpoints, each with the
/// endpoint's name as its "@requestFormat" ("chatCompletions", or "/v1/chat/completions"). They are
/// answered at once, and not streamed. An Error where a route is no path.
void add_vertex_routes(Front& front, const VertexRoutes& vertex);

}  // namespace firp
